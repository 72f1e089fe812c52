//! Places of statements that run inside one another.
//!
//! PostgreSQL calls what is to be done after a statement one by one: triggers of rows first, those of the statement by
//! name. What a trigger changes in front of the capture is captured before the statement that it belongs to, though it
//! happened later. So the statement takes a place before the first of these, of which nothing else can have been taken: a
//! place is followed by the row of the queue that has it.

use std::cell::RefCell;

use pgrx::pg_sys::TriggerData;

use crate::pg;
use crate::pg::finish::{self, Event, Query};

/// Bytes of the write-ahead log from the place of a statement to the first one taken by what its triggers did: fewer than
/// a row of the queue has there, for each of some depth, more than a query has captured tables.
const GAP: u64 = 16;

/// A statement that has changed its rows and whose triggers are called now.
#[derive(Debug, PartialEq, Eq)]
struct Finishing<Q> {
    query: Q,
    /// Triggers that were running when it began.
    depth: i32,
    /// First place taken by what its triggers did.
    first: Option<u64>,
    /// Places it has taken before that.
    taken: u64,
}

/// Statements whose triggers are called, the outermost first.
#[derive(Debug)]
struct Nesting<Q>(Vec<Finishing<Q>>);

impl<Q: Copy> Nesting<Q> {
    fn begin(&mut self, query: Q, depth: i32) {
        self.0.push(Finishing {
            query,
            depth,
            first: None,
            taken: 0,
        });
    }

    /// What began at `depth` or deeper ended, or failed.
    fn end(&mut self, depth: i32) {
        self.0.retain(|one| one.depth < depth);
    }

    /// The place of what is captured while `depth` triggers run, where `now` is the end of the log. `fires` tells whether
    /// that belongs to this statement itself, `done` whether all rows of this one are changed.
    fn place(&mut self, depth: i32, now: u64, fires: impl Fn(Q) -> bool, done: impl Fn(Q) -> bool) -> u64 {
        let belongs = |one: &Finishing<Q>| one.depth + 1 == depth && fires(one.query);
        let own = self.0.iter().rposition(belongs).map(|at| self.0.split_at_mut(at));
        let (outer, place) = match own {
            Some((outer, [own, ..])) => {
                let before = own.first.map(|first| first - GAP + own.taken.min(GAP - 1));
                own.taken += u64::from(before.is_some());
                (outer, before.unwrap_or(now))
            }
            _ => (&mut self.0[..], now),
        };
        for one in outer.iter_mut().filter(|one| done(one.query)) {
            one.first = Some(one.first.map_or(place, |first| first.min(place)));
        }
        place
    }

    /// A place in front of this one, the last that was taken, and of those that the statements around it may take.
    fn in_front(&self, place: u64) -> u64 {
        place - GAP * (self.0.len() as u64 + 1)
    }
}

thread_local! {
    static NESTING: RefCell<Nesting<Query>> = const { RefCell::new(Nesting(Vec::new())) };
}

/// Begins to note which statements' triggers are called; to be called once in a process.
pub fn watch() {
    finish::watch(|event| {
        NESTING.with_borrow_mut(|nesting| match event {
            Event::Begin { query, depth } => nesting.begin(query, depth),
            Event::End { depth } => nesting.end(depth),
        });
    });
}

/// Where what is captured now, by this trigger or by none, belongs in the write-ahead log. It grows from a statement to the
/// next that sees its effects, in whatever session, because what is captured is itself logged.
pub fn place(trigger: Option<&TriggerData>) -> u64 {
    let fires = |query: Query| trigger.is_some_and(|trigger| query.fires(trigger));
    NESTING.with_borrow_mut(|nesting| {
        nesting.place(finish::depth(), pg::wal_insert_position(), fires, Query::has_its_rows)
    })
}

