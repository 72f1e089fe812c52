//! The drain worker's side: from `jetstream.capture_queue` to messages of the outbox.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, PgBuiltInOids as Oids};
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiHeapTupleData, SpiResult};

use super::batch;
use super::envelope::{self, Outgoing, Stamp};
use super::epoch::Epochs;
use super::head::Head;
use crate::array::Array;
use crate::enqueue::{is_plain, next_id};
use crate::micros;
use crate::pg::bulk::Table;
use crate::pg::values::Value;
use crate::pg::values::array_parameter;
use crate::pg::{self, enqueue};

/// Bytes of packed changes made into messages in one transaction; at least one row of the queue.
const AT_ONCE: i64 = 2_000_000;
/// Rows of the queue that one look remembers.
const AT_A_LOOK: i64 = 100_000;

/// What this worker has seen of the queue.
#[derive(Default)]
pub struct Seen {
    statements: Option<Statements>,
    /// Snapshot of the last look of which everything was taken; none before the first.
    snapshot: Option<String>,
    /// What the last look found and is not taken yet, in order: a large transaction is looked for once.
    waiting: VecDeque<Waiting>,
    /// What `snapshot` becomes when that is taken; none if the look could not remember all there was.
    next: Option<String>,
    /// Looks since the whole queue was read.
    looks: u32,
    epochs: Epochs,
    stray: Option<Stray>,
}

/// Changes for a connection that does not exist.
struct Stray {
    connection: String,
    seen: Instant,
    reported: bool,
}

/// How soon the connection of such changes is looked for again.
const STRAYS_EVERY: Duration = Duration::from_secs(5);

/// A row of the queue: where it stands, what tells it from another that may stand there later, and the bytes of its body.
struct Waiting {
    place: String,
    lsn: i64,
    number: i32,
    length: i32,
}

