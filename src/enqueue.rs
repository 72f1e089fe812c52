//! What happens when a message is stored: it is checked, and the worker is woken when the transaction commits.
//!
//! A plain `insert into jetstream.outbox` comes here by the table's trigger; `jetstream.publish` stores the row itself.

mod batch;

use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::api::{check_headers, check_message_id, check_subject};
use crate::message::MAX_BODY_BYTES;
use crate::pg::bulk::Table;
use crate::pg::enqueue::{self, Call};
use crate::pg::refuse;
use crate::pg::row::{Columns, RowTrigger};
use crate::{micros, pg, wake};

pub use batch::publish_batch;

/// Columns of the outbox, in the order of sql/outbox.sql.
mod column {
    pub const TXID: usize = 0;
    pub const ID: usize = 1;
    pub const CONNECTION: usize = 2;
    pub const SUBJECT: usize = 3;
    pub const PAYLOAD: usize = 4;
    pub const RAW: usize = 5;
    pub const HEADERS: usize = 6;
    pub const MESSAGE_ID: usize = 7;
    pub const KEY: usize = 8;
    pub const DELIVER_AT: usize = 9;
    pub const TTL: usize = 10;
    pub const TRACEPARENT: usize = 12;
    pub const ATTEMPTS: usize = 13;
    pub const UNSURE_SINCE: usize = 16;
    pub const CREATED_AT: usize = 17;
    /// How many there are.
    pub const COUNT: usize = 19;
}

/// Columns that PostgreSQL would refuse a null in with the whole row, the body included, in the error.
const REQUIRED: [(usize, &str, &str); 7] = [
    (column::SUBJECT, "subject", "Give a subject, such as orders.new."),
    (
        column::CONNECTION,
        "connection",
        "Leave connection out to use \"default\".",
    ),
    (
        column::MESSAGE_ID,
        "message_id",
        "Leave message_id out to get a random one.",
    ),
    (column::TXID, "txid", "Leave txid to its default."),
    (column::ID, "id", "Leave id to its default."),
    (column::ATTEMPTS, "attempts", "Leave attempts to its default."),
    (column::CREATED_AT, "created_at", "Leave created_at to its default."),
];

/// The longest key in bytes: an index has room for it in a third of a page.
const MAX_KEY_BYTES: usize = 2500;

/// A body that takes less where it stands is not looked at: compressed or not, it has fewer than [`MAX_BODY_BYTES`].
/// JSON can be larger as text only by numbers such as 1e100000, of which it does not hold enough.
const SMALL_BODY: usize = 4096;

/// What a call of `jetstream.publish` or `jetstream.publish_raw` stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// `payload`, jsonb.
    Json,
    /// `raw`, bytea.
    Bytes,
}

impl Body {
    fn column(self) -> usize {
        match self {
            Body::Json => column::PAYLOAD,
            Body::Bytes => column::RAW,
        }
    }
}

/// `jetstream.publish` and `jetstream.publish_raw`: stores a message, returns its `outbox.id`.
///
/// The row goes into the table without a statement. Whoever has added to the outbox (columns, triggers, rules, check
/// constraints, row security), or lacks what a statement would refuse, gets the statement.
pub fn publish(call: &Call, body: Body) -> i64 {
    let given = given(body);
    let mut row = arguments(call, given);
    row[column::MESSAGE_ID] = row[column::MESSAGE_ID].or_else(|| Some(enqueue::Uuids::new(1).text()));
    let table = Table::open(c"outbox");
    let id = match table.as_ref().filter(|table| takes(table, &row, &given)) {
        Some(table) => store(table, row),
        None => store_by_statement(given.map(|column| row[column]), body),
    };
    if let Some(table) = table {
        table.close();
    }
    id
}

/// Values of a row's columns.
type Row = [Option<pg_sys::Datum>; column::COUNT];

/// The arguments of a call, each as the value of its column.
fn arguments(call: &Call, given: [usize; 8]) -> Row {
    let mut row = [None; column::COUNT];
    for (number, column) in given.into_iter().enumerate() {
        row[column] = call.argument(number);
    }
    row
}

