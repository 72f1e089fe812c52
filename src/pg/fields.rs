//! Single values of rows: what they are made of, and PostgreSQL's text of them. What is made for a value is handed to a
//! closure and not kept: it goes with [`super::rows::Memory`].

use std::ffi::{CStr, c_char};
use std::marker::PhantomData;

use pgrx::PgTupleDesc;
use pgrx::pg_sys::{self, Datum, Oid};

use super::types::Layout;

/// A value that is not null. Each of its methods is for values of the type that it names.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    datum: Datum,
    row: PhantomData<&'a ()>,
}

impl Field<'_> {
    /// The value that `datum` is.
    ///
    /// # Safety
    ///
    /// It is not null, and what it points to, if its type is passed by reference, lives as long as `'a`.
    pub(super) unsafe fn new<'a>(datum: Datum) -> Field<'a> {
        Field {
            datum,
            row: PhantomData,
        }
    }

    pub(super) fn datum(self) -> Datum {
        self.datum
    }

    /// A `boolean`.
    pub fn boolean(self) -> bool {
        self.datum.value() & 0xff != 0
    }

    /// A `smallint`.
    pub fn int2(self) -> i16 {
        self.datum.value() as i16
    }

    /// An `integer`.
    pub fn int4(self) -> i32 {
        self.datum.value() as i32
    }

    /// A `bigint`.
    pub fn int8(self) -> i64 {
        self.datum.value() as i64
    }

    /// The bytes of a `bytea`, or those of a `text`, `varchar`, `char` or `json` in the encoding of the database.
    pub fn with_bytes<R>(self, with: impl FnOnce(&[u8]) -> R) -> R {
        // SAFETY: a datum of variable length, not null; what is detoasted lives in the current memory context.
        unsafe {
            let varlena = pg_sys::pg_detoast_datum_packed(self.datum.cast_mut_ptr());
            with(pgrx::varlena_to_byte_slice(varlena))
        }
    }

    /// A `date`, `timestamp` or `timestamptz` (`oid`) as ISO 8601, in UTC.
    pub fn with_iso_time<R>(self, oid: Oid, with: impl FnOnce(&[u8]) -> R) -> R {
        let mut buffer = [0 as c_char; 129];
        let utc = 0;
        // SAFETY: the buffer has the size MAXDATELEN + 1 that is asked for; it is filled with a C string.
        unsafe {
            pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), self.datum, oid, &utc);
            with(CStr::from_ptr(buffer.as_ptr()).to_bytes())
        }
    }

    /// The text of a `timestamptz` in UTC; `datestyle` is ISO.
    pub fn with_instant<R>(self, with: impl FnOnce(&[u8]) -> R) -> R {
        // SAFETY: both types count the same microseconds; this one's text has no time zone. The result is a C string.
        let text = unsafe {
            pgrx::direct_function_call::<&CStr>(pg_sys::timestamp_out, &[Some(self.datum)]).unwrap_or_default()
        };
        let text = text.to_bytes();
        let (time, era) = match text.strip_suffix(b" BC") {
            Some(time) => (time, &b" BC"[..]),
            None => (text, &b""[..]),
        };
        let zone: &[u8] = if time.ends_with(b"infinity") { b"" } else { b"+00" };
        with(&[time, zone, era].concat())
    }

    /// An array.
    pub fn with_array<R>(self, with: impl FnOnce(Array<'_>) -> R) -> R {
        // SAFETY: an array, not null; what is detoasted lives in the current memory context.
        let array = unsafe { pg_sys::pg_detoast_datum(self.datum.cast_mut_ptr()) };
        with(Array {
            array: array.cast(),
            value: PhantomData,
        })
    }

    /// A composite: `with` gets name (in UTF-8), type and value of each column. Its type may be another for each value,
    /// so it is looked up each time.
    pub fn each_column(self, mut with: impl FnMut(&[u8], Oid, Option<Field<'_>>)) {
        // SAFETY: a composite, not null, detoasted; its header names its type; the vectors have room for all columns.
        unsafe {
            let header = pg_sys::pg_detoast_datum(self.datum.cast_mut_ptr()).cast::<pg_sys::HeapTupleHeaderData>();
            let fields = (*header).t_choice.t_datum;
            let descriptor = pg_sys::lookup_rowtype_tupdesc_copy(fields.datum_typeid, fields.datum_typmod);
            let attributes = PgTupleDesc::from_pg_unchecked(descriptor);
            let mut tuple = pg_sys::HeapTupleData {
                t_len: pgrx::varsize_any(header.cast()) as u32,
                t_data: header,
                ..Default::default()
            };
            let count = (*descriptor).natts as usize;
            let mut values = vec![Datum::null(); count];
            let mut nulls = vec![true; count];
            pg_sys::heap_deform_tuple(&mut tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            for n in 0..count {
                let Some(attribute) = attributes.get(n).filter(|attribute| !attribute.attisdropped) else {
                    continue;
                };
                let value = (!nulls[n]).then(|| Field::new(values[n]));
                let name = CStr::from_ptr(attribute.attname.data.as_ptr());
                with_utf8(name.to_bytes(), |name| with(name, attribute.atttypid, value));
            }
        }
    }
}

/// An array, detoasted.
pub struct Array<'a> {
    array: *mut pg_sys::ArrayType,
    value: PhantomData<&'a ()>,
}

/// What an array consists of, one dimension after the other.
pub struct Elements<'a> {
    values: &'a [Datum],
    nulls: &'a [bool],
}

