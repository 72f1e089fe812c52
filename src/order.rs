//! Which messages may be in flight together. Free of PostgreSQL.
//!
//! Messages of one key leave in order, one at a time. The relay sends the next when the last is acknowledged; this
//! module sees to it that none overtakes a message of its key that failed, and that no key fills the window. A key
//! that may not go on is *held*: the claim in insert order leaves its messages where they are, and once it may go on
//! they are claimed by key, from the first one left behind.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Most messages of one key that wait in the relay.
pub const MAX_PER_KEY: usize = 64;
/// Most keys held at once; at this number the claim in insert order stops until some are released.
pub const MAX_HELD: usize = 100_000;

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
    /// In insert order, or by a sweep, or as a row of a late committer.
    Insert,
    /// By `deliver_at`.
    Due,
    /// By key.
    Key,
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

/// The keys with something in flight or held.
#[derive(Debug, Default)]
pub struct Keys {
    in_flight: HashMap<Key, usize>,
    held: HashMap<Key, Held>,
}

impl Keys {
    /// Decides about a message just found.
    pub fn admit(&mut self, key: &Key, id: i64, lane: Lane) -> Admit {
        let crowded = self.waiting(key) >= MAX_PER_KEY;
        match (self.held.get_mut(key), lane) {
            (Some(held), Lane::Insert) => {
                held.from = held.from.min(id);
                return Admit::Leave;
            }
            (Some(held), Lane::Due) if !held.blockers.contains(&id) => {
                held.from = held.from.min(id);
                return Admit::Rejoin;
            }
            (Some(held), Lane::Key) if !held.blockers.is_empty() => return Admit::Leave,
            (None, Lane::Insert) if crowded => {
                self.held.insert(
                    key.clone(),
                    Held {
                        from: id,
                        ..Held::default()
                    },
                );
                return Admit::Leave;
            }
            _ => {}
        }
        *self.in_flight.entry(key.clone()).or_default() += 1;
        Admit::Send
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

    /// Whether no further key may be held.
    pub fn full(&self) -> bool {
        self.held.len() >= MAX_HELD
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
        assert_eq!(keys.admit(&key(), 1, Lane::Insert), Admit::Send);
        assert_eq!(keys.admit(&key(), 2, Lane::Insert), Admit::Send);
        keys.ended(&key(), 1, End::Again);
        keys.ended(&key(), 2, End::Back);
        assert_eq!(keys.admit(&key(), 3, Lane::Insert), Admit::Leave);
        assert!(keys.ready("default", 10).is_empty());
        assert_eq!(keys.blockers(), [1]);
        assert_eq!(keys.admit(&key(), 1, Lane::Due), Admit::Send);
        assert!(keys.ready("default", 10).is_empty());
        keys.ended(&key(), 1, End::Gone);
        assert_eq!(keys.ready("default", 10), [(key(), 2)]);
        assert_eq!(keys.ready("other", 10), []);
        assert_eq!(keys.admit(&key(), 2, Lane::Key), Admit::Send);
        assert_eq!(keys.admit(&key(), 3, Lane::Key), Admit::Send);
        keys.claimed(&key(), Some(3), true);
        assert_eq!(keys.admit(&key(), 4, Lane::Insert), Admit::Send);
        assert_eq!(keys.held(), 0);
    }

    #[test]
    fn nothing_is_claimed_while_messages_may_come_back_untried() {
        let mut keys = Keys::default();
        for id in 1..=3 {
            assert_eq!(keys.admit(&key(), id, Lane::Insert), Admit::Send);
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
            assert_eq!(keys.admit(&key(), id, Lane::Insert), Admit::Send);
        }
        keys.give_back(&key(), 1);
        keys.give_back(&key(), 2);
        assert_eq!(keys.admit(&key(), 3, Lane::Insert), Admit::Leave);
        keys.ended(&key(), 1, End::Back);
        assert_eq!(keys.ready("default", 1), [], "2 is still out");
        keys.ended(&key(), 2, End::Back);
        assert_eq!(keys.ready("default", 1), [(key(), 1)]);
    }

    #[test]
    fn a_failing_message_that_comes_back_untried_holds_its_key_still() {
        let mut keys = Keys::default();
        keys.block(key(), 1, 2);
        assert_eq!(keys.admit(&key(), 1, Lane::Due), Admit::Send);
        keys.ended(&key(), 1, End::StillDue);
        assert_eq!(keys.ready("default", 1), []);
        assert_eq!(keys.admit(&key(), 1, Lane::Due), Admit::Send);
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
        assert_eq!(keys.admit(&other, 5, Lane::Insert), Admit::Send);
    }

    #[test]
    fn a_delayed_message_that_comes_due_stands_in_line() {
        let mut keys = Keys::default();
        keys.block(key(), 1, 2);
        assert_eq!(keys.admit(&key(), 7, Lane::Due), Admit::Rejoin);
        assert_eq!(keys.admit(&key(), 1, Lane::Due), Admit::Send);
        keys.ended(&key(), 1, End::Gone);
        assert_eq!(keys.ready("default", 1), [(key(), 2)]);
    }

    #[test]
    fn a_hot_key_does_not_fill_the_window() {
        let mut keys = Keys::default();
        for id in 1..=MAX_PER_KEY as i64 {
            assert_eq!(keys.admit(&key(), id, Lane::Insert), Admit::Send);
        }
        assert_eq!(keys.admit(&key(), 100, Lane::Insert), Admit::Leave);
        assert!(keys.ready("default", 1).is_empty());
        for id in 1..=MAX_PER_KEY as i64 / 2 {
            keys.ended(&key(), id, End::Gone);
        }
        assert_eq!(keys.ready("default", 1), [(key(), 100)]);
        assert_eq!(keys.admit(&key(), 100, Lane::Key), Admit::Send);
        keys.claimed(&key(), Some(100), false);
        assert_eq!(keys.ready("default", 1), []);
    }

    #[test]
    fn a_late_committer_of_a_held_key_is_found_by_key() {
        let mut keys = Keys::default();
        keys.block(key(), 10, 11);
        assert_eq!(keys.admit(&key(), 4, Lane::Insert), Admit::Leave);
        keys.admit(&key(), 10, Lane::Due);
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
}
