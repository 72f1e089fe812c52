//! Every SQL statement the worker runs in its cycle. All run inside a transaction of the caller.

pub mod config;
mod statements;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiError, SpiTupleTable};

use crate::guc::Settings;
use crate::message::{self, Message};
use crate::snapshot::Snapshot;
use crate::{micros, pg};
use statements::Statements;

/// SPI failed in a way that is not an ERROR of its own: a defect of this module.
pub type Result<T> = std::result::Result<T, SpiError>;

/// A row of the outbox, claimed.
pub struct Row {
    /// The message.
    pub message: Arc<Message>,
    /// Transaction that inserted it.
    pub txid: u64,
    /// When it was inserted, or due if that is later; microseconds since 2000-01-01 UTC.
    pub due_at: i64,
    /// What had ended when the claim looked; with the first row of a claim in insert order only.
    pub snapshot: Option<Snapshot>,
}

/// What a claim found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Rows visited.
    pub rows: usize,
    /// No further row was there.
    pub exhausted: bool,
}

/// One settled message as it goes into the history.
pub struct Record<'a> {
    /// The message.
    pub message: &'a Message,
    /// Stream that stored it.
    pub stream: &'a str,
    /// Its sequence there.
    pub sequence: i64,
    /// The stream had it already.
    pub duplicate: bool,
    /// From insert or due time to the ack, milliseconds.
    pub latency_ms: f32,
    /// When the ack arrived; microseconds since 2000-01-01 UTC.
    pub acked_at: i64,
}

/// A failed attempt.
pub struct Failure<'a> {
    /// The message.
    pub message: &'a Message,
    /// Attempts that have failed now.
    pub attempts: i32,
    /// Why.
    pub reason: String,
    /// Delay until the next attempt, milliseconds.
    pub delay_ms: i64,
    /// When the attempt began, if it may have been stored; microseconds since 2000-01-01 UTC.
    pub unsure_since: Option<i64>,
}

/// The prepared statements; made in the first transaction, valid as long as the extension is not changed.
#[derive(Default)]
pub struct Store {
    statements: Option<Statements>,
}

impl Store {
    /// Prepares the statements unless that is done.
    fn statements(&mut self, client: &SpiClient<'_>) -> Result<&Statements> {
        if self.statements.is_none() {
            self.statements = Some(Statements::prepare(client)?);
        }
        self.statements
            .as_ref()
            .ok_or(SpiError::CursorNotFound("statements".into()))
    }

    /// Claims in insert order: rows above `cursor`. The first row carries what had ended by then.
    pub fn claim_in_order(&mut self, lane: &str, cursor: i64, limit: Visit<'_>) -> Result<Seen> {
        claim(
            self,
            |s| &s.insert_order,
            &[lane.into(), cursor.into()],
            lane,
            true,
            limit,
        )
    }

    /// Claims the rows up to `cursor` of transactions that have ended since.
    pub fn claim_late(&mut self, lane: &str, cursor: i64, xids: &[u64], limit: Visit<'_>) -> Result<Seen> {
        claim(
            self,
            |s| &s.late,
            &[lane.into(), cursor.into(), xid_array(xids).into()],
            lane,
            false,
            limit,
        )
    }

    /// Claims rows whose `deliver_at` has come, except those in flight.
    pub fn claim_due(&mut self, lane: &str, in_flight: &[i64], limit: Visit<'_>) -> Result<Seen> {
        claim(
            self,
            |s| &s.due,
            &[lane.into(), in_flight.to_vec().into()],
            lane,
            false,
            limit,
        )
    }

    /// Claims the rows of one key from id `from` on.
    pub fn claim_by_key(&mut self, lane: &str, key: &str, from: i64, limit: Visit<'_>) -> Result<Seen> {
        claim(
            self,
            |s| &s.by_key,
            &[lane.into(), key.into(), from.into()],
            lane,
            false,
            limit,
        )
    }

    /// Claims the rows between `low` and `cursor`, both included.
    pub fn sweep(&mut self, lane: &str, low: i64, cursor: i64, limit: Visit<'_>) -> Result<Seen> {
        claim(
            self,
            |s| &s.sweep,
            &[lane.into(), low.into(), cursor.into()],
            lane,
            false,
            limit,
        )
    }

