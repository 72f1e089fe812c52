//! [`Keys`] against a model: an outbox, a worker that claims from it, a relay that has one message of a key on the wire
//! at a time, and everything that may go wrong in between.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::cases;
use crate::order::{Admit, Ahead, End, Key, Keys, Lane, MAX_PER_KEY};

/// Keys of the messages.
const KEYS: usize = 4;
/// Rounds after which everything must have been stored once nothing fails any more.
const ROUNDS: usize = 300;

#[derive(Debug, Clone)]
enum Op {
    /// Messages of a key are committed.
    Insert { key: usize, count: usize },
    /// A message of a key is committed that is to be sent later.
    Delay { key: usize },
    /// The server answers a key's message on the wire.
    Answer { key: usize, answer: Answer },
    /// A cycle of the worker with room for so many, which takes so many of the relay's reports and looks for what is due
    /// or not; the answers come between its claim and its handing over.
    Cycle {
        room: usize,
        reports: usize,
        due: bool,
        answers: Vec<(usize, Answer)>,
    },
    /// The time of every further attempt and of every delayed message has come.
    Due,
    /// The connection is changed: what waits in the relay comes back; what is on the wire may have been stored.
    Change { stored: bool },
    /// Somebody removes the oldest message of a key that is not in flight, and the worker looks everywhere.
    Remove { key: usize },
    /// The worker scans everything, and takes back into memory what has room there.
    Recheck,
    /// The worker dies; the next one starts from the table.
    Crash,
}

/// What becomes of a message on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Stored,
    /// It counts as an attempt.
    Failed,
    /// For a reason of the connection, so that it counts as no attempt.
    Refused,
}

fn few_or_all() -> impl Strategy<Value = usize> {
    prop_oneof![1..5usize, Just(1000)]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = 0..KEYS;
    let answer = prop_oneof![14 => Just(Answer::Stored), 5 => Just(Answer::Failed), 1 => Just(Answer::Refused)];
    let answer = (key.clone(), answer);
    let op = prop_oneof![
        6 => (key.clone(), prop_oneof![9 => 1..6usize, 1 => 60..140usize])
            .prop_map(|(key, count)| Op::Insert { key, count }),
        1 => key.clone().prop_map(|key| Op::Delay { key }),
        8 => answer.clone().prop_map(|(key, answer)| Op::Answer { key, answer }),
        8 => (few_or_all(), few_or_all(), prop::bool::weighted(0.7), prop::collection::vec(answer, 0..4))
            .prop_map(|(room, reports, due, answers)| Op::Cycle { room, reports, due, answers }),
        2 => Just(Op::Due),
        1 => any::<bool>().prop_map(|stored| Op::Change { stored }),
        1 => key.prop_map(|key| Op::Remove { key }),
        1 => Just(Op::Recheck),
        1 => Just(Op::Crash),
    ];
    prop::collection::vec(op, 0..60)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered(Answer),
    /// Waited behind one that failed.
    HeldBack,
    /// Its connection was changed.
    Released,
}

/// A message owed.
#[derive(Debug)]
struct Row {
    key: usize,
    /// It has a `deliver_at`, as it failed or was delayed; whether that time has come.
    due: Option<bool>,
    delayed: bool,
    failed: bool,
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
    /// As many of these were reported before the connection stood again: nothing is claimed until they are known.
    before_change: usize,
}

