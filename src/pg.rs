//! Raw PostgreSQL calls: this module is the one home of `unsafe`.
//!
//! Everything here is called on the process's main thread; pgrx panics otherwise.

pub mod area;
pub mod bulk;
mod catalog;
pub mod cluster;
pub mod condition;
pub mod cursor;
pub mod dsm;
pub mod enqueue;
pub mod failure;
pub mod fields;
pub mod finish;
mod functions;
pub mod json;
mod lock;
mod ranges;
pub mod rights;
pub mod row;
pub mod rows;
mod session;
pub mod settings;
mod switched;
mod transactions;
pub mod trigger;
pub mod types;
pub mod values;
mod wait;

use std::ffi::CStr;

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;

pub use transactions::{
    End, SqlError, assigned_xid, at_transaction_end, flush_commits, next_xid, now, own_xid, snapshot, subtransaction,
    transaction, transaction_start, wal_insert_position,
};

pub use lock::try_lock;
pub use wait::{Waiter, wait};

pub use catalog::{
    Extension, Lookup, at_definition_change, database_oid, extension, has_pages, hold_table, relation_name, table_oid,
};

unsafe extern "C-unwind" {
    // Declared here because pgrx's own wrappers are no C functions, which a signal handler has to be.
    fn die(signal: i32);
    fn SignalHandlerForConfigReload(signal: i32);
    fn SignalHandlerForShutdownRequest(signal: i32);
}

/// What SIGTERM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTerminate {
    /// FATAL at the next interrupt check, as in an ordinary backend.
    Die,
    /// [`termination_pending`] says so; no transaction is broken off.
    Finish,
}

/// Installs signal handlers and unblocks signals. SIGHUP marks the configuration for rereading; both signals set the
/// latch.
pub fn install_signal_handlers(on_terminate: OnTerminate) {
    let terminate = match on_terminate {
        OnTerminate::Die => die,
        OnTerminate::Finish => SignalHandlerForShutdownRequest,
    };
    // SAFETY: called at the start of a background worker's main function, where signals are still blocked; the
    // handlers are PostgreSQL's own.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            pg_sys::pqsignal(pg_sys::SIGHUP as i32, Some(SignalHandlerForConfigReload));
            pg_sys::pqsignal(pg_sys::SIGTERM as i32, Some(terminate));
        }
        #[cfg(feature = "pg18")]
        {
            pg_sys::pqsignal_be(pg_sys::SIGHUP as i32, Some(SignalHandlerForConfigReload));
            pg_sys::pqsignal_be(pg_sys::SIGTERM as i32, Some(terminate));
        }
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Connects the worker to `database`, as the bootstrap superuser until [`rights::become_role`]; without a database only the
/// shared catalogs can be read. Nothing that is set for the database or the role decides how its statements run. Raises
/// FATAL if it cannot connect.
pub fn connect(database: Option<&str>) {
    session::configure();
    pgrx::bgworkers::BackgroundWorker::connect_worker_to_spi(database, None);
}

