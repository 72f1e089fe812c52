//! Text of any length that one process shows to all others.

use std::ptr;

use pgrx::pg_sys;

/// Bytes in front of the text: its length.
const HEAD: usize = size_of::<usize>();
/// Room for a text that may grow.
const LEAST: usize = 16 * 1024;

/// A text in shared memory of its own, which goes with the process or with [`Shown::end`]. Everybody reads and writes it under one
/// lock of the caller's.
pub struct Shown {
    segment: *mut pg_sys::dsm_segment,
}

impl Shown {
    /// Room for a text of this many bytes; none if PostgreSQL has no segment left. An ERROR if there is no memory.
    pub fn with_room(bytes: usize) -> Option<Shown> {
        let size = (HEAD + bytes).max(LEAST).next_power_of_two();
        // SAFETY: a new segment, which is this process's until it is detached, in and outside transactions; its first bytes
        // are set before anybody knows its handle.
        unsafe {
            let segment = pg_sys::dsm_create(size, pg_sys::DSM_CREATE_NULL_IF_MAXSEGMENTS as i32);
            if segment.is_null() {
                return None;
            }
            pg_sys::dsm_pin_mapping(segment);
            pg_sys::dsm_segment_address(segment).cast::<usize>().write(0);
            Some(Shown { segment })
        }
    }

    /// What [`read`] finds it by.
    pub fn handle(&self) -> u32 {
        // SAFETY: attached until `end`.
        unsafe { pg_sys::dsm_segment_handle(self.segment) }
    }

    /// Replaces the text; false, and nothing replaced, if there is no room for it.
    pub fn write(&mut self, text: &[u8]) -> bool {
        // SAFETY: attached until `end`; no more is written than there is room for.
        unsafe {
            if HEAD + text.len() > pg_sys::dsm_segment_map_length(self.segment) {
                return false;
            }
            let start = pg_sys::dsm_segment_address(self.segment).cast::<u8>();
            ptr::copy_nonoverlapping(text.as_ptr(), start.add(HEAD), text.len());
            start.cast::<usize>().write(text.len());
        }
        true
    }

    /// Takes it back. There is no `drop`, which would also come when the process ends: PostgreSQL has detached it by then.
    pub fn end(self) {
        // SAFETY: attached by `with_room`, and not used any more.
        unsafe { pg_sys::dsm_detach(self.segment) }
    }
}

/// A copy of a text; none if the process that showed it is gone.
pub fn read(handle: u32) -> Option<Vec<u8>> {
    // SAFETY: what is attached here is detached here; a segment of this handle was made by `Shown`, and its length is looked
    // at before it is read.
    unsafe {
        let own = pg_sys::dsm_find_mapping(handle);
        let segment = if own.is_null() { pg_sys::dsm_attach(handle) } else { own };
        if segment.is_null() {
            return None;
        }
        let start = pg_sys::dsm_segment_address(segment).cast::<u8>();
        let length = start.cast::<usize>().read();
        let fits = length <= pg_sys::dsm_segment_map_length(segment) - HEAD;
        let text = fits.then(|| std::slice::from_raw_parts(start.add(HEAD), length).to_vec());
        if own.is_null() {
            pg_sys::dsm_detach(segment);
        }
        text
    }
}
