//! From a value of PostgreSQL to JSON, exactly.

use pgrx::pg_sys::{self, Oid};

use super::json;
use super::settings::Needs;
use crate::pg::fields::{Elements, Field, with_utf8};
use crate::pg::types::{self, Layout, Output};

/// How a type's text is made.
enum Text {
    Bool,
    Int2,
    Int4,
    Int8,
    /// The bytes are the text.
    Plain,
    Bytea,
    /// `timestamptz`, in UTC.
    Instant,
    /// By the type's own output function.
    Output {
        output: Output,
        needs: Needs,
    },
}

/// How a type's values become JSON.
pub struct Value(Kind);

enum Kind {
    /// A string of the type's text.
    Quoted(Text),
    /// The type's text as it is: integers, booleans, json and jsonb.
    Bare(Text),
    /// A number, or a string if it is none: `NaN`, `Infinity`.
    Float(Text),
    /// ISO 8601.
    Time(Oid),
    /// An array if its lower bounds are 1, otherwise a string of its text.
    Array(Box<Array>),
    /// An object.
    Row,
}

/// What an array consists of, and how the whole is written as text.
struct Array {
    element: Value,
    layout: Layout,
    whole: Text,
}

/// What the text that a type's output function makes may depend on.
fn needs(oid: Oid) -> Needs {
    let oid = types::base_type(oid);
    if let Some(part) = types::array_element(oid).or_else(|| types::range_of(oid)) {
        return needs(part);
    }
    match oid {
        pg_sys::TIMESTAMPTZOID => Needs::ZONE,
        pg_sys::BYTEAOID => Needs::BYTES,
        pg_sys::REGPROCOID
        | pg_sys::REGPROCEDUREOID
        | pg_sys::REGOPEROID
        | pg_sys::REGOPERATOROID
        | pg_sys::REGCLASSOID
        | pg_sys::REGTYPEOID
        | pg_sys::REGCONFIGOID
        | pg_sys::REGDICTIONARYOID
        | pg_sys::REGCOLLATIONOID => Needs::PATH,
        _ if types::is_plain(oid) => Needs::default(),
        _ => Needs::ALL,
    }
}

impl Text {
    fn of(oid: Oid) -> Text {
        match oid {
            pg_sys::BOOLOID => Text::Bool,
            pg_sys::INT2OID => Text::Int2,
            pg_sys::INT4OID => Text::Int4,
            pg_sys::INT8OID => Text::Int8,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::JSONOID => Text::Plain,
            pg_sys::BYTEAOID => Text::Bytea,
            pg_sys::TIMESTAMPTZOID => Text::Instant,
            _ => Text::Output {
                output: Output::of(oid),
                needs: needs(oid),
            },
        }
    }

    /// Calls `with` with the text, in UTF-8.
    fn with<R>(&mut self, value: Field<'_>, with: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Text::Bool => with(if value.boolean() { b"t" } else { b"f" }),
            Text::Int2 => with(itoa::Buffer::new().format(value.int2()).as_bytes()),
            Text::Int4 => with(itoa::Buffer::new().format(value.int4()).as_bytes()),
            Text::Int8 => with(itoa::Buffer::new().format(value.int8()).as_bytes()),
            Text::Plain => value.with_bytes(|text| with_utf8(text, with)),
            Text::Bytea => value.with_bytes(with),
            Text::Instant => value.with_instant(with),
            Text::Output { output, .. } => output.with_text(value, with),
        }
    }

    fn needs(&self) -> Needs {
        match self {
            Text::Output { needs, .. } => *needs,
            _ => Needs::default(),
        }
    }

    fn quoted(&mut self, out: &mut Vec<u8>, value: Field<'_>) {
        match self {
            Text::Bytea => value.with_bytes(|bytes| json::bytea(out, bytes)),
            _ => self.with(value, |text| json::string(out, text)),
        }
    }
}

impl Value {
    /// All values of a type as strings of their text.
    pub fn text(oid: Oid) -> Value {
        Value(Kind::Quoted(Text::of(types::base_type(oid))))
    }

