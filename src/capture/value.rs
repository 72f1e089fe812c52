//! From a value of PostgreSQL to JSON, exactly.

use std::ffi::CStr;

use pgrx::PgTupleDesc;
use pgrx::pg_sys::{self, Datum, Oid};

use super::json;

/// How a type's text is made.
enum Text {
    Bool,
    Int2,
    Int4,
    Int8,
    /// The bytes are the text.
    Plain,
    Bytea,
    /// The type's own output function, ready to be called.
    Output(Box<pg_sys::FmgrInfo>),
}

/// How a type's values become JSON.
pub enum Value {
    /// A string of the type's text.
    Quoted(Output),
    /// The type's text as it is: integers, booleans, json and jsonb.
    Bare(Output),
    /// A number, or a string if it is none: `NaN`, `Infinity`.
    Float(Output),
    /// ISO 8601.
    Time(Oid),
    /// An array if its lower bounds are 1, otherwise a string of its text.
    Array(Box<Element>),
    /// An object.
    Row,
}

/// A type's text.
pub struct Output(Text);

/// What an array consists of, and how the whole is written as text.
pub struct Element {
    value: Value,
    whole: Output,
    oid: Oid,
    length: i16,
    by_value: bool,
    align: std::ffi::c_char,
}

impl Output {
    fn of(oid: Oid) -> Output {
        Output(match oid {
            pg_sys::BOOLOID => Text::Bool,
            pg_sys::INT2OID => Text::Int2,
            pg_sys::INT4OID => Text::Int4,
            pg_sys::INT8OID => Text::Int8,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::JSONOID => Text::Plain,
            pg_sys::BYTEAOID => Text::Bytea,
            _ => {
                let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
                let mut info = Box::<pg_sys::FmgrInfo>::default();
                // SAFETY: raises an ERROR for a type that does not exist; the function's data lives as long as the
                // process does.
                unsafe {
                    pg_sys::getTypeOutputInfo(oid, &mut function, &mut varlena);
                    pg_sys::fmgr_info_cxt(function, &mut *info, pg_sys::TopMemoryContext);
                }
                Text::Output(info)
            }
        })
    }

    /// Calls `with` with the text, in UTF-8.
    fn with<R>(&mut self, datum: Datum, with: impl FnOnce(&[u8]) -> R) -> R {
        match &mut self.0 {
            Text::Bool => with(if datum.value() & 0xff != 0 { b"t" } else { b"f" }),
            Text::Int2 => with((datum.value() as i16).to_string().as_bytes()),
            Text::Int4 => with((datum.value() as i32).to_string().as_bytes()),
            Text::Int8 => with((datum.value() as i64).to_string().as_bytes()),
            // SAFETY: a datum of a varlena type, not null; what is detoasted goes with the row's memory.
            Text::Plain | Text::Bytea => unsafe {
                let varlena = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
                with(utf8(pgrx::varlena_to_byte_slice(varlena)))
            },
            // SAFETY: the output function of the datum's type; its result is a C string in the row's memory.
            Text::Output(info) => unsafe {
                let text = pg_sys::OutputFunctionCall(&mut **info, datum);
                with(utf8(CStr::from_ptr(text).to_bytes()))
            },
        }
    }

    fn quoted(&mut self, out: &mut Vec<u8>, datum: Datum) {
        if matches!(self.0, Text::Bytea) {
            // SAFETY: a bytea, not null.
            unsafe {
                let varlena = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
                json::bytea(out, pgrx::varlena_to_byte_slice(varlena));
            }
        } else {
            self.with(datum, |text| json::string(out, text));
        }
    }
}

/// Text of the database as UTF-8, in the current memory context if it has to be converted.
fn utf8(text: &[u8]) -> &[u8] {
    const SQL_ASCII: i32 = 0;
    const UTF8: i32 = 6;
    // SAFETY: a C string of the length given; the result is a new one, or the same if there is nothing to convert.
    unsafe {
        if matches!(pg_sys::GetDatabaseEncoding(), SQL_ASCII | UTF8) {
            return text;
        }
        let mut terminated = text.to_vec();
        terminated.push(0);
        let converted = pg_sys::pg_server_to_any(terminated.as_ptr().cast(), text.len() as i32, UTF8);
        if converted.cast_const() == terminated.as_ptr().cast() {
            text
        } else {
            std::slice::from_raw_parts(converted.cast(), CStr::from_ptr(converted).count_bytes())
        }
    }
}

impl Value {
    /// All values as strings of their text.
    pub fn text(oid: Oid) -> Value {
        // SAFETY: raises an ERROR for a type that does not exist.
        Value::Quoted(Output::of(unsafe { pg_sys::getBaseType(oid) }))
    }

