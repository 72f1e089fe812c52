//! How far the claim of one connection has come. Free of SQL.
//!
//! Rows above `cursor` are claimed in insert order. A row at or below it that was not visible then belongs to a
//! transaction that was in progress: these are kept in `pending` until one look has seen them ended. What was skipped
//! because somebody held its lock is found by a sweep, from `low` up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::checkpoint::Checkpoint;
use super::due::Due;
use super::late::Late;

/// Claim state of one connection.
#[derive(Debug, Clone)]
pub struct Lane {
    /// `connections.name`.
    pub name: Arc<str>,
    /// The connection is up, so that claiming makes sense.
    pub ready: bool,
    /// When the connection came up, or went down, last.
    pub changed_at: Option<SystemTime>,
    /// A warning of ids that were used twice is not repeated before this.
    pub warned_at: Option<Instant>,
    /// Highest id claimed in insert order.
    pub cursor: i64,
    /// Transactions that were in progress at a claim and may own rows at or below the cursor; each with an id above
    /// which all of its own are.
    pub pending: BTreeMap<u64, i64>,
    /// A look for late committers that goes on with the next claim.
    pub late: Option<Late>,
    /// Claimed and not settled.
    pub in_flight: usize,
    /// Of these, found by `deliver_at`.
    pub delayed: usize,
    /// Bytes of those in flight.
    pub bytes: usize,
    /// The last claim ended at its limit: there may be more.
    pub more: bool,
    /// When delayed messages are looked for.
    pub due: Due,
    /// Messages that an earlier worker or connection may have sent: ids up to this one, due by then. Until they are
    /// settled no position is written, which the next recovery would read from.
    pub unsettled: Option<(i64, SystemTime)>,
    /// Up to where its streams are settled.
    pub checkpoint: Checkpoint,
    /// Where the running sweep goes on; `None` between sweeps.
    pub sweep_from: Option<i64>,
    low: i64,
    lowest_seen: Option<i64>,
    candidate: Option<Candidate>,
}

/// An id below which a sweep saw nothing, good as a start once the transactions before `next` have ended.
#[derive(Debug, Clone, PartialEq)]
struct Candidate {
    id: i64,
    next: u64,
    ripe: bool,
}

impl Lane {
    /// A lane that has claimed nothing yet.
    pub fn new(name: Arc<str>) -> Lane {
        Lane {
            name,
            ready: false,
            changed_at: None,
            warned_at: None,
            cursor: 0,
            pending: BTreeMap::new(),
            late: None,
            in_flight: 0,
            delayed: 0,
            bytes: 0,
            more: true,
            due: Due::default(),
            unsettled: None,
            checkpoint: Checkpoint::default(),
            sweep_from: None,
            low: 0,
            lowest_seen: None,
            candidate: None,
        }
    }

    /// Starts over from the first id: the sequence was set back, or claimed rows came back.
    pub fn rewind(&mut self, to: i64) {
        self.cursor = self.cursor.min(to);
        self.low = self.low.min(to);
        self.pending.values_mut().for_each(|above| *above = (*above).min(to));
        self.candidate = None;
        self.more = true;
    }

    /// These were in progress at a claim: what they own lies above this id.
    pub fn awaits(&mut self, xids: impl Iterator<Item = u64>, above: i64) {
        for xid in xids {
            self.pending.entry(xid).or_insert(above);
        }
    }

    /// Begins a sweep; `oldest` is the oldest transaction in progress.
    pub fn begin_sweep(&mut self, oldest: u64) {
        if let Some(candidate) = &mut self.candidate {
            // Every transaction that could own an id below the candidate has ended: what it left is seen by this
            // sweep or is gone, so that the next one can start there.
            candidate.ripe = oldest >= candidate.next;
        }
        self.lowest_seen = None;
        self.sweep_from = Some(self.low);
    }

    /// Makes the next sweep start from the first id, at once if need be, and the next look for what is due look at all.
    pub fn sweep_all(&mut self) {
        self.due.all_soon();
        self.low = 0;
        self.candidate = None;
    }

    /// Takes note of a row the sweep has seen.
    pub fn swept(&mut self, id: i64) {
        self.lowest_seen = Some(self.lowest_seen.map_or(id, |lowest| lowest.min(id)));
        self.sweep_from = Some(id.saturating_add(1));
    }

    /// Ends a sweep that saw everything up to the cursor; `next` is the next transaction to begin.
    pub fn end_sweep(&mut self, next: u64) {
        let lowest = self.lowest_seen.unwrap_or(self.cursor);
        if let Some(candidate) = &self.candidate {
            if !candidate.ripe {
                self.sweep_from = None;
                return;
            }
            self.low = self.low.max(candidate.id.min(lowest));
        }
        self.candidate = Some(Candidate {
            id: lowest,
            next,
            ripe: false,
        });
        self.sweep_from = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Lane {
        Lane {
            cursor: 100,
            ..Lane::new("default".into())
        }
    }

    #[test]
    fn the_sweep_moves_up_once_older_transactions_have_ended() {
        let mut lane = lane();
        lane.begin_sweep(10);
        assert_eq!(lane.sweep_from, Some(0));
        lane.swept(40);
        lane.swept(41);
        assert_eq!(lane.sweep_from, Some(42));
        lane.end_sweep(20);
        lane.begin_sweep(20);
        assert_eq!(
            lane.sweep_from,
            Some(0),
            "this sweep looks for what those transactions left"
        );
        lane.swept(60);
        lane.end_sweep(30);
        lane.begin_sweep(30);
        assert_eq!(lane.sweep_from, Some(40));
    }

    #[test]
    fn an_old_transaction_keeps_the_sweep_down() {
        let mut lane = lane();
        lane.begin_sweep(10);
        lane.end_sweep(20);
        lane.begin_sweep(15);
        lane.end_sweep(25);
        lane.begin_sweep(15);
        assert_eq!(lane.sweep_from, Some(0));
        lane.end_sweep(25);
        lane.begin_sweep(20);
        lane.end_sweep(26);
        lane.begin_sweep(26);
        assert_eq!(lane.sweep_from, Some(100));
    }

    #[test]
    fn a_late_row_below_the_candidate_keeps_the_sweep_down() {
        let mut lane = lane();
        lane.begin_sweep(10);
        lane.swept(50);
        lane.end_sweep(20);
        lane.begin_sweep(20);
        lane.swept(5);
        lane.swept(50);
        lane.end_sweep(30);
        lane.begin_sweep(30);
        assert_eq!(lane.sweep_from, Some(5));
    }

    #[test]
    fn rewinding_starts_over() {
        let mut lane = lane();
        lane.begin_sweep(1);
        lane.end_sweep(2);
        lane.rewind(0);
        assert_eq!((lane.cursor, lane.low, lane.candidate), (0, 0, None));
    }
}
