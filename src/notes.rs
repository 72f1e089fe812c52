//! Notes: which ids of the outbox a transaction has inserted, left by its commit for the worker. Free of PostgreSQL.
//!
//! A ring in shared memory, of atomics alone, so that a commit takes no lock and waits for nobody. Whoever reads knows
//! what he has missed: notes are numbered, and each is sealed with its number.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use rustc_hash::FxHashMap;

use crate::snapshot::Snapshot;

/// Notes the ring holds. A busy worker reads it every few milliseconds.
const PLACES: usize = 8 * 1024;
/// Ids of one transaction that are farther apart than this are noted apart: between them are rows of others.
const APART: i64 = 64;
/// Most spans kept of one transaction.
const MOST_SPANS: usize = 1_000;

/// Ids of the outbox, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The lowest.
    pub low: i64,
    /// The highest.
    pub high: i64,
}

impl Span {
    /// Of one id.
    pub fn of(id: i64) -> Span {
        Span { low: id, high: id }
    }

    /// Takes in the other one; false if they are too far apart for that.
    pub fn join(&mut self, other: Span) -> bool {
        let near = other.low <= self.high.saturating_add(APART) && self.low <= other.high.saturating_add(APART);
        if near {
            self.cover(other);
        }
        near
    }

    fn cover(&mut self, other: Span) {
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
    }
}

/// One place of the ring.
#[derive(Default)]
struct Place {
    xid: AtomicU64,
    low: AtomicI64,
    high: AtomicI64,
    seal: AtomicU64,
}

/// The notes of a cluster. All zero: none.
pub struct Ring {
    /// How many were begun.
    begun: AtomicU64,
    places: [Place; PLACES],
}

impl Default for Ring {
    fn default() -> Self {
        Ring {
            begun: AtomicU64::new(0),
            places: std::array::from_fn(|_| Place::default()),
        }
    }
}

impl Ring {
    /// Notes what a transaction has inserted. To be called before others can see it as ended.
    pub fn push(&self, xid: u64, span: Span) {
        let number = self.begun.fetch_add(1, Ordering::AcqRel);
        let place = &self.places[number as usize % PLACES];
        place.xid.store(xid, Ordering::Relaxed);
        place.low.store(span.low, Ordering::Relaxed);
        place.high.store(span.high, Ordering::Relaxed);
        place.seal.store(seal(number, xid, span), Ordering::Release);
    }

    /// The note of this number; `None` while it is being written, or once another one has its place: the seal is that of
    /// all its values, whichever of them are read in which order.
    fn get(&self, number: u64) -> Option<(u64, Span)> {
        let place = &self.places[number as usize % PLACES];
        let sealed = place.seal.load(Ordering::Acquire);
        let xid = place.xid.load(Ordering::Relaxed);
        let span = Span {
            low: place.low.load(Ordering::Relaxed),
            high: place.high.load(Ordering::Relaxed),
        };
        (sealed == seal(number, xid, span)).then_some((xid, span))
    }
}

/// A number that only this note with these values has, but for one chance in 2^64: two that write to one place at once
/// leave a mixture.
fn seal(number: u64, xid: u64, span: Span) -> u64 {
    // The finalizer of SplitMix64 (Steele, Lea and Flood 2014), which maps no two numbers to one.
    let mix = |n: u64| {
        let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    };
    let values = [number + 1, xid, span.low as u64, span.high as u64];
    values.into_iter().fold(
        0,
        |sum: u64, value| mix(sum.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ value),
    )
}

/// What a transaction has inserted.
#[derive(Debug, PartialEq, Eq)]
pub enum Inserted<'a> {
    /// Ids within these.
    Within(&'a [Span]),
    /// No message.
    Nothing,
    /// Its notes, if there were any, are lost.
    Unknown,
}

/// Somebody who reads the ring.
pub struct Reader {
    /// Number of the first note not read.
    next: u64,
    known: FxHashMap<u64, Vec<Span>>,
    /// Notes of transactions before this one may be lost.
    lost_before: u64,
    /// A note was being written when it was its turn.
    behind: bool,
}

impl Reader {
    /// Begins to read now; `next_xid` is the next transaction to begin.
    pub fn new(ring: &Ring, next_xid: impl Fn() -> u64) -> Reader {
        Reader {
            next: ring.begun.load(Ordering::Acquire),
            known: FxHashMap::default(),
            lost_before: next_xid(),
            behind: false,
        }
    }

    /// Reads what was noted since; `next_xid` is the next transaction to begin.
    pub fn read(&mut self, ring: &Ring, next_xid: impl Fn() -> u64) {
        let begun = ring.begun.load(Ordering::Acquire);
        let from = self.next.max(begun.saturating_sub(PLACES as u64));
        let mut missing = None;
        for number in from..begun {
            match ring.get(number) {
                Some((xid, span)) => add(self.known.entry(xid).or_default(), span),
                None => missing = missing.or(Some(number)),
            }
        }
        self.behind = missing.is_some();
        let next = missing.unwrap_or(begun);
        // What was overwritten meanwhile is among the missing.
        if from > self.next || ring.begun.load(Ordering::Acquire) > next + PLACES as u64 {
            self.lost_before = next_xid();
        }
        self.next = next;
    }

    /// What a transaction has inserted that had ended before the last [`read`](Reader::read).
    pub fn of(&self, xid: u64) -> Inserted<'_> {
        if xid < self.lost_before || self.behind {
            return Inserted::Unknown;
        }
        match self.known.get(&xid) {
            Some(spans) => Inserted::Within(spans),
            None => Inserted::Nothing,
        }
    }

    /// Forgets the transactions that had ended in this view, but for those still `wanted`.
    pub fn forget(&mut self, view: &Snapshot, wanted: impl Fn(u64) -> bool) {
        self.known.retain(|xid, _| !view.has_ended(*xid) || wanted(*xid));
    }
}