impl<'a> Array<'a> {
    /// One of the two lists of numbers behind the header: 0 the lengths, 1 the lower bounds.
    fn numbers(&self, list: usize) -> &[i32] {
        // SAFETY: `ndim` lengths and as many lower bounds stand behind the header (array.h).
        unsafe {
            let dimensions = (*self.array).ndim as usize;
            std::slice::from_raw_parts(self.array.add(1).cast::<i32>().add(list * dimensions), dimensions)
        }
    }

    /// How many elements each dimension has; none of an empty array.
    pub fn lengths(&self) -> &[i32] {
        self.numbers(0)
    }

    /// Whether it is counted from 1 in each dimension.
    pub fn begins_at_one(&self) -> bool {
        self.numbers(1).iter().all(|&bound| bound == 1)
    }

    /// Its elements, whose type is `layout`'s.
    pub fn elements(&self, layout: &Layout) -> Elements<'a> {
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: the array is of this type; as many values and flags are made as `count` says.
        unsafe {
            pg_sys::deconstruct_array(
                self.array,
                layout.oid,
                layout.length.into(),
                layout.by_value,
                layout.align,
                &mut values,
                &mut nulls,
                &mut count,
            );
            match usize::try_from(count) {
                Ok(count) if count > 0 => Elements {
                    values: std::slice::from_raw_parts(values, count),
                    nulls: std::slice::from_raw_parts(nulls, count),
                },
                _ => Elements {
                    values: &[],
                    nulls: &[],
                },
            }
        }
    }
}

impl<'a> Elements<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// One of them; none if null. Panics if there is no such element.
    pub fn get(&self, number: usize) -> Option<Field<'a>> {
        // SAFETY: it is not null, and lives as long as the array.
        (!self.nulls[number]).then(|| unsafe { Field::new(self.values[number]) })
    }
}

/// Text in the encoding of the database as UTF-8.
pub fn with_utf8<R>(text: &[u8], with: impl FnOnce(&[u8]) -> R) -> R {
    const SQL_ASCII: i32 = 0;
    const UTF8: i32 = 6;
    // SAFETY: a C string of the length given; the result is a new one in the current memory context, or the same if
    // there is nothing to convert.
    unsafe {
        if matches!(pg_sys::GetDatabaseEncoding(), SQL_ASCII | UTF8) {
            return with(text);
        }
        let mut terminated = text.to_vec();
        terminated.push(0);
        let converted = pg_sys::pg_server_to_any(terminated.as_ptr().cast(), text.len() as i32, UTF8);
        if converted.cast_const() == terminated.as_ptr().cast() {
            with(text)
        } else {
            with(CStr::from_ptr(converted).to_bytes())
        }
    }
}
