//! Raw PostgreSQL calls: this module is the one home of `unsafe`.
//!
//! Everything here is called on the process's main thread; pgrx panics otherwise.

pub mod bulk;
mod catalog;
pub mod condition;
pub mod cursor;
pub mod enqueue;
pub mod fields;
pub mod finish;
mod functions;
mod ranges;
pub mod row;
pub mod rows;
pub mod settings;
pub mod trigger;
pub mod types;
pub mod values;

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;

pub use catalog::{
    Extension, at_definition_change, database_oid, extension, has_pages, hold_table, latest, relation_name, table_oid,
};

unsafe extern "C-unwind" {
    // Declared here because pgrx's own wrappers are no C functions, which a signal handler has to be.
    fn die(signal: i32);
    fn SignalHandlerForConfigReload(signal: i32);
    fn SignalHandlerForShutdownRequest(signal: i32);
}

/// An ERROR raised inside a transaction that has been rolled back since.
#[derive(Debug)]
pub struct SqlError {
    /// SQLSTATE.
    pub code: PgSqlErrorCode,
    /// Message text.
    pub message: String,
}

/// How a transaction of this process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is about to commit; `synchronous` if the commit will be on disk before anybody sees it.
    Committing {
        /// `synchronous_commit` is not off.
        synchronous: bool,
    },
    /// It is about to be prepared for a commit in two phases.
    Preparing,
    /// It has committed, and others see it.
    Committed,
    /// It has aborted or was prepared for a commit in two phases.
    AbortedOrPrepared,
}

