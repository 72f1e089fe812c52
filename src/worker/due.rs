//! When a connection's delayed messages are looked for, and from where. Free of SQL.
//!
//! Messages that are due are found in the order of `deliver_at`, and so are the dead rows of those that were, as long as an
//! old snapshot may see them. A look at all of them, which finds rows that somebody held and a `deliver_at` that was over
//! long before the commit, is made in a tenth of the time; the looks between go on where the last one came to.

use std::time::{Duration, Instant};

use crate::store::Turn;

/// A message to be delivered earlier than so long before a look is found by the next look at all.
const LATE_INSERT: Duration = Duration::from_secs(1);
/// When a message that is due and could not be claimed is looked at again.
const AGAIN: Duration = Duration::from_millis(10);
/// The pause before the next look at all, in times of what the last one took: there may be millions of dead rows, and
/// somebody may hold thousands of others.
const PAUSE: u32 = 9;

/// A message that is known to be due later is looked for again after so many polls at rest: a clock may be set forward.
const RESTING_POLLS: u32 = 10;

/// A look for what is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// What stands behind this is looked at; `None` is all.
    pub after: Option<Turn>,
    began: Instant,
    /// What may still come in front of the messages of this look.
    late: Turn,
}

/// When and where the next look is.
#[derive(Debug, Clone, Default)]
pub struct Due {
    /// When a message is due, or looked for, as far as known; `None`: now.
    next: Option<Instant>,
    /// When the first message known is due, or is to be looked for again; `None` if there is none.
    known: Option<Instant>,
    /// From when on a look is one at all; `None`: the next is.
    all: Option<Instant>,
    /// What stands before this is left to the next look at all.
    after: Option<Turn>,
    /// Something has been committed since: it may be due before anything known.
    woken: bool,
}

impl Due {
    /// When something is due or looked for, as far as known.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// When something is due, as far as known, while nothing is committed; `None` if nothing is.
    pub fn known(&self) -> Option<Instant> {
        self.next.and(self.known)
    }

    /// Whether a look is to be made as soon as possible.
    pub fn is_open(&self) -> bool {
        self.next.is_none() || self.woken
    }

    /// Something has been committed.
    pub fn wake(&mut self) {
        self.woken = true;
    }

    /// A message has got another `deliver_at`, now or later.
    pub fn soon(&mut self) {
        self.next = None;
    }

    /// A message that was due may be claimed again.
    pub fn all_soon(&mut self) {
        self.next = None;
        self.all = None;
    }

    /// The look that is to be made now, if any; `time` is `now`, microseconds since 2000-01-01 UTC.
    pub fn look(&mut self, now: Instant, time: i64) -> Option<Look> {
        let woken = std::mem::take(&mut self.woken);
        if !woken && self.next.is_some_and(|at| at > now) {
            return None;
        }
        let all = self.all.is_none_or(|at| at <= now);
        Some(Look {
            after: if all { None } else { self.after },
            began: now,
            late: Turn {
                deliver_at: time - LATE_INSERT.as_micros() as i64,
                id: i64::MIN,
            },
        })
    }

    /// The look has ended at the limit of a claim, and `last` was the last it saw.
    pub fn goes_on(&mut self, look: &Look, last: Option<Turn>, now: Instant) {
        self.next = None;
        if let Some(last) = last {
            self.ended(look, now);
            self.after = Some(last.min(look.late));
        }
    }

    /// The look has seen all that is due. The next message is due after `wait`, none if there is none; one that is due
    /// already somebody holds, or it came due this moment.
    pub fn ends(&mut self, look: &Look, wait: Option<Duration>, now: Instant, poll: Duration) {
        self.ended(look, now);
        self.known = wait.map(|wait| now + wait.min(poll * RESTING_POLLS));
        let mut wait = wait.unwrap_or(poll).min(poll);
        if wait.is_zero() {
            wait = AGAIN.max((now - look.began) * PAUSE);
        }
        self.next = Some(now + wait);
    }

