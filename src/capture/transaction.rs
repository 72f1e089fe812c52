//! Begin and commit of transactions that made captured changes.

use std::cell::RefCell;
use std::rc::Rc;

use pgrx::{PgSubXactCallbackEvent, PgXactCallbackEvent, pg_sys, register_subxact_callback, register_xact_callback};

use super::batch::{self, Change, Op};
use super::head::Format;
use super::nesting;
use super::plan::Plan;
use super::queue;
use crate::pg;

/// A begin that stands in the queue, and the subtransaction that put it there.
struct Begun {
    plan: Rc<Plan>,
    subtransaction: pg_sys::SubTransactionId,
}

thread_local! {
    static BEGUN: RefCell<Vec<Begun>> = const { RefCell::new(Vec::new()) };
    static REGISTERED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Stores the begin before the first change of this transaction that goes this way, which has the place `first`.
pub fn begin(plan: &Rc<Plan>, first: u64) {
    fn way(plan: &Plan) -> (Format, &str, &str) {
        (plan.head.format, &plan.head.prefix, &plan.config.connection)
    }
    if BEGUN.with_borrow(|begun| begun.iter().any(|one| way(&one.plan) == way(plan))) {
        return;
    }
    store(plan, Op::Begin, nesting::in_front(first));
    let subtransaction = pg::subtransaction();
    BEGUN.with_borrow_mut(|begun| {
        begun.push(Begun {
            plan: plan.clone(),
            subtransaction,
        });
    });
    register();
}

fn store(plan: &Plan, op: Op, lsn: u64) {
    let mut body = Vec::new();
    batch::push(&mut body, &Change::bare(op));
    queue::store(&queue::Row {
        lsn,
        number: 1,
        changes: 1,
        salt: &queue::salt(),
        connection: &plan.config.connection,
        head: &plan.head_text,
        body: &body,
    });
}

/// What a savepoint takes back takes its begin with it.
fn register() {
    if REGISTERED.replace(true) {
        return;
    }
    let end = || {
        BEGUN.take();
        REGISTERED.set(false);
    };
    register_xact_callback(PgXactCallbackEvent::PreCommit, commit);
    register_xact_callback(PgXactCallbackEvent::PrePrepare, commit);
    register_xact_callback(PgXactCallbackEvent::Commit, end);
    register_xact_callback(PgXactCallbackEvent::Abort, end);
    register_xact_callback(PgXactCallbackEvent::Prepare, end);
    register_subxact_callback(PgSubXactCallbackEvent::AbortSub, |ended, _| {
        BEGUN.with_borrow_mut(|begun| begun.retain(|one| one.subtransaction != ended));
    });
    register_subxact_callback(PgSubXactCallbackEvent::CommitSub, |ended, parent| {
        BEGUN.with_borrow_mut(|begun| {
            for one in begun.iter_mut().filter(|one| one.subtransaction == ended) {
                one.subtransaction = parent;
            }
        });
    });
}

/// Before the commit itself, after all deferred triggers: nothing a user can write comes later.
fn commit() {
    for one in BEGUN.take() {
        store(&one.plan, Op::Commit, pg::wal_insert_position());
    }
}