/// Calls `callback` at each end of a transaction of this process from now on. It must not raise an ERROR.
pub fn at_transaction_end(callback: fn(End)) {
    // SAFETY: registered for the life of the process; the argument comes back as it was given.
    unsafe { pg_sys::RegisterXactCallback(Some(transaction_ends), callback as *mut std::ffi::c_void) }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn transaction_ends(event: pg_sys::XactEvent::Type, callback: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::*;
    // SAFETY: reads a setting of this process.
    let synchronous = unsafe { pg_sys::synchronous_commit } > 0;
    let end = match event {
        XACT_EVENT_PRE_COMMIT => End::Committing { synchronous },
        XACT_EVENT_PRE_PREPARE => End::Preparing,
        XACT_EVENT_COMMIT => End::Committed,
        XACT_EVENT_ABORT | XACT_EVENT_PREPARE => End::AbortedOrPrepared,
        _ => return,
    };
    // SAFETY: the function that `at_transaction_end` was given.
    let callback = unsafe { std::mem::transmute::<*mut std::ffi::c_void, fn(End)>(callback) };
    callback(end);
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

/// Connects the worker to `database` as `role` (`None`: the bootstrap superuser); without a database only the shared
/// catalogs can be read. Raises FATAL if that cannot be done.
pub fn connect(database: Option<&str>, role: Option<&str>) {
    pgrx::bgworkers::BackgroundWorker::connect_worker_to_spi(database, role);
}

/// Runs `body` in a transaction of its own. An ERROR rolls it back and is returned; a Rust panic goes on.
pub fn transaction<R>(body: impl FnOnce() -> R) -> Result<R, SqlError> {
    // SAFETY: the worker is connected and in no transaction; what is begun here is ended on every path below.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let result = pgrx::PgTryBuilder::new(AssertUnwindSafe(|| Ok(body())))
        .catch_others(|cause| match cause {
            CaughtError::PostgresError(e) | CaughtError::ErrorReport(e) => Err(SqlError {
                code: e.sql_error_code(),
                message: e.message().to_string(),
            }),
            panic => panic.rethrow(),
        })
        .execute();
    // SAFETY: still inside the transaction begun above; after an ERROR it is in the state AbortCurrentTransaction
    // expects (pgrx has copied and flushed the error).
    unsafe {
        match &result {
            Ok(_) => {
                pg_sys::PopActiveSnapshot();
                pg_sys::CommitTransactionCommand();
            }
            Err(_) => pg_sys::AbortCurrentTransaction(),
        }
    }
    result
}

/// Waits for the latch, for `fd` to become readable, or for the time to pass, then resets the latch; true if the latch
/// was set. The caller serves interrupts. The postmaster's death ends the process.
pub fn wait(fd: Option<RawFd>, timeout: Duration) -> bool {
    let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX).min(3_600_000);
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    if fd.is_some() {
        events |= pg_sys::WL_SOCKET_READABLE;
    }
    // SAFETY: MyLatch is this process's own latch for all of its life; fd, if any, is open.
    unsafe {
        let happened = pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            fd.unwrap_or(-1),
            millis,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        happened as u32 & pg_sys::WL_LATCH_SET != 0
    }
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

/// Whether a process with this id is a live backend or worker of the cluster.
pub fn is_alive(pid: i32) -> bool {
    // SAFETY: takes any number; only the result's nullness is used.
    pid != 0 && unsafe { !pg_sys::BackendPidGetProc(pid).is_null() }
}

/// Full id of the next transaction to begin.
pub fn next_xid() -> u64 {
    // SAFETY: reads a counter in shared memory.
    unsafe { pg_sys::ReadNextFullTransactionId() }.value
}

/// Full id of the running transaction, if it has one.
pub fn own_xid() -> Option<u64> {
    // SAFETY: reads the state of this process's transaction.
    let xid = unsafe { pg_sys::GetTopFullTransactionIdIfAny() }.value;
    (xid != 0).then_some(xid)
}

/// Full id of the running transaction, which gets one if it has none.
pub fn assigned_xid() -> u64 {
    // SAFETY: called in a transaction; raises an ERROR on a standby.
    unsafe { pg_sys::GetTopFullTransactionId() }.value
}

/// The running subtransaction; 1 is the transaction itself.
pub fn subtransaction() -> pg_sys::SubTransactionId {
    // SAFETY: reads the state of this process's transaction.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

/// When the running transaction began, microseconds since 2000.
pub fn transaction_start() -> i64 {
    // SAFETY: reads the state of this process's transaction.
    unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}

/// The time, microseconds since 2000.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Where the next record of the write-ahead log begins.
pub fn wal_insert_position() -> u64 {
    // SAFETY: reads a counter in shared memory.
    unsafe { pg_sys::GetXLogInsertRecPtr() }
}

/// Makes sure that the commits of these transactions (full ids) are on disk. Costs nothing for transactions that
/// committed synchronously. To be called in a transaction.
///
/// Source of the method: hint bits are held back in the same way (`SetHintBits` in heapam_visibility.c).
pub fn flush_commits(xids: impl Iterator<Item = u64>) {
    // SAFETY: reads counters in shared memory. The lock of the second is not needed: what is cut off the commit log in
    // between raises an ERROR, after which the worker starts again.
    let (next, oldest) = unsafe {
        #[cfg(not(any(feature = "pg17", feature = "pg18")))]
        let variables = pg_sys::ShmemVariableCache;
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        let variables = pg_sys::TransamVariables;
        (pg_sys::ReadNextFullTransactionId().value, (*variables).oldestClogXid)
    };
    let oldest = full_xid(oldest, next);
    let mut flush_to = 0;
    for xid in xids {
        // Ids outside this range are old, or come from a restored dump, and the commit log does not know them.
        let lsn = if (oldest..next).contains(&xid) {
            // SAFETY: the commit log has this id, see above.
            unsafe { pg_sys::TransactionIdGetCommitLSN(short_xid(xid)) }
        } else {
            wal_insert_position()
        };
        flush_to = flush_to.max(lsn);
    }
    if flush_to != 0 {
        // SAFETY: flush_to is a position already inserted.
        unsafe { pg_sys::XLogFlush(flush_to) }
    }
}

/// The full form of an id that is not after `next`.
fn full_xid(xid: pg_sys::TransactionId, next: u64) -> u64 {
    let xid = u64::from(xid.into_inner());
    let full = next & !0xFFFF_FFFF | xid;
    if full > next { full - (1 << 32) } else { full }
}

fn short_xid(xid: u64) -> pg_sys::TransactionId {
    pg_sys::TransactionId::from((xid & 0xFFFF_FFFF) as u32)
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
pub fn fatal(code: PgSqlErrorCode, message: String) -> ! {
    pg_sys::panic::ErrorReport::new(code, message, "").report(pgrx::PgLogLevel::FATAL);
    unreachable!("FATAL does not return")
}
