//! A lock for the one worker of a database.

use pgrx::pg_sys;

/// Any number, the same in every version of this library.
const KEY: u32 = 1_785_164_659;
/// Advisory locks of SQL have 1 or 2 here: no statement can take or release this lock.
const KIND: u16 = 3;

/// Tries to become the one worker of this database; held until the session ends, also past an ERROR.
pub fn try_lock() -> bool {
    // SAFETY: reads a variable set when the process connected; the lock is the session's, and nobody is waited for.
    unsafe {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: pg_sys::MyDatabaseId.to_u32(),
            locktag_field2: KEY,
            locktag_field3: 0,
            locktag_field4: KIND,
            locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        };
        let taken = pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, true, true);
        taken != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }
}
