//! Texts and bytes out of PostgreSQL, and values and arrays into it, without a call into PostgreSQL for each value.

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

/// A value of a row to append.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// Null.
    Null,
    /// A value of a type that is passed by value, as its `Datum` is.
    Word(u64),
    /// A value of type `text`.
    Text(&'a str),
    /// A value of type `bytea`.
    Bytes(&'a [u8]),
}

/// Texts and bytes of some rows as PostgreSQL has them in memory, each behind its size word.
#[derive(Default)]
pub(super) struct Texts(Vec<u32>);

impl Texts {
    /// Forgets what it holds, and makes room for the values of these rows: none may move once it has an address.
    pub(super) fn make_room<const N: usize>(&mut self, rows: &[[Value<'_>; N]]) {
        let words = |value: &Value<'_>| match value {
            Value::Text(text) => 1 + text.len().div_ceil(4),
            Value::Bytes(bytes) => 1 + bytes.len().div_ceil(4),
            Value::Null | Value::Word(_) => 0,
        };
        self.0.clear();
        self.0.reserve(rows.iter().flatten().map(words).sum());
    }

    /// A value of a row that room was made for, good until room is made again; none if it is null.
    pub(super) fn datum(&mut self, value: Value<'_>) -> Option<pg_sys::Datum> {
        match value {
            Value::Null => None,
            Value::Word(word) => Some(pg_sys::Datum::from(word)),
            Value::Text(text) => Some(pg_sys::Datum::from(self.push(text.as_bytes()))),
            Value::Bytes(bytes) => Some(pg_sys::Datum::from(self.push(bytes))),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> *const u32 {
        let start = self.0.len();
        let (words, rest) = bytes.as_chunks::<4>();
        assert!(
            self.0.capacity() - start > words.len() + rest.len().div_ceil(4),
            "no room was made"
        );
        self.0
            .push(u32::from_ne_bytes(crate::array::size_word(bytes.len() + 4)));
        self.0.extend(words.iter().map(|word| u32::from_ne_bytes(*word)));
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            self.0.push(u32::from_ne_bytes(last));
        }
        self.0[start..].as_ptr()
    }
}
