//! From a commit to the worker: a note of what the transaction has inserted, left before the commit, and a nudge of the
//! worker's latch after it, so that the worker sees the rows.

use std::cell::Cell;

use crate::notes::Span;
use crate::pg::{self, End};
use crate::status::{self, Request};

thread_local! {
    static INSERTED: Cell<Option<Span>> = const { Cell::new(None) };
    static ASKED: Cell<Option<Request>> = const { Cell::new(None) };
    static IGNORED: Cell<bool> = const { Cell::new(false) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Makes this process's own commits wake nobody: called by the worker, which changes the outbox itself.
pub fn ignore_own_commits() {
    IGNORED.set(true);
}

/// Whether this process is a worker.
pub fn is_worker() -> bool {
    IGNORED.get()
}

/// Wakes the worker of this database when the current transaction commits; false if this process's transactions concern
/// no worker. Prepared transactions are found by the worker's poll instead.
pub fn at_commit(request: Request) -> bool {
    if !status::preloaded() || IGNORED.get() {
        return false;
    }
    if !REGISTERED.replace(true) {
        pg::at_transaction_end(ended);
    }
    ASKED.set(ASKED.get().max(Some(request)));
    true
}

/// A message of this id is inserted, `delayed` if it has a `deliver_at`: the worker is told of it, and woken when the
/// current transaction commits.
pub fn inserted(id: i64, delayed: bool) {
    let request = if delayed { Request::LookForDue } else { Request::Look };
    if !at_commit(request) {
        return;
    }
    let mut span = INSERTED.get().unwrap_or(Span::of(id));
    if !span.join(Span::of(id)) {
        note();
        span = Span::of(id);
    }
    INSERTED.set(Some(span));
}

/// Notes what was inserted since the last note.
fn note() {
    if let Some(span) = INSERTED.take() {
        // Whoever has inserted has an id; of a transaction that has none, nothing will ever be visible.
        if let Some(xid) = pg::own_xid() {
            status::notes().push(xid, span);
        }
    }
}

fn ended(end: End) {
    match end {
        End::Committing { synchronous } => {
            note();
            if let (true, true, Some(xid)) = (synchronous, ASKED.get().is_some(), pg::own_xid()) {
                status::note_synchronous(xid);
            }
        }
        End::Preparing => note(),
        End::Committed => {
            if let Some(request) = ASKED.take() {
                status::wake(pg::my_database(), request);
            }
        }
        End::AbortedOrPrepared => {
            ASKED.set(None);
            INSERTED.set(None);
        }
    }
}
