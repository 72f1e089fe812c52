//! One claim: which of the rows it sees are taken, within the room there is.

use std::ops::ControlFlow;
use std::time::SystemTime;

use pgrx::spi::SpiResult;

use super::claim::{Claimed, key_of};
use super::{Flight, Worker};
use crate::order::{Admit, Lane as Way};
use crate::pg;
use crate::snapshot::Snapshot;
use crate::store::{Found, Seen, Store, Visit};

/// Rows a claim may visit for each it may take: those of held keys are passed over.
const VISITS_PER_TAKE: usize = 4;

/// How far a claim in the order of ids has come.
#[derive(Default)]
pub(super) struct Reached {
    free: Option<i64>,
    held: Option<i64>,
}

impl Reached {
    pub(super) fn add(&mut self, found: &Found) {
        let last = match found {
            Found::Free(_) => &mut self.free,
            Found::Held(_) => &mut self.held,
        };
        *last = Some(found.id());
    }

    /// Where the next one goes on. Rows that somebody holds at the end of all there is may be free then; behind more of
    /// them than one claim visits, others wait.
    pub(super) fn end(&self, exhausted: bool) -> Option<i64> {
        self.free.or(self.held.filter(|_| !exhausted))
    }
}

/// How much one claim may take.
struct Room {
    messages: usize,
    bytes: usize,
}

impl Room {
    fn is_none(&self) -> bool {
        self.messages == 0 || self.bytes == 0
    }
}

impl Worker {
    /// Runs one claim within the room there is, admitting what may go; true if it saw all there is.
    pub(super) fn visit(
        &mut self,
        number: usize,
        way: Way,
        claimed: &mut Claimed,
        run: impl FnOnce(&mut Store, &str, Visit<'_>) -> SpiResult<Seen>,
    ) -> SpiResult<bool> {
        let mut room = self.room(number);
        if way == Way::Due {
            room.messages = room.messages.min(self.room_for_due(number));
        }
        let (wanted, bytes) = (room.messages, room.bytes);
        if room.is_none() {
            self.lanes[number].more = true;
            return Ok(false);
        }
        let most = room.messages.saturating_mul(VISITS_PER_TAKE);
        let name = self.lanes[number].name.clone();
        let (store, keys, flights, lane) = (
            &mut self.store,
            &mut self.keys,
            &mut self.flights,
            &mut self.lanes[number],
        );
        let checkpoint = lane.checkpoint.number;
        let ask = keys.spilled();
        let now = SystemTime::now();
        let mut row = |found: Found| {
            let Found::Free(row) = found else {
                return ControlFlow::Continue(());
            };
            let id = row.message.id;
            if flights.contains_key(&id) {
                return ControlFlow::Continue(());
            }
            if row.message.key.is_some() && claimed.view.as_ref().is_some_and(|view| is_younger(row.txid, view)) {
                match way {
                    Way::Insert | Way::Behind => {
                        lane.awaits(std::iter::once(row.txid), id.saturating_sub(1));
                        lane.more = true;
                        return ControlFlow::Continue(());
                    }
                    Way::Key => {
                        claimed.postponed.get_or_insert(id);
                        return ControlFlow::Continue(());
                    }
                    Way::Due | Way::Retry => {}
                }
            }
            let lane_of = match way {
                Way::Due if row.message.attempts > 0 => Way::Retry,
                way => way,
            };
            match key_of(&row.message).map_or(Admit::Send, |key| keys.admit(&key, id, lane_of, row.ahead)) {
                Admit::Leave => return ControlFlow::Continue(()),
                Admit::Rejoin => {
                    claimed.rejoin.push(id);
                    return ControlFlow::Continue(());
                }
                Admit::Send => {}
            }
            let cost = row.message.cost();
            room.messages -= 1;
            room.bytes = room.bytes.saturating_sub(cost);
            lane.bytes += cost;
            lane.in_flight += 1;
            claimed.xids.insert(row.txid);
            claimed.messages.push(row.message.clone());
            let delayed = way == Way::Due;
            lane.delayed += usize::from(delayed);
            flights.insert(
                id,
                Flight {
                    message: row.message,
                    place: row.place,
                    txid: row.txid,
                    due_at: row.due_at,
                    claimed_at: now,
                    lane: number,
                    checkpoint,
                    delayed,
                },
            );
            if room.is_none() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let seen = run(
            store,
            &name,
            Visit {
                row: &mut row,
                most,
                count_held: true,
                wanted,
                bytes,
                ask,
            },
        )?;
        if !seen.exhausted {
            self.lanes[number].more = true;
        }
        Ok(seen.exhausted)
    }

    /// What a claim may take now. What is about to be settled counts as gone.
    fn room(&self, number: usize) -> Room {
        let ended = self.outcomes.len().min(self.lanes[number].in_flight);
        let waiting = self.lanes[number].in_flight - ended;
        let messages = self
            .settings
            .claim_ahead()
            .saturating_sub(waiting)
            .min(self.settings.batch_size);
        Room {
            messages,
            bytes: self.share().saturating_sub(self.lanes[number].bytes),
        }
    }

    /// How many messages that are due a claim may take. Where some fail, they leave half of what may be in flight to the
    /// others, however many they are.
    fn room_for_due(&self, number: usize) -> usize {
        let most = match self.hurry.knows_failing(&self.lanes[number].name) {
            true => (self.settings.claim_ahead() / 2).max(1),
            false => self.settings.claim_ahead(),
        };
        most.saturating_sub(self.lanes[number].delayed)
    }

    /// Whether a claim may take a message that is due.
    pub(super) fn has_room_for_due(&self, number: usize) -> bool {
        self.has_room(number) && self.room_for_due(number) > 0
    }

    /// Whether a claim may take a message.
    pub(super) fn has_room(&self, number: usize) -> bool {
        !self.room(number).is_none()
    }

    /// Bytes each connection may have in flight: what waits for one that is down must leave room for the others.
    fn share(&self) -> usize {
        self.settings.max_bytes / self.lanes.len().max(1)
    }

    /// Whether a further claim would find messages and room for a fair part of a batch.
    pub(super) fn has_room_for_more(&self) -> bool {
        let worthwhile = (self.settings.batch_size / 4).max(1);
        !self.paused
            && self.lanes.iter().enumerate().any(|(number, lane)| {
                let room = self.room(number);
                // A key may have become free by what was settled with the claim.
                let more = lane.more || !self.keys.ready(&lane.name, 1).is_empty();
                lane.ready && more && room.messages >= worthwhile && room.bytes > self.share() / 4
            })
    }
}

/// Whether the transaction had not ended at that view. Of a row that can be seen only: an id that no transaction has had
/// came with it from another cluster, and this one may never reach it.
fn is_younger(xid: u64, view: &Snapshot) -> bool {
    !view.has_ended(xid) && xid < pg::next_xid()
}