    /// JSON types where they hold the value exactly. A numeric is a string, because most readers of JSON make a number
    /// a double.
    pub fn typed(oid: Oid) -> Value {
        let oid = types::base_type(oid);
        Value(match oid {
            pg_sys::BOOLOID
            | pg_sys::INT2OID
            | pg_sys::INT4OID
            | pg_sys::INT8OID
            | pg_sys::JSONOID
            | pg_sys::JSONBOID => Kind::Bare(Text::of(oid)),
            pg_sys::FLOAT4OID | pg_sys::FLOAT8OID => Kind::Float(Text::of(oid)),
            pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Kind::Time(oid),
            _ => match types::array_element(oid) {
                Some(element) => Kind::Array(Box::new(Array {
                    element: Value::typed(element),
                    layout: Layout::of(element),
                    whole: Text::of(oid),
                })),
                None if types::is_row(oid) => Kind::Row,
                None => Kind::Quoted(Text::of(oid)),
            },
        })
    }

    /// What the text that is written may depend on.
    pub fn needs(&self) -> Needs {
        match &self.0 {
            Kind::Quoted(text) | Kind::Bare(text) | Kind::Float(text) => text.needs(),
            Kind::Time(_) => Needs::default(),
            Kind::Array(array) => array.element.needs().and(array.whole.needs()),
            Kind::Row => Needs::ALL,
        }
    }

    /// Appends the JSON of a value, which is of this type.
    pub fn write(&mut self, out: &mut Vec<u8>, value: Field<'_>) {
        match &mut self.0 {
            Kind::Quoted(text) => text.quoted(out, value),
            Kind::Bare(Text::Bool) => out.extend_from_slice(if value.boolean() { b"true" } else { b"false" }),
            Kind::Bare(text) => text.with(value, |text| out.extend_from_slice(text)),
            Kind::Float(text) => text.with(value, |text| {
                if text.last().is_some_and(u8::is_ascii_digit) {
                    out.extend_from_slice(text);
                } else {
                    json::string(out, text);
                }
            }),
            Kind::Time(oid) => value.with_iso_time(*oid, |text| json::string(out, text)),
            Kind::Array(array) => array.write(out, value),
            Kind::Row => write_row(out, value),
        }
    }
}

impl Array {
    fn write(&mut self, out: &mut Vec<u8>, value: Field<'_>) {
        value.with_array(|array| {
            if !array.begins_at_one() {
                self.whole.quoted(out, value);
                return;
            }
            let elements = array.elements(&self.layout);
            if elements.len() == 0 {
                out.extend_from_slice(b"[]");
                return;
            }
            self.nested(out, array.lengths(), &elements, 0..elements.len());
        });
    }

    /// The elements of `range` in these dimensions.
    fn nested(&mut self, out: &mut Vec<u8>, lengths: &[i32], elements: &Elements<'_>, range: std::ops::Range<usize>) {
        let Some((&length, inner)) = lengths.split_first() else {
            match elements.get(range.start) {
                Some(value) => self.element.write(out, value),
                None => out.extend_from_slice(b"null"),
            }
            return;
        };
        let step = (range.len() / length.max(1) as usize).max(1);
        out.push(b'[');
        for start in range.clone().step_by(step) {
            if start > range.start {
                out.push(b',');
            }
            self.nested(out, inner, elements, start..start + step);
        }
        out.push(b']');
    }
}

/// A composite as an object.
fn write_row(out: &mut Vec<u8>, value: Field<'_>) {
    let begin = out.len();
    value.each_column(|name, oid, value| {
        out.push(if out.len() == begin { b'{' } else { b',' });
        json::string(out, name);
        out.push(b':');
        match value {
            Some(value) => Value::typed(oid).write(out, value),
            None => out.extend_from_slice(b"null"),
        }
    });
    if out.len() == begin {
        out.push(b'{');
    }
    out.push(b'}');
}
