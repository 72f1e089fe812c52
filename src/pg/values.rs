//! Rows out of PostgreSQL and arrays into it, without a call into PostgreSQL for each value.

use std::marker::PhantomData;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::{SpiCursor, SpiResult};

use super::bulk::Place;

/// Rows that one fetch has returned, valid until the SPI connection ends.
pub struct Rows<'a> {
    table: *mut pg_sys::SPITupleTable,
    len: usize,
    connection: PhantomData<&'a ()>,
}

/// One row: its columns in the order of the statement, counted from 0.
pub struct Row<'a, const N: usize> {
    values: [pg_sys::Datum; N],
    nulls: [bool; N],
    connection: PhantomData<&'a ()>,
}

/// Fetches up to `count` rows.
pub fn fetch<'a>(cursor: &mut SpiCursor<'a>, count: usize) -> SpiResult<Rows<'a>> {
    let len = cursor.fetch(count as _)?.len();
    Ok(Rows {
        // SAFETY: a variable of this process that the fetch has just set; its table lives as long as the connection.
        table: unsafe { pg_sys::SPI_tuptable },
        len,
        connection: PhantomData,
    })
}

impl<'a> Rows<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Takes a row apart. Panics if there is no such row, or if the statement does not return `N` columns.
    pub fn row<const N: usize>(&self, number: usize) -> Row<'a, N> {
        assert!(number < self.len, "row {number} of {}", self.len);
        let mut row = Row {
            values: [pg_sys::Datum::null(); N],
            nulls: [true; N],
            connection: PhantomData,
        };
        // SAFETY: the table is not null as there are rows; it holds `len` tuples of the shape `tupdesc`, which has as
        // many columns as there is room for.
        unsafe {
            let shape = (*self.table).tupdesc;
            assert_eq!((*shape).natts as usize, N, "columns");
            let tuple = *(*self.table).vals.add(number);
            pg_sys::heap_deform_tuple(tuple, shape, row.values.as_mut_ptr(), row.nulls.as_mut_ptr());
        }
        row
    }
}

impl<const N: usize> Row<'_, N> {
    /// A column of a type that is passed by value; `None` if null.
    pub fn value(&self, column: usize) -> Option<i64> {
        (!self.nulls[column]).then(|| self.values[column].value() as i64)
    }

    /// A column of type `tid`, which is not null.
    pub fn place(&self, column: usize) -> Place {
        // SAFETY: a non-null datum of type tid points to an item pointer, in the row at hand.
        let tid = unsafe {
            self.values[column]
                .cast_mut_ptr::<pg_sys::ItemPointerData>()
                .read_unaligned()
        };
        Place {
            block: u32::from(tid.ip_blkid.bi_hi) << 16 | u32::from(tid.ip_blkid.bi_lo),
            offset: tid.ip_posid,
        }
    }

    /// A column of type `text` or `bytea`; `None` if null.
    pub fn bytes(&self, column: usize) -> Option<Vec<u8>> {
        (!self.nulls[column]).then(|| bytes(self.values[column]))
    }

    /// A column of type `text`; `None` if null.
    pub fn text(&self, column: usize) -> Option<String> {
        (!self.nulls[column]).then(|| text(self.values[column]))
    }
}

/// The text of a `text` datum.
pub(super) fn text(datum: pg_sys::Datum) -> String {
    String::from_utf8(bytes(datum)).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// The bytes of a `text` or `bytea` datum.
fn bytes(datum: pg_sys::Datum) -> Vec<u8> {
    let varlena: *mut pg_sys::varlena = datum.cast_mut_ptr();
    // SAFETY: callers pass a non-null varlena datum of the row at hand. A detoasted copy would live until the transaction
    // ends; it is freed as soon as it is copied out, so that a claim of large bodies does not hold them twice.
    unsafe {
        let plain = pgrx::varatt_is_4b_u(varlena) || pgrx::varatt_is_1b(varlena) && !pgrx::varatt_is_1b_e(varlena);
        if plain {
            return pgrx::varlena_to_byte_slice(varlena).to_vec();
        }
        let copy = pg_sys::pg_detoast_datum_packed(varlena);
        let bytes = pgrx::varlena_to_byte_slice(copy).to_vec();
        if copy != varlena {
            pg_sys::pfree(copy.cast());
        }
        bytes
    }
}

/// An array as a parameter, which PostgreSQL reads where it stands.
pub fn array_parameter<'a>(array: &'a crate::array::Array) -> DatumWithOid<'a> {
    let datum = pg_sys::Datum::from(array.image().as_ptr());
    let oid = match array.kind() {
        crate::array::Kind::Bool => pg_sys::BOOLARRAYOID,
        crate::array::Kind::Int4 => pg_sys::INT4ARRAYOID,
        crate::array::Kind::Int8 => pg_sys::INT8ARRAYOID,
        crate::array::Kind::Float4 => pg_sys::FLOAT4ARRAYOID,
        crate::array::Kind::Text => pg_sys::TEXTARRAYOID,
        crate::array::Kind::Bytea => pg_sys::BYTEAARRAYOID,
    };
    // SAFETY: the image is a complete array of this type, aligned to 8 bytes, and outlives the parameter.
    unsafe { DatumWithOid::new(datum, oid) }
}
