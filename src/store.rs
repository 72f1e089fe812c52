//! Every SQL statement the worker runs in its cycle. All run inside a transaction of the caller.

mod claim;
pub mod config;
pub mod hurry;
mod statements;
mod stored;

use std::collections::HashSet;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiError, SpiTupleTable};

use crate::guc::Settings;
use crate::message::Message;
use crate::notes::Span;
use claim::claim;
pub use claim::{Found, Seen, Turn, Visit};
use statements::Statements;
pub use stored::Record;

/// SPI failed in a way that is not an ERROR of its own: a defect of this module.
pub type Result<T> = std::result::Result<T, SpiError>;

/// A failed attempt.
pub struct Failure<'a> {
    /// The message.
    pub message: &'a Message,
    /// Transaction that inserted its row.
    pub txid: u64,
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

    /// Claims in insert order: rows above `cursor`.
    pub fn claim_in_order(&mut self, lane: &str, cursor: i64, limit: Visit<'_>) -> Result<Seen> {
        claim(self, |s| &s.insert_order, &[lane.into(), cursor.into()], lane, limit)
    }

    /// Claims, in insert order, the rows of these transactions within a span of ids.
    pub fn claim_late(&mut self, lane: &str, span: Span, xids: &[u64], limit: Visit<'_>) -> Result<Seen> {
        let args = [lane.into(), span.low.into(), span.high.into(), xid_array(xids).into()];
        claim(self, |s| &s.late, &args, lane, limit)
    }

    /// Claims rows whose `deliver_at` has come, behind `after` or all, except those in flight.
    pub fn claim_due(
        &mut self,
        lane: &str,
        in_flight: &[i64],
        after: Option<Turn>,
        mut limit: Visit<'_>,
    ) -> Result<Seen> {
        limit.count_held = false;
        claim(self, |s| &s.due, &of_due(lane, in_flight, after), lane, limit)
    }

    /// Claims the rows of one key from id `from` on.
    pub fn claim_by_key(&mut self, lane: &str, key: &str, from: i64, limit: Visit<'_>) -> Result<Seen> {
        claim(
            self,
            |s| &s.by_key,
            &[lane.into(), key.into(), from.into()],
            lane,
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
            limit,
        )
    }

    /// Of these ids, those that are still there and that nobody else holds; the worker holds them from now on.
    pub fn lockable(&mut self, ids: &[i64]) -> Result<HashSet<i64>> {
        Spi::connect_mut(|client| {
            let table = client.update(&self.statements(client)?.lockable, None, &[ids.to_vec().into()])?;
            read_ids(table)
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
            failures.iter().map(|f| f.txid as i64).collect::<Vec<_>>().into(),
        ];
        args.extend(flag.map(DatumWithOid::from));
        Spi::connect_mut(|client| {
            client.update(statement(self.statements(client)?), None, &args)?;
            Ok(())
        })
    }

    /// Milliseconds until the first delayed message of a connection is due, but for those in flight; negative if it is
    /// due, `None` if there is none. Looks at those behind `after`, or at all.
    pub fn next_due(&mut self, lane: &str, in_flight: &[i64], after: Option<Turn>) -> Result<Option<f64>> {
        Spi::connect_mut(|client| {
            let args = of_due(lane, in_flight, after);
            let table = client.update(&self.statements(client)?.next_due, None, &args)?;
            table.first().get_one::<f64>()
        })
    }
}

/// Parameters of the statements on what is due.
fn of_due<'a>(lane: &'a str, in_flight: &[i64], after: Option<Turn>) -> [DatumWithOid<'a>; 4] {
    [
        lane.into(),
        in_flight.to_vec().into(),
        after.map(|turn| turn.deliver_at).into(),
        after.map(|turn| turn.id).into(),
    ]
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
