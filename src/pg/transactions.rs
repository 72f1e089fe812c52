//! Transactions: how they are made and end, their ids, which have ended, and whether their commits are on disk.

use std::ffi::CStr;
use std::panic::AssertUnwindSafe;

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;

use super::rights;
use crate::snapshot::Snapshot;

/// An ERROR raised inside a transaction that has been rolled back since.
#[derive(Debug)]
pub struct SqlError {
    /// SQLSTATE.
    pub code: PgSqlErrorCode,
    /// Message text.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl SqlError {
    /// Whether the transaction may well succeed when it is made again: another session's lock, change, or cancellation ended
    /// it.
    pub fn is_passing(&self) -> bool {
        [
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED,
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
        ]
        .contains(&self.code)
    }
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

/// Runs `body` in a transaction of its own, with the rights this process has taken. An ERROR, also one at the commit, rolls
/// it back and is returned; a Rust panic goes on.
pub fn transaction<R>(body: impl FnOnce() -> R) -> Result<R, SqlError> {
    // SAFETY: the worker is connected and in no transaction; what is begun here is ended on every path below.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        rights::enter();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let run = || {
        let value = body();
        // SAFETY: the snapshot pushed above; deferred triggers run before the commit, with the same rights.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        Ok(value)
    };
    let result = pgrx::PgTryBuilder::new(AssertUnwindSafe(run))
        .catch_others(|cause| match cause {
            CaughtError::PostgresError(e) | CaughtError::ErrorReport(e) => Err(SqlError {
                code: e.sql_error_code(),
                message: e.message().to_string(),
                hint: e.hint().map(str::to_string),
            }),
            panic => panic.rethrow(),
        })
        .execute();
    if result.is_err() {
        // SAFETY: inside the transaction begun above, in the state AbortCurrentTransaction expects after an ERROR (pgrx
        // has copied and flushed it).
        unsafe { pg_sys::AbortCurrentTransaction() }
    }
    rights::leave();
    result
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

/// Which transactions have ended by now, as `pg_current_snapshot()` shows it to a statement of a transaction that is read
/// committed.
pub fn snapshot() -> Snapshot {
    // SAFETY: called in such a transaction, as statements are: the snapshot is on top while the function runs, which takes
    // nothing and does not return null.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let snapshot = pgrx::direct_function_call_as_datum(pg_sys::pg_current_snapshot, &[]);
        pg_sys::PopActiveSnapshot();
        pgrx::direct_function_call::<&CStr>(pg_sys::pg_snapshot_out, &[snapshot])
            .map_or_else(Snapshot::default, |text| Snapshot::parse(&text.to_string_lossy()))
    }
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
