//! Table changes to JetStream. A statement trigger packs what its transition tables hold into
//! `jetstream.capture_queue`; the drain worker turns that into messages of the outbox ([`expand`]).

pub mod batch;
mod condition;
pub mod envelope;
mod epoch;
pub mod expand;
pub mod head;
pub mod json;
pub mod nesting;
mod plan;
mod queue;
mod rows;
mod settings;
mod transaction;
mod truncate;
mod value;

use std::cell::Cell;
use std::rc::Rc;

use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use crate::message::MAX_BODY_BYTES;
use crate::pg;
use crate::status::Request;
use crate::wake;
use batch::{Change, Op};
use plan::Plan;

thread_local! {
    /// Empty, with the room that the last statement had made.
    static BODY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

type NoTuple = Result<Option<PgHeapTuple<'static, AllocatedByRust>>, std::convert::Infallible>;

/// Bytes kept for the next statement of the session.
const KEPT: usize = 65_536;
/// Bytes of a row of the queue: as many changes as fit into a page with it.
const FULL: usize = 7_600;

/// The changes of one statement on their way to the queue.
struct Statement {
    plan: Rc<Plan>,
    lsn: u64,
    salt: String,
    body: Vec<u8>,
    /// Changes stored, and those in `body`.
    stored: i32,
    waiting: i32,
}

impl Statement {
    fn new(plan: Rc<Plan>, trigger: Option<&pg_sys::TriggerData>) -> Statement {
        let lsn = nesting::place(trigger);
        if plan.config.transactions {
            transaction::begin(&plan, lsn);
        }
        Statement {
            plan,
            lsn,
            salt: queue::salt(),
            body: BODY.take(),
            stored: 0,
            waiting: 0,
        }
    }

    /// Stores the last changes.
    fn end(mut self) {
        self.flush();
        if self.body.capacity() <= KEPT {
            BODY.set(self.body);
        }
    }

    fn add(&mut self, change: &Change<'_>) {
        let size = [change.key, change.old, change.new, change.changed]
            .iter()
            .flatten()
            .map(|field| field.len() + 4)
            .sum::<usize>();
        if size > MAX_BODY_BYTES - 4096 {
            fail(
                &self.plan.name(),
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                &format!("a row of {size} bytes is too long for a message"),
                "No NATS server takes more than 64 MB. Leave its long columns out with the columns of jetstream.capture.",
            );
        }
        if !self.body.is_empty() && self.body.len() + size > FULL {
            self.flush();
        }
        batch::push(&mut self.body, change);
        self.waiting += 1;
    }

    fn flush(&mut self) {
        if self.waiting == 0 {
            return;
        }
        queue::store(&queue::Row {
            lsn: self.lsn,
            number: self.stored + 1,
            changes: self.waiting,
            salt: &self.salt,
            connection: &self.plan.config.connection,
            head: &self.plan.head_text,
            body: &self.body,
        });
        self.stored += self.waiting;
        self.waiting = 0;
        self.body.clear();
    }
}

/// Raises an ERROR that names the table.
fn fail(table: &str, code: PgSqlErrorCode, why: &str, hint: &str) -> ! {
    let message = format!("changes of table \"{table}\" cannot be captured: {why}");
    pg::refuse(code, message, hint)
}

/// The same for a table that cannot be looked up.
fn unknown(table: Oid, why: &str) -> ! {
    let name = pg::relation_name(table).unwrap_or_else(|| table.to_u32().to_string());
    fail(
        &name,
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        why,
        "Capture the table again with jetstream.capture, or end it with jetstream.uncapture.",
    )
}

/// Trigger: captures the changes of a statement. Its argument is what `jetstream.capture` was given.
#[pg_trigger]
fn capture_changes<'a>(trigger: &'a PgTrigger<'a>) -> NoTuple {
    let data = trigger.trigger_data();
    let plan = plan::of(trigger.trigger().tgoid, data, || {
        trigger
            .extra_args()
            .ok()
            .and_then(|mut arguments| arguments.pop())
            .unwrap_or_default()
    });
    let plan = plan.unwrap_or_else(|why| unknown(pg::trigger::relation(data), &why));
    if rows::capture(&plan, data) {
        wake::at_commit(Request::Look);
    }
    Ok(None)
}

/// Describes a captured table; `argument` is its trigger's. If that is not what is `known` of it, a relation message is
/// stored. Returns the description.
#[pg_extern(volatile)]
fn capture_relation(relation: Option<pg_sys::Oid>, argument: Option<&str>, known: Option<&str>) -> String {
    let (Some(relation), Some(argument)) = (relation, argument) else {
        pg::refuse(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            "capture_relation needs a table and the argument of its capture".into(),
            "Use jetstream.capture to capture a table.",
        )
    };
    let plan = Plan::look_up(relation, argument).unwrap_or_else(|why| unknown(relation, &why));
    let described = format!("{} {}", plan.key_prefix, plan.described);
    if known != Some(described.as_str()) {
        let columns = plan.described.clone();
        let mut statement = Statement::new(Rc::new(plan), None);
        statement.add(&Change {
            key: statement.plan.whole(),
            new: Some(columns.as_bytes()),
            ..Change::bare(Op::Relation)
        });
        statement.end();
        wake::at_commit(Request::Look);
    }
    described
}

/// A name as one token of a subject; see `head::token`.
#[pg_extern(immutable, strict, parallel_safe)]
fn subject_token(name: &str) -> String {
    head::token(name)
}