/// Made in the first transaction, valid as long as the extension is not changed.
struct Statements {
    look: OwnedPreparedStatement,
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
            look: make(LOOK, &[text, text, Oids::INT8OID])?,
            take: make(TAKE, &[texts, Oids::INT8ARRAYOID, Oids::INT4ARRAYOID])?,
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
// one's commit; so has what becomes visible after this. Bodies are not read, and not sorted. What names a connection that does
// not exist stays: a restore may bring the connection later.
const LOOK: &str = "
select pg_catalog.pg_current_snapshot()::text, array_agg(w.place) filter (where w.known), array_agg(w.lsn) filter (where w.known),
    array_agg(w.number) filter (where w.known), array_agg(w.length) filter (where w.known),
    min(w.connection) filter (where not w.known)
from (
    select v.ctid::text as place, (v.lsn - '0/0')::bigint as lsn, v.number, v.length, v.connection,
           exists (select from jetstream.connections c where c.name = v.connection) as known
    from (select ctid, lsn, number, salt, connection, octet_length(body) as length
          from jetstream.capture_queue where txid = any ($1::xid8[])
          union all
          select ctid, lsn, number, salt, connection, octet_length(body)
          from jetstream.capture_queue where txid >= $2::xid8) v
    order by known desc, v.lsn, v.number, v.salt limit $3) w";

// By place, as long as it is the same row that stands there.
const TAKE: &str = "
with taken as (
    delete from jetstream.capture_queue q
    where q.ctid = any ($1::tid[])
      and ((q.lsn - '0/0')::bigint, q.number) in (select w.lsn, w.number from unnest($2, $3) as w (lsn, number))
    returning q.txid::text::bigint as xid, q.lsn, q.number, q.at, q.salt, q.head, q.body, q.connection
)
select xid, (lsn - '0/0')::bigint as place, number, (extract(epoch from at) * 1000000)::bigint as at, salt, head, body,
       connection
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
        Spi::connect_mut(|client| {
            if self.waiting.is_empty() {
                self.look(client)?;
            }
            let statements = self.statements(client)?;
            let places = self.first();
            let expected = places.len();
            let mut columns = Columns::default();
            let mut taken = 0;
            if expected > 0 {
                let arrays = Waiting::arrays(&places);
                let rows = client.update(&statements.take, None, &arrays.each_ref().map(array_parameter))?;
                taken = rows.len();
                let mut heads = HashMap::new();
                for row in rows {
                    let stored = row.get::<String>(5)?.unwrap_or_default();
                    let (salt, epoch) = self.epochs.of(client, &stored)?;
                    columns.add(&row, salt, epoch, &mut heads)?;
                }
            }
            let count = columns.messages.len();
            if count > 0 && !columns.append() {
                let arrays = columns.arrays();
                client.update(&statements.put, None, &arrays.each_ref().map(array_parameter))?;
            }
            self.statements = Some(statements);
            self.waiting.drain(..expected);
            if taken < expected {
                // Somebody has deleted or moved rows.
                self.waiting.clear();
                self.next = None;
            }
            let all = self.waiting.is_empty() && self.next.is_some();
            if all {
                self.snapshot = self.next.take();
            }
            Ok((count, !all))
        })
    }

    /// Whether changes wait for a connection to be inserted, which wakes nobody.
    pub fn waits(&self) -> bool {
        self.stray.is_some()
    }

    /// The connection that changes name and that does not exist, once for each.
    pub fn stray(&mut self) -> Option<&str> {
        let stray = self.stray.as_mut()?;
        let first = !std::mem::replace(&mut stray.reported, true);
        first.then_some(stray.connection.as_str())
    }

    fn statements(&mut self, client: &SpiClient<'_>) -> SpiResult<Statements> {
        self.statements.take().map_or_else(|| Statements::prepare(client), Ok)
    }

    /// Remembers what waits.
    fn look(&mut self, client: &mut SpiClient<'_>) -> SpiResult<()> {
        self.looks += 1;
        let search = self
            .stray
            .as_ref()
            .is_some_and(|stray| stray.seen.elapsed() >= STRAYS_EVERY);
        if search || self.looks >= EVERYTHING_EVERY {
            *self = Seen {
                epochs: std::mem::take(&mut self.epochs),
                stray: self.stray.take(),
                ..Seen::default()
            };
        }
        let all = self.snapshot.is_none();
        let (in_progress, next) = self.bounds();
        let statements = self.statements(client)?;
        let bounds = [in_progress.into(), next.into(), AT_A_LOOK.into()];
        let found = client.update(&statements.look, None, &bounds)?.first();
        let places = found.get::<Vec<String>>(2)?.unwrap_or_default();
        let lsns = found.get::<Vec<i64>>(3)?.unwrap_or_default();
        let numbers = found.get::<Vec<i32>>(4)?.unwrap_or_default();
        let lengths = found.get::<Vec<i32>>(5)?.unwrap_or_default();
        let rows = places.into_iter().zip(lsns).zip(numbers).zip(lengths);
        self.waiting = rows
            .map(|(((place, lsn), number), length)| Waiting {
                place,
                lsn,
                number,
                length,
            })
            .collect();
        let stray = found.get::<String>(6)?;
        if all || stray.is_some() {
            let reported = |name: &str| {
                self.stray
                    .as_ref()
                    .is_some_and(|stray| stray.connection == name && stray.reported)
            };
            self.stray = stray.map(|connection| Stray {
                reported: reported(&connection),
                connection,
                seen: Instant::now(),
            });
        }
        let some_left = self.waiting.len() as i64 == AT_A_LOOK;
        self.next = found.get::<String>(1)?.filter(|_| !some_left);
        self.statements = Some(statements);
        Ok(())
    }

    /// The first that wait, as many as are taken at once.
    fn first(&self) -> Vec<&Waiting> {
        let mut bytes = 0;
        let fits = |row: &&Waiting| {
            let room = bytes < AT_ONCE;
            bytes += i64::from(row.length);
            room
        };
        self.waiting.iter().take_while(fits).collect()
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

impl Waiting {
    /// In the order of the statement's parameters.
    fn arrays(rows: &[&Waiting]) -> [Array; 3] {
        [
            Array::texts(rows.iter().map(|row| Some(row.place.as_str()))),
            Array::int8s(rows.iter().map(|row| Some(row.lsn))),
            Array::int4s(rows.iter().map(|row| Some(row.number))),
        ]
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
    fn add(
        &mut self,
        row: &SpiHeapTupleData<'_>,
        salt: String,
        epoch: i64,
        heads: &mut HashMap<String, Rc<(String, Head)>>,
    ) -> SpiResult<()> {
        let text = |column| row.get::<String>(column).map(Option::unwrap_or_default);
        let number = |column| row.get::<i64>(column).map(Option::unwrap_or_default);
        let stamp = Stamp {
            xid: number(1)? as u64,
            lsn: number(2)? as u64,
            at: number(4)?,
            salt,
            epoch,
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
        let connection: Rc<str> = text(8)?.into();
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
