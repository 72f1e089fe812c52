//! Texts and bytes out of PostgreSQL and arrays into it, without a call into PostgreSQL for each value.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;

/// The text of a `text` datum.
pub(super) fn text(datum: pg_sys::Datum) -> String {
    String::from_utf8(bytes(datum)).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// The bytes of a `text` or `bytea` datum.
pub(super) fn bytes(datum: pg_sys::Datum) -> Vec<u8> {
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
