//! Claims: rows that are read, those that somebody has touched locked first.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient};

use super::statements::{Claims, FAILING, Statements, WIDTH};
use super::{Result, Store, read_ids};
use crate::message::{self, Message};
use crate::micros;
use crate::order::Ahead;
use crate::pg::bulk::Place;
use crate::pg::cursor::{self, Cursor};
use crate::snapshot::Snapshot;

/// What a claim came by.
pub enum Found {
    /// A row that may be claimed.
    Free(Row),
    /// The id of a row that somebody holds, or that is not to be claimed any more.
    Held(i64),
}

impl Found {
    /// `outbox.id`.
    pub fn id(&self) -> i64 {
        match self {
            Found::Free(row) => row.message.id,
            Found::Held(id) => *id,
        }
    }
}

/// A row of the outbox, claimed.
pub struct Row {
    /// The message.
    pub message: Arc<Message>,
    /// Where its row stands.
    pub place: Place,
    /// Transaction that inserted it.
    pub txid: u64,
    /// When it was inserted, or due if that is later, whatever has failed since; microseconds since 2000-01-01 UTC.
    pub due_at: i64,
    /// What stands ahead of it in its key.
    pub ahead: Ahead,
}

/// Where a message stands in the order of those that are delayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// `deliver_at`, microseconds since 2000-01-01 UTC.
    pub deliver_at: i64,
    /// `outbox.id`.
    pub id: i64,
}

/// What a claim found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Rows visited.
    pub rows: usize,
    /// No further row was there.
    pub exhausted: bool,
    /// What had ended when it looked; of a claim in insert order that found rows only.
    pub snapshot: Option<Snapshot>,
    /// The last row visited; of a claim of what is due only.
    pub last: Option<Turn>,
}

/// What a claim calls for each row, and how many it may visit.
pub struct Visit<'a> {
    /// Called for each row; `Break` ends the claim after it. Held ones are among them, so that a claim that is to go on
    /// where this one ends does not stand before many of them for ever.
    pub row: &'a mut dyn FnMut(Found) -> ControlFlow<()>,
    /// Most rows to visit.
    pub most: usize,
    /// Whether held rows count as visited: not where each claim begins with the same ones.
    pub count_held: bool,
    /// Rows it wants if it can take each: no more are read ahead.
    pub wanted: usize,
    /// Bytes after which no further row is read.
    pub bytes: usize,
    /// Whether to ask what stands ahead of a row in its key.
    pub ask: bool,
}

