//! Claiming: which messages are taken next, from which connection, in which way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgrx::spi::SpiResult;

use super::Worker;
use super::due::Look;
use super::lane::Lane;
use super::late::Late;
use super::visit::Reached;
use crate::message::Message;
use crate::order::{End, Key, Lane as Way, MAX_PER_KEY};
use crate::pg;
use crate::relay::Command;
use crate::snapshot::Snapshot;
use crate::status;
use crate::store::{Found, Visit, config};

/// Most keys claimed one by one in a transaction.
const KEYS_AT_ONCE: usize = 100;
/// How long one transaction walks over ids for late committers, about.
const LATE_AT_ONCE: Duration = Duration::from_millis(20);

/// What one transaction has claimed.
#[derive(Default)]
pub(super) struct Claimed {
    pub(super) messages: Vec<Arc<Message>>,
    /// Transactions that inserted them.
    pub(super) xids: BTreeSet<u64>,
    pub(super) rejoin: Vec<i64>,
    /// What had ended when late committers were looked for; none if there are none.
    pub(super) view: Option<Snapshot>,
    /// First message of a key that the view does not show.
    pub(super) postponed: Option<i64>,
}

pub(super) fn key_of(message: &Message) -> Option<Key> {
    message.key.clone().map(|key| Key {
        connection: message.connection.clone(),
        key,
    })
}

impl Worker {
    /// Claims for every connection that is up.
    pub(super) fn claim(&mut self, claimed: &mut Claimed) -> SpiResult<()> {
        self.forget_notes();
        for number in 0..self.lanes.len() {
            if self.lanes[number].ready {
                self.claim_lane(number, claimed)?;
            }
        }
        if claimed.messages.is_empty() && self.flights.is_empty() {
            self.follow_sequence()?;
        }
        Ok(())
    }

    fn claim_lane(&mut self, number: usize, claimed: &mut Claimed) -> SpiResult<()> {
        self.lanes[number].more = false;
        claimed.view = None;
        if !self.claim_late(number, claimed)? {
            // What is newer must not overtake the rest of these.
            return Ok(());
        }
        self.claim_due(number, claimed)?;
        self.claim_held_keys(number, claimed)?;
        if self.lanes[number].sweep_from.is_some() {
            self.sweep(number, claimed)?;
        }
        self.claim_in_order(number, claimed)
    }

    /// Rows of transactions that were in progress at an earlier claim and have ended since; false if there may be more.
    ///
    /// The claims that follow look a moment later. A transaction that committed in between may have inserted into a key
    /// after one that this claim was about to see, so that they take keyed rows only as far as this claim has looked.
    fn claim_late(&mut self, number: usize, claimed: &mut Claimed) -> SpiResult<bool> {
        if self.lanes[number].pending.is_empty() {
            return Ok(true);
        }
        // A look that goes on keeps its view: what has ended since is not among what it looks for.
        let mut late = match self.lanes[number].late.take() {
            Some(late) => late,
            None => {
                let view = pg::snapshot();
                // After the view: whoever had ended then has left his notes.
                self.notes.read(status::notes(), pg::next_xid);
                let lane = &self.lanes[number];
                let pending = lane.pending.iter().map(|(xid, above)| (*xid, *above));
                Late::new(view, pending, &self.notes, lane.cursor)
            }
        };
        claimed.view = Some(late.view.clone());
        let began = Instant::now();
        while let Some(span) = late.step() {
            let mut last = None;
            let exhausted = self.visit(number, Way::Behind, claimed, |store, lane, visit| {
                let row = &mut |found: Found| {
                    last = Some(found.id());
                    (visit.row)(found)
                };
                store.claim_late(lane, span, &late.sought, Visit { row, ..visit })
            })?;
            let seen = if exhausted { Some(span.high) } else { last };
            seen.into_iter().for_each(|id| late.seen(id));
            let lane = &mut self.lanes[number];
            if !exhausted || began.elapsed() > LATE_AT_ONCE && late.step().is_some() {
                lane.more = true;
                lane.late = Some(late);
                return Ok(false);
            }
        }
        late.ended.iter().for_each(|xid| {
            self.lanes[number].pending.remove(xid);
        });
        self.view = late.view;
        Ok(true)
    }

    /// Forgets notes of transactions that no claim will ask for. To be called before the first claim of a cycle: what the
    /// last one no longer waited for, one that was rolled back waits for again.
    fn forget_notes(&mut self) {
        let lanes = &self.lanes;
        let wanted = |xid| lanes.iter().any(|lane| lane.pending.contains_key(&xid));
        self.notes.forget(&self.view, wanted);
    }

    fn claim_due(&mut self, number: usize, claimed: &mut Claimed) -> SpiResult<()> {
        if !self.has_room_for_due(number) {
            // When there is room is not a matter of time: a look that is over time must not keep this busy until then.
            self.lanes[number].due.soon();
            self.lanes[number].more |= !self.has_room(number);
            return Ok(());
        }
        let Some(look) = self.lanes[number].due.look(Instant::now(), pg::now()) else {
            return Ok(());
        };
        let poll = self.settings.poll_interval;
        let mut wait = self.next_due(number, &look)?;
        if wait == Some(Duration::ZERO) {
            let in_flight = self.delayed_in_flight(number);
            let mut last = None;
            let exhausted = self.visit(number, Way::Due, claimed, |store, lane, visit| {
                let seen = store.claim_due(lane, &in_flight, look.after, visit)?;
                last = seen.last;
                Ok(seen)
            })?;
            // Before the claim by key, which passes over what has a `deliver_at` and does not look there again.
            if !claimed.rejoin.is_empty() {
                config::rejoin(std::mem::take(&mut claimed.rejoin))?;
            }
            if !exhausted {
                self.lanes[number].due.goes_on(&look, last, Instant::now());
                return Ok(());
            }
            wait = self.next_due(number, &look)?;
        }
        self.lanes[number].due.ends(&look, wait, Instant::now(), poll);
        Ok(())
    }

