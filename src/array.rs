//! Arrays as PostgreSQL keeps them in memory, built here at the speed of a copy. Free of PostgreSQL.
//!
//! Layout: `src/include/utils/array.h` (`ArrayType`, one dimension). Values stand one after the other at their
//! alignment; a null has a cleared bit in the bitmap and no value. Calling `accumArrayResult` for each value, as the
//! bindings do, costs ten times as much.

/// Type of the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `boolean`
    Bool,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `real`
    Float4,
    /// `text`
    Text,
    /// `bytea`
    Bytea,
}

impl Kind {
    /// Object id of the element type; fixed for all versions (`pg_type.dat`).
    fn oid(self) -> u32 {
        match self {
            Kind::Bool => 16,
            Kind::Bytea => 17,
            Kind::Int8 => 20,
            Kind::Int4 => 23,
            Kind::Text => 25,
            Kind::Float4 => 700,
        }
    }
}

/// A one-dimensional array in PostgreSQL's memory format.
#[derive(Debug, Clone)]
pub struct Array {
    kind: Kind,
    /// In words of 8 bytes, so that it is aligned as PostgreSQL demands.
    image: Vec<u64>,
}

/// Size word, number of dimensions, offset of the data, element type, length, lower bound.
const HEADER_BYTES: usize = 24;

impl Array {
    /// The bytes, from the size word on.
    pub fn image(&self) -> &[u64] {
        &self.image
    }

    /// Type of the elements.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// An array of `boolean`.
    pub fn bools(values: impl ExactSizeIterator<Item = bool>) -> Array {
        fixed(Kind::Bool, values.map(|value| Some([u8::from(value)])))
    }

    /// An array of `integer`.
    pub fn int4s(values: impl ExactSizeIterator<Item = Option<i32>>) -> Array {
        fixed(Kind::Int4, values.map(|value| value.map(i32::to_ne_bytes)))
    }

    /// An array of `bigint`.
    pub fn int8s(values: impl ExactSizeIterator<Item = Option<i64>>) -> Array {
        fixed(Kind::Int8, values.map(|value| value.map(i64::to_ne_bytes)))
    }

    /// An array of `real`.
    pub fn float4s(values: impl ExactSizeIterator<Item = f32>) -> Array {
        fixed(Kind::Float4, values.map(|value| Some(value.to_ne_bytes())))
    }

    /// An array of `text`. PostgreSQL limits it to 1 GB.
    pub fn texts<'a>(values: impl ExactSizeIterator<Item = Option<&'a str>>) -> Array {
        varying(Kind::Text, values.map(|value| value.map(str::as_bytes)))
    }

    /// An array of `bytea`. PostgreSQL limits it to 1 GB.
    pub fn byteas<'a>(values: impl ExactSizeIterator<Item = &'a [u8]>) -> Array {
        varying(Kind::Bytea, values.map(Some))
    }
}

fn varying<'a>(kind: Kind, values: impl ExactSizeIterator<Item = Option<&'a [u8]>>) -> Array {
    build(kind, values, |bytes, value| {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(&size_word(value.len() + 4));
        bytes.extend_from_slice(value);
    })
}

fn fixed<const N: usize>(kind: Kind, values: impl ExactSizeIterator<Item = Option<[u8; N]>>) -> Array {
    build(kind, values, |bytes, value| bytes.extend_from_slice(&value))
}

fn build<T>(
    kind: Kind,
    values: impl ExactSizeIterator<Item = Option<T>>,
    mut put: impl FnMut(&mut Vec<u8>, T),
) -> Array {
    let len = values.len();
    let mut bitmap = vec![0u8; len.div_ceil(8)];
    let mut data = Vec::with_capacity(len * 8);
    let mut nulls = false;
    for (number, value) in values.enumerate() {
        match value {
            Some(value) => {
                bitmap[number / 8] |= 1 << (number % 8);
                put(&mut data, value);
            }
            None => nulls = true,
        }
    }
    let offset = if nulls {
        (HEADER_BYTES + bitmap.len()).next_multiple_of(8)
    } else {
        HEADER_BYTES
    };
    let mut bytes = Vec::with_capacity(offset + data.len());
    bytes.extend_from_slice(&size_word(offset + data.len()));
    for word in [1, if nulls { offset as u32 } else { 0 }, kind.oid(), len as u32, 1] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    if nulls {
        bytes.extend_from_slice(&bitmap);
        bytes.resize(offset, 0);
    }
    bytes.extend_from_slice(&data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let words = bytes.chunks_exact(8).map(|word| {
        let mut word_bytes = [0; 8];
        word_bytes.copy_from_slice(word);
        u64::from_ne_bytes(word_bytes)
    });
    Array {
        kind,
        image: words.collect(),
    }
}

/// The size of a value as its first word says it, itself included (`SET_VARSIZE_4B` in `varatt.h`).
pub fn size_word(bytes: usize) -> [u8; 4] {
    let size = bytes as u32;
    if cfg!(target_endian = "big") { size } else { size << 2 }.to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(array: &Array) -> Vec<u8> {
        array.image().iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn words(array: &Array) -> Vec<u32> {
        bytes(array)
            .chunks_exact(4)
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn numbers_stand_side_by_side() {
        let array = Array::int8s([Some(5), Some(-1)].into_iter());
        assert_eq!(words(&array), [40 << 2, 1, 0, 20, 2, 1, 5, 0, u32::MAX, u32::MAX]);
        let array = Array::bools([true, false, true].into_iter());
        assert_eq!(words(&array)[..6], [27 << 2, 1, 0, 16, 3, 1]);
        assert_eq!(bytes(&array)[24..], [1, 0, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn nulls_are_in_the_bitmap_alone() {
        let array = Array::int4s([Some(7), None, Some(9)].into_iter());
        assert_eq!(words(&array), [40 << 2, 1, 32, 23, 3, 1, 0b101, 0, 7, 9]);
    }

    #[test]
    fn texts_are_aligned_to_four_bytes() {
        let array = Array::texts([Some("a"), None, Some("bcd")].into_iter());
        assert_eq!(words(&array)[..6], [47 << 2, 1, 32, 25, 3, 1]);
        assert_eq!(
            bytes(&array)[32..47],
            [5 << 2, 0, 0, 0, b'a', 0, 0, 0, 7 << 2, 0, 0, 0, b'b', b'c', b'd']
        );
    }

    #[test]
    fn bytes_are_laid_out_as_texts() {
        let array = Array::byteas([b"a".as_slice(), b"bcd"].into_iter());
        assert_eq!(words(&array)[..6], [39 << 2, 1, 0, 17, 2, 1]);
        assert_eq!(
            bytes(&array)[24..39],
            [5 << 2, 0, 0, 0, b'a', 0, 0, 0, 7 << 2, 0, 0, 0, b'b', b'c', b'd']
        );
    }

    #[test]
    fn an_empty_array_has_no_values() {
        let array = Array::texts(std::iter::empty());
        assert_eq!(words(&array), [24 << 2, 1, 0, 25, 0, 1]);
    }
}
