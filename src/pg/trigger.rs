//! What PostgreSQL tells a trigger.

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

/// Lets statements of the current SPI connection, which the trigger outlives, read the transition tables by their
/// names; false if that cannot be done.
pub fn register_tables(trigger: &TriggerData) -> bool {
    // SAFETY: connected, as the caller says; the trigger's data is only read.
    unsafe { pg_sys::SPI_register_trigger_data(std::ptr::from_ref(trigger).cast_mut()) >= 0 }
}
