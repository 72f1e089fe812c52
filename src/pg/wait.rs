//! Waiting for this process's latch. The caller serves interrupts; the postmaster's death ends the process.

use std::os::fd::RawFd;
use std::ptr;
use std::time::Duration;

use pgrx::pg_sys;

/// Waits for the latch or for the time to pass, then resets the latch; true if it was set.
pub fn wait(timeout: Duration) -> bool {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: MyLatch is this process's own latch for all of its life.
    unsafe {
        let happened = pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            millis(timeout),
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        happened as u32 & pg_sys::WL_LATCH_SET != 0
    }
}

/// Waits for the latch and a file descriptor, without telling the kernel of both each time.
pub struct Waiter(*mut pg_sys::WaitEventSet);

impl Waiter {
    /// One for `fd`, which is to stay open for as long as the process waits with this.
    pub fn new(fd: RawFd) -> Waiter {
        let events = [
            (pg_sys::WL_LATCH_SET, -1),
            (pg_sys::WL_EXIT_ON_PM_DEATH, -1),
            (pg_sys::WL_SOCKET_READABLE, fd),
        ];
        // SAFETY: as in `WaitLatchOrSocket` (latch.c), but for the life of the process: MyLatch is its own latch, which
        // goes with the first event alone.
        unsafe {
            #[cfg(any(feature = "pg13", feature = "pg14", feature = "pg15", feature = "pg16"))]
            let owner = pg_sys::TopMemoryContext;
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            let owner = ptr::null_mut();
            let set = pg_sys::CreateWaitEventSet(owner, events.len() as i32);
            for (event, fd) in events {
                let latch = if event == pg_sys::WL_LATCH_SET {
                    pg_sys::MyLatch
                } else {
                    ptr::null_mut()
                };
                pg_sys::AddWaitEventToSet(set, event, fd, latch, ptr::null_mut());
            }
            Waiter(set)
        }
    }

    /// Waits for the latch, for the descriptor to become readable, or for the time to pass, then resets the latch; true if
    /// the latch was set.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut happened = [pg_sys::WaitEvent::default(); 2];
        // SAFETY: the set was made by `new` and is never freed; as many events are written as there is room for.
        unsafe {
            let count = pg_sys::WaitEventSetWait(
                self.0,
                millis(timeout),
                happened.as_mut_ptr(),
                happened.len() as i32,
                pg_sys::PG_WAIT_EXTENSION,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
            let count = usize::try_from(count).unwrap_or(0);
            happened[..count]
                .iter()
                .any(|event| event.events & pg_sys::WL_LATCH_SET != 0)
        }
    }
}

/// As PostgreSQL counts time; it takes no longer than an int.
fn millis(timeout: Duration) -> std::ffi::c_long {
    std::ffi::c_long::try_from(timeout.as_millis())
        .unwrap_or(std::ffi::c_long::MAX)
        .min(3_600_000)
}