#[derive(Default)]
struct Worker {
    keys: Keys,
    cursor: i64,
    /// Where a running sweep goes on.
    sweep: Option<i64>,
    /// Each with whether it was found as due.
    flights: BTreeMap<i64, bool>,
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
            Op::Insert { key, count } => (0..*count).for_each(|_| self.insert(*key, false)),
            Op::Delay { key } => self.insert(*key, true),
            Op::Answer { key, answer } => self.answer(*key, *answer),
            Op::Cycle {
                room,
                reports,
                due,
                answers,
            } => self.cycle(*room, *reports, *due, answers),
            Op::Due => self.outbox.values_mut().for_each(|row| row.due = row.due.map(|_| true)),
            Op::Change { stored } => self.change(*stored),
            Op::Remove { key } => self.remove(*key),
            Op::Recheck => self.recheck(),
            Op::Crash => self.crash(),
        }
    }

    fn insert(&mut self, key: usize, delayed: bool) {
        self.inserted += 1;
        let row = Row {
            key,
            due: delayed.then_some(false),
            delayed,
            failed: false,
        };
        self.outbox.insert(self.inserted, row);
    }

    fn answer(&mut self, key: usize, answer: Answer) {
        let Some(id) = self.relay.get_mut(&key).and_then(VecDeque::pop_front) else {
            return;
        };
        self.outcomes.push((id, key, Outcome::Answered(answer)));
        if answer == Answer::Stored {
            self.store(id, key);
            return;
        }
        self.closed.insert(key);
        let waiting = std::mem::take(self.relay.entry(key).or_default());
        self.outcomes
            .extend(waiting.into_iter().map(|id| (id, key, Outcome::HeldBack)));
    }

    fn store(&mut self, id: i64, key: usize) {
        // A message that was stored before a crash is known to the stream. A delayed one has no place in the order until
        // it fails.
        if self.stored.insert(id) && !self.outbox[&id].delayed {
            let earlier = self
                .outbox
                .range(..id)
                .find(|(id, row)| row.key == key && !self.stored.contains(*id) && (!row.delayed || row.failed));
            assert!(earlier.is_none(), "{id} is stored before {earlier:?}");
        }
    }

    fn change(&mut self, stored: bool) {
        for (key, queue) in std::mem::take(&mut self.relay) {
            if let (true, Some(id)) = (stored, queue.front()) {
                self.store(*id, key);
            }
            self.outcomes
                .extend(queue.into_iter().map(|id| (id, key, Outcome::Released)));
        }
        self.closed.clear();
        self.before_change = self.outcomes.len();
    }

    fn cycle(&mut self, mut room: usize, reports: usize, due: bool, answers: &[(usize, Answer)]) {
        let reports = reports.min(self.outcomes.len());
        let outcomes: Vec<_> = self.outcomes.drain(..reports).collect();
        self.before_change = self.before_change.saturating_sub(reports);
        for (id, key, outcome) in &outcomes {
            let due = self.worker.flights[id];
            match outcome {
                Outcome::Answered(Answer::Failed | Answer::Refused) => {
                    let last = if due { self.worker.cursor.min(*id) } else { *id };
                    self.worker.keys.block(name(*key), *id, last + 1);
                    self.closed.remove(key);
                }
                Outcome::Released if !due => self.worker.keys.give_back(&name(*key), *id),
                Outcome::Released | Outcome::Answered(Answer::Stored) | Outcome::HeldBack => {}
            }
        }
        for (id, _, outcome) in &outcomes {
            match outcome {
                Outcome::Answered(Answer::Stored) => drop(self.outbox.remove(id)),
                Outcome::Answered(Answer::Failed) => {
                    if let Some(row) = self.outbox.get_mut(id) {
                        (row.due, row.failed) = (Some(false), true);
                    }
                }
                Outcome::Answered(Answer::Refused) | Outcome::HeldBack | Outcome::Released => {}
            }
        }
        let mut claimed = Vec::new();
        if self.before_change == 0 {
            if due {
                self.claim_due(&mut room, &mut claimed);
            }
            self.claim_by_key(&mut room, &mut claimed);
            self.sweep(&mut room, &mut claimed);
            self.claim_in_order(&mut room, &mut claimed);
        }
        for (id, key, outcome) in outcomes {
            let due = self.worker.flights.remove(&id).unwrap_or(false);
            let end = match outcome {
                Outcome::Answered(Answer::Stored) => End::Gone,
                Outcome::Answered(Answer::Failed) => End::Again,
                Outcome::Answered(Answer::Refused) | Outcome::HeldBack | Outcome::Released => End::back(due),
            };
            self.worker.keys.ended(&name(key), id, end);
        }
        answers.iter().for_each(|(key, answer)| self.answer(*key, *answer));
        for (id, key) in claimed {
            if self.closed.contains(&key) {
                self.outcomes.push((id, key, Outcome::HeldBack));
            } else {
                self.relay.entry(key).or_default().push_back(id);
            }
        }
    }

    /// What stands ahead of a message, as the table says when it is asked.
    fn ahead(&self, id: i64, key: usize) -> Ahead {
        if !self.worker.keys.spilled() {
            return Ahead::Nothing;
        }
        let of_key = || self.outbox.iter().filter(move |(_, row)| row.key == key);
        if of_key().any(|(other, row)| *other != id && row.failed && row.due.is_some()) {
            return Ahead::Failing;
        }
        of_key()
            .find(|(_, row)| !row.failed && row.due.is_none())
            .filter(|(older, _)| **older < id)
            .map_or(Ahead::Nothing, |(older, _)| Ahead::Older(*older))
    }

    fn claim_due(&mut self, room: &mut usize, claimed: &mut Vec<(i64, usize)>) {
        let due = self.outbox.iter().filter(|(_, row)| row.due == Some(true));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            if *room == 0 {
                return;
            }
            let row = &self.outbox[&id];
            let lane = if row.failed { Lane::Retry } else { Lane::Due };
            if self.admit(id, row.key, lane, room, claimed) == Some(Admit::Rejoin)
                && let Some(row) = self.outbox.get_mut(&id)
            {
                row.due = None;
            }
        }
    }

    /// Lets the worker decide about a message unless it is in flight.
    fn admit(
        &mut self,
        id: i64,
        key: usize,
        lane: Lane,
        room: &mut usize,
        claimed: &mut Vec<(i64, usize)>,
    ) -> Option<Admit> {
        if self.worker.flights.contains_key(&id) {
            return None;
        }
        let ahead = self.ahead(id, key);
        let answer = self.worker.keys.admit(&name(key), id, lane, ahead);
        if answer == Admit::Send {
            self.worker.flights.insert(id, matches!(lane, Lane::Due | Lane::Retry));
            claimed.push((id, key));
            *room -= 1;
        }
        Some(answer)
    }

    fn claim_by_key(&mut self, room: &mut usize, claimed: &mut Vec<(i64, usize)>) {
        for (key, from) in self.worker.keys.ready("default", 100) {
            let number = (0..KEYS).find(|number| name(*number) == key).unwrap();
            let rows = self.plain(from..);
            let mut rows = rows.into_iter().filter(|(_, key)| *key == number);
            let (mut last, mut exhausted) = (None, false);
            for _ in 0..MAX_PER_KEY / 2 {
                if *room == 0 {
                    break;
                }
                let Some((id, _)) = rows.next() else {
                    exhausted = true;
                    break;
                };
                last = Some(id);
                self.admit(id, number, Lane::Key, room, claimed);
            }
            self.worker.keys.claimed(&key, last, exhausted);
        }
    }

    /// Messages without a `deliver_at`, each with its key.
    fn plain(&self, range: impl std::ops::RangeBounds<i64>) -> Vec<(i64, usize)> {
        let rows = self.outbox.range(range).filter(|(_, row)| row.due.is_none());
        rows.map(|(id, row)| (*id, row.key)).collect()
    }

    fn sweep(&mut self, room: &mut usize, claimed: &mut Vec<(i64, usize)>) {
        let Some(from) = self.worker.sweep.take() else { return };
        if from > self.worker.cursor {
            return;
        }
        for (id, key) in self.plain(from..=self.worker.cursor) {
            if *room == 0 {
                self.worker.sweep = Some(id);
                return;
            }
            self.admit(id, key, Lane::Behind, room, claimed);
        }
    }

    fn claim_in_order(&mut self, room: &mut usize, claimed: &mut Vec<(i64, usize)>) {
        for (id, key) in self.plain(self.worker.cursor + 1..) {
            if *room == 0 {
                return;
            }
            self.worker.cursor = id;
            self.admit(id, key, Lane::Insert, room, claimed);
        }
    }

    fn remove(&mut self, key: usize) {
        let oldest = self
            .outbox
            .iter()
            .find(|(id, row)| row.key == key && !self.worker.flights.contains_key(id));
        if let Some(id) = oldest.map(|(id, _)| *id) {
            self.outbox.remove(&id);
        }
        let existing = self.outbox.keys().chain(self.worker.flights.keys()).copied().collect();
        self.worker.keys.forget_missing(&existing);
        self.worker.sweep = Some(0);
    }

    fn failing(&self) -> Vec<(Key, i64)> {
        let failing = self.outbox.iter().filter(|(_, row)| row.failed && row.due.is_some());
        failing.map(|(id, row)| (name(row.key), *id)).collect()
    }

    fn recheck(&mut self) {
        let keys = &mut self.worker.keys;
        if keys.spilled() && keys.has_room() && self.worker.sweep.is_none() {
            let failing = self.failing();
            if failing.len() <= self.worker.keys.most() {
                self.worker.keys.load(failing, true);
            }
        }
        self.worker.sweep = Some(0);
    }

    fn crash(&mut self) {
        let most = self.worker.keys.most();
        self.worker = Worker {
            keys: Keys::holding(most),
            ..Worker::default()
        };
        self.outcomes.clear();
        self.relay.clear();
        self.closed.clear();
        self.before_change = 0;
        let failing = self.failing();
        let all = failing.len() <= most;
        self.worker.keys.load(failing.into_iter().take(most), all);
    }

    /// Nothing fails any more.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            if self.outbox.is_empty() && self.worker.keys.held() == 0 {
                assert!(self.worker.flights.is_empty());
                return;
            }
            self.apply(&Op::Due);
            self.apply(&Op::Recheck);
            for key in 0..KEYS {
                while self.relay.get(&key).is_some_and(|queue| !queue.is_empty()) {
                    self.answer(key, Answer::Stored);
                }
            }
            self.cycle(1000, 1000, true, &[]);
        }
        panic!("still owed: {:?}; {:?}", self.outbox, self.worker.keys);
    }
}

proptest! {
    #![proptest_config(cases(20_000))]

    #[test]
    fn keys_stay_in_order_and_nothing_is_left_behind(most in 0..5usize, ops in ops()) {
        let mut world = World::default();
        world.worker.keys = Keys::holding(most);
        ops.iter().for_each(|op| world.apply(op));
        world.settle();
    }
}
