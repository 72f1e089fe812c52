//! A `jsonb` as its text. pgrx's own type is a tree of serde_json, which cannot hold every number that PostgreSQL can, and
//! not every depth: it panics for those.

use std::ffi::CStr;

use pgrx::callconv::{Arg, ArgAbi};
use pgrx::nullable::Nullable;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{FromDatum, PgSqlErrorCode, pg_sys};

use super::refuse;

/// The text of a value of type `jsonb`, with every digit of its numbers.
#[derive(Debug)]
pub struct JsonText(pub String);

impl FromDatum for JsonText {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<JsonText> {
        if is_null {
            return None;
        }
        // SAFETY: a jsonb datum, as the caller says; its output function returns a C string of its own, which is freed
        // once it is copied.
        unsafe {
            let text = pgrx::direct_function_call::<&CStr>(pg_sys::jsonb_out, &[Some(datum)])?;
            let copy = text.to_string_lossy().into_owned();
            pg_sys::pfree(text.as_ptr().cast_mut().cast());
            Some(JsonText(copy))
        }
    }
}

// SAFETY: reads the argument by `FromDatum`, as pgrx does for its own types.
unsafe impl<'fcx> ArgAbi<'fcx> for JsonText {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: as above.
        let text = unsafe { arg.unbox_arg_using_from_datum() };
        text.unwrap_or_else(|| {
            let message = "a jsonb argument is null".to_owned();
            refuse(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, message, "")
        })
    }

    unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
        // SAFETY: as above.
        unsafe { arg.unbox_arg_using_from_datum().into() }
    }
}

// SAFETY: the type is known to PostgreSQL by this name.
unsafe impl SqlTranslatable for JsonText {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(JsonText);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("jsonb"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> = Ok(ReturnsRef::One(SqlMappingRef::literal("jsonb")));
}