    /// Which transactions have ended.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        Spi::connect_mut(|client| {
            let table = client.update(&self.statements(client)?.snapshot, None, &[])?;
            Ok(Snapshot::parse(&table.first().get_one::<String>()?.unwrap_or_default()))
        })
    }

    /// Of these ids, those that are still there and that nobody else holds; the worker holds them from now on.
    pub fn lockable(&mut self, ids: &[i64]) -> Result<HashSet<i64>> {
        Spi::connect_mut(|client| {
            let table = client.update(&self.statements(client)?.lockable, None, &[ids.to_vec().into()])?;
            read_ids(table)
        })
    }

    /// Takes stored messages out of the outbox and records them as the settings ask.
    pub fn settle_stored(&mut self, records: &[Record<'_>], settings: &Settings) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        Spi::connect_mut(|client| {
            let statements = self.statements(client)?;
            let statement = match (settings.history, settings.history_payload) {
                (crate::guc::History::All, false) => &statements.record,
                (crate::guc::History::All, true) => &statements.record_payload,
                _ => {
                    let ids: Vec<i64> = records.iter().map(|r| r.message.id).collect();
                    client.update(&statements.delete, None, &[ids.into()])?;
                    return Ok(());
                }
            };
            client.update(statement, None, &record_columns(records))?;
            Ok(())
        })
    }

    /// Notes failed attempts and when the next ones are due.
    pub fn settle_retries(&mut self, failures: &[Failure<'_>]) -> Result<()> {
        self.failures(|s| &s.retry, failures, None)
    }

    /// Moves messages to the dead letters, and into the history if it is kept.
    pub fn settle_dead(&mut self, failures: &[Failure<'_>], settings: &Settings) -> Result<()> {
        self.failures(
            |s| &s.bury,
            failures,
            Some(settings.history != crate::guc::History::None),
        )
    }

    fn failures(
        &mut self,
        statement: impl Fn(&Statements) -> &OwnedPreparedStatement,
        failures: &[Failure<'_>],
        flag: Option<bool>,
    ) -> Result<()> {
        if failures.is_empty() {
            return Ok(());
        }
        let mut args: Vec<DatumWithOid<'_>> = vec![
            failures.iter().map(|f| f.message.id).collect::<Vec<_>>().into(),
            failures.iter().map(|f| f.attempts).collect::<Vec<_>>().into(),
            failures.iter().map(|f| f.reason.as_str()).collect::<Vec<_>>().into(),
            failures.iter().map(|f| f.delay_ms).collect::<Vec<_>>().into(),
            failures.iter().map(|f| f.unsure_since).collect::<Vec<_>>().into(),
        ];
        args.extend(flag.map(DatumWithOid::from));
        Spi::connect_mut(|client| {
            client.update(statement(self.statements(client)?), None, &args)?;
            Ok(())
        })
    }

    /// Milliseconds until the next delayed message of a connection is due; `None` if there is none.
    pub fn next_due(&mut self, lane: &str) -> Result<Option<f64>> {
        Spi::connect_mut(|client| {
            let table = client.update(&self.statements(client)?.next_due, None, &[lane.into()])?;
            table.first().get_one::<f64>()
        })
    }
}

/// What a claim calls for each row, and how many it may visit.
pub struct Visit<'a> {
    /// Called for each row; `Break` ends the claim after it.
    pub row: &'a mut dyn FnMut(Row) -> ControlFlow<()>,
    /// Most rows to visit.
    pub most: usize,
}

