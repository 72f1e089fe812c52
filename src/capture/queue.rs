//! Into `jetstream.capture_queue`.

use pgrx::PgSqlErrorCode;

use super::head::Head;
use crate::pg;
use crate::pg::bulk::Value;

/// One row.
pub struct Row<'a> {
    /// Place of the statement in the write-ahead log.
    pub lsn: u64,
    /// Number of the first change of the body within its statement, from 1.
    pub number: i32,
    /// Changes in the body.
    pub changes: i32,
    /// Random, the same for all rows of a statement.
    pub salt: &'a str,
    /// Connection (`connections.name`) they go to.
    pub connection: &'a str,
    /// [`Head`] as JSON.
    pub head: &'a str,
    /// Packed changes.
    pub body: &'a [u8],
}

/// Where the next record of the write-ahead log begins. It grows from a statement to the next that sees its effects,
/// in whatever session, because what is captured is itself logged.
pub fn place() -> u64 {
    pg::wal_insert_position()
}

/// Random text, of 48 bits.
pub fn salt() -> String {
    format!("{:012x}", rand::random::<u64>() >> 16)
}

/// A head as it is stored.
pub fn head_text(head: &Head) -> String {
    serde_json::to_string(head).unwrap_or_default()
}

/// Stores a row in the current transaction.
pub fn store(row: &Row<'_>) {
    let values = [
        Value::Word(pg::assigned_xid()),
        Value::Word(row.lsn),
        Value::Word(row.number as u64),
        Value::Word(row.changes as u64),
        Value::Word(pg::now() as u64),
        Value::Text(row.salt),
        Value::Text(row.connection),
        Value::Text(row.head),
        Value::Bytes(row.body),
    ];
    if !pg::rows::insert(c"capture_queue", values) {
        pg::refuse(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            "jetstream.capture_queue does not exist".into(),
            "Create the extension anew: alter and drop its tables only with it.",
        );
    }
}