    fn ended(&mut self, look: &Look, now: Instant) {
        if look.after.is_none() {
            self.all = Some(now + (now - look.began) * PAUSE);
            self.after = Some(look.late);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_secs(1);
    const SECOND: i64 = 1_000_000;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A connection whose look at all began at `10 * SECOND`, took 10 ms until `now`, and found nothing.
    fn quiet(now: Instant) -> Due {
        let mut due = Due::default();
        let look = due.look(now - millis(10), 10 * SECOND).unwrap();
        assert_eq!(look.after, None);
        due.ends(&look, None, now, POLL);
        due
    }

    #[test]
    fn a_commit_is_looked_at_from_a_second_before_the_last_look_at_all() {
        let now = Instant::now();
        let mut due = quiet(now);
        assert_eq!(due.look(now + millis(1), 0), None);
        due.wake();
        let look = due.look(now + millis(1), 11 * SECOND).unwrap();
        let expected = Turn {
            deliver_at: 9 * SECOND,
            id: i64::MIN,
        };
        assert_eq!(look.after, Some(expected));
        due.ends(&look, None, now + millis(2), POLL);
        assert_eq!(due.look(now + millis(1_001), 0), None);
        assert_eq!(due.look(now + millis(1_002), 0).unwrap().after, None);
    }

    #[test]
    fn what_becomes_due_is_not_a_reason_to_look_at_all() {
        let now = Instant::now();
        let mut due = quiet(now);
        due.wake();
        let look = due.look(now, 10 * SECOND).unwrap();
        due.ends(&look, Some(millis(60)), now, POLL);
        assert_eq!(due.next(), Some(now + millis(60)));
        assert!(due.look(now + millis(60), 0).unwrap().after.is_some());
    }

    #[test]
    fn a_large_number_is_walked_through_once() {
        let now = Instant::now();
        let mut due = Due::default();
        let mut last = None;
        for step in 0..5 {
            let look = due.look(now + millis(step), 10 * SECOND).unwrap();
            assert_eq!(look.after, last);
            last = Some(Turn {
                deliver_at: 2 * SECOND,
                id: step as i64,
            });
            due.goes_on(&look, last, now + millis(step + 1));
        }
        // Without room for one, nothing was seen.
        let look = due.look(now + millis(6), 10 * SECOND).unwrap();
        due.goes_on(&look, None, now + millis(7));
        assert_eq!(due.look(now + millis(8), 10 * SECOND).unwrap().after, last);
        assert_eq!(due.look(now + millis(10), 10 * SECOND).unwrap().after, None);
    }

    #[test]
    fn no_look_goes_on_behind_what_may_still_be_committed() {
        let now = Instant::now();
        let mut due = Due::default();
        let look = due.look(now, 10 * SECOND).unwrap();
        let last = Turn {
            deliver_at: 10 * SECOND,
            id: 7,
        };
        due.goes_on(&look, Some(last), now + millis(1));
        let next = due.look(now + millis(2), 10 * SECOND).unwrap();
        assert_eq!(next.after.unwrap().deliver_at, 9 * SECOND);
    }

    #[test]
    fn a_look_at_all_takes_a_tenth_of_the_time() {
        let now = Instant::now();
        let mut due = Due::default();
        let look = due.look(now, 10 * SECOND).unwrap();
        let later = now + millis(2_000);
        due.ends(&look, None, later, POLL);
        for (pause, all) in [(0, false), (17_999, false), (18_000, true)] {
            due.wake();
            assert_eq!(due.look(later + millis(pause), 0).unwrap().after.is_none(), all);
        }
    }

    #[test]
    fn what_is_held_is_looked_at_again_by_a_look_at_all() {
        let now = Instant::now();
        let mut due = Due::default();
        let look = due.look(now, 10 * SECOND).unwrap();
        due.ends(&look, Some(Duration::ZERO), now + millis(5), POLL);
        assert_eq!(due.look(now + millis(49), 0), None);
        assert_eq!(due.look(now + millis(50), 0).unwrap().after, None);
        let mut due = Due::default();
        due.ends(&look, Some(Duration::ZERO), now, POLL);
        assert_eq!(due.look(now + millis(9), 0), None);
    }

    #[test]
    fn what_is_given_back_is_looked_for_at_once() {
        let now = Instant::now();
        let mut due = quiet(now);
        due.soon();
        assert!(due.look(now, 10 * SECOND).unwrap().after.is_some());
        let mut due = quiet(now);
        due.all_soon();
        assert_eq!(due.look(now, 10 * SECOND).unwrap().after, None);
    }
}
