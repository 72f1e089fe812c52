//! Which cluster writes this write-ahead log.

use pgrx::pg_sys;

/// A cluster, until a standby of it is promoted or it is restored to an earlier time: the pages of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cluster {
    /// The system identifier that `initdb` gave it.
    pub system: u64,
    /// Its timeline.
    pub timeline: u32,
}

impl Cluster {
    /// The one this process writes to; to be called once the server accepts writes.
    pub fn current() -> Cluster {
        // SAFETY: both read shared memory; there is a timeline to insert into outside of recovery.
        unsafe {
            Cluster {
                system: pg_sys::GetSystemIdentifier(),
                #[cfg(any(feature = "pg13", feature = "pg14"))]
                timeline: pg_sys::ThisTimeLineID,
                #[cfg(not(any(feature = "pg13", feature = "pg14")))]
                timeline: pg_sys::GetWALInsertionTimeLine(),
            }
        }
    }
}
