//! When the triggers after a statement are called: hooks on the end of statements, and on COPY.

use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use pgrx::pg_sys::{self, CmdType, TriggerData};

unsafe extern "C-unwind" {
    // Declared here because pgrx's own wrappers catch an ERROR and raise another with less in it.
    fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
    fn pg_trigger_depth(call: *mut c_void) -> usize;
    // Compared, not called.
    fn CopyFromErrorCallback(of: *mut c_void);
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
pub enum Query {
    /// One that the executor runs.
    Planned(*mut pg_sys::QueryDesc),
    /// COPY into a table, and what told of errors when it began.
    Copy(*mut pg_sys::ErrorContextCallback),
}

impl Query {
    /// Whether the trigger is called for what the statement itself did to its table, and not for what a foreign key did
    /// there afterwards.
    pub fn fires(self, trigger: &TriggerData) -> bool {
        let event = trigger.tg_event & pg_sys::TRIGGER_EVENT_OPMASK;
        let Query::Planned(query) = self else {
            return event == pg_sys::TRIGGER_EVENT_INSERT;
        };
        // SAFETY: the statement has not ended, and what it is made of is not changed until then; the trigger's relation is
        // open.
        unsafe {
            let table = (*trigger.tg_relation).rd_id;
            let plan = (*query).plannedstmt;
            let same_kind = (*plan).hasModifyingCTE
                || match (*query).operation {
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

    /// Whether its rows are all changed. While COPY reads rows, it tells which one an error is about.
    pub fn has_its_rows(self) -> bool {
        let Query::Copy(outside) = self else {
            return true;
        };
        let reads = CopyFromErrorCallback as *const () as usize;
        // SAFETY: each entry stands on the stack of a function that has not returned.
        unsafe {
            let mut told = pg_sys::error_context_stack;
            while let Some(entry) = told.as_ref() {
                if entry.previous == outside {
                    return entry.callback.map(|callback| callback as *const () as usize) != Some(reads);
                }
                told = entry.previous;
            }
        }
        true
    }
}

/// Who is told, and the hooks that were there before.
struct Watch {
    tell: fn(Event),
    finish: pg_sys::ExecutorFinish_hook_type,
    utility: pg_sys::ProcessUtility_hook_type,
}

static WATCH: OnceLock<Watch> = OnceLock::new();

/// Calls `tell` from now on, which must not raise an ERROR. TRUNCATE and what a subscription applies are no statements in
/// this sense.
pub fn watch(tell: fn(Event)) {
    // SAFETY: called while the library is loaded, once; callbacks stay registered for the life of the process.
    unsafe {
        let before = Watch {
            tell,
            finish: pg_sys::ExecutorFinish_hook,
            utility: pg_sys::ProcessUtility_hook,
        };
        if WATCH.set(before).is_ok() {
            pg_sys::ExecutorFinish_hook = Some(finish);
            pg_sys::ProcessUtility_hook = Some(utility);
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
    if let Some(watch) = WATCH.get() {
        (watch.tell)(event);
    }
}

/// An ERROR jumps over this frame, which owns nothing, as it does over PostgreSQL's own: all that is in it stays.
unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: PostgreSQL gives a query that has run.
    let writes = unsafe { (*query).operation != CmdType::CMD_SELECT || (*(*query).plannedstmt).hasModifyingCTE };
    let depth = depth();
    if writes {
        let query = Query::Planned(query);
        tell(Event::Begin { query, depth });
    }
    // SAFETY: the query is handed on as it came, once.
    unsafe {
        match WATCH.get().and_then(|watch| watch.finish) {
            Some(previous) => previous(query),
            None => standard_ExecutorFinish(query),
        }
    }
    if writes {
        tell(Event::End { depth });
    }
}

macro_rules! utility {
    ($($tree:ident: $kind:ty)?) => {
        unsafe extern "C-unwind" {
            fn standard_ProcessUtility(
                statement: *mut pg_sys::PlannedStmt,
                text: *const c_char,
                $($tree: $kind,)?
                context: pg_sys::ProcessUtilityContext::Type,
                parameters: pg_sys::ParamListInfo,
                environment: *mut pg_sys::QueryEnvironment,
                receiver: *mut pg_sys::DestReceiver,
                completion: *mut pg_sys::QueryCompletion,
            );
        }

        /// As [`finish`].
        unsafe extern "C-unwind" fn utility(
            statement: *mut pg_sys::PlannedStmt,
            text: *const c_char,
            $($tree: $kind,)?
            context: pg_sys::ProcessUtilityContext::Type,
            parameters: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            receiver: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        ) {
            // SAFETY: PostgreSQL gives a statement; its tag says what it is.
            let copies = unsafe {
                let statement = (*statement).utilityStmt;
                (*statement).type_ == pg_sys::NodeTag::T_CopyStmt && (*statement.cast::<pg_sys::CopyStmt>()).is_from
            };
            let depth = depth();
            if copies {
                // SAFETY: reads a variable of this process.
                let query = Query::Copy(unsafe { pg_sys::error_context_stack });
                tell(Event::Begin { query, depth });
            }
            let previous = WATCH.get().and_then(|watch| watch.utility);
            // SAFETY: the statement is handed on as it came, once.
            unsafe {
                match previous {
                    Some(previous) => {
                        previous(statement, text, $($tree,)? context, parameters, environment, receiver, completion);
                    }
                    None => standard_ProcessUtility(
                        statement, text, $($tree,)? context, parameters, environment, receiver, completion,
                    ),
                }
            }
            if copies {
                tell(Event::End { depth });
            }
            // SAFETY: the statement has been executed and is not changed by that.
            unsafe { super::switched::after(statement) }
        }
    };
}
#[cfg(feature = "pg13")]
utility!();
#[cfg(not(feature = "pg13"))]
utility!(read_only_tree: bool);

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
