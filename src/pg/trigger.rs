//! What PostgreSQL tells a trigger.

use pgrx::PgTupleDesc;
use pgrx::pg_sys::{self, Oid, TriggerData};

/// The table whose trigger this is.
pub fn relation(trigger: &TriggerData) -> Oid {
    // SAFETY: PostgreSQL gives a trigger an open relation.
    unsafe { (*trigger.tg_relation).rd_id }
}

/// Whether that table is partitioned: it has no rows of its own.
pub fn is_partitioned(trigger: &TriggerData) -> bool {
    // SAFETY: as above.
    unsafe { (*(*trigger.tg_relation).rd_rel).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE }
}

/// Whether the statement is a TRUNCATE.
pub fn truncates(trigger: &TriggerData) -> bool {
    trigger.tg_event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_TRUNCATE
}

/// Whether that table has columns of these types, each at its place from 0.
pub fn has_columns(trigger: &TriggerData, mut columns: impl Iterator<Item = (usize, Oid)>) -> bool {
    // SAFETY: the descriptor of a relation that is open until the trigger returns; it is only read.
    let shape = unsafe { PgTupleDesc::from_pg_unchecked((*trigger.tg_relation).rd_att) };
    columns.all(|(at, kind)| {
        shape
            .get(at)
            .is_some_and(|column| column.atttypid == kind && !column.attisdropped)
    })
}

/// Lets statements of the current SPI connection, which the trigger outlives, read the transition tables by their
/// names; false if that cannot be done.
pub fn register_tables(trigger: &TriggerData) -> bool {
    // SAFETY: connected, as the caller says; the trigger's data is only read.
    unsafe { pg_sys::SPI_register_trigger_data(std::ptr::from_ref(trigger).cast_mut()) >= 0 }
}
