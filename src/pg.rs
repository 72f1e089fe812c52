//! Raw PostgreSQL calls: this module is the one home of `unsafe`.
//!
//! Everything here is called on the process's main thread; pgrx panics otherwise.

pub mod arguments;
pub mod bulk;
pub mod values;

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;

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

/// Object id of the current database.
pub fn my_database() -> u32 {
    // SAFETY: reads a variable set when the process connected.
    unsafe { pg_sys::MyDatabaseId.to_u32() }
}

/// Object id of a database by name; to be called in a transaction, also by a worker without a database.
///
/// Scans the catalog as autovacuum's launcher does (`get_database_list`): its indexes cannot be opened without a
/// database before some backend has written the cache of shared relations.
pub fn database_oid(name: &str) -> Option<u32> {
    let mut found = None;
    // SAFETY: a shared catalog, opened and closed here; the tuple is read before the scan goes on.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let row = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            if CStr::from_ptr((*row).datname.data.as_ptr()).to_bytes() == name.as_bytes() {
                found = Some((*row).oid.to_u32());
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}

/// This extension as a database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Its object id.
    pub oid: u32,
    /// The version of its SQL.
    pub version: String,
}

/// The extension in the current database, if it is there; to be called in a transaction. Looks at the catalog itself,
/// as `get_extension_oid` does, since each cycle asks.
pub fn extension() -> Option<Extension> {
    // SAFETY: a catalog, opened and closed here and searched by its index of names; the tuple is read before the scan
    // ends. The name outlives the key, and no extension is without a version.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as i32);
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &mut key,
            pg_sys::Anum_pg_extension_extname as i16,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::F_NAMEEQ.into(),
            pg_sys::Datum::from(c"pg_jetstream".as_ptr()),
        );
        let index = pg_sys::Oid::from(pg_sys::ExtensionNameIndexId);
        let scan = pg_sys::systable_beginscan(relation, index, true, std::ptr::null_mut(), 1, &mut key);
        let tuple = pg_sys::systable_getnext(scan);
        let found = (!tuple.is_null()).then(|| {
            let column = pg_sys::Anum_pg_extension_extversion as i32;
            let mut null = false;
            let version = pg_sys::heap_getattr(tuple, column, (*relation).rd_att, &mut null);
            Extension {
                oid: (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_extension>())
                    .oid
                    .to_u32(),
                version: String::from_utf8_lossy(&values::bytes(version)).into_owned(),
            }
        });
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        found
    }
}

/// Object id of a table of this extension; to be called in a transaction.
pub fn table_oid(name: &CStr) -> Option<u32> {
    // SAFETY: looks up names; missing ones give InvalidOid.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(c"jetstream".as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    (oid != pg_sys::InvalidOid).then(|| oid.to_u32())
}

/// Whether a table of this extension has ever held a row since it was last emptied; to be called in a transaction.
pub fn has_pages(name: &CStr) -> bool {
    let Some(oid) = table_oid(name) else { return false };
    // SAFETY: opens a relation if it exists, asks for its length, and closes it.
    unsafe {
        let relation = pg_sys::try_relation_open(pg_sys::Oid::from(oid), pg_sys::AccessShareLock as i32);
        if relation.is_null() {
            return false;
        }
        let pages = pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
        pg_sys::relation_close(relation, pg_sys::AccessShareLock as i32);
        pages > 0
    }
}

/// Locks a table against being dropped or altered until the transaction ends; false if it is gone.
pub fn hold_table(oid: u32) -> bool {
    // SAFETY: opens a relation if it exists and closes it; the lock stays.
    unsafe {
        let relation = pg_sys::try_relation_open(pg_sys::Oid::from(oid), pg_sys::RowExclusiveLock as i32);
        if relation.is_null() {
            return false;
        }
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
    }
    true
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
            // SAFETY: reads the current insert position.
            unsafe { pg_sys::GetXLogInsertRecPtr() }
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

/// The arguments of `check_message`, which asks for each by its own type.
pub fn message_arguments(call: pg_sys::FunctionCallInfo) -> arguments::Arguments {
    // SAFETY: called by that function alone, with the call PostgreSQL gave it.
    unsafe { arguments::Arguments::new(call) }
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

/// Ends the process with a FATAL message; it is started again.
pub fn fatal(code: PgSqlErrorCode, message: String) -> ! {
    pg_sys::panic::ErrorReport::new(code, message, "").report(pgrx::PgLogLevel::FATAL);
    unreachable!("FATAL does not return")
}
