//! The drain worker's side: from `jetstream.capture_queue` to messages of the outbox.

use std::collections::HashMap;
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys::{self, PgBuiltInOids as Oids};
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiHeapTupleData, SpiResult};

use super::batch;
use super::envelope::{self, Outgoing, Stamp};
use super::head::Head;
use crate::array::Array;
use crate::enqueue::{is_plain, next_id};
use crate::micros;
use crate::pg::bulk::{Table, Value};
use crate::pg::values::array_parameter;
use crate::pg::{self, enqueue};

/// Bytes of packed changes made into messages in one transaction; at least one row of the queue.
const AT_ONCE: i64 = 2_000_000;

/// What this worker has seen of the queue.
#[derive(Default)]
pub struct Seen {
    statements: Option<Statements>,
    /// Snapshot of the last look that took everything; none before the first.
    snapshot: Option<String>,
    /// Looks since the whole queue was read.
    looks: u32,
}

/// Made in the first transaction, valid as long as the extension is not changed.
struct Statements {
    now: OwnedPreparedStatement,
    take: OwnedPreparedStatement,
    put: OwnedPreparedStatement,
}

impl Statements {
    fn prepare(client: &SpiClient<'_>) -> SpiResult<Statements> {
        let make = |sql: &str, arguments: &[Oids]| {
            let arguments: Vec<PgOid> = arguments.iter().map(|oid| PgOid::BuiltIn(*oid)).collect();
            SpiResult::Ok(client.prepare_mut(sql, &arguments)?.keep())
        };
        let (text, texts) = (Oids::TEXTOID, Oids::TEXTARRAYOID);
        Ok(Statements {
            now: make("select pg_catalog.pg_current_snapshot()::text", &[])?,
            take: make(TAKE, &[text, text, Oids::INT8OID])?,
            put: make(
                PUT,
                &[
                    texts,
                    texts,
                    Oids::BYTEAARRAYOID,
                    texts,
                    texts,
                    texts,
                    Oids::INT8ARRAYOID,
                ],
            )?,
        })
    }
}

/// As often the whole queue is read, whatever is believed to be seen: rows that came with a restored dump have old
/// transaction ids.
const EVERYTHING_EVERY: u32 = 10_000;

// What became visible since a snapshot: rows of transactions that were in progress then, and of later ones. Both are
// found by the index on txid, without a walk over rows that are gone and not yet vacuumed. Order: of a row's changes,
// and of a table's rows and its truncations, the later statement has the later place, for it waited for the earlier
// one's commit.
const TAKE: &str = "
with visible as materialized (
    select v.ctid as place,
           sum(octet_length(v.body)) over (order by v.lsn, v.number, v.salt rows unbounded preceding)
               - octet_length(v.body) as before
    from (select ctid, * from jetstream.capture_queue where txid = any ($1::xid8[])
          union all
          select ctid, * from jetstream.capture_queue where txid >= $2::xid8) v
    where exists (select from jetstream.connections c where c.name = v.connection)
), taken as (
    delete from jetstream.capture_queue q
    where q.ctid = any (array(select v.place from visible v where v.before < $3))
    returning q.txid::text::bigint as xid, q.lsn, q.number, q.at, q.salt, q.head, q.body, q.connection
)
select xid, (lsn - '0/0')::bigint as place, number, (extract(epoch from at) * 1000000)::bigint as at, salt, head, body,
       (select count(*) from visible) as visible, connection
from taken order by lsn, number, salt";

const PUT: &str = "
insert into jetstream.outbox (connection, subject, raw, headers, message_id, key, created_at)
select m.connection, m.subject, m.raw, m.headers::jsonb, m.message_id, m.key,
       timestamptz '1970-01-01 00:00+00' + m.at * interval '1 microsecond'
from rows from (unnest($1::text[]), unnest($2::text[]), unnest($3::bytea[]), unnest($4::text[]), unnest($5::text[]),
                unnest($6::text[]), unnest($7::bigint[]))
    with ordinality as m (connection, subject, raw, headers, message_id, key, at, n)
order by m.n";

#[derive(Default)]
struct Columns {
    connections: Vec<Rc<str>>,
    messages: Vec<Outgoing>,
    keys: Vec<Option<String>>,
    /// When they were captured, microseconds since 1970.
    times: Vec<i64>,
}

impl Seen {
    /// Makes messages of what was captured; to be called in a transaction of the worker's own. Returns how many, and
    /// whether there is more.
    pub fn expand(&mut self) -> SpiResult<(usize, bool)> {
        self.looks += 1;
        if self.looks >= EVERYTHING_EVERY {
            *self = Seen::default();
        }
        Spi::connect_mut(|client| {
            let (in_progress, next) = self.bounds();
            let statements = match self.statements.take() {
                Some(statements) => statements,
                None => Statements::prepare(client)?,
            };
            let now = client.update(&statements.now, None, &[])?.first().get_one::<String>()?;
            let rows = client.update(
                &statements.take,
                None,
                &[in_progress.into(), next.into(), AT_ONCE.into()],
            )?;
            let taken = rows.len();
            let mut visible = 0;
            let mut columns = Columns::default();
            let mut heads = HashMap::new();
            for row in rows {
                visible = row.get::<i64>(8)?.unwrap_or(0) as usize;
                columns.add(&row, &mut heads)?;
            }
            let count = columns.messages.len();
            if count > 0 && !columns.append() {
                let arrays = columns.arrays();
                client.update(&statements.put, None, &arrays.each_ref().map(array_parameter))?;
            }
            let more = taken < visible;
            if !more {
                self.snapshot = now;
            }
            self.statements = Some(statements);
            Ok((count, more))
        })
    }

