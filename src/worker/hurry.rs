//! When failing messages are tried before their time: something has happened that may have ended the cause.
//!
//! After an event that concerns a whole connection all of its failing messages are due. A message that is stored while
//! others of its subject fail makes a few of these due, and each of them a few more: a cause that is gone is found out in
//! no time, and one that comes back costs few attempts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgrx::spi::SpiResult;

use super::Worker;
use crate::store::hurry;

/// Most subjects that are watched.
const MOST_SUBJECTS: usize = 1_000;
/// How many failing messages become due for each one that is stored.
const FOR_EACH: i64 = 4;
/// Most of them in one transaction.
const MOST: i64 = 10_000;
/// A connection that is lost again and again must not use up the attempts of its failing messages.
const SELDOM: Duration = Duration::from_secs(60);

/// What is to be tried before its time.
#[derive(Default)]
pub(super) struct Hurry {
    /// Connections, each with where the next step goes on.
    all: BTreeMap<Arc<str>, Option<i64>>,
    /// When that was asked for last.
    asked: HashMap<Arc<str>, Instant>,
    /// Subjects with failing messages, by connection.
    failing: HashMap<Arc<str>, HashSet<String>>,
    subjects: usize,
    /// Of these, those of which a message was stored since, and how many.
    stored: HashMap<(Arc<str>, String), i64>,
}

impl Hurry {
    /// Somebody has changed something: all failing messages of the connection are due.
    pub(super) fn changed(&mut self, connection: &Arc<str>) {
        self.asked.insert(connection.clone(), Instant::now());
        self.all.insert(connection.clone(), None);
    }

    /// The connection is back: so are they, unless that was a moment ago.
    pub(super) fn back(&mut self, connection: &Arc<str>) {
        self.after(connection, SELDOM);
    }

    /// The same, at most once in `pause`; false if that is not over.
    pub(super) fn after(&mut self, connection: &Arc<str>, pause: Duration) -> bool {
        let over = self.asked.get(connection).is_none_or(|asked| asked.elapsed() >= pause);
        if over {
            self.changed(connection);
        }
        over
    }

    /// Takes note of a message that has failed and is tried again.
    pub(super) fn failed(&mut self, connection: &Arc<str>, subject: &str) {
        if self.subjects < MOST_SUBJECTS {
            let of_connection = self.failing.entry(connection.clone()).or_default();
            self.subjects += usize::from(of_connection.insert(subject.to_owned()));
        }
    }

    /// Takes note of a message that is stored.
    pub(super) fn stored(&mut self, connection: &Arc<str>, subject: &str) {
        if self.subjects > 0
            && self
                .failing
                .get(connection)
                .is_some_and(|known| known.contains(subject))
        {
            let count = self.stored.entry((connection.clone(), subject.to_owned())).or_default();
            *count = (*count + FOR_EACH).min(MOST);
        }
    }

    /// Whether messages of the connection have failed that this worker knows of.
    pub(super) fn knows_failing(&self, connection: &str) -> bool {
        let known = self.failing.get(connection);
        self.subjects >= MOST_SUBJECTS || known.is_some_and(|subjects| !subjects.is_empty())
    }

    /// The connections all of whose failing messages are to be due.
    pub(super) fn all(&self) -> BTreeMap<Arc<str>, Option<i64>> {
        self.all.clone()
    }

    /// Takes back a transaction that was rolled back.
    pub(super) fn again(&mut self, all: BTreeMap<Arc<str>, Option<i64>>) {
        self.all = all;
    }

    /// Whether something is left to be done.
    pub(super) fn is_idle(&self) -> bool {
        self.all.is_empty() && self.stored.is_empty()
    }

    fn forget(&mut self, connection: &Arc<str>, subject: &str) {
        if let Some(known) = self.failing.get_mut(connection) {
            self.subjects -= usize::from(known.remove(subject));
        }
    }
}

impl Worker {
    /// Makes failing messages due. To be called after the settlement and before the claim.
    pub(super) fn hurry(&mut self) -> SpiResult<()> {
        if self.hurry.is_idle() {
            return Ok(());
        }
        for (connection, after) in self.hurry.all.clone() {
            let step = hurry::all_due(&connection, after)?;
            if step.next.is_none() {
                self.hurry.all.remove(&connection);
            } else {
                self.hurry.all.insert(connection.clone(), step.next);
            }
            self.look_for_due(&connection, step.due);
        }
        for ((connection, subject), count) in std::mem::take(&mut self.hurry.stored) {
            let due = hurry::some_due(&connection, &subject, count)?;
            if due == 0 {
                self.hurry.forget(&connection, &subject);
            }
            self.look_for_due(&connection, due);
        }
        Ok(())
    }

    pub(super) fn look_for_due(&mut self, connection: &Arc<str>, due: i64) {
        if due == 0 {
            return;
        }
        for lane in self.lanes.iter_mut().filter(|lane| lane.name == *connection) {
            lane.due.all_soon();
        }
    }
}
