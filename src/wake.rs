//! From a commit to the worker's latch. A statement trigger asks for a wake; the nudge happens after the commit, so that
//! the worker sees the rows.

use std::cell::Cell;

use crate::pg::{self, End};
use crate::status::{self, Request};

thread_local! {
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

/// Wakes the worker of this database when the current transaction commits. Prepared transactions are found by the
/// worker's poll instead.
pub fn at_commit(request: Request) {
    if !status::preloaded() || IGNORED.get() {
        return;
    }
    if !REGISTERED.replace(true) {
        pg::at_transaction_end(ended);
    }
    if ASKED.get() != Some(Request::Reload) {
        ASKED.set(Some(request));
    }
}

fn ended(end: End) {
    match end {
        End::Committing { synchronous: true } if ASKED.get().is_some() => {
            if let Some(xid) = pg::own_xid() {
                status::note_synchronous(xid);
            }
        }
        End::Committing { .. } => {}
        End::Committed => {
            if let Some(request) = ASKED.take() {
                status::wake(pg::my_database(), request);
            }
        }
        End::AbortedOrPrepared => ASKED.set(None),
    }
}