/// A place in front of this one, which was taken just now, and of those that the statements around it may take.
pub fn in_front(place: u64) -> u64 {
    NESTING.with_borrow(|nesting| nesting.in_front(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Nesting<&'static str> {
        Nesting(Vec::new())
    }

    fn of<'a>(table: &'a str) -> impl Fn(&'static str) -> bool + 'a {
        move |query| query == table
    }

    fn done(query: &'static str) -> bool {
        query != "copy reads rows"
    }

    #[test]
    fn statements_one_after_the_other_take_places_as_they_come() {
        let mut nesting = empty();
        for now in [1_000, 2_000] {
            nesting.begin("t", 0);
            assert_eq!(nesting.place(1, now, of("t"), done), now);
            nesting.end(0);
        }
        assert_eq!(nesting.place(1, 3_000, of("t"), done), 3_000, "COPY");
    }

    #[test]
    fn a_statement_comes_before_what_its_triggers_did() {
        let mut nesting = empty();
        nesting.begin("t", 0);
        for now in [1_000, 2_000] {
            nesting.begin("u", 1);
            assert_eq!(nesting.place(2, now, of("u"), done), now);
            nesting.end(1);
        }
        let of_two_triggers = [3_000, 4_000].map(|now| nesting.place(1, now, of("t"), done));
        assert_eq!(of_two_triggers, [984, 985]);
        nesting.end(0);
        nesting.begin("t", 0);
        assert_eq!(nesting.place(1, 5_000, of("t"), done), 5_000);
    }

    #[test]
    fn so_at_each_depth() {
        let mut nesting = empty();
        for depth in 0..3 {
            nesting.begin("t", depth);
        }
        let places = [(3, 1_000), (2, 2_000), (1, 3_000)].map(|(depth, now)| {
            let place = nesting.place(depth, now, of("t"), done);
            nesting.end(depth - 1);
            place
        });
        assert_eq!(places, [1_000, 984, 968]);
    }

    #[test]
    fn a_transaction_begins_in_front_of_all_that_may_come() {
        let mut nesting = empty();
        for depth in 0..3 {
            nesting.begin("t", depth);
        }
        let first = nesting.place(3, 1_000, of("t"), done);
        let begin = nesting.in_front(first);
        nesting.end(2);
        let second = nesting.place(2, 2_000, of("t"), done);
        let other_begin = nesting.in_front(second);
        nesting.end(1);
        let third = nesting.place(1, 3_000, of("t"), done);
        assert!(begin < third && other_begin < third && third < second && second < first);
    }

    #[test]
    fn what_a_statement_called_before_it_had_its_rows_comes_before_it() {
        let mut nesting = empty();
        nesting.begin("t", 1);
        assert_eq!(nesting.place(2, 1_000, of("t"), done), 1_000);
        nesting.end(1);
        nesting.begin("t", 0);
        assert_eq!(nesting.place(1, 2_000, of("t"), done), 2_000);
    }

    #[test]
    fn what_a_foreign_key_did_stays_where_it_happened() {
        let mut nesting = empty();
        nesting.begin("parents", 0);
        nesting.begin("children", 1);
        assert_eq!(nesting.place(2, 1_000, of("children"), done), 1_000);
        nesting.end(1);
        assert_eq!(nesting.place(1, 2_000, of("children"), done), 2_000);
        assert_eq!(nesting.place(1, 3_000, of("parents"), done), 984);
    }

    #[test]
    fn what_is_done_while_copy_reads_rows_comes_before_it() {
        let mut nesting = empty();
        nesting.begin("t", 0);
        nesting.begin("copy reads rows", 1);
        nesting.begin("t", 2);
        assert_eq!(nesting.place(3, 1_000, of("t"), done), 1_000);
        nesting.end(2);
        assert_eq!(nesting.place(2, 2_000, of("copy reads rows"), done), 2_000);
        assert_eq!(nesting.place(1, 3_000, of("t"), done), 984);
    }

    #[test]
    fn a_truncation_inside_a_trigger_is_not_taken_for_the_statement() {
        let mut nesting = empty();
        nesting.begin("t", 0);
        assert_eq!(nesting.place(2, 1_000, of("t"), done), 1_000);
        assert_eq!(nesting.place(2, 2_000, of("t"), done), 2_000);
        assert_eq!(nesting.place(1, 3_000, of("t"), done), 984);
    }

    #[test]
    fn what_failed_is_forgotten() {
        let mut nesting = empty();
        for depth in 0..3 {
            nesting.begin("t", depth);
        }
        nesting.end(1);
        assert_eq!(nesting.place(1, 1_000, of("t"), done), 1_000);
        nesting.end(0);
        assert!(nesting.0.is_empty());
    }
}
