//! The rows of a cursor, read where they stand: a copy of each costs as much as finding it.

use std::marker::PhantomData;
use std::ops::ControlFlow;

use pgrx::pg_sys;
use pgrx::prelude::pg_guard;
use pgrx::spi::SpiCursor;

use super::bulk::Place;
use super::values;

/// A cursor, closed when this is dropped.
pub struct Cursor<'a> {
    portal: pg_sys::Portal,
    connection: PhantomData<SpiCursor<'a>>,
}

/// One row: its columns in the order of the statement, counted from 0.
pub struct Row<'a, const N: usize> {
    values: &'a [pg_sys::Datum; N],
    nulls: &'a [bool; N],
}

/// What PostgreSQL hands the rows to.
#[repr(C)]
struct Receiver<'a> {
    /// First, so that a pointer to it is one to the whole.
    head: pg_sys::DestReceiver,
    each: &'a mut dyn FnMut(&pg_sys::TupleTableSlot) -> bool,
}

impl<'a> Cursor<'a> {
    /// Of an open cursor.
    pub fn of(cursor: SpiCursor<'a>) -> Cursor<'a> {
        let name = std::ffi::CString::new(cursor.detach_into_name()).unwrap_or_default();
        Cursor {
            // SAFETY: looks a name up; the cursor has one without a zero byte, and is open until it is closed.
            portal: unsafe { pg_sys::GetPortalByName(name.as_ptr()) },
            connection: PhantomData,
        }
    }

    /// Fetches up to `count` rows of `N` columns and calls `each` with each, which must not use the connection. `Break`
    /// ends the cursor after the row. Panics if the statement does not return `N` columns.
    pub fn fetch<const N: usize>(&mut self, count: usize, mut each: impl FnMut(Row<'_, N>) -> ControlFlow<()>) {
        let mut each = |slot: &pg_sys::TupleTableSlot| {
            // SAFETY: all columns have been taken apart; the arrays have as many elements as there are columns, and
            // what they point to is left alone until `each` returns.
            let row = unsafe {
                assert_eq!((*slot.tts_tupleDescriptor).natts as usize, N, "columns");
                Row {
                    values: &*slot.tts_values.cast(),
                    nulls: &*slot.tts_isnull.cast(),
                }
            };
            each(row).is_continue()
        };
        let mut receiver = Receiver {
            head: pg_sys::DestReceiver {
                receiveSlot: Some(receive),
                rStartup: Some(start),
                rShutdown: Some(end),
                rDestroy: Some(end),
                mydest: pg_sys::CommandDest::DestSPI,
            },
            each: &mut each,
        };
        // SAFETY: as `_SPI_cursor_operation` (spi.c) calls it, in the SPI connection that the cursor was opened in, with
        // another receiver, which outlives the call.
        unsafe {
            pg_sys::PortalRunFetch(
                self.portal,
                pg_sys::FetchDirection::FETCH_FORWARD,
                count as _,
                std::ptr::from_mut(&mut receiver).cast(),
            );
        }
    }
}

impl Drop for Cursor<'_> {
    fn drop(&mut self) {
        // While an ERROR unwinds, the cursor goes with its transaction.
        if !std::thread::panicking() {
            // SAFETY: open since `of`, and not used any more.
            unsafe { pg_sys::SPI_cursor_close(self.portal) }
        }
    }
}

/// # Safety
///
/// Called by PostgreSQL with a slot that holds a row and a [`Receiver`].
#[pg_guard]
unsafe extern "C-unwind" fn receive(slot: *mut pg_sys::TupleTableSlot, receiver: *mut pg_sys::DestReceiver) -> bool {
    // SAFETY: see above; the receiver is the one that `fetch` holds, and nobody else uses it meanwhile.
    unsafe {
        let columns = (*(*slot).tts_tupleDescriptor).natts;
        if i32::from((*slot).tts_nvalid) < columns {
            pg_sys::slot_getsomeattrs_int(slot, columns);
        }
        let receiver = &mut *receiver.cast::<Receiver<'_>>();
        (receiver.each)(&*slot)
    }
}

/// # Safety
///
/// Called by PostgreSQL.
#[pg_guard]
unsafe extern "C-unwind" fn start(_receiver: *mut pg_sys::DestReceiver, _operation: i32, _shape: pg_sys::TupleDesc) {}

/// # Safety
///
/// Called by PostgreSQL.
#[pg_guard]
unsafe extern "C-unwind" fn end(_receiver: *mut pg_sys::DestReceiver) {}

impl<const N: usize> Row<'_, N> {
    /// A column of a type that is passed by value; `None` if null.
    pub fn value(&self, column: usize) -> Option<i64> {
        (!self.nulls[column]).then(|| self.values[column].value() as i64)
    }

    /// A column of type `tid`, which is not null.
    pub fn place(&self, column: usize) -> Place {
        // SAFETY: a non-null datum of type tid points to an item pointer, in the row at hand.
        Place::of(unsafe {
            self.values[column]
                .cast_mut_ptr::<pg_sys::ItemPointerData>()
                .read_unaligned()
        })
    }

    /// A column of type `text` or `bytea`; `None` if null.
    pub fn bytes(&self, column: usize) -> Option<Vec<u8>> {
        (!self.nulls[column]).then(|| values::bytes(self.values[column]))
    }

    /// A column of type `text`; `None` if null.
    pub fn text(&self, column: usize) -> Option<String> {
        (!self.nulls[column]).then(|| values::text(self.values[column]))
    }
}