/// Runs a claim: calls `visit.row` for each row, in the order of the statement.
pub(super) fn claim(
    store: &mut Store,
    statement: impl Fn(&Claims) -> &OwnedPreparedStatement,
    args: &[DatumWithOid<'_>],
    lane: &str,
    visit: Visit<'_>,
) -> Result<Seen> {
    // As many at a time as would do if each could be taken, but not one by one.
    const LEAST_STEP: usize = 64;
    let connection: Arc<str> = lane.into();
    Spi::connect_mut(|client| {
        let statements = store.statements(client)?;
        let claims = if visit.ask {
            &statements.asking
        } else {
            &statements.plain
        };
        let mut cursor = Cursor::of(client.try_open_cursor_mut(statement(claims), args)?);
        let mut seen = Seen::default();
        let mut bytes = 0;
        while seen.rows < visit.most {
            let wanted = visit.wanted.saturating_sub(seen.rows).max(LEAST_STEP);
            let asked = wanted.min(visit.most - seen.rows);
            let mut step = Vec::with_capacity(asked);
            let mut touched = Vec::new();
            let mut full = false;
            cursor.fetch::<WIDTH>(asked, |columns| {
                if seen.rows == 0 && step.is_empty() {
                    seen.snapshot = columns.text(SNAPSHOT).map(|snapshot| Snapshot::parse(&snapshot));
                }
                let id = columns.value(ID).unwrap_or(0);
                // No arithmetic on -infinity, which a row has that no trigger has seen.
                let finite = columns.value(DELIVER_AT).filter(|at| *at != i64::MIN);
                let turn = finite.map(|deliver_at| Turn { deliver_at, id });
                if columns.value(XMAX) == Some(0) {
                    let row = read_row(&columns, &connection);
                    bytes += row.message.cost();
                    step.push((turn, Fetched::Free(row)));
                } else {
                    touched.push(id);
                    step.push((turn, Fetched::Touched(id)));
                }
                full = bytes >= visit.bytes;
                if full {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            let ended = full || step.len() < asked;
            let mut held = Held {
                touched,
                free: None,
                by_id: &claims.by_id,
            };
            for (turn, row) in step {
                seen.last = turn;
                let found = match row {
                    Fetched::Free(row) => Found::Free(row),
                    Fetched::Touched(id) => held
                        .read(client, statements, id, &connection)?
                        .map_or(Found::Held(id), Found::Free),
                };
                seen.rows += usize::from(visit.count_held || matches!(found, Found::Free(_)));
                if (visit.row)(found).is_break() {
                    return Ok(seen);
                }
            }
            if ended {
                seen.exhausted = !full;
                return Ok(seen);
            }
        }
        Ok(seen)
    })
}

/// Position of `xmax`, `id`, the snapshot and `deliver_at` among the columns of a claim.
const XMAX: usize = 0;
const ID: usize = 1;
const SNAPSHOT: usize = 15;
/// When it is to be delivered; null is at once.
const DELIVER_AT: usize = 14;
/// What stands ahead of the row in its key.
const AHEAD: usize = 17;

/// A row of one step.
enum Fetched {
    /// Nobody has touched it.
    Free(Row),
    /// Somebody has locked or changed the row of this id, or has tried to.
    Touched(i64),
}

/// Rows of one step that somebody has touched. What is free now is locked and read anew; what somebody holds is skipped.
struct Held<'a> {
    touched: Vec<i64>,
    free: Option<HashSet<i64>>,
    by_id: &'a OwnedPreparedStatement,
}

impl Held<'_> {
    /// The row of this id, as it stands now; `None` if somebody holds it, or if it is not to be claimed any more.
    fn read(
        &mut self,
        client: &mut SpiClient<'_>,
        statements: &Statements,
        id: i64,
        connection: &Arc<str>,
    ) -> Result<Option<Row>> {
        let free = match &mut self.free {
            Some(free) => free,
            none => {
                let touched = std::mem::take(&mut self.touched);
                let table = client.update(&statements.lockable, None, &[touched.into()])?;
                none.insert(read_ids(table)?)
            }
        };
        if !free.contains(&id) {
            return Ok(None);
        }
        let args = [(&**connection).into(), id.into()];
        let mut cursor = Cursor::of(client.try_open_cursor_mut(self.by_id, &args)?);
        let mut found = None;
        cursor.fetch::<WIDTH>(1, |columns| {
            found = Some(read_row(&columns, connection));
            ControlFlow::Continue(())
        });
        Ok(found)
    }
}

fn read_row(row: &cursor::Row<'_, WIDTH>, connection: &Arc<str>) -> Row {
    let number = |column| row.value(column).unwrap_or(0);
    let headers = row.text(5).and_then(|json| message::headers(&json).ok());
    let mut headers = headers.unwrap_or_default();
    message::add_traceparent(&mut headers, row.text(13));
    let message = Message {
        id: number(ID),
        connection: connection.clone(),
        subject: row.text(3).unwrap_or_default(),
        payload: Bytes::from(row.bytes(4).unwrap_or_default()),
        headers,
        message_id: row.text(6).unwrap_or_default(),
        key: row.text(7),
        ttl_seconds: row.value(8).map(|seconds| seconds as u32),
        attempts: number(9) as i32,
        webhook: row.value(11).map(|webhook| webhook as i32),
        unsure_since: row.value(12).map(micros::to_time),
    };
    Row {
        message: Arc::new(message),
        txid: number(2) as u64,
        due_at: number(10),
        ahead: match row.value(AHEAD) {
            None => Ahead::Nothing,
            Some(FAILING) => Ahead::Failing,
            Some(id) => Ahead::Older(id),
        },
        place: row.place(16),
    }
}
