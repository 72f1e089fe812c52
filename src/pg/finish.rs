//! When the triggers after a statement are called.

use std::ffi::c_void;
use std::sync::OnceLock;

use pgrx::pg_sys::{self, CmdType, TriggerData};

unsafe extern "C-unwind" {
    // Declared here because pgrx's own wrappers catch an ERROR and raise another with less in it.
    fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
    fn pg_trigger_depth(call: *mut c_void) -> usize;
}

/// What [`watch`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A statement has changed its rows, and its triggers are called from now on.
    Begin {
        /// The statement.
        query: Query,
        /// Triggers that are running.
        depth: i32,
    },
    /// Every statement that began with as many triggers running, or more, has ended or failed.
    End {
        /// Triggers that are running.
        depth: i32,
    },
}

/// A statement whose triggers are called, until [`Event::End`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query(pub(super) *mut pg_sys::QueryDesc);

impl Query {
    /// Whether the trigger is called for what the statement itself did to its table, and not for what a foreign key did
    /// there afterwards.
    pub fn fires(self, trigger: &TriggerData) -> bool {
        // SAFETY: the statement has not ended, and what it is made of is not changed until then; the trigger's relation is
        // open.
        unsafe {
            let table = (*trigger.tg_relation).rd_id;
            let plan = (*self.0).plannedstmt;
            let event = trigger.tg_event & pg_sys::TRIGGER_EVENT_OPMASK;
            let same_kind = (*plan).hasModifyingCTE
                || match (*self.0).operation {
                    CmdType::CMD_UPDATE => event == pg_sys::TRIGGER_EVENT_UPDATE,
                    CmdType::CMD_DELETE => event == pg_sys::TRIGGER_EVENT_DELETE,
                    _ => true,
                };
            // Of all tables in a statement, those that it changes have this lock.
            let changes = |entry: &pg_sys::ListCell| {
                let entry = entry.ptr_value.cast::<pg_sys::RangeTblEntry>();
                (*entry).relid == table && (*entry).rellockmode == pg_sys::RowExclusiveLock as i32
            };
            let entries = (*plan)
                .rtable
                .as_ref()
                .map(|list| std::slice::from_raw_parts(list.elements, list.length as usize));
            same_kind && entries.is_some_and(|entries| entries.iter().any(changes))
        }
    }
}

type Hook = unsafe extern "C-unwind" fn(*mut pg_sys::QueryDesc);

/// Who is told, and the hook that was there before.
static WATCH: OnceLock<(fn(Event), Option<Hook>)> = OnceLock::new();

/// Calls `tell` from now on, which must not raise an ERROR. COPY, TRUNCATE and what a subscription applies are no
/// statements in this sense.
pub fn watch(tell: fn(Event)) {
    // SAFETY: called while the library is loaded, once; callbacks stay registered for the life of the process.
    unsafe {
        let previous = pg_sys::ExecutorFinish_hook;
        if WATCH.set((tell, previous)).is_ok() {
            pg_sys::ExecutorFinish_hook = Some(finish);
            pg_sys::RegisterXactCallback(Some(transaction_ends), std::ptr::null_mut());
            pg_sys::RegisterSubXactCallback(Some(subtransaction_ends), std::ptr::null_mut());
        }
    }
}

/// Triggers that are running; 0 outside of all.
pub fn depth() -> i32 {
    // SAFETY: it does not look at its argument, and raises no ERROR.
    unsafe { pg_trigger_depth(std::ptr::null_mut()) as i32 }
}

fn tell(event: Event) {
    if let Some((tell, _)) = WATCH.get() {
        tell(event);
    }
}

/// An ERROR jumps over this frame, which owns nothing, as it does over PostgreSQL's own: all that is in it stays.
unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: PostgreSQL gives a query that has run.
    let writes = unsafe { (*query).operation != CmdType::CMD_SELECT || (*(*query).plannedstmt).hasModifyingCTE };
    let depth = depth();
    if writes {
        let query = Query(query);
        tell(Event::Begin { query, depth });
    }
    // SAFETY: the query is handed on as it came, once.
    unsafe {
        match WATCH.get().and_then(|(_, previous)| *previous) {
            Some(previous) => previous(query),
            None => standard_ExecutorFinish(query),
        }
    }
    if writes {
        tell(Event::End { depth });
    }
}

unsafe extern "C-unwind" fn transaction_ends(event: pg_sys::XactEvent::Type, _: *mut c_void) {
    if event == pg_sys::XactEvent::XACT_EVENT_ABORT {
        tell(Event::End { depth: 0 });
    }
}

/// Whoever catches an ERROR ends the subtransaction in which it was raised, and is at the depth that he was at before.
unsafe extern "C-unwind" fn subtransaction_ends(
    event: pg_sys::SubXactEvent::Type,
    _: pg_sys::SubTransactionId,
    _: pg_sys::SubTransactionId,
    _: *mut c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        tell(Event::End { depth: depth() });
    }
}
