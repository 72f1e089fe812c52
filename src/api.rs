//! Functions callable from SQL: thin wrappers around the pure modules and shared memory.

use pgrx::prelude::*;
use pgrx::{JsonB, PgSqlErrorCode};

use crate::status::{self, Request};
use crate::{message, pg, subject, wake};

fn refuse(code: PgSqlErrorCode, message: String, hint: &str) -> ! {
    pgrx::pg_sys::panic::ErrorReport::new(code, message, "")
        .set_hint(hint)
        .report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// True for a subject one can publish to; an ERROR that says why for any other.
#[pg_extern(immutable, strict, parallel_safe)]
fn check_subject(subject: &str) -> bool {
    match subject::check(subject) {
        Ok(()) => true,
        Err(e) => refuse(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, e.to_string(), e.hint()),
    }
}

/// True for headers NATS can carry; an ERROR that says why for any other.
#[pg_extern(immutable, strict, parallel_safe)]
fn check_headers(headers: JsonB) -> bool {
    match message::headers(&headers.0) {
        Ok(_) => true,
        Err(e) => refuse(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, e.to_string(), e.hint()),
    }
}

/// True for a usable `Nats-Msg-Id`; an ERROR that says why for any other.
#[pg_extern(immutable, strict, parallel_safe)]
fn check_message_id(message_id: &str) -> bool {
    match message::check_message_id(message_id) {
        Ok(()) => true,
        Err(e) => refuse(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, e.to_string(), e.hint()),
    }
}

/// Raises the ERROR for a message with no body or with two; `given` is how many it has.
#[pg_extern(immutable, strict, parallel_safe)]
fn reject_payload(given: i32) -> bool {
    let message = match given {
        0 => "message has no payload".to_string(),
        n => format!("message has {n} payloads"),
    };
    refuse(
        PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
        message,
        "Set exactly one of payload (jsonb) and raw (bytea). For an empty message use raw = ''.",
    )
}

/// Whether a subject matches a pattern with the wildcards `*` and `>` of NATS.
#[pg_extern(immutable, strict, parallel_safe)]
fn subject_matches(subject: &str, pattern: &str) -> bool {
    subject::matches(subject, pattern)
}

type NoTuple = Result<Option<PgHeapTuple<'static, AllocatedByRust>>, std::convert::Infallible>;

/// Trigger: wakes the worker when the transaction commits.
#[pg_trigger]
fn wake_worker<'a>(_trigger: &'a PgTrigger<'a>) -> NoTuple {
    wake::at_commit(Request::Look);
    Ok(None)
}

/// Trigger: makes the worker read connections and streams again when the transaction commits.
#[pg_trigger]
fn reload_worker<'a>(_trigger: &'a PgTrigger<'a>) -> NoTuple {
    wake::at_commit(Request::Reload);
    Ok(None)
}

/// Asks the worker to connect anew, to one connection or (null) to all; false if no worker runs in this database.
#[pg_extern(volatile)]
fn request_reload(connection: Option<&str>) -> bool {
    status::reconnect(pg::my_database(), connection.unwrap_or(""))
}

type StatusRow = (
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
    name!(held_keys, i32),
    name!(cycles, i64),
    name!(last_error, Option<String>),
    name!(last_error_at, Option<TimestampWithTimeZone>),
    name!(started_at, Option<TimestampWithTimeZone>),
    name!(last_cycle_at, Option<TimestampWithTimeZone>),
);

fn time(micros: i64) -> Option<TimestampWithTimeZone> {
    (micros != 0)
        .then(|| TimestampWithTimeZone::try_from(micros).ok())
        .flatten()
}

/// The worker of this database as it reports itself; one row, also where none runs.
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
        name!(held_keys, i32),
        name!(cycles, i64),
        name!(last_error, Option<String>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(last_cycle_at, Option<TimestampWithTimeZone>),
    ),
> {
    TableIterator::once(status_row())
}

fn status_row() -> StatusRow {
    let mut slot = status::Slot::default();
    let mut stopped = None;
    if !status::preloaded() {
        stopped = Some("shared_preload_libraries does not contain pg_jetstream".to_string());
    } else {
        let here = pg::my_database();
        match status::find(|slot| slot.database == here) {
            Some(number) => {
                slot = status::slot(number);
                if slot.pid == 0 {
                    stopped = Some(slot.stopped.as_str().to_string());
                }
            }
            None => stopped = Some("pg_jetstream.databases does not name this database".to_string()),
        }
    }
    let report = &slot.report;
    let links: Vec<serde_json::Value> = report.link[..report.links as usize]
        .iter()
        .map(|link| {
            serde_json::json!({
                "name": link.name.as_str(),
                "state": status::link_state_name(link.state),
                "detail": link.detail.as_str(),
            })
        })
        .collect();
    let last_error = Some(report.last_error.as_str().to_string()).filter(|text| !text.is_empty());
    let running = stopped.is_none();
    (
        slot.name.as_str().to_string(),
        running.then_some(slot.pid),
        if running {
            report.state.as_str().to_string()
        } else {
            "not running".to_string()
        },
        JsonB(serde_json::Value::Array(if running { links } else { Vec::new() })),
        report.in_flight as i32,
        report.in_flight_bytes as i64,
        report.claimed as i64,
        report.stored as i64,
        report.duplicates as i64,
        report.retried as i64,
        report.dead as i64,
        report.held_keys as i32,
        report.cycles as i64,
        stopped.or(last_error),
        time(report.last_error_at),
        time(report.started_at),
        time(report.last_cycle_at),
    )
}