    /// Transactions in progress in the snapshot, as an array, and the first that began after it.
    fn bounds(&self) -> (String, String) {
        let Some(snapshot) = &self.snapshot else {
            return ("{}".to_owned(), "0".to_owned());
        };
        let mut parts = snapshot.splitn(3, ':').skip(1);
        let next = parts.next().unwrap_or("0").to_owned();
        (format!("{{{}}}", parts.next().unwrap_or_default()), next)
    }
}

impl Columns {
    /// In the order of the statement's parameters.
    fn arrays(&self) -> [Array; 7] {
        let messages = || self.messages.iter();
        [
            Array::texts(self.connections.iter().map(|name| Some(&**name))),
            Array::texts(messages().map(|message| Some(message.subject.as_str()))),
            Array::byteas(messages().map(|message| message.body.as_slice())),
            Array::texts(messages().map(|message| message.headers.as_deref())),
            Array::texts(messages().map(|message| Some(message.message_id.as_str()))),
            Array::texts(self.keys.iter().map(Option::as_deref)),
            Array::int8s(self.times.iter().map(|at| Some(*at))),
        ]
    }

    /// Puts the messages into the outbox without a statement; false, and nothing put, if somebody has added to the outbox
    /// what that would pass over.
    fn append(&self) -> bool {
        const TAKEN: [&CStr; 11] = [
            c"txid",
            c"id",
            c"connection",
            c"subject",
            c"raw",
            c"headers",
            c"message_id",
            c"key",
            c"traceparent",
            c"attempts",
            c"created_at",
        ];
        let Some(outbox) = Table::open(c"outbox") else {
            return false;
        };
        // Before the ids: see sql/outbox.sql.
        let xid = pg::assigned_xid();
        let ids: Option<Vec<i64>> = is_plain(&outbox)
            .then(|| self.messages.iter().map(|_| next_id()).collect())
            .flatten();
        let appended = ids.map_or(0, |ids| {
            let rows = self.messages.iter().enumerate().map(|(n, message)| {
                [
                    Value::Word(xid),
                    Value::Word(ids[n] as u64),
                    Value::Text(&self.connections[n]),
                    Value::Text(&message.subject),
                    Value::Bytes(&message.body),
                    message.headers.as_deref().map_or(Value::Null, |headers| {
                        Value::Word(enqueue::jsonb(headers).value() as u64)
                    }),
                    Value::Text(&message.message_id),
                    self.keys[n].as_deref().map_or(Value::Null, Value::Text),
                    Value::Null,
                    Value::Word(0),
                    Value::Word(micros::from_unix(self.times[n]) as u64),
                ]
            });
            outbox.append(TAKEN, rows)
        });
        outbox.close();
        appended > 0
    }

    /// Takes a row of [`TAKE`] apart; `heads` are those read so far, each behind what its keys begin with.
    fn add(&mut self, row: &SpiHeapTupleData<'_>, heads: &mut HashMap<String, Rc<(String, Head)>>) -> SpiResult<()> {
        let text = |column| row.get::<String>(column).map(Option::unwrap_or_default);
        let number = |column| row.get::<i64>(column).map(Option::unwrap_or_default);
        let stamp = Stamp {
            xid: number(1)? as u64,
            lsn: number(2)? as u64,
            at: number(4)?,
            salt: text(5)?,
        };
        let first = row.get::<i32>(3)?.unwrap_or(1) as u32;
        let head = text(6)?;
        let body = row.get::<Vec<u8>>(7)?.unwrap_or_default();
        let damaged = |what: String| -> ! {
            pg_sys::panic::ErrorReport::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, what, "").report(PgLogLevel::ERROR);
            unreachable!("an ERROR does not return")
        };
        let known = match heads.get(&head) {
            Some(known) => known.clone(),
            None => {
                let read: Head = serde_json::from_str(&head)
                    .unwrap_or_else(|e| damaged(format!("a row of jetstream.capture_queue has no readable head: {e}")));
                let read = Rc::new((read.key_prefix(), read));
                heads.insert(head, read.clone());
                read
            }
        };
        let (key_prefix, head) = &*known;
        let batch = batch::unpack(&body).unwrap_or_else(|e| damaged(e.to_string()));
        let key_prefix = if batch.whole_keys { "" } else { key_prefix };
        let connection: Rc<str> = text(9)?.into();
        for (n, change) in batch.changes.iter().enumerate() {
            self.messages
                .push(envelope::message(head, &stamp, first + n as u32, change));
            self.connections.push(connection.clone());
            self.times.push(stamp.at);
            let key = change.key.map(String::from_utf8_lossy);
            self.keys.push(key.map(|key| format!("{key_prefix}{key}")));
        }
        Ok(())
    }
}
