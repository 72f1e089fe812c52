//! A look at what late committers have inserted: where their rows stand among the ids claimed already. Free of SQL.

use std::collections::VecDeque;

use crate::notes::{Inserted, Reader, Span};
use crate::snapshot::Snapshot;

/// Most ids one statement walks over, dead ones among them: a fraction of a second.
const STEP: i64 = 100_000;

/// Transactions that were in progress at a claim and have ended, and the ids that are to be looked through for them.
#[derive(Debug, Clone)]
pub struct Late {
    /// What had ended when the look began.
    pub view: Snapshot,
    /// Of the pending transactions, those that had.
    pub ended: Vec<u64>,
    /// Of these, those that may have inserted something.
    pub sought: Vec<u64>,
    spans: VecDeque<Span>,
}

impl Late {
    /// A look for those of the `pending` that have ended: each with an id above which all of its own are. What lies
    /// above `cursor` is not late.
    pub fn new(view: Snapshot, pending: impl Iterator<Item = (u64, i64)>, notes: &Reader, cursor: i64) -> Late {
        let (mut ended, mut sought, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        for (xid, above) in pending.filter(|(xid, _)| view.has_ended(*xid)) {
            ended.push(xid);
            match notes.of(xid) {
                Inserted::Within(noted) => spans.extend(noted),
                Inserted::Unknown => spans.push(Span {
                    low: above.saturating_add(1),
                    high: i64::MAX,
                }),
                Inserted::Nothing => continue,
            }
            sought.push(xid);
        }
        Late {
            view,
            ended,
            sought,
            spans: merged(spans, cursor),
        }
    }

    /// The ids to look through next; `None` if all have been.
    pub fn step(&self) -> Option<Span> {
        let mut span = *self.spans.front()?;
        span.high = span.high.min(span.low.saturating_add(STEP - 1));
        Some(span)
    }

    /// All up to this id have been looked through.
    pub fn seen(&mut self, id: i64) {
        while let Some(span) = self.spans.front_mut() {
            if id < span.high {
                span.low = span.low.max(id.saturating_add(1));
                return;
            }
            self.spans.pop_front();
        }
    }
}

/// In their order, none beyond `cursor`, and those close together as one: a statement costs as much as many rows.
fn merged(mut spans: Vec<Span>, cursor: i64) -> VecDeque<Span> {
    spans.sort_unstable();
    let mut all: VecDeque<Span> = VecDeque::new();
    for mut span in spans.into_iter().filter(|span| span.low <= cursor) {
        span.high = span.high.min(cursor);
        if !all.back_mut().is_some_and(|last| last.join(span)) {
            all.push_back(span);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notes::Ring;

    fn span(low: i64, high: i64) -> Span {
        Span { low, high }
    }

    /// A reader that knows of these notes, of transactions from 100 on.
    fn noted(notes: &[(u64, Span)]) -> Reader {
        let ring: Box<Ring> = Box::default();
        let mut reader = Reader::new(&ring, || 100);
        notes.iter().for_each(|(xid, span)| ring.push(*xid, *span));
        reader.read(&ring, || 200);
        reader
    }

    #[test]
    fn looks_where_those_that_have_ended_have_inserted() {
        let notes = noted(&[
            (101, span(5_000, 5_010)),
            (102, span(70, 90)),
            (103, span(1, 1)),
            (104, span(100, 120)),
        ]);
        let pending = [(101, 0), (102, 0), (103, 0), (104, 0), (105, 0)].into_iter();
        let mut late = Late::new(Snapshot::parse("103:110:103"), pending, &notes, 5_005);
        assert_eq!(late.ended, [101, 102, 104, 105]);
        assert_eq!(late.sought, [101, 102, 104]);
        assert_eq!(late.step(), Some(span(70, 120)));
        late.seen(119);
        assert_eq!(late.step(), Some(span(120, 120)));
        late.seen(120);
        assert_eq!(late.step(), Some(span(5_000, 5_005)));
        late.seen(5_005);
        assert_eq!(late.step(), None);
    }

    #[test]
    fn of_lost_notes_all_is_looked_through_that_they_can_have_told_of() {
        let pending = [(98, 40), (99, 70)].into_iter();
        let late = Late::new(Snapshot::parse("200:200:"), pending, &noted(&[]), 90);
        assert_eq!(late.sought, [98, 99]);
        assert_eq!(late.step(), Some(span(41, 90)));
    }

    #[test]
    fn nobody_who_has_inserted_nothing_is_looked_for() {
        let pending = [(150, 0)].into_iter();
        let late = Late::new(Snapshot::parse("200:200:"), pending, &noted(&[]), 90);
        assert_eq!((late.ended.as_slice(), late.step()), (&[150][..], None));
    }

    #[test]
    fn goes_step_by_step() {
        let pending = [(1, 0)].into_iter();
        let mut late = Late::new(Snapshot::parse("200:200:"), pending, &noted(&[]), STEP + 10);
        assert_eq!(late.step(), Some(span(1, STEP)));
        late.seen(STEP);
        assert_eq!(late.step(), Some(span(STEP + 1, STEP + 10)));
    }
}
