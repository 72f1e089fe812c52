//! Which messages may be in flight together. Free of PostgreSQL.
//!
//! Messages of one key leave in order, one at a time. The relay sends the next when the last is acknowledged; this
//! module sees to it that none overtakes a message of its key that failed, and that no key fills the window. A key
//! that may not go on is *held*: the claim in insert order leaves its messages where they are, and once it may go on
//! they are claimed by key, from the first one left behind.
//!
//! Memory is bounded: of more than [`MAX_HELD`] keys, those that wait for a failing message and have nothing in flight
//! are *spilled*: forgotten here, as the outbox knows them by its failing rows. From then on every claim asks the outbox
//! what stands ahead of a row ([`Ahead`]), and a key comes back when its failing message is tried again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Most messages of one key that wait in the relay.
pub const MAX_PER_KEY: usize = 64;
/// Most keys held in memory; further ones are spilled.
pub const MAX_HELD: usize = 20_000;

/// A key, within its connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `connections.name`.
    pub connection: Arc<str>,
    /// `outbox.key`.
    pub key: String,
}

/// How a message was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// In insert order.
    Insert,
    /// Below what has been claimed in insert order: by a sweep, or as a row of a late committer.
    Behind,
    /// By `deliver_at`, for the first time.
    Due,
    /// By `deliver_at`, after a failed attempt.
    Retry,
    /// By key.
    Key,
}

/// What the outbox has ahead of a message, other than itself. Asked for while keys are spilled only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// Nothing, or nobody asked.
    Nothing,
    /// A failing message of its key.
    Failing,
    /// An earlier message of its key, this one first.
    Older(i64),
}

/// What to do with a message just found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// Hand it to the relay.
    Send,
    /// Leave it: it will be found by key.
    Leave,
    /// Take away its `deliver_at` and leave it: it stands in line behind others of its key.
    Rejoin,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Stored, or dead: it is no longer owed.
    Gone,
    /// It will be tried again by `deliver_at`.
    Again,
    /// It was not tried and is owed as before.
    Back,
    /// The same of a message that was found by `deliver_at`, which it still has.
    StillDue,
}

impl End {
    /// Of a message that was not tried; `due` says that it was found by `deliver_at`.
    pub fn back(due: bool) -> End {
        if due { End::StillDue } else { End::Back }
    }
}

#[derive(Debug, Default)]
struct Held {
    /// Failed messages that must be gone first.
    blockers: BTreeSet<i64>,
    /// Messages of the key with this id or a higher one may be unclaimed.
    from: i64,
    /// Messages in flight may still come back untried: nothing is claimed before they have.
    returning: bool,
}

impl Held {
    fn admit(&mut self, id: i64, lane: Lane, ahead: Ahead) -> Admit {
        match lane {
            // The failing message itself, whose `deliver_at` somebody took away.
            _ if self.blockers.contains(&id) => Admit::Send,
            Lane::Retry => {
                self.blockers.insert(id);
                self.returning = true;
                Admit::Send
            }
            Lane::Insert | Lane::Behind => {
                self.from = self.from.min(id);
                Admit::Leave
            }
            Lane::Due => {
                self.from = self.from.min(id);
                Admit::Rejoin
            }
            Lane::Key if !self.blockers.is_empty() || ahead == Ahead::Failing => Admit::Leave,
            Lane::Key => Admit::Send,
        }
    }
}

/// The keys with something in flight or held.
#[derive(Debug)]
pub struct Keys {
    in_flight: HashMap<Key, usize>,
    held: HashMap<Key, Held>,
    most: usize,
    spilled: bool,
}

impl Default for Keys {
    fn default() -> Keys {
        Keys::holding(MAX_HELD)
    }
}

impl Keys {
    /// Holds at most about so many keys in memory.
    pub fn holding(most: usize) -> Keys {
        Keys {
            in_flight: HashMap::new(),
            held: HashMap::new(),
            most,
            spilled: false,
        }
    }

    /// Decides about a message just found.
    pub fn admit(&mut self, key: &Key, id: i64, lane: Lane, ahead: Ahead) -> Admit {
        let answer = match self.held.get_mut(key) {
            Some(held) => held.admit(id, lane, ahead),
            None => self.admit_free(key, id, lane, ahead),
        };
        if answer == Admit::Send {
            *self.in_flight.entry(key.clone()).or_default() += 1;
        }
        answer
    }

