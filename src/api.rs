//! Functions callable from SQL: thin wrappers around the pure modules and shared memory.

use std::time::{Duration, Instant};

use pgrx::prelude::*;
use pgrx::{JsonB, PgSqlErrorCode};

use crate::latency::Histogram;
use crate::pg::json::JsonText;
use crate::pg::refuse;
use crate::status::{self, Request};
use crate::{guc, message, pg, subject, wake};

/// True for a subject one can publish to; an ERROR that says why for any other.
#[pg_extern(immutable, strict, parallel_safe)]
pub fn check_subject(subject: &str) -> bool {
    match subject::check(subject) {
        Ok(()) => true,
        Err(e) => refuse(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, e.to_string(), e.hint()),
    }
}

/// True for headers NATS can carry; an ERROR that says why for any other.
#[pg_extern(immutable, strict, parallel_safe)]
pub fn check_headers(headers: JsonText) -> bool {
    match message::headers(&headers.0) {
        Ok(_) => true,
        Err(e) => refuse(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, e.to_string(), e.hint()),
    }
}

/// True for a usable `Nats-Msg-Id`; an ERROR that says why for any other.
#[pg_extern(immutable, strict, parallel_safe)]
pub fn check_message_id(message_id: &str) -> bool {
    match message::check_message_id(message_id) {
        Ok(()) => true,
        Err(e) => refuse(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, e.to_string(), e.hint()),
    }
}

/// Whether a subject matches a pattern with the wildcards `*` and `>` of NATS.
#[pg_extern(immutable, strict, parallel_safe)]
fn subject_matches(subject: &str, pattern: &str) -> bool {
    subject::matches(subject, pattern)
}

type NoTuple = Result<Option<PgHeapTuple<'static, AllocatedByRust>>, std::convert::Infallible>;

/// Trigger: makes the worker read connections and streams again when the transaction commits.
#[pg_trigger]
fn reload_worker<'a>(_trigger: &'a PgTrigger<'a>) -> NoTuple {
    wake::at_commit(Request::Reload);
    Ok(None)
}

/// Asks the worker to connect anew, to one connection or (null) to all; false if no worker runs in this database.
#[pg_extern(volatile)]
fn request_reload(connection: Option<&str>) -> bool {
    status::reconnect(pg::my_database(), connection.unwrap_or("")).is_some()
}

/// What the worker says of a connection.
struct Answer {
    state: &'static str,
    detail: String,
    /// It takes the request into account.
    taken: bool,
}

/// None if no worker serves this database at all.
fn ask_worker(connection: &str, request: Option<u32>) -> Option<Answer> {
    let answer = |state, detail: &str, taken| {
        let detail = detail.to_string();
        Some(Answer { state, detail, taken })
    };
    let database = pg::my_database();
    if !status::preloaded() {
        return None;
    }
    let number = status::find(|slot| slot.database == database)?;
    let slot = status::slot(number);
    if slot.pid == 0 {
        return answer("not running", slot.stopped.as_str(), false);
    }
    let report = &slot.report;
    let taken = request.is_some_and(|request| report.reconnects_taken.wrapping_sub(request) as i32 >= 0);
    match status::links(number).iter().find(|link| link.name == connection) {
        Some(link) => answer(status::link_state_name(link.state), &link.detail, taken),
        None => answer(
            "unknown",
            "the worker does not see this connection (is it committed?)",
            taken,
        ),
    }
}

/// Asks the worker to connect anew and waits for the result, `timeout_ms` milliseconds at most. The worker sees what is
/// committed: a change of the connection in the current transaction does not count yet.
#[pg_extern(volatile)]
fn await_connection(connection: &str, timeout_ms: i32) -> JsonB {
    const STEP: Duration = Duration::from_millis(10);
    let begin = Instant::now();
    let limit = Duration::from_millis(timeout_ms.max(0) as u64);
    let mut request = None;
    let (state, detail) = loop {
        // A worker that is just starting does not listen yet.
        request = request.or_else(|| status::reconnect(pg::my_database(), connection));
        let Some(answer) = ask_worker(connection, request) else {
            let detail = "no worker serves this database: see shared_preload_libraries and pg_jetstream.databases";
            break ("not running", detail.to_string());
        };
        if answer.taken && answer.state != "connecting" {
            break (answer.state, answer.detail);
        }
        if begin.elapsed() >= limit {
            break match answer.state {
                "not running" => (answer.state, answer.detail),
                _ if answer.taken => (answer.state, format!("not connected after {timeout_ms} ms")),
                _ => (
                    "no answer",
                    format!("the worker has not answered within {timeout_ms} ms"),
                ),
            };
        }
        pg::wait(STEP);
        pgrx::check_for_interrupts!();
    };
    JsonB(serde_json::json!({
        "connected": state == "connected",
        "state": state,
        "detail": detail,
        "waited_ms": begin.elapsed().as_millis() as u64,
    }))
}