fn claim(
    store: &mut Store,
    statement: impl Fn(&Statements) -> &OwnedPreparedStatement,
    args: &[DatumWithOid<'_>],
    lane: &str,
    with_snapshot: bool,
    visit: Visit<'_>,
) -> Result<Seen> {
    // Small steps first: rows may be large, and a step is read whole before the visitor can end the claim.
    const FIRST_STEP: usize = 64;
    const LARGEST_STEP: usize = 1024;
    const LARGE_STEP_BYTES: usize = 1024 * 1024;
    let connection: Arc<str> = lane.into();
    Spi::connect_mut(|client| {
        let statement = statement(store.statements(client)?);
        let mut cursor = client.try_open_cursor_mut(statement, args)?;
        let (mut rows, mut step) = (0, FIRST_STEP);
        while rows < visit.most {
            let asked = step.min(visit.most - rows);
            let mut table = cursor.fetch(asked as _)?;
            let (got, mut bytes) = (table.len(), 0);
            while table.next().is_some() {
                let row = read_row(&table, &connection, with_snapshot && rows == 0)?;
                rows += 1;
                bytes += row.message.payload.len();
                if (visit.row)(row).is_break() {
                    return Ok(Seen { rows, exhausted: false });
                }
            }
            if got < asked {
                return Ok(Seen { rows, exhausted: true });
            }
            if bytes < LARGE_STEP_BYTES {
                step = (step * 2).min(LARGEST_STEP);
            } else {
                step = (step / 2).max(1);
            }
        }
        Ok(Seen { rows, exhausted: false })
    })
}

fn read_row(table: &SpiTupleTable<'_>, connection: &Arc<str>, with_snapshot: bool) -> Result<Row> {
    let datum = |column| table.get_datum_by_ordinal(column);
    let text = |column| Ok::<_, SpiError>(datum(column)?.map(|d| string(pg::bytes(d))));
    let number = |column| Ok::<_, SpiError>(datum(column)?.map_or(0, |d| d.value() as i64));
    let headers = match datum(5)? {
        Some(json) => serde_json::from_slice(&pg::bytes(json))
            .ok()
            .and_then(|json| message::headers(&json).ok()),
        None => None,
    };
    let message = Message {
        id: number(1)?,
        connection: connection.clone(),
        subject: text(3)?.unwrap_or_default(),
        payload: Bytes::from(datum(4)?.map(pg::bytes).unwrap_or_default()),
        headers: headers.unwrap_or_default(),
        message_id: text(6)?.unwrap_or_default(),
        key: text(7)?,
        ttl_seconds: datum(8)?.map(|d| d.value() as u32),
        attempts: number(9)? as i32,
        webhook: datum(11)?.map(|d| d.value() as i32),
        unsure_since: datum(12)?.map(|d| micros::to_time(d.value() as i64)),
    };
    let snapshot = if with_snapshot {
        text(13)?.map(|snapshot| Snapshot::parse(&snapshot))
    } else {
        None
    };
    Ok(Row {
        message: Arc::new(message),
        txid: number(2)? as u64,
        due_at: number(10)?,
        snapshot,
    })
}

fn string(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

fn xid_array(xids: &[u64]) -> String {
    let list: Vec<String> = xids.iter().map(u64::to_string).collect();
    format!("{{{}}}", list.join(","))
}

fn read_ids(mut table: SpiTupleTable<'_>) -> Result<HashSet<i64>> {
    let mut ids = HashSet::new();
    while table.next().is_some() {
        if let Some(datum) = table.get_datum_by_ordinal(1)? {
            ids.insert(datum.value() as i64);
        }
    }
    Ok(ids)
}

fn record_columns<'a>(records: &[Record<'a>]) -> Vec<DatumWithOid<'a>> {
    vec![
        records.iter().map(|r| r.message.id).collect::<Vec<_>>().into(),
        records.iter().map(|r| r.acked_at).collect::<Vec<_>>().into(),
        records.iter().map(|r| r.sequence).collect::<Vec<_>>().into(),
        records
            .iter()
            .map(|r| r.message.attempts + 1)
            .collect::<Vec<_>>()
            .into(),
        records.iter().map(|r| r.latency_ms).collect::<Vec<_>>().into(),
        records.iter().map(|r| r.duplicate).collect::<Vec<_>>().into(),
        records
            .iter()
            .map(|r| &*r.message.connection)
            .collect::<Vec<_>>()
            .into(),
        records
            .iter()
            .map(|r| r.message.subject.as_str())
            .collect::<Vec<_>>()
            .into(),
        records
            .iter()
            .map(|r| r.message.message_id.as_str())
            .collect::<Vec<_>>()
            .into(),
        records.iter().map(|r| r.stream).collect::<Vec<_>>().into(),
        records
            .iter()
            .map(|r| r.message.key.as_deref())
            .collect::<Vec<_>>()
            .into(),
        records.iter().map(|r| r.message.webhook).collect::<Vec<_>>().into(),
    ]
}