fn add(spans: &mut Vec<Span>, span: Span) {
    if spans.last_mut().is_some_and(|last| last.join(span)) {
        return;
    }
    if spans.len() < MOST_SPANS {
        spans.push(span);
        return;
    }
    let mut all = span;
    spans.drain(..).for_each(|one| all.cover(one));
    spans.push(all);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Box<Ring> {
        Box::default()
    }

    fn within(low: i64, high: i64) -> Vec<Span> {
        vec![Span { low, high }]
    }

    #[test]
    fn tells_what_was_noted_since() {
        let ring = ring();
        ring.push(90, Span::of(1));
        let mut reader = Reader::new(&ring, || 100);
        assert_eq!(reader.of(90), Inserted::Unknown, "before it began to read");
        ring.push(101, Span::of(7));
        ring.push(100, Span { low: 8, high: 12 });
        ring.push(101, Span::of(900));
        reader.read(&ring, || 110);
        assert_eq!(reader.of(100), Inserted::Within(&within(8, 12)));
        assert_eq!(reader.of(101), Inserted::Within(&[Span::of(7), Span::of(900)]));
        assert_eq!(reader.of(102), Inserted::Nothing);
    }

    #[test]
    fn forgets_what_has_ended_and_nobody_wants() {
        let ring = ring();
        let mut reader = Reader::new(&ring, || 10);
        for xid in 10..14 {
            ring.push(xid, Span::of(xid as i64));
        }
        reader.read(&ring, || 14);
        reader.forget(&Snapshot::parse("12:14:12"), |xid| xid == 11);
        let known: Vec<bool> = (10..14).map(|xid| reader.of(xid) != Inserted::Nothing).collect();
        assert_eq!(known, [false, true, true, false]);
    }

    #[test]
    fn knows_that_notes_were_lost() {
        let ring = ring();
        let mut reader = Reader::new(&ring, || 10);
        ring.push(10, Span::of(1));
        (0..PLACES as u64).for_each(|n| ring.push(20 + n, Span::of(2)));
        reader.read(&ring, || 9_000);
        assert_eq!(reader.of(10), Inserted::Unknown);
        assert_eq!(reader.of(8_999), Inserted::Unknown);
        ring.push(9_000, Span::of(3));
        reader.read(&ring, || 9_001);
        assert_eq!(reader.of(9_000), Inserted::Within(&within(3, 3)));
    }

    #[test]
    fn a_note_being_written_leaves_nothing_certain_until_it_is_there() {
        let ring = ring();
        let mut reader = Reader::new(&ring, || 10);
        let number = ring.begun.fetch_add(1, Ordering::AcqRel);
        ring.push(11, Span::of(2));
        reader.read(&ring, || 12);
        assert_eq!(reader.of(11), Inserted::Unknown);
        let place = &ring.places[number as usize];
        place.xid.store(10, Ordering::Relaxed);
        place.low.store(1, Ordering::Relaxed);
        place.high.store(1, Ordering::Relaxed);
        reader.read(&ring, || 12);
        assert_eq!(reader.of(10), Inserted::Unknown);
        place.seal.store(seal(number, 10, Span::of(1)), Ordering::Release);
        reader.read(&ring, || 12);
        assert_eq!(reader.of(10), Inserted::Within(&within(1, 1)));
        assert_eq!(reader.of(11), Inserted::Within(&within(2, 2)));
    }

    #[test]
    fn a_mixture_of_two_notes_is_none() {
        let ring = ring();
        ring.push(10, Span { low: 1, high: 5 });
        ring.places[0].high.store(6, Ordering::Relaxed);
        assert_eq!(ring.get(0), None);
    }

    #[test]
    fn ids_far_apart_are_noted_apart_up_to_a_number() {
        let mut span = Span::of(10);
        assert!(span.join(Span::of(10 + APART)) && !span.join(Span::of(11 + 2 * APART)));
        assert!(span.join(Span::of(2)));
        assert_eq!(
            span,
            Span {
                low: 2,
                high: 10 + APART
            }
        );
        let mut spans = Vec::new();
        for n in 0..=MOST_SPANS as i64 {
            add(&mut spans, Span::of(n * 1_000));
        }
        assert_eq!(spans, within(0, MOST_SPANS as i64 * 1_000));
    }

    #[test]
    fn everything_written_by_many_at_once_is_read() {
        const EACH: u64 = 20_000;
        let ring = ring();
        let mut reader = Reader::new(&ring, || 0);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let ring = &ring;
                    scope.spawn(move || {
                        for n in 0..EACH {
                            let xid = 1 + writer * EACH + n;
                            ring.push(
                                xid,
                                Span {
                                    low: xid as i64,
                                    high: xid as i64 * 2,
                                },
                            );
                        }
                    })
                })
                .collect();
            while !writers.iter().all(|writer| writer.is_finished()) {
                reader.read(&ring, || 0);
            }
        });
        reader.read(&ring, || 0);
        for (xid, spans) in &reader.known {
            assert_eq!(*spans, within(*xid as i64, *xid as i64 * 2));
        }
        // Those of the last round at least, but for what a writer has spoilt that was stopped for a whole round.
        assert!(reader.known.len() >= PLACES - 4, "{} read", reader.known.len());
    }
}