fn time(micros: i64) -> Option<TimestampWithTimeZone> {
    (micros != 0)
        .then(|| TimestampWithTimeZone::try_from(micros).ok())
        .flatten()
}

/// Role whose rights the worker of this database has; null if none has begun.
#[pg_extern(volatile)]
fn worker_role() -> Option<String> {
    let (_, slot, stopped) = shown_slot();
    Some(slot.role.as_str().to_string()).filter(|role| stopped.is_none() && !role.is_empty())
}

/// Duplicates that the stream had from another message with the same id, since the worker of this database started.
#[pg_extern(volatile)]
fn worker_reused_ids() -> i64 {
    shown_slot().1.report.reused_ids as i64
}

/// The worker of this database as it reports itself; one row, also where none runs. Its columns stay as they are: SQL of
/// another version may call it until the extension is updated, or the server restarted.
#[pg_extern(volatile)]
#[allow(clippy::type_complexity)] // the row type of a set-returning function
fn worker_status() -> TableIterator<
    'static,
    (
        name!(worker, String),
        name!(pid, Option<i32>),
        name!(state, String),
        name!(connections, JsonB),
        name!(in_flight, i32),
        name!(in_flight_bytes, i64),
        name!(claimed, i64),
        name!(stored, i64),
        name!(duplicates, i64),
        name!(retried, i64),
        name!(dead, i64),
        name!(latency, JsonB),
        name!(held_keys, i32),
        name!(cycles, i64),
        name!(last_error, Option<String>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(last_cycle_at, Option<TimestampWithTimeZone>),
    ),
> {
    let (number, slot, stopped) = shown_slot();
    let report = &slot.report;
    let running = stopped.is_none();
    let last_error = Some(report.last_error.as_str().to_string()).filter(|text| !text.is_empty());
    TableIterator::once((
        slot.name.as_str().to_string(),
        running.then_some(slot.pid),
        if running { report.state.as_str() } else { "not running" }.to_string(),
        JsonB(serde_json::Value::Array(
            number.filter(|_| running).map_or_else(Vec::new, shown_links),
        )),
        report.in_flight as i32,
        report.in_flight_bytes as i64,
        report.claimed as i64,
        report.stored as i64,
        report.duplicates as i64,
        report.retried as i64,
        report.dead as i64,
        JsonB(shown_latency(&report.latency)),
        report.held_keys as i32,
        report.cycles as i64,
        stopped.or(last_error),
        time(report.last_error_at),
        time(report.started_at),
        time(report.last_cycle_at),
    ))
}

/// The slot of this database with its number, and why no worker runs if none does.
fn shown_slot() -> (Option<usize>, status::Slot, Option<String>) {
    let none = |reason: &str| (None, status::Slot::default(), Some(reason.to_string()));
    if !status::preloaded() {
        return none("shared_preload_libraries does not contain pg_jetstream");
    }
    if pg::in_recovery() {
        return none("the server is a standby: a worker starts when it is promoted");
    }
    let here = pg::my_database();
    let Some(number) = status::find(|slot| slot.database == here) else {
        return none(&without_slot());
    };
    let slot = status::slot(number);
    let stopped = (slot.pid == 0).then(|| slot.stopped.as_str().to_string());
    (Some(number), slot, stopped)
}

/// Why the launcher does not serve this database.
fn without_slot() -> String {
    let name = pg::my_database_name();
    if !guc::databases().contains(&name) {
        return "pg_jetstream.databases does not name this database".to_string();
    }
    let slots = guc::max_databases();
    if status::find(|slot| slot.name.as_str().is_empty() || slot.name.as_str() == name).is_none() {
        return format!(
            "{slots} databases are served, and pg_jetstream.max_databases is {slots}: raise it and restart PostgreSQL"
        );
    }
    "the launcher has not begun; if that stays, raise max_worker_processes and restart PostgreSQL".to_string()
}

fn shown_links(slot: usize) -> Vec<serde_json::Value> {
    let shown = status::links(slot).into_iter().map(|link| {
        serde_json::json!({
            "name": link.name,
            "state": status::link_state_name(link.state),
            "detail": link.detail,
        })
    });
    shown.collect()
}

/// `{"seconds": sum, "messages": {"0.001": how many took no longer, …, "+Inf": all}}`.
fn shown_latency(latency: &Histogram) -> serde_json::Value {
    let messages: serde_json::Map<_, _> = latency.cumulative().map(|(le, count)| (le, count.into())).collect();
    serde_json::json!({"seconds": latency.seconds(), "messages": messages})
}
