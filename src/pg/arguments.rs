//! Arguments of an SQL function as they come, without reading what need not be read.

use pgrx::{FromDatum, JsonB, pg_sys};

use super::values::text;

/// The arguments of a call, counted from 0.
pub struct Arguments(pg_sys::FunctionCallInfo);

/// An `interval`, each part by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Whole months.
    pub months: i32,
    /// Whole days.
    pub days: i32,
    /// The rest, microseconds.
    pub micros: i64,
}

impl Arguments {
    /// Those of the call at hand.
    ///
    /// # Safety
    ///
    /// `call` is what PostgreSQL has called the function with, and the function asks for each argument by its own type.
    pub unsafe fn new(call: pg_sys::FunctionCallInfo) -> Arguments {
        Arguments(call)
    }

    fn datum(&self, number: usize) -> Option<pg_sys::Datum> {
        // SAFETY: the call is valid, see `new`.
        unsafe { pgrx::fcinfo::pg_getarg_datum(self.0, number) }
    }

    /// Whether an argument is null.
    pub fn is_null(&self, number: usize) -> bool {
        self.datum(number).is_none()
    }

    /// An argument of type `text`.
    pub fn text(&self, number: usize) -> Option<String> {
        self.datum(number).map(text)
    }

    /// An argument of type `jsonb`.
    pub fn json(&self, number: usize) -> Option<serde_json::Value> {
        let datum = self.datum(number)?;
        // SAFETY: a jsonb datum, see `new`.
        unsafe { JsonB::from_datum(datum, false) }.map(|json| json.0)
    }

    /// An argument of a type that is passed by value.
    pub fn value(&self, number: usize) -> Option<i64> {
        self.datum(number).map(|datum| datum.value() as i64)
    }

    /// An argument of type `interval`.
    pub fn interval(&self, number: usize) -> Option<Interval> {
        let datum = self.datum(number)?;
        // SAFETY: an interval datum, see `new`, points to one.
        let interval = unsafe { datum.cast_mut_ptr::<pg_sys::Interval>().read_unaligned() };
        Some(Interval {
            months: interval.month,
            days: interval.day,
            micros: interval.time,
        })
    }

    /// Bytes that an argument of variable length takes where it stands, perhaps compressed; 0 if it is null.
    pub fn stored_bytes(&self, number: usize) -> usize {
        // SAFETY: a varlena datum, see `new`.
        self.datum(number)
            .map_or(0, |datum| unsafe { pg_sys::toast_datum_size(datum) })
    }

    /// Bytes of an argument of type `bytea`; 0 if it is null.
    pub fn full_bytes(&self, number: usize) -> usize {
        // SAFETY: a varlena datum, see `new`.
        let with_header = self
            .datum(number)
            .map(|datum| unsafe { pg_sys::toast_raw_datum_size(datum) });
        with_header.map_or(0, |bytes| bytes.saturating_sub(pg_sys::VARHDRSZ))
    }

    /// Bytes of an argument of type `jsonb` as text; 0 if it is null.
    pub fn json_text_bytes(&self, number: usize) -> usize {
        let Some(datum) = self.datum(number) else { return 0 };
        // SAFETY: a jsonb datum, see `new`; its output function returns a C string.
        unsafe {
            pgrx::direct_function_call::<&std::ffi::CStr>(pg_sys::jsonb_out, &[Some(datum)])
                .map_or(0, |text| text.to_bytes().len())
        }
    }
}
