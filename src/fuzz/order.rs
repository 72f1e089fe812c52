//! [`Keys`] against a model: an outbox, a worker that claims from it, a relay that has one message of a key on the wire
//! at a time, and everything that may go wrong in between.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::cases;
use crate::order::{Admit, End, Key, Keys, Lane, MAX_PER_KEY};

/// Rounds after which everything must have been stored once nothing fails any more.
const ROUNDS: usize = 300;

#[derive(Debug, Clone)]
enum Op {
    /// Messages of a key are committed.
    Insert { key: usize, count: usize },
    /// The server stores a key's message on the wire, or refuses it.
    Answer { key: usize, stored: bool },
    /// A cycle of the worker with room for so many, which takes so many of the relay's reports; the answers come between
    /// its claim and its handing over.
    Cycle {
        room: usize,
        reports: usize,
        answers: Vec<(usize, bool)>,
    },
    /// The time of every further attempt has come.
    Due,
    /// Somebody removes the oldest message of a key that is not in flight, and the worker looks everywhere.
    Remove { key: usize },
    /// The worker dies; the next one starts from the table.
    Crash,
}

fn few_or_all() -> impl Strategy<Value = usize> {
    prop_oneof![1..5usize, Just(1000)]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = 0..3usize;
    let answer = (key.clone(), prop::bool::weighted(0.7));
    let op = prop_oneof![
        6 => (key.clone(), prop_oneof![9 => 1..6usize, 1 => 60..140usize])
            .prop_map(|(key, count)| Op::Insert { key, count }),
        8 => answer.clone().prop_map(|(key, stored)| Op::Answer { key, stored }),
        8 => (few_or_all(), few_or_all(), prop::collection::vec(answer, 0..4))
            .prop_map(|(room, reports, answers)| Op::Cycle { room, reports, answers }),
        2 => Just(Op::Due),
        1 => key.prop_map(|key| Op::Remove { key }),
        1 => Just(Op::Crash),
    ];
    prop::collection::vec(op, 0..60)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Stored,
    Failed,
    HeldBack,
}

/// A message owed.
#[derive(Debug)]
struct Row {
    key: usize,
    /// It failed; whether the time of the next attempt has come.
    again: Option<bool>,
}

#[derive(Default)]
struct World {
    outbox: BTreeMap<i64, Row>,
    inserted: i64,
    stored: HashSet<i64>,
    worker: Worker,
    /// The relay's queues; the first of each is on the wire.
    relay: HashMap<usize, VecDeque<i64>>,
    closed: HashSet<usize>,
    outcomes: Vec<(i64, usize, Outcome)>,
}

#[derive(Default)]
struct Worker {
    keys: Keys,
    cursor: i64,
    flights: BTreeSet<i64>,
}

fn name(key: usize) -> Key {
    Key {
        connection: "default".into(),
        key: format!("k{key}"),
    }
}