/// The columns of the arguments, in their order.
fn given(body: Body) -> [usize; 8] {
    [
        column::SUBJECT,
        body.column(),
        column::MESSAGE_ID,
        column::HEADERS,
        column::KEY,
        column::DELIVER_AT,
        column::CONNECTION,
        column::TTL,
    ]
}

/// Whether rows like this one may be stored without a statement, with values for the columns `given`.
fn takes(outbox: &Table, row: &Row, given: &[usize]) -> bool {
    row[column::SUBJECT].is_some() && row[column::CONNECTION].is_some() && is_plain(outbox) && outbox.may_insert(given)
}

/// Whether the outbox is as sql/outbox.sql has made it, so that rows may be stored without a statement: nobody has added
/// columns, triggers, rules, check constraints or row security.
pub fn is_plain(outbox: &Table) -> bool {
    outbox.has_shape(column::COUNT) && outbox.is_plain(pg_sys::TRIGGER_TYPE_INSERT, c"outbox_check")
}

/// The next `outbox.id`; `None` if its sequence has another name.
pub fn next_id() -> Option<i64> {
    enqueue::next_value(c"outbox_id_seq")
}

fn new_id() -> i64 {
    next_id().unwrap_or_else(|| {
        refuse(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            "sequence jetstream.outbox_id_seq does not exist".into(),
            "Give the sequence of jetstream.outbox.id its name back.",
        )
    })
}

fn store(table: &Table, mut row: Row) -> i64 {
    enqueue::refuse_if_read_only();
    // Before the id: see sql/outbox.sql.
    row[column::TXID] = Some(pg_sys::Datum::from(pg::assigned_xid()));
    let id = new_id();
    row[column::ID] = Some(pg_sys::Datum::from(id));
    row[column::TRACEPARENT] = enqueue::setting(c"jetstream.traceparent");
    row[column::ATTEMPTS] = Some(pg_sys::Datum::from(0));
    row[column::CREATED_AT] = Some(pg_sys::Datum::from(pg::now()));
    table.insert(&row, |row| check_new(row, None));
    id
}

fn store_by_statement(values: [Option<pg_sys::Datum>; 8], body: Body) -> i64 {
    use pg_sys::{BYTEAOID, INTERVALOID, JSONBOID, TEXTOID, TIMESTAMPTZOID};
    let (name, kind) = match body {
        Body::Json => ("payload", JSONBOID),
        Body::Bytes => ("raw", BYTEAOID),
    };
    let kinds = [
        TEXTOID,
        kind,
        TEXTOID,
        JSONBOID,
        TEXTOID,
        TIMESTAMPTZOID,
        TEXTOID,
        INTERVALOID,
    ];
    let insert = format!(
        "insert into jetstream.outbox (subject, {name}, message_id, headers, key, deliver_at, connection, ttl)
         values ($1, $2, $3, $4, $5, $6, $7, $8) returning id"
    );
    let arguments: Vec<_> = values
        .into_iter()
        .zip(kinds)
        .map(|(value, kind)| enqueue::parameter(value, kind))
        .collect();
    match Spi::connect_mut(|client| client.update(&insert, Some(1), &arguments)?.first().get_one::<i64>()) {
        Ok(Some(id)) => id,
        // A trigger or a rule of somebody else's has stored something else, or nothing.
        Ok(None) | Err(pgrx::spi::Error::InvalidPosition) => 0,
        Err(e) => refuse(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("the message could not be stored: {e}"),
            "",
        ),
    }
}

/// What happens before a row of the outbox is inserted or changed: an ERROR if it could not be sent, and a wake for the
/// worker when the transaction commits.
///
/// One trigger in C, and not constraints and a trigger for each task: PostgreSQL reads and plans every check constraint
/// and every condition of a trigger anew for each statement, which costs a single-row insert more than all the checks.
pub fn check_row(trigger: &RowTrigger) {
    if !wake::is_worker() {
        check_new(&trigger.new, trigger.old.as_ref());
    }
}

