//! Into `jetstream.capture_queue`.

use std::cell::Cell;

use pgrx::PgSqlErrorCode;

use super::{epoch, json, plan};
use crate::pg;
use crate::pg::cluster::Cluster;
use crate::pg::values::Value;

/// One row.
pub struct Row<'a> {
    /// Place of the statement in the write-ahead log, from [`super::nesting::place`].
    pub lsn: u64,
    /// Number of the first change of the body within its statement, from 1.
    pub number: i32,
    /// Changes in the body.
    pub changes: i32,
    /// Random, the same for all rows of a statement.
    pub salt: &'a str,
    /// Connection (`connections.name`) they go to.
    pub connection: &'a str,
    /// [`super::head::Head`] as it is stored.
    pub head: &'a str,
    /// Packed changes.
    pub body: &'a [u8],
}

/// Random text, of 48 bits, and the cluster that writes it: see [`epoch`].
pub fn salt() -> String {
    let random = rand::random::<u64>();
    let mut salt = json::hex(random.to_le_bytes().into_iter().take(6));
    CLUSTER.with(|cluster| salt.push_str(cluster));
    salt
}

thread_local! {
    /// Looked up with the first write, before which a process may see its server promoted.
    static CLUSTER: String = epoch::stored(Cluster::current());
    /// Object id of the queue; 0 if it is to be looked up.
    static TABLE: Cell<u32> = const { Cell::new(0) };
}

/// To be called when the definition of a table may have changed.
pub fn forget() {
    TABLE.set(0);
}

/// Object id of the queue, looked up once; 0 if there is none. [`forget`] is called for as long as it is known.
fn table() -> u32 {
    if TABLE.get() == 0 {
        plan::watch();
        TABLE.set(pg::table_oid(c"capture_queue").unwrap_or(0));
    }
    TABLE.get()
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
    if !pg::rows::insert(table(), values) {
        pg::refuse(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            "jetstream.capture_queue does not exist".into(),
            "Create the extension anew: alter and drop its tables only with it.",
        );
    }
}