    /// How long until the first delayed message of this look is due, but for those in flight; `None` if there is none.
    fn next_due(&mut self, number: usize, look: &Look) -> SpiResult<Option<Duration>> {
        let in_flight = self.delayed_in_flight(number);
        let millis = self.store.next_due(&self.lanes[number].name, &in_flight, look.after)?;
        Ok(millis.map(|millis| Duration::try_from_secs_f64(millis / 1000.0).unwrap_or_default()))
    }

    fn delayed_in_flight(&self, number: usize) -> Vec<i64> {
        if self.lanes[number].delayed == 0 {
            return Vec::new();
        }
        let of_lane = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.delayed && flight.lane == number);
        of_lane.map(|(id, _)| *id).collect()
    }

    /// Keys that were held and may go on.
    fn claim_held_keys(&mut self, number: usize, claimed: &mut Claimed) -> SpiResult<()> {
        let ready = self.keys.ready(&self.lanes[number].name, KEYS_AT_ONCE);
        if ready.len() == KEYS_AT_ONCE {
            self.lanes[number].more = true;
        }
        for (key, from) in ready {
            let mut reached = Reached::default();
            let exhausted = self.visit(number, Way::Key, claimed, |store, lane, visit| {
                let most = visit.most.min(MAX_PER_KEY / 2);
                let row = &mut |found: Found| {
                    reached.add(&found);
                    (visit.row)(found)
                };
                store.claim_by_key(lane, &key.key, from, Visit { row, most, ..visit })
            })?;
            self.keys.claimed(&key, reached.end(exhausted), exhausted);
            if let Some(id) = claimed.postponed.take() {
                self.keys.left(&key, id);
                self.lanes[number].more = true;
            }
        }
        Ok(())
    }

    /// Rows at or below the cursor that somebody's lock made an earlier claim skip.
    fn sweep(&mut self, number: usize, claimed: &mut Claimed) -> SpiResult<()> {
        let lane = &self.lanes[number];
        let (from, cursor) = (lane.sweep_from.unwrap_or(0), lane.cursor);
        let mut seen = Vec::new();
        let exhausted = self.visit(number, Way::Behind, claimed, |store, lane, visit| {
            let row = &mut |found: Found| {
                seen.push(found.id());
                (visit.row)(found)
            };
            store.sweep(lane, from, cursor, Visit { row, ..visit })
        })?;
        let lane = &mut self.lanes[number];
        seen.into_iter().for_each(|id| lane.swept(id));
        if exhausted {
            self.lanes[number].end_sweep(pg::next_xid());
        }
        Ok(())
    }

    fn claim_in_order(&mut self, number: usize, claimed: &mut Claimed) -> SpiResult<()> {
        let start = self.lanes[number].cursor;
        let (mut reached, mut snapshot) = (Reached::default(), None);
        let exhausted = self.visit(number, Way::Insert, claimed, |store, lane, visit| {
            let row = &mut |found: Found| {
                reached.add(&found);
                (visit.row)(found)
            };
            let seen = store.claim_in_order(lane, start, Visit { row, ..visit })?;
            snapshot.clone_from(&seen.snapshot);
            Ok(seen)
        })?;
        self.lanes[number].cursor = reached.end(exhausted).unwrap_or(start);
        if let Some(snapshot) = snapshot {
            // This transaction's own id is among them once it has settled something; it inserts nothing.
            let own = pg::own_xid();
            let unfinished = snapshot.unfinished(pg::next_xid()).filter(|xid| Some(*xid) != own);
            self.lanes[number].awaits(unfinished, start);
        }
        Ok(())
    }

    /// Gives what was claimed to the relay, after the commit.
    pub(super) fn hand_over(&mut self, claimed: Claimed) {
        if claimed.messages.is_empty() {
            return;
        }
        self.report.claimed += claimed.messages.len() as u64;
        self.relay.send(Command::Publish(claimed.messages));
    }

    /// Takes back a claim whose transaction was rolled back.
    pub(super) fn undo(&mut self, claimed: Claimed, lanes: Vec<Lane>) {
        for message in &claimed.messages {
            let due = self.flights.remove(&message.id).is_some_and(|flight| flight.delayed);
            if let Some(key) = key_of(message) {
                self.keys.ended(&key, message.id, End::back(due));
            }
        }
        self.lanes = lanes;
    }
}

/// Lanes as they are to be for these connections: known ones keep how far they have come.
pub(super) fn lanes_for(names: impl Iterator<Item = Arc<str>>, known: &mut Vec<Lane>) {
    for name in names {
        if !known.iter().any(|lane| lane.name == name) {
            known.push(Lane::new(name));
        }
    }
}