fn check_new(new: &Columns, old: Option<&Columns>) {
    let before = old.and_then(|old| old.text(column::CONNECTION));
    if let Some((_, name, hint)) = REQUIRED.into_iter().find(|(column, ..)| new.is_null(*column)) {
        refuse(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("message has no {name}"),
            hint,
        );
    }
    if let Some(name) = new
        .text(column::CONNECTION)
        .filter(|name| name != "default" && before.as_ref() != Some(name))
        .filter(|_| old.is_some() || !is_restored(new))
    {
        check_connection(&name);
    }
    check_message(new);
    if old.is_none() {
        inserted(new);
    }
}

/// Whether another transaction has stored the row before, so that a dump brings it. The connection may come after it.
fn is_restored(new: &Columns) -> bool {
    new.value(column::TXID)
        .is_some_and(|txid| txid as u64 != pg::assigned_xid())
}

fn inserted(row: &Columns) {
    wake::inserted(
        row.value(column::ID).unwrap_or_default(),
        !row.is_null(column::DELIVER_AT),
    );
}

fn check_connection(name: &str) {
    let call = Spi::get_one_with_args::<bool>("select jetstream.check_connection($1)", &[name.into()]);
    if let Err(e) = call {
        refuse(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("connection \"{name}\" could not be looked up: {e}"),
            "",
        );
    }
}

fn invalid(message: String, hint: &str) -> ! {
    refuse(PgSqlErrorCode::ERRCODE_CHECK_VIOLATION, message, hint)
}

fn check_message(row: &Columns) {
    if let Some(subject) = row.text(column::SUBJECT) {
        check_subject(&subject);
    }
    if let Some(headers) = row.json(column::HEADERS) {
        check_headers(headers);
    }
    check_id_and_body(row);
    let key = row.full_bytes(column::KEY);
    if key > MAX_KEY_BYTES {
        refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("key of {key} bytes is too long"),
            &format!("A key has at most {MAX_KEY_BYTES} bytes: use a hash of a longer one."),
        );
    }
    let ttl = row
        .interval(column::TTL)
        .map(|ttl| micros::of_interval(ttl.months, ttl.days, ttl.micros));
    if let Some(ttl) = ttl.filter(|ttl| !micros::ttl_range().contains(ttl)) {
        invalid(
            format!("ttl of {} s is not between 1 second and 10000 days", ttl as f64 / 1e6),
            "Leave ttl out for a message that the stream keeps as long as any other.",
        );
    }
    if let Some(at) = row.value(column::DELIVER_AT)
        && (at == i64::MAX || at == i64::MIN)
    {
        let sign = if at == i64::MIN { "-" } else { "" };
        invalid(
            format!("deliver_at is {sign}infinity"),
            "Give a point in time, or leave it out to deliver at once.",
        );
    }
    for (number, name) in [
        (column::UNSURE_SINCE, "unsure_since"),
        (column::CREATED_AT, "created_at"),
    ] {
        if row.value(number).is_some_and(|at| !micros::YEARS.contains(&at)) {
            invalid(
                format!("{name} is not in the years 1970 to 9999"),
                "Give the time at which it happened, or leave it to its default.",
            );
        }
    }
    if let Some(attempts) = row.value(column::ATTEMPTS).map(|attempts| attempts as i32)
        && attempts < 0
    {
        invalid(
            format!("attempts {attempts} is below zero"),
            "Leave attempts to its default.",
        );
    }
}

fn check_id_and_body(row: &Columns) {
    if let Some(id) = row.text(column::MESSAGE_ID) {
        check_message_id(&id);
    }
    let bodies = [column::PAYLOAD, column::RAW];
    let given = bodies.iter().filter(|body| !row.is_null(**body)).count();
    if given != 1 {
        refuse(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("message has {}", if given == 0 { "no payload" } else { "2 payloads" }),
            "Set exactly one of payload (jsonb) and raw (bytea). For an empty message use raw = ''.",
        );
    }
    if bodies.iter().map(|body| row.stored_bytes(*body)).sum::<usize>() >= SMALL_BODY {
        let bytes = row.json_text_bytes(column::PAYLOAD) + row.full_bytes(column::RAW);
        if bytes > MAX_BODY_BYTES {
            let hint = format!("A message has at most {MAX_BODY_BYTES} bytes.");
            invalid(format!("message has {bytes} bytes"), &hint);
        }
    }
}
