//! Into `jetstream.capture_queue`, as directly as PostgreSQL writes its own catalogs: no plan, no executor, and no
//! right of the writer's on the table.

use pgrx::pg_sys::{self, Datum};
use pgrx::{IntoDatum, PgSqlErrorCode};

use super::head::Head;

/// One row.
pub struct Row<'a> {
    /// Place of the statement in the write-ahead log.
    pub lsn: u64,
    /// Number of the first change of the body within its statement, from 1.
    pub number: i32,
    /// Random, the same for all rows of a statement.
    pub salt: &'a str,
    /// [`Head`] as JSON.
    pub head: &'a str,
    /// Packed changes.
    pub body: &'a [u8],
}

/// Where the next record of the write-ahead log begins. It grows from a statement to the next that sees its effects,
/// in whatever session, because what is captured is itself logged.
pub fn place() -> u64 {
    // SAFETY: reads a counter in shared memory.
    unsafe { pg_sys::GetXLogInsertRecPtr() }
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
    let mut values = [
        Datum::from(top_xid()),
        Datum::from(row.lsn),
        Datum::from(row.number),
        // SAFETY: reads the clock.
        Datum::from(unsafe { pg_sys::GetCurrentTimestamp() }),
        row.salt.into_datum().unwrap_or(Datum::null()),
        row.head.into_datum().unwrap_or(Datum::null()),
        row.body.into_datum().unwrap_or(Datum::null()),
    ];
    let mut nulls = [false; 7];
    // SAFETY: the relation is opened and closed here, the lock kept to the end of the transaction as for any insert;
    // values and nulls are as many as the table has columns, in their order and of their types.
    unsafe {
        let relation = pg_sys::table_open(table(), pg_sys::RowExclusiveLock as i32);
        let tuple = pg_sys::heap_form_tuple((*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::CatalogTupleInsert(relation, tuple);
        pg_sys::heap_freetuple(tuple);
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        for value in &values[4..] {
            pg_sys::pfree(value.cast_mut_ptr());
        }
    }
}

/// Full id of the current transaction, assigned if it has none.
pub fn top_xid() -> u64 {
    // SAFETY: called in a transaction.
    unsafe { pg_sys::GetTopFullTransactionId() }.value
}

fn table() -> pg_sys::Oid {
    // SAFETY: C strings; lookups in the catalog caches.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(c"jetstream".as_ptr(), true);
        pg_sys::get_relname_relid(c"capture_queue".as_ptr(), schema)
    };
    if oid == pg_sys::InvalidOid {
        pg_sys::panic::ErrorReport::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            "jetstream.capture_queue does not exist",
            "",
        )
        .report(pgrx::PgLogLevel::ERROR);
    }
    oid
}
