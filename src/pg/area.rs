//! Arrays in shared memory, of as many elements as a setting says.

use std::cell::Cell;
use std::ffi::CStr;
use std::ptr::null_mut;

use pgrx::pg_sys;
use pgrx::shmem::PgSharedMemoryInitialization;

/// What shared memory may hold: plain data without pointers, of which all bytes zero are a value.
///
/// # Safety
///
/// The above.
pub unsafe trait Shared {}

/// Of atomics alone, so that no lock is needed.
///
/// # Safety
///
/// The above.
pub unsafe trait Atomic: Shared + Sync {}

/// An array in shared memory, all zero at first.
pub struct Area<T> {
    name: &'static CStr,
    count: Cell<usize>,
    start: Cell<*mut T>,
    lock: Cell<*mut pg_sys::LWLock>,
}

// SAFETY: its cells are written while the server starts, when there is one thread, and are read on the main thread.
unsafe impl<T: Shared> Sync for Area<T> {}

impl<T: Shared> Area<T> {
    /// One of this name, which is this extension's own.
    pub const fn new(name: &'static CStr) -> Area<T> {
        Area {
            name,
            count: Cell::new(0),
            start: Cell::new(null_mut()),
            lock: Cell::new(null_mut()),
        }
    }

    /// How many elements it will have; to be called before `pg_shmem_init!`.
    pub fn size(&self, count: usize) {
        self.count.set(count);
    }

    /// All elements; only of atomics, or with the lock held.
    fn all(&self) -> *mut [T] {
        debug_assert!(!self.start.get().is_null());
        std::ptr::slice_from_raw_parts_mut(self.start.get(), self.count.get())
    }

    /// The elements.
    pub fn unlocked(&self) -> &'static [T]
    where
        T: Atomic,
    {
        // SAFETY: set at the start of the server, for its life.
        unsafe { &*self.all() }
    }

    /// The elements, under a lock that others may share; `body` must not raise an ERROR.
    pub fn read<R>(&self, body: impl FnOnce(&[T]) -> R) -> R {
        let _lock = Lock::take(self.lock.get(), pg_sys::LWLockMode::LW_SHARED);
        // SAFETY: set at the start of the server, and nobody writes meanwhile.
        body(unsafe { &*self.all() })
    }

    /// The elements, under a lock of its own; `body` must not raise an ERROR.
    pub fn write<R>(&self, body: impl FnOnce(&mut [T]) -> R) -> R {
        let _lock = Lock::take(self.lock.get(), pg_sys::LWLockMode::LW_EXCLUSIVE);
        // SAFETY: as above, and nobody reads either.
        body(unsafe { &mut *self.all() })
    }
}

/// Holds a lock until it is dropped.
struct Lock(*mut pg_sys::LWLock);

impl Lock {
    fn take(lock: *mut pg_sys::LWLock, mode: pg_sys::LWLockMode::Type) -> Lock {
        // SAFETY: a lock that was asked for at the start of the server.
        unsafe { pg_sys::LWLockAcquire(lock, mode) };
        Lock(lock)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // An ERROR releases all locks by itself, and has done so when the hold-off count is zero.
        // SAFETY: taken by `take`.
        unsafe {
            if pg_sys::InterruptHoldoffCount > 0 {
                pg_sys::LWLockRelease(self.0);
            }
        }
    }
}

impl<T: Shared> PgSharedMemoryInitialization for Area<T> {
    type Value = ();

    unsafe fn on_shmem_request(&'static self) {
        // SAFETY: called by `pg_shmem_init!` when it is time.
        unsafe {
            pg_sys::RequestAddinShmemSpace(size_of::<T>() * self.count.get());
            pg_sys::RequestNamedLWLockTranche(self.name.as_ptr(), 1);
        }
    }

    unsafe fn on_shmem_startup(&'static self, (): ()) {
        let mut found = false;
        // SAFETY: called by `pg_shmem_init!` when it is time, in the postmaster alone. The memory is aligned for any type.
        unsafe {
            let start = pg_sys::ShmemInitStruct(self.name.as_ptr(), size_of::<T>() * self.count.get(), &mut found);
            if !found {
                start.cast::<T>().write_bytes(0, self.count.get());
            }
            self.start.set(start.cast());
            self.lock
                .set(&raw mut (*pg_sys::GetNamedLWLockTranche(self.name.as_ptr())).lock);
        }
    }
}
