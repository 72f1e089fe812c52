//! Settling messages that are stored: out of the outbox, into the history.

use std::ffi::CString;

use pgrx::prelude::*;
use time::OffsetDateTime;

use super::{Result, Store};
use crate::array::Array;
use crate::guc::{History, Settings};
use crate::message::Message;
use crate::micros;
use crate::pg::bulk::{Place, Table};
use crate::pg::values;
use crate::pg::values::Value;

/// One settled message as it goes into the history.
pub struct Record<'a> {
    /// The message.
    pub message: &'a Message,
    /// Where its row stood in the outbox when it was claimed.
    pub place: Place,
    /// Transaction that inserted its row.
    pub txid: u64,
    /// Stream that stored it.
    pub stream: &'a str,
    /// Its sequence there.
    pub sequence: i64,
    /// The stream had it already.
    pub duplicate: bool,
    /// Another message has used its id.
    pub reused: bool,
    /// From insert or due time to the ack, milliseconds.
    pub latency_ms: f32,
    /// When the ack arrived; microseconds since 2000-01-01 UTC.
    pub acked_at: i64,
}

impl Record<'_> {
    fn error(&self) -> Option<&'static str> {
        self.reused.then_some(REUSED)
    }
}

/// `history.error` of a message that the stream dropped.
const REUSED: &str = "dropped by the stream: another message has used this id";

impl Store {
    /// Takes stored messages out of the outbox and records them as the settings ask.
    pub fn settle_stored(&mut self, records: &[Record<'_>], settings: &Settings) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        if settings.history == History::All && settings.history_payload {
            return self.record(records, |s| &s.record_payload);
        }
        let left = delete(records);
        if !left.is_empty() {
            Spi::connect_mut(|client| {
                let (ids, txids): (Vec<i64>, Vec<i64>) = left.into_iter().unzip();
                client.update(&self.statements(client)?.delete, None, &[ids.into(), txids.into()])?;
                Ok::<_, pgrx::spi::Error>(())
            })?;
        }
        if settings.history == History::All {
            for same_day in records.chunk_by(|a, b| day(a) == day(b)) {
                let rest = &same_day[append(same_day)..];
                if !rest.is_empty() {
                    self.record(rest, |s| &s.record)?;
                }
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        records: &[Record<'_>],
        statement: impl Fn(&super::Statements) -> &pgrx::spi::OwnedPreparedStatement,
    ) -> Result<()> {
        Spi::connect_mut(|client| {
            let columns = columns(records);
            let args: Vec<_> = columns.iter().map(values::array_parameter).collect();
            client.update(statement(self.statements(client)?), None, &args)?;
            Ok(())
        })
    }
}

/// Deletes from the outbox without a statement, if that is possible; returns id and transaction id of those left. Where
/// the table was emptied and its ids began anew, a row of the same id is another message's.
fn delete(records: &[Record<'_>]) -> Vec<(i64, i64)> {
    let row = |record: &Record<'_>| (record.message.id, record.txid as i64);
    match Table::open(c"outbox") {
        Some(outbox) if outbox.is_plain(pg_sys::TRIGGER_TYPE_DELETE, c"outbox_changed") => {
            let left = outbox.delete([c"id", c"txid"], records.iter().map(|r| (r.place, row(r))));
            outbox.close();
            left
        }
        _ => records.iter().map(row).collect(),
    }
}

/// Day of a record, UTC.
fn day(record: &Record<'_>) -> i64 {
    record.acked_at.div_euclid(86_400_000_000)
}

/// Name of the history's partition for a record.
fn partition(record: &Record<'_>) -> CString {
    let day = OffsetDateTime::from(micros::to_time(record.acked_at)).date();
    let name = format!("history_{:04}{:02}{:02}", day.year(), u8::from(day.month()), day.day());
    CString::new(name).unwrap_or_default()
}

/// Appends records of one day to the history without a statement, as many as that is possible for.
fn append(records: &[Record<'_>]) -> usize {
    let plain = |table: &Table| table.is_plain(pg_sys::TRIGGER_TYPE_INSERT, c"");
    let (Some(history), Some(day)) = (Table::open(c"history"), Table::open(&partition(&records[0]))) else {
        return 0;
    };
    let possible = plain(&history) && plain(&day) && day.is_partition();
    let appended = if possible {
        day.append(NAMES, records.iter().map(row))
    } else {
        0
    };
    day.close();
    history.close();
    appended
}

/// Columns of the history that a stored message has a value for.
const NAMES: [&std::ffi::CStr; 14] = [
    c"published_at",
    c"outbox_id",
    c"sequence",
    c"webhook",
    c"attempts",
    c"latency_ms",
    c"success",
    c"duplicate",
    c"connection",
    c"subject",
    c"message_id",
    c"stream",
    c"key",
    c"error",
];

/// The values of [`NAMES`].
fn row<'a>(record: &Record<'a>) -> [Value<'a>; 14] {
    let message = record.message;
    [
        Value::Word(record.acked_at as u64),
        Value::Word(message.id as u64),
        Value::Word(record.sequence as u64),
        message.webhook.map_or(Value::Null, |id| Value::Word(id as u64)),
        Value::Word((message.attempts + 1) as u64),
        Value::Word(record.latency_ms.to_bits().into()),
        Value::Word(1),
        Value::Word(record.duplicate.into()),
        Value::Text(&message.connection),
        Value::Text(&message.subject),
        Value::Text(&message.message_id),
        Value::Text(record.stream),
        message.key.as_deref().map_or(Value::Null, Value::Text),
        record.error().map_or(Value::Null, Value::Text),
    ]
}

/// The records as parameters of the statements that insert them.
fn columns(records: &[Record<'_>]) -> [Array; 14] {
    let each = || records.iter();
    [
        Array::int8s(each().map(|r| Some(r.message.id))),
        Array::int8s(each().map(|r| Some(r.acked_at))),
        Array::int8s(each().map(|r| Some(r.sequence))),
        Array::int4s(each().map(|r| Some(r.message.attempts + 1))),
        Array::float4s(each().map(|r| r.latency_ms)),
        Array::bools(each().map(|r| r.duplicate)),
        Array::texts(each().map(|r| Some(&*r.message.connection))),
        Array::texts(each().map(|r| Some(r.message.subject.as_str()))),
        Array::texts(each().map(|r| Some(r.message.message_id.as_str()))),
        Array::texts(each().map(|r| Some(r.stream))),
        Array::texts(each().map(|r| r.message.key.as_deref())),
        Array::int4s(each().map(|r| r.message.webhook)),
        Array::int8s(each().map(|r| Some(r.txid as i64))),
        Array::texts(each().map(|r| r.error())),
    ]
}
