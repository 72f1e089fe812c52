//! `jetstream.publish_batch`: many messages for one subject at once.

use std::ffi::CStr;

use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

use super::{Body, Row, arguments, check_id_and_body, check_new, column, given, inserted, new_id, takes};
use crate::pg;
use crate::pg::bulk::Table;
use crate::pg::enqueue::{self, Call};
use crate::pg::refuse;
use crate::pg::values::Value;

/// The columns that a stored message has a value for; null is one, too.
const TAKEN: [&CStr; 13] = [
    c"txid",
    c"id",
    c"connection",
    c"subject",
    c"payload",
    c"headers",
    c"message_id",
    c"key",
    c"deliver_at",
    c"ttl",
    c"traceparent",
    c"attempts",
    c"created_at",
];

/// What a call says of one of its messages: its body and its message id.
type Own = (Option<pg_sys::Datum>, Option<pg_sys::Datum>);

/// Stores one message for each payload, returns their `outbox.id`s in the order of the payloads.
///
/// The rows go into the table without a statement, as far as [`super::publish`] does so.
pub fn publish_batch(call: &Call) -> Vec<i64> {
    let given = given(Body::Json);
    let mut shared = arguments(call, given);
    let arrays = [
        (shared[column::PAYLOAD].take(), pg_sys::JSONBARRAYOID),
        (shared[column::MESSAGE_ID].take(), pg_sys::TEXTARRAYOID),
    ];
    let [payloads, message_ids] = arrays.map(|(array, _)| array.map(enqueue::elements));
    let payloads = payloads.unwrap_or_default();
    if let Some(ids) = message_ids.as_ref().filter(|ids| ids.len() != payloads.len()) {
        refuse(
            PgSqlErrorCode::ERRCODE_ARRAY_ELEMENT_ERROR,
            format!("{} message ids for {} payloads", ids.len(), payloads.len()),
            "Give one message id for each payload, or none at all.",
        );
    }
    let own = |n: usize| (payloads[n], message_ids.as_ref().and_then(|ids| ids[n]));
    let table = Table::open(c"outbox");
    let possible = table.as_ref().filter(|table| takes(table, &shared, &given));
    let stored = possible.and_then(|table| store(table, &shared, (0..payloads.len()).map(own)));
    let stored = stored.unwrap_or_else(|| store_by_statement(&shared, arrays));
    if let Some(table) = table {
        table.close();
    }
    stored
}

/// Stores messages that have all but these values in common. None, and nothing stored, if somebody has given another column a default.
fn store(table: &Table, shared: &Row, messages: impl ExactSizeIterator<Item = Own>) -> Option<Vec<i64>> {
    enqueue::refuse_if_read_only();
    let count = messages.len();
    if count == 0 {
        return Some(Vec::new());
    }
    let value = |datum: Option<pg_sys::Datum>| datum.map_or(Value::Null, |datum| Value::Word(datum.value() as u64));
    // Before the ids: see sql/outbox.sql.
    let xid = pg::assigned_xid();
    let traceparent = enqueue::setting(c"jetstream.traceparent");
    let mut uuids = enqueue::Uuids::new(count);
    let mut ids = Vec::with_capacity(count);
    let rows = messages.map(|(payload, message_id)| {
        let id = new_id();
        ids.push(id);
        [
            Value::Word(xid),
            Value::Word(id as u64),
            value(shared[column::CONNECTION]),
            value(shared[column::SUBJECT]),
            value(payload),
            value(shared[column::HEADERS]),
            value(message_id.or_else(|| Some(uuids.text()))),
            value(shared[column::KEY]),
            value(shared[column::DELIVER_AT]),
            value(shared[column::TTL]),
            value(traceparent),
            Value::Word(0),
            Value::Word(pg::now() as u64),
        ]
    });
    let mut first = true;
    let appended = table.append_checked(TAKEN, rows, |row| {
        if std::mem::take(&mut first) {
            check_new(row, None);
        } else {
            check_id_and_body(row);
            inserted(row);
        }
    });
    (appended == count).then_some(ids)
}

fn store_by_statement(shared: &Row, arrays: [(Option<pg_sys::Datum>, pg_sys::Oid); 2]) -> Vec<i64> {
    use pg_sys::{INTERVALOID, JSONBOID, TEXTOID, TIMESTAMPTZOID};
    const INSERT: &str = "
        insert into jetstream.outbox as o (connection, subject, payload, headers, message_id, key, deliver_at, ttl)
        select $1, $2, b.payload, $3, coalesce(b.message_id, pg_catalog.gen_random_uuid()::text), $4, $5, $6
        from rows from (pg_catalog.unnest($7), pg_catalog.unnest($8)) with ordinality as b (payload, message_id, n)
        order by b.n
        returning o.id";
    let single = [
        (shared[column::CONNECTION], TEXTOID),
        (shared[column::SUBJECT], TEXTOID),
        (shared[column::HEADERS], JSONBOID),
        (shared[column::KEY], TEXTOID),
        (shared[column::DELIVER_AT], TIMESTAMPTZOID),
        (shared[column::TTL], INTERVALOID),
    ];
    let arguments: Vec<_> = single
        .into_iter()
        .chain(arrays)
        .map(|(value, kind)| enqueue::parameter(value, kind))
        .collect();
    let ids: pgrx::spi::Result<Vec<i64>> = Spi::connect_mut(|client| {
        let rows = client.update(INSERT, None, &arguments)?;
        rows.map(|row| Ok(row.get::<i64>(1)?.unwrap_or_default())).collect()
    });
    ids.unwrap_or_else(|e| {
        refuse(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("the messages could not be stored: {e}"),
            "",
        )
    })
}
