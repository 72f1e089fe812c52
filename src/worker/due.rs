//! When a connection's delayed messages are looked for, and from where. Free of SQL.
//!
//! Messages that are due are found in the order of `deliver_at`, and so are the dead rows of those that were, as long as an
//! old snapshot may see them. So a look goes on where the last one came to, and looks at all of them in steps that depend
//! on what that takes: for rows that somebody held, and for a `deliver_at` that was over long before the commit.

use std::time::{Duration, Instant};

use crate::store::Turn;

/// A message to be delivered earlier than so long before a look is found by the next look at all.
const LATE_INSERT: Duration = Duration::from_secs(1);
/// When a message that is due and could not be claimed is looked at again.
const AGAIN: Duration = Duration::from_millis(10);
/// The pause between looks at all, at least, in times of what the last one took: there may be millions of dead rows, and
/// somebody may hold thousands of others.
const PAUSE: u32 = 9;

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
    /// When all are looked at; `None`: with the next look.
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
        let all = self.all.is_none_or(|at| at <= now);
        if !woken && !all && self.next.is_some_and(|at| at > now) {
            return None;
        }
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
    pub fn goes_on(&mut self, look: &Look, last: Option<Turn>, now: Instant, poll: Duration) {
        self.next = None;
        if let Some(last) = last {
            self.ended(look, Some(last), now, poll);
        }
    }

    /// The look has seen all that is due. The next message is due after `wait`, none if there is none; one that is due
    /// already somebody holds, or it came due this moment.
    pub fn ends(&mut self, look: &Look, wait: Option<Duration>, now: Instant, poll: Duration) {
        self.ended(look, None, now, poll);
        let mut wait = wait.unwrap_or(poll).min(poll);
        if wait.is_zero() {
            wait = AGAIN.max((now - look.began) * PAUSE);
            if look.after.is_none() {
                self.all = Some(now + wait);
            }
        }
        let next = now + wait;
        self.next = Some(self.all.map_or(next, |all| all.min(next)));
    }

    fn ended(&mut self, look: &Look, last: Option<Turn>, now: Instant, poll: Duration) {
        if look.after.is_none() {
            self.all = Some(now + poll.max((now - look.began) * PAUSE));
            self.after = Some(look.late);
        }
        if let Some(last) = last {
            self.after = Some(last.min(look.late));
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

    /// A connection whose look at all ended at `now`, when it was `10 * SECOND`, and found nothing.
    fn quiet(now: Instant) -> Due {
        let mut due = Due::default();
        let look = due.look(now, 10 * SECOND).unwrap();
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
        assert_eq!(due.look(now + POLL, 0).unwrap().after, None);
    }

    #[test]
    fn what_becomes_due_is_not_a_reason_to_look_at_all() {
        let now = Instant::now();
        let mut due = quiet(now);
        due.wake();
        let look = due.look(now, 10 * SECOND).unwrap();
        due.ends(&look, Some(millis(300)), now, POLL);
        assert_eq!(due.next(), Some(now + millis(300)));
        assert!(due.look(now + millis(300), 0).unwrap().after.is_some());
    }

    #[test]
    fn a_large_number_is_walked_through_once() {
        let now = Instant::now();
        let mut due = Due::default();
        let mut last = None;
        for step in 0..5 {
            let look = due.look(now, 10 * SECOND).unwrap();
            assert_eq!(look.after, last);
            last = Some(Turn {
                deliver_at: 2 * SECOND,
                id: step,
            });
            due.goes_on(&look, last, now, POLL);
        }
        // Without room for one, nothing was seen.
        let look = due.look(now, 10 * SECOND).unwrap();
        due.goes_on(&look, None, now, POLL);
        assert_eq!(due.look(now, 10 * SECOND).unwrap().after, last);
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
        due.goes_on(&look, Some(last), now, POLL);
        assert_eq!(
            due.look(now, 10 * SECOND).unwrap().after.unwrap().deliver_at,
            9 * SECOND
        );
    }

    #[test]
    fn a_look_at_all_takes_a_tenth_of_the_time() {
        let now = Instant::now();
        let mut due = Due::default();
        let look = due.look(now, 10 * SECOND).unwrap();
        let later = now + millis(2_000);
        due.ends(&look, None, later, POLL);
        due.wake();
        assert!(due.look(later + millis(17_999), 0).unwrap().after.is_some());
        assert_eq!(due.look(later + millis(18_000), 0).unwrap().after, None);
    }

    #[test]
    fn what_is_held_is_looked_at_again_by_a_look_at_all() {
        let now = Instant::now();
        let mut due = Due::default();
        let look = due.look(now, 10 * SECOND).unwrap();
        due.ends(&look, Some(Duration::ZERO), now + millis(5), POLL);
        assert_eq!(due.look(now + millis(49), 0), None);
        assert_eq!(due.look(now + millis(50), 0).unwrap().after, None);
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