/// Rereads the configuration if SIGHUP asked for it; true if it did.
pub fn reread_config() -> bool {
    // SAFETY: plain flag of this process, written by its signal handler; ProcessConfigFile is called outside any
    // transaction, as in PostgreSQL's own workers.
    unsafe {
        if pg_sys::ConfigReloadPending == 0 {
            return false;
        }
        pg_sys::ConfigReloadPending = 0;
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
    true
}

/// Address of this process's latch, to be kept in shared memory for [`set_latch`].
pub fn my_latch() -> usize {
    // SAFETY: reads a pointer that is set once at process start.
    unsafe { pg_sys::MyLatch as usize }
}

/// Sets a latch whose address [`my_latch`] gave in some process of this cluster.
pub fn set_latch(address: usize) {
    if address != 0 {
        // SAFETY: latches of processes live in the shared array of PGPROCs, mapped at the same address in every
        // process for the cluster's life; one whose process has ended is at most a spurious wake-up for its next owner.
        unsafe { pg_sys::SetLatch(address as *mut pg_sys::Latch) }
    }
}

/// Whether the server is a standby, or recovering.
pub fn in_recovery() -> bool {
    // SAFETY: reads a flag in shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Object id of the current database.
pub fn my_database() -> u32 {
    // SAFETY: reads a variable set when the process connected.
    unsafe { pg_sys::MyDatabaseId.to_u32() }
}

/// Name of the current database; to be called in a transaction.
pub fn my_database_name() -> String {
    // SAFETY: looks up the catalog; a C string, or null for a database that is gone.
    unsafe {
        let name = pg_sys::get_database_name(pg_sys::MyDatabaseId);
        if name.is_null() {
            return String::new();
        }
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// Whether a process with this id is a live backend or worker of the cluster.
pub fn is_alive(pid: i32) -> bool {
    // SAFETY: takes any number; only the result's nullness is used.
    pid != 0 && unsafe { !pg_sys::BackendPidGetProc(pid).is_null() }
}

/// Shows what the worker does in `pg_stat_activity`: `Some` as the running query, `None` as idle.
pub fn report_activity(query: Option<&CStr>) {
    // SAFETY: a valid C string or null, copied by the callee.
    unsafe {
        match query {
            Some(text) => pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr()),
            None => pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null()),
        }
    }
}

/// Sends this process's table statistics, so that autovacuum sees what it did.
pub fn flush_stats() {
    // SAFETY: called outside a transaction.
    unsafe {
        pg_sys::pgstat_report_stat(false);
    }
}

/// Whether SIGTERM has arrived and is not served yet.
pub fn termination_pending() -> bool {
    // SAFETY: plain flag of this process, written by its signal handler.
    unsafe { pg_sys::ShutdownRequestPending != 0 }
}

/// Sets a pending SIGTERM aside, so that a last transaction can be made. A further SIGTERM ends it.
pub fn defer_termination() {
    // SAFETY: plain flag of this process; a signal that arrives later sets it again.
    unsafe { pg_sys::ShutdownRequestPending = 0 }
}

/// Serves interrupts between transactions, where there is no statement that a cancellation could be meant for.
pub fn serve_interrupts() {
    // SAFETY: plain flag of this process, written by its signal handler.
    unsafe { pg_sys::QueryCancelPending = 0 }
    pgrx::check_for_interrupts!();
}

/// Ends the process. 0 is never restarted, 1 is.
pub fn exit(code: i32) -> ! {
    // SAFETY: called from the main function outside a transaction.
    unsafe { pg_sys::proc_exit(code) };
    // The bindings do not know it of this version's.
    #[cfg(feature = "pg18")]
    unreachable!("proc_exit does not return")
}

/// Runs `body` with all signals blocked, so that the threads it makes never take one.
pub fn with_signals_blocked<R>(body: impl FnOnce() -> R) -> nix::Result<R> {
    use nix::sys::signal::{SigSet, SigmaskHow};
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let result = body();
    before.thread_set_mask()?;
    Ok(result)
}

/// Id of this process.
pub fn my_pid() -> i32 {
    // SAFETY: reads a variable set at process start.
    unsafe { pg_sys::MyProcPid }
}

/// Whether `shared_preload_libraries` is being processed.
pub fn preloading() -> bool {
    // SAFETY: reads a variable of the postmaster's start.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether the server runs for `pg_upgrade` alone.
pub fn upgrading() -> bool {
    // SAFETY: reads a variable of the postmaster's start.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Raises an ERROR with a hint.
pub fn refuse(code: PgSqlErrorCode, message: String, hint: &str) -> ! {
    pg_sys::panic::ErrorReport::new(code, message, "")
        .set_hint(hint)
        .report(pgrx::PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// Ends the process with a FATAL message; it is started again.
pub fn fatal(code: PgSqlErrorCode, message: String, hint: Option<String>) -> ! {
    let mut report = pg_sys::panic::ErrorReport::new(code, message, "");
    if let Some(hint) = hint {
        report = report.set_hint(hint);
    }
    report.report(pgrx::PgLogLevel::FATAL);
    unreachable!("FATAL does not return")
}