    /// JSON types where they hold the value exactly. A numeric is a string, because most readers of JSON make a number
    /// a double.
    pub fn typed(oid: Oid) -> Value {
        // SAFETY: these look up the catalog and raise an ERROR for a type that does not exist.
        let (oid, element, is_row) = unsafe {
            let oid = pg_sys::getBaseType(oid);
            (oid, pg_sys::get_element_type(oid), pg_sys::type_is_rowtype(oid))
        };
        match oid {
            pg_sys::BOOLOID
            | pg_sys::INT2OID
            | pg_sys::INT4OID
            | pg_sys::INT8OID
            | pg_sys::JSONOID
            | pg_sys::JSONBOID => Value::Bare(Output::of(oid)),
            pg_sys::FLOAT4OID | pg_sys::FLOAT8OID => Value::Float(Output::of(oid)),
            pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Value::Time(oid),
            // Not varying in length: the vectors of the catalog.
            _ if element != pg_sys::InvalidOid && !matches!(oid, pg_sys::INT2VECTOROID | pg_sys::OIDVECTOROID) => {
                let (mut length, mut by_value, mut align) = (0, false, 0);
                // SAFETY: as above.
                unsafe { pg_sys::get_typlenbyvalalign(element, &mut length, &mut by_value, &mut align) };
                // Elements of a fixed-length type (name, point) are no arrays to their users.
                // SAFETY: as above.
                if unsafe { pg_sys::get_array_type(element) } != oid {
                    return Value::Quoted(Output::of(oid));
                }
                Value::Array(Box::new(Element {
                    value: Value::typed(element),
                    whole: Output::of(oid),
                    oid: element,
                    length,
                    by_value,
                    align,
                }))
            }
            _ if is_row => Value::Row,
            _ => Value::Quoted(Output::of(oid)),
        }
    }

    /// Appends the JSON of a value that is not null.
    pub fn write(&mut self, out: &mut Vec<u8>, datum: Datum) {
        match self {
            Value::Quoted(output) => output.quoted(out, datum),
            Value::Bare(Output(Text::Bool)) => {
                out.extend_from_slice(if datum.value() & 0xff != 0 { b"true" } else { b"false" });
            }
            Value::Bare(output) => output.with(datum, |text| out.extend_from_slice(text)),
            Value::Float(output) => output.with(datum, |text| {
                if text.last().is_some_and(u8::is_ascii_digit) {
                    out.extend_from_slice(text);
                } else {
                    json::string(out, text);
                }
            }),
            Value::Time(oid) => {
                let mut buffer = [0 as std::ffi::c_char; 129];
                let utc = 0;
                // SAFETY: the buffer has the size MAXDATELEN + 1 that is asked for; the datum is of this type.
                let text = unsafe {
                    pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), datum, *oid, &utc);
                    CStr::from_ptr(buffer.as_ptr())
                };
                json::string(out, text.to_bytes());
            }
            Value::Array(element) => element.write(out, datum),
            Value::Row => write_row(out, datum),
        }
    }
}

impl Element {
    fn write(&mut self, out: &mut Vec<u8>, datum: Datum) {
        // SAFETY: an array, not null; the parts of a detoasted array lie where array.h says, and deconstruct_array
        // returns as many values and flags as it says.
        unsafe {
            let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
            let dimensions = (*array).ndim as usize;
            let sizes = array.add(1).cast::<i32>();
            let lengths = std::slice::from_raw_parts(sizes, dimensions);
            let bounds = std::slice::from_raw_parts(sizes.add(dimensions), dimensions);
            if bounds.iter().any(|&bound| bound != 1) {
                self.whole.quoted(out, datum);
                return;
            }
            let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
            pg_sys::deconstruct_array(
                array,
                self.oid,
                self.length.into(),
                self.by_value,
                self.align,
                &mut values,
                &mut nulls,
                &mut count,
            );
            if count == 0 {
                out.extend_from_slice(b"[]");
                return;
            }
            let values = std::slice::from_raw_parts(values, count as usize);
            let nulls = std::slice::from_raw_parts(nulls, count as usize);
            self.nested(out, lengths, values, nulls);
        }
    }

    fn nested(&mut self, out: &mut Vec<u8>, lengths: &[i32], values: &[Datum], nulls: &[bool]) {
        let Some((&length, inner)) = lengths.split_first() else {
            match (values, nulls) {
                ([value], [false]) => self.value.write(out, *value),
                _ => out.extend_from_slice(b"null"),
            }
            return;
        };
        let step = values.len() / length.max(1) as usize;
        out.push(b'[');
        for (n, (values, nulls)) in values.chunks(step).zip(nulls.chunks(step)).enumerate() {
            if n > 0 {
                out.push(b',');
            }
            self.nested(out, inner, values, nulls);
        }
        out.push(b']');
    }
}

/// A composite as an object. Its type may be another for each value, so it is looked up each time.
fn write_row(out: &mut Vec<u8>, datum: Datum) {
    // SAFETY: a composite, not null, detoasted; its header names its type; the arrays have room for all attributes.
    unsafe {
        let header = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::HeapTupleHeaderData>();
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
        out.push(b'{');
        let mut first = true;
        for n in 0..count {
            let Some(attribute) = attributes.get(n).filter(|attribute| !attribute.attisdropped) else {
                continue;
            };
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            json::string(out, utf8(CStr::from_ptr(attribute.attname.data.as_ptr()).to_bytes()));
            out.push(b':');
            if nulls[n] {
                out.extend_from_slice(b"null");
            } else {
                Value::typed(attribute.atttypid).write(out, values[n]);
            }
        }
        out.push(b'}');
    }
}