    /// The same for a key that is not held.
    fn admit_free(&mut self, key: &Key, id: i64, lane: Lane, ahead: Ahead) -> Admit {
        match (lane, ahead) {
            // Spilled, or failing by the hand of somebody: what it holds up is found from the first id on.
            (Lane::Retry, _) => {
                self.block(key.clone(), id, 0);
                Admit::Send
            }
            (Lane::Due, Ahead::Failing) => Admit::Rejoin,
            (Lane::Due, _) => Admit::Send,
            (_, Ahead::Failing) => Admit::Leave,
            (Lane::Key, _) => Admit::Send,
            (Lane::Insert, Ahead::Older(older)) => {
                self.left(key, older);
                Admit::Leave
            }
            // Its key was released while it was spilled: a sweep may end between this message and the next one of the
            // key, so that they are claimed by key. Beyond the bound the next sweep is soon enough.
            (Lane::Behind, _) if self.spilled => {
                if self.held.len() < self.most.saturating_add(MAX_PER_KEY) {
                    self.left(key, id);
                }
                Admit::Leave
            }
            _ if self.waiting(key) >= MAX_PER_KEY => {
                self.left(key, id);
                Admit::Leave
            }
            _ => Admit::Send,
        }
    }

    /// Takes note of the end of a message that was sent.
    pub fn ended(&mut self, key: &Key, id: i64, end: End) {
        if let Some(count) = self.in_flight.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(key);
            }
        }
        match end {
            End::Gone => {
                if let Some(held) = self.held.get_mut(key) {
                    held.blockers.remove(&id);
                }
            }
            End::Again => self.block(key.clone(), id, id.saturating_add(1)),
            End::Back => {
                self.give_back(key, id);
                if let Some(held) = self.held.get_mut(key) {
                    held.blockers.remove(&id);
                }
            }
            // A claim by key does not see it: a failing message holds its key still.
            End::StillDue => {
                if let Some(held) = self.held.get_mut(key) {
                    held.returning = true;
                }
            }
        }
        self.spill(key);
    }

    /// Forgets a key that the outbox knows as well, if there are too many.
    fn spill(&mut self, key: &Key) {
        let full = self.held.len() > self.most;
        if full && self.waiting(key) == 0 && self.held.get(key).is_some_and(|held| !held.blockers.is_empty()) {
            self.held.remove(key);
            self.spilled = true;
        }
    }

    /// Takes the failing messages of all keys, as a new worker finds them in the outbox; `all` is false if there are more.
    pub fn load(&mut self, failing: impl IntoIterator<Item = (Key, i64)>, all: bool) {
        for (key, id) in failing {
            self.block(key, id, 0);
        }
        self.spilled = !all;
    }

    /// Whether some keys are known to the outbox alone.
    pub fn spilled(&self) -> bool {
        self.spilled
    }

    /// Whether all of them may have room in memory again.
    pub fn has_room(&self) -> bool {
        self.held.len() < self.most / 2
    }

    /// How many failing messages [`Keys::load`] takes.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Holds a key of which message `id` comes back untried, as others may: nothing of it is claimed before all have.
    pub fn give_back(&mut self, key: &Key, id: i64) {
        self.left(key, id);
        if let Some(held) = self.held.get_mut(key) {
            held.returning = true;
        }
    }

    /// Holds a key until message `id` is gone; its messages from `from` on may be unclaimed.
    pub fn block(&mut self, key: Key, id: i64, from: i64) {
        let held = self.held.entry(key).or_insert_with(|| Held {
            from,
            ..Held::default()
        });
        held.blockers.insert(id);
        held.from = held.from.min(from);
        held.returning = true;
    }

    /// Takes note of a message that a claim by key has left.
    pub fn left(&mut self, key: &Key, id: i64) {
        let held = self.held.entry(key.clone()).or_insert_with(|| Held {
            from: id,
            ..Held::default()
        });
        held.from = held.from.min(id);
    }

    /// Keys of a connection whose messages can be claimed by key now, with the id to start from, at most `most`.
    pub fn ready(&self, connection: &str, most: usize) -> Vec<(Key, i64)> {
        self.held
            .iter()
            .filter(|(key, held)| {
                let most = if held.returning { 0 } else { MAX_PER_KEY / 2 };
                &*key.connection == connection && held.blockers.is_empty() && self.waiting(key) <= most
            })
            .take(most)
            .map(|(key, held)| (key.clone(), held.from))
            .collect()
    }

    /// Takes note of a claim by key that started where [`Keys::ready`] said: `last` is the highest id it saw,
    /// `exhausted` says that it saw all there is.
    pub fn claimed(&mut self, key: &Key, last: Option<i64>, exhausted: bool) {
        if exhausted {
            self.held.remove(key);
        } else if let (Some(held), Some(last)) = (self.held.get_mut(key), last) {
            held.from = last.saturating_add(1);
            held.returning = false;
        }
    }

    /// All failed messages that hold a key.
    pub fn blockers(&self) -> Vec<i64> {
        self.held
            .values()
            .flat_map(|held| held.blockers.iter().copied())
            .collect()
    }

    /// Releases the keys whose blocker `exists` denies: somebody removed the message.
    pub fn forget_missing(&mut self, exists: &std::collections::HashSet<i64>) {
        for held in self.held.values_mut() {
            held.blockers.retain(|id| exists.contains(id));
        }
    }

    /// Number of keys held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn waiting(&self, key: &Key) -> usize {
        self.in_flight.get(key).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key {
            connection: "default".into(),
            key: "k".into(),
        }
    }

    #[test]
    fn a_failed_message_holds_its_key_until_it_is_gone() {
        let mut keys = Keys::default();
        assert_eq!(keys.admit(&key(), 1, Lane::Insert, Ahead::Nothing), Admit::Send);
        assert_eq!(keys.admit(&key(), 2, Lane::Insert, Ahead::Nothing), Admit::Send);
        keys.ended(&key(), 1, End::Again);
        keys.ended(&key(), 2, End::Back);
        assert_eq!(keys.admit(&key(), 3, Lane::Insert, Ahead::Nothing), Admit::Leave);
        assert!(keys.ready("default", 10).is_empty());
        assert_eq!(keys.blockers(), [1]);
        assert_eq!(keys.admit(&key(), 1, Lane::Retry, Ahead::Nothing), Admit::Send);
        assert!(keys.ready("default", 10).is_empty());
        keys.ended(&key(), 1, End::Gone);
        assert_eq!(keys.ready("default", 10), [(key(), 2)]);
        assert_eq!(keys.ready("other", 10), []);
        assert_eq!(keys.admit(&key(), 2, Lane::Key, Ahead::Nothing), Admit::Send);
        assert_eq!(keys.admit(&key(), 3, Lane::Key, Ahead::Nothing), Admit::Send);
        keys.claimed(&key(), Some(3), true);
        assert_eq!(keys.admit(&key(), 4, Lane::Insert, Ahead::Nothing), Admit::Send);
        assert_eq!(keys.held(), 0);
    }

    #[test]
    fn nothing_is_claimed_while_messages_may_come_back_untried() {
        let mut keys = Keys::default();
        for id in 1..=3 {
            assert_eq!(keys.admit(&key(), id, Lane::Insert, Ahead::Nothing), Admit::Send);
        }
        keys.block(key(), 1, 2);
        keys.ended(&key(), 1, End::Gone);
        assert_eq!(keys.ready("default", 1), [], "2 and 3 are still out");
        keys.ended(&key(), 2, End::Back);
        keys.ended(&key(), 3, End::Back);
        assert_eq!(keys.ready("default", 1), [(key(), 2)]);
    }

    #[test]
    fn a_key_given_back_goes_on_when_all_of_it_has_come_back() {
        let mut keys = Keys::default();
        for id in 1..=2 {
            assert_eq!(keys.admit(&key(), id, Lane::Insert, Ahead::Nothing), Admit::Send);
        }
        keys.give_back(&key(), 1);
        keys.give_back(&key(), 2);
        assert_eq!(keys.admit(&key(), 3, Lane::Insert, Ahead::Nothing), Admit::Leave);
        keys.ended(&key(), 1, End::Back);
        assert_eq!(keys.ready("default", 1), [], "2 is still out");
        keys.ended(&key(), 2, End::Back);
        assert_eq!(keys.ready("default", 1), [(key(), 1)]);
    }

    #[test]
    fn a_failing_message_that_comes_back_untried_holds_its_key_still() {
        let mut keys = Keys::default();
        keys.block(key(), 1, 2);
        assert_eq!(keys.admit(&key(), 1, Lane::Retry, Ahead::Nothing), Admit::Send);
        keys.ended(&key(), 1, End::StillDue);
        assert_eq!(keys.ready("default", 1), []);
        assert_eq!(keys.admit(&key(), 1, Lane::Retry, Ahead::Nothing), Admit::Send);
        keys.ended(&key(), 1, End::Gone);
        assert_eq!(keys.ready("default", 1), [(key(), 2)]);
    }

    #[test]
    fn other_keys_go_on() {
        let mut keys = Keys::default();
        keys.block(key(), 1, 2);
        let other = Key {
            key: "other".into(),
            ..key()
        };
        assert_eq!(keys.admit(&other, 5, Lane::Insert, Ahead::Nothing), Admit::Send);
    }

    #[test]
    fn a_delayed_message_that_comes_due_stands_in_line() {
        let mut keys = Keys::default();
        keys.block(key(), 1, 2);
        assert_eq!(keys.admit(&key(), 7, Lane::Due, Ahead::Nothing), Admit::Rejoin);
        assert_eq!(keys.admit(&key(), 1, Lane::Retry, Ahead::Nothing), Admit::Send);
        keys.ended(&key(), 1, End::Gone);
        assert_eq!(keys.ready("default", 1), [(key(), 2)]);
    }

    #[test]
    fn a_hot_key_does_not_fill_the_window() {
        let mut keys = Keys::default();
        for id in 1..=MAX_PER_KEY as i64 {
            assert_eq!(keys.admit(&key(), id, Lane::Insert, Ahead::Nothing), Admit::Send);
        }
        assert_eq!(keys.admit(&key(), 100, Lane::Insert, Ahead::Nothing), Admit::Leave);
        assert!(keys.ready("default", 1).is_empty());
        for id in 1..=MAX_PER_KEY as i64 / 2 {
            keys.ended(&key(), id, End::Gone);
        }
        assert_eq!(keys.ready("default", 1), [(key(), 100)]);
        assert_eq!(keys.admit(&key(), 100, Lane::Key, Ahead::Nothing), Admit::Send);
        keys.claimed(&key(), Some(100), false);
        assert_eq!(keys.ready("default", 1), []);
    }

    #[test]
    fn a_late_committer_of_a_held_key_is_found_by_key() {
        let mut keys = Keys::default();
        keys.block(key(), 10, 11);
        assert_eq!(keys.admit(&key(), 4, Lane::Insert, Ahead::Nothing), Admit::Leave);
        keys.admit(&key(), 10, Lane::Retry, Ahead::Nothing);
        keys.ended(&key(), 10, End::Gone);
        assert_eq!(keys.ready("default", 1), [(key(), 4)]);
    }

    #[test]
    fn a_removed_blocker_releases_its_key() {
        let mut keys = Keys::default();
        keys.block(key(), 1, 2);
        keys.forget_missing(&std::collections::HashSet::new());
        assert_eq!(keys.ready("default", 1), [(key(), 2)]);
    }

    #[test]
    fn a_key_beyond_the_bound_is_known_by_the_outbox_alone() {
        let mut keys = Keys::holding(0);
        assert_eq!(keys.admit(&key(), 1, Lane::Insert, Ahead::Nothing), Admit::Send);
        keys.block(key(), 1, 2);
        keys.ended(&key(), 1, End::Again);
        assert_eq!((keys.held(), keys.spilled()), (0, true));
        assert_eq!(keys.admit(&key(), 2, Lane::Insert, Ahead::Failing), Admit::Leave);
        assert_eq!(keys.admit(&key(), 3, Lane::Due, Ahead::Failing), Admit::Rejoin);
        assert_eq!(keys.admit(&key(), 1, Lane::Retry, Ahead::Nothing), Admit::Send);
        assert_eq!(keys.admit(&key(), 4, Lane::Insert, Ahead::Nothing), Admit::Leave);
        keys.ended(&key(), 1, End::Gone);
        assert_eq!(keys.ready("default", 1), [(key(), 0)]);
    }

    #[test]
    fn what_a_spilled_key_has_left_behind_goes_before_what_is_newer() {
        let mut keys = Keys::holding(0);
        keys.load([], false);
        assert_eq!(keys.admit(&key(), 9, Lane::Insert, Ahead::Older(4)), Admit::Leave);
        assert_eq!(keys.ready("default", 1), [(key(), 4)]);
    }
}
