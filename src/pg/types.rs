//! What the catalog says of types. An unknown object id is an ERROR.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys::{self, Oid};

use super::fields::{Field, with_utf8};

/// The type below a domain, or the type itself.
pub fn base_type(oid: Oid) -> Oid {
    // SAFETY: looks up the catalog.
    unsafe { pg_sys::getBaseType(oid) }
}

/// The type of an array's elements if this is a true array: of varying length, and the array type of its elements.
pub fn array_element(oid: Oid) -> Option<Oid> {
    // SAFETY: these look up the catalog.
    let (element, array) = unsafe {
        let element = pg_sys::get_element_type(oid);
        (element, pg_sys::get_array_type(element))
    };
    // Others with elements (name, point, the catalog's vectors) are no arrays to their users.
    let array = element != pg_sys::InvalidOid && array == oid;
    array.then_some(element)
}

/// The type whose values a range or a multirange is of.
pub fn range_of(oid: Oid) -> Option<Oid> {
    // SAFETY: these look up the catalog; InvalidOid for what is none.
    let part = unsafe {
        #[cfg(not(feature = "pg13"))]
        let oid = match pg_sys::get_multirange_range(oid) {
            pg_sys::InvalidOid => oid,
            range => range,
        };
        pg_sys::get_range_subtype(oid)
    };
    (part != pg_sys::InvalidOid).then_some(part)
}

/// Whether the type is an enum, or came with PostgreSQL and is no row.
pub fn is_plain(oid: Oid) -> bool {
    // SAFETY: looks up the catalog.
    let kind = unsafe { pg_sys::get_typtype(oid) } as u8;
    kind == pg_sys::TYPTYPE_ENUM || kind == pg_sys::TYPTYPE_BASE && oid.to_u32() < pg_sys::FirstNormalObjectId
}

/// Whether values are rows.
pub fn is_row(oid: Oid) -> bool {
    // SAFETY: looks up the catalog.
    unsafe { pg_sys::type_is_rowtype(oid) }
}

/// How values of a type lie in an array.
pub struct Layout {
    pub(super) oid: Oid,
    pub(super) length: i16,
    pub(super) by_value: bool,
    pub(super) align: c_char,
}

impl Layout {
    /// That of a type.
    pub fn of(oid: Oid) -> Layout {
        let (mut length, mut by_value, mut align) = (0, false, 0);
        // SAFETY: looks up the catalog and fills in the three.
        unsafe { pg_sys::get_typlenbyvalalign(oid, &mut length, &mut by_value, &mut align) };
        Layout {
            oid,
            length,
            by_value,
            align,
        }
    }
}

/// A type's output function, ready to be called.
pub struct Output(Box<pg_sys::FmgrInfo>);

impl Output {
    /// That of a type.
    pub fn of(oid: Oid) -> Output {
        let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
        let mut info = Box::<pg_sys::FmgrInfo>::default();
        // SAFETY: looks up the catalog; what belongs to the function lives as long as the process does.
        unsafe {
            pg_sys::getTypeOutputInfo(oid, &mut function, &mut varlena);
            pg_sys::fmgr_info_cxt(function, &mut *info, pg_sys::TopMemoryContext);
        }
        Output(info)
    }

    /// The text of a value of this type, in UTF-8.
    pub fn with_text<R>(&mut self, value: Field<'_>, with: impl FnOnce(&[u8]) -> R) -> R {
        // SAFETY: the output function of the value's type; its result is a C string in the current memory context.
        let text = unsafe { CStr::from_ptr(pg_sys::OutputFunctionCall(&mut *self.0, value.datum())) };
        with_utf8(text.to_bytes(), with)
    }
}