impl World {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Insert { key, count } => {
                for _ in 0..*count {
                    self.inserted += 1;
                    self.outbox.insert(self.inserted, Row { key: *key, again: None });
                }
            }
            Op::Answer { key, stored } => self.answer(*key, *stored),
            Op::Cycle { room, reports, answers } => self.cycle(*room, *reports, answers),
            Op::Due => self
                .outbox
                .values_mut()
                .for_each(|row| row.again = row.again.map(|_| true)),
            Op::Remove { key } => self.remove(*key),
            Op::Crash => self.crash(),
        }
    }

    fn answer(&mut self, key: usize, stored: bool) {
        let Some(id) = self.relay.get_mut(&key).and_then(VecDeque::pop_front) else {
            return;
        };
        if !stored {
            self.closed.insert(key);
            let waiting = std::mem::take(self.relay.entry(key).or_default());
            self.outcomes.push((id, key, Outcome::Failed));
            self.outcomes
                .extend(waiting.into_iter().map(|id| (id, key, Outcome::HeldBack)));
            return;
        }
        self.outcomes.push((id, key, Outcome::Stored));
        // A message that was stored before a crash is known to the stream.
        if self.stored.insert(id) {
            let earlier = self
                .outbox
                .range(..id)
                .find(|(id, row)| row.key == key && !self.stored.contains(*id));
            assert!(earlier.is_none(), "{id} is stored before {earlier:?}");
        }
    }

    fn cycle(&mut self, mut room: usize, reports: usize, answers: &[(usize, bool)]) {
        let reports = reports.min(self.outcomes.len());
        let outcomes: Vec<_> = self.outcomes.drain(..reports).collect();
        for (id, key, _) in outcomes.iter().filter(|(_, _, outcome)| *outcome == Outcome::Failed) {
            self.worker.keys.block(name(*key), *id, id + 1);
            self.closed.remove(key);
        }
        for (id, _, outcome) in &outcomes {
            match outcome {
                Outcome::Stored => drop(self.outbox.remove(id)),
                Outcome::Failed => {
                    if let Some(row) = self.outbox.get_mut(id) {
                        row.again = Some(false);
                    }
                }
                Outcome::HeldBack => {}
            }
        }
        let mut claimed = Vec::new();
        self.claim_due(&mut room, &mut claimed);
        self.claim_by_key(&mut room, &mut claimed);
        self.claim_in_order(&mut room, &mut claimed);
        for (id, key, outcome) in outcomes {
            self.worker.flights.remove(&id);
            let end = match outcome {
                Outcome::Stored => End::Gone,
                Outcome::Failed => End::Again,
                Outcome::HeldBack => End::Back,
            };
            self.worker.keys.ended(&name(key), id, end);
        }
        answers.iter().for_each(|(key, stored)| self.answer(*key, *stored));
        for (id, key) in claimed {
            if self.closed.contains(&key) {
                self.outcomes.push((id, key, Outcome::HeldBack));
            } else {
                self.relay.entry(key).or_default().push_back(id);
            }
        }
    }

    fn claim_due(&mut self, room: &mut usize, claimed: &mut Vec<(i64, usize)>) {
        for (id, row) in self.outbox.iter_mut().filter(|(_, row)| row.again == Some(true)) {
            if *room == 0 {
                return;
            }
            if self.worker.flights.contains(id) {
                continue;
            }
            match self.worker.keys.admit(&name(row.key), *id, Lane::Due) {
                Admit::Send => take(&mut self.worker.flights, *id, row.key, room, claimed),
                Admit::Leave => {}
                Admit::Rejoin => row.again = None,
            }
        }
    }

    fn claim_by_key(&mut self, room: &mut usize, claimed: &mut Vec<(i64, usize)>) {
        for (key, from) in self.worker.keys.ready("default", 100) {
            let number = (0..3).find(|number| name(*number) == key).unwrap();
            let mut rows = self
                .outbox
                .range(from..)
                .filter(|(_, row)| row.key == number && row.again.is_none());
            let (mut last, mut exhausted) = (None, false);
            for _ in 0..MAX_PER_KEY / 2 {
                if *room == 0 {
                    break;
                }
                let Some((id, row)) = rows.next() else {
                    exhausted = true;
                    break;
                };
                last = Some(*id);
                if !self.worker.flights.contains(id) && self.worker.keys.admit(&key, *id, Lane::Key) == Admit::Send {
                    take(&mut self.worker.flights, *id, row.key, room, claimed);
                }
            }
            self.worker.keys.claimed(&key, last, exhausted);
        }
    }

    fn claim_in_order(&mut self, room: &mut usize, claimed: &mut Vec<(i64, usize)>) {
        let start = self.worker.cursor + 1;
        for (id, row) in self.outbox.range(start..).filter(|(_, row)| row.again.is_none()) {
            if *room == 0 {
                return;
            }
            self.worker.cursor = *id;
            if !self.worker.flights.contains(id)
                && self.worker.keys.admit(&name(row.key), *id, Lane::Insert) == Admit::Send
            {
                take(&mut self.worker.flights, *id, row.key, room, claimed);
            }
        }
    }

    fn remove(&mut self, key: usize) {
        let oldest = self
            .outbox
            .iter()
            .find(|(id, row)| row.key == key && !self.worker.flights.contains(id));
        if let Some(id) = oldest.map(|(id, _)| *id) {
            self.outbox.remove(&id);
        }
        let existing = self.outbox.keys().chain(&self.worker.flights).copied().collect();
        self.worker.keys.forget_missing(&existing);
    }

    fn crash(&mut self) {
        (self.worker, self.outcomes) = Default::default();
        self.relay.clear();
        self.closed.clear();
        for (id, row) in self.outbox.iter().filter(|(_, row)| row.again.is_some()) {
            self.worker.keys.block(name(row.key), *id, 0);
        }
    }

    /// Nothing fails any more.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            if self.outbox.is_empty() && self.worker.keys.held() == 0 {
                assert!(self.worker.flights.is_empty());
                return;
            }
            self.apply(&Op::Due);
            for key in 0..3 {
                while self.relay.get(&key).is_some_and(|queue| !queue.is_empty()) {
                    self.answer(key, true);
                }
            }
            self.cycle(1000, 1000, &[]);
        }
        panic!("still owed: {:?}; {:?}", self.outbox, self.worker.keys);
    }
}

fn take(flights: &mut BTreeSet<i64>, id: i64, key: usize, room: &mut usize, claimed: &mut Vec<(i64, usize)>) {
    assert!(flights.insert(id), "{id} is claimed twice");
    claimed.push((id, key));
    *room -= 1;
}

proptest! {
    #![proptest_config(cases(20_000))]

    #[test]
    fn keys_stay_in_order_and_nothing_is_left_behind(ops in ops()) {
        let mut world = World::default();
        ops.iter().for_each(|op| world.apply(op));
        world.settle();
    }
}
