//! From a commit to the worker's latch. A statement trigger asks for a wake once in a transaction; the nudge happens
//! after the commit, so that the worker sees the rows.

use std::cell::Cell;

use pgrx::{PgXactCallbackEvent, register_xact_callback};

use crate::pg;
use crate::status::{self, Request};

thread_local! {
    static ASKED: Cell<Option<Request>> = const { Cell::new(None) };
    static IGNORED: Cell<bool> = const { Cell::new(false) };
}

/// Makes this process's own commits wake nobody: called by the worker, which changes the outbox itself.
pub fn ignore_own_commits() {
    IGNORED.set(true);
}

/// Wakes the worker of this database when the current transaction commits. Prepared transactions are found by the
/// worker's poll instead.
pub fn at_commit(request: Request) {
    if !status::preloaded() || IGNORED.get() {
        return;
    }
    let before = ASKED.replace(Some(match ASKED.get() {
        Some(Request::Reload) => Request::Reload,
        _ => request,
    }));
    if before.is_some() {
        return;
    }
    register_xact_callback(PgXactCallbackEvent::Commit, || {
        if let Some(request) = ASKED.take() {
            status::wake(pg::my_database(), request);
        }
    });
    register_xact_callback(PgXactCallbackEvent::Abort, || ASKED.set(None));
    register_xact_callback(PgXactCallbackEvent::Prepare, || ASKED.set(None));
}
