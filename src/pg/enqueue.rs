//! One row into a table without a statement, which costs as much again as the row itself.

use std::ffi::CStr;
use std::ptr;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::{PgSqlErrorCode, pg_sys};

use super::bulk::{Table, index_row, open_indexes};
use super::refuse;
use super::row::Columns;

unsafe extern "C-unwind" {
    // commands/sequence.h, of which pgrx has no bindings.
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// The arguments of a call, counted from 0.
pub struct Call(pg_sys::FunctionCallInfo);

impl Call {
    /// # Safety
    ///
    /// `call` is a call as PostgreSQL makes them, and is not over while this lives.
    pub(super) unsafe fn new(call: pg_sys::FunctionCallInfo) -> Call {
        Call(call)
    }

    /// An argument; `None` if it is null. The function has that many.
    pub fn argument(&self, number: usize) -> Option<pg_sys::Datum> {
        // SAFETY: the call is valid, see `new`.
        unsafe { pgrx::fcinfo::pg_getarg_datum(self.0, number) }
    }

    /// Returns a set of these numbers, from a function that returns a set of `bigint`.
    pub(super) fn return_set(&self, values: &[i64]) -> pg_sys::Datum {
        // SAFETY: as functions in C return a set all at once (`InitMaterializedSRF` in funcapi.c): whoever calls one gives
        // it a `ReturnSetInfo`, with the memory and the columns of the result.
        unsafe {
            let info = (*self.0).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            let takes_set = !info.is_null()
                && (*info).type_ == pg_sys::NodeTag::T_ReturnSetInfo
                && (*info).allowedModes as u32 & pg_sys::SetFunctionReturnMode::SFRM_Materialize != 0;
            if !takes_set {
                refuse(
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    "set-valued function called in context that cannot accept a set".into(),
                    "",
                );
            }
            let before = pg_sys::MemoryContextSwitchTo((*(*info).econtext).ecxt_per_query_memory);
            let columns = pg_sys::CreateTupleDescCopy((*info).expectedDesc);
            let backwards = (*info).allowedModes as u32 & pg_sys::SetFunctionReturnMode::SFRM_Materialize_Random != 0;
            let store = pg_sys::tuplestore_begin_heap(backwards, false, pg_sys::work_mem);
            pg_sys::MemoryContextSwitchTo(before);
            for value in values {
                let (mut datum, mut is_null) = (pg_sys::Datum::from(*value), false);
                pg_sys::tuplestore_putvalues(store, columns, &mut datum, &mut is_null);
            }
            (*info).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*info).setResult = store;
            (*info).setDesc = columns;
            (*self.0).isnull = true;
        }
        pg_sys::Datum::null()
    }
}

impl Table {
    /// Whether it has exactly so many columns, no check constraints and no rules.
    pub fn has_shape(&self, columns: usize) -> bool {
        // SAFETY: the relation is open; its descriptors live as long.
        unsafe {
            let relation = &*self.relation();
            let constraints = (*relation.rd_att).constr;
            (*relation.rd_att).natts as usize == columns
                && relation.rd_rules.is_null()
                && (constraints.is_null() || (*constraints).num_check == 0)
        }
    }

    /// Whether the current user may insert values for these columns, counted from 0.
    pub fn may_insert(&self, columns: &[usize]) -> bool {
        // SAFETY: looks up what the catalogs say of the open relation.
        unsafe {
            let (table, user) = ((*self.relation()).rd_id, pg_sys::GetUserId());
            let mode = pg_sys::ACL_INSERT as pg_sys::AclMode;
            let allowed = |answer| answer == pg_sys::AclResult::ACLCHECK_OK;
            allowed(pg_sys::pg_class_aclcheck(table, user, mode))
                || columns
                    .iter()
                    .all(|column| allowed(pg_sys::pg_attribute_aclcheck(table, *column as i16 + 1, user, mode)))
        }
    }

    /// Inserts a row of these values, once `check` has passed it. As `CopyFrom` (copyfrom.c) does without triggers: the
    /// caller has seen that there is nothing that such an insert would pass over.
    pub fn insert<const N: usize>(&self, row: &[Option<pg_sys::Datum>; N], check: impl FnOnce(&Columns)) {
        let relation = self.relation();
        // SAFETY: the slot is of the table's kind and has its columns, whose types the caller knows; the call through
        // the table's access method is guarded by hand.
        unsafe {
            let slot = pg_sys::table_slot_create(relation, ptr::null_mut());
            assert_eq!((*(*relation).rd_att).natts as usize, N, "columns");
            for (number, value) in row.iter().enumerate() {
                *(*slot).tts_values.add(number) = value.unwrap_or(pg_sys::Datum::null());
                *(*slot).tts_isnull.add(number) = value.is_none();
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            check(&Columns::of(slot));
            let (target, state) = open_indexes(relation);
            let command = pg_sys::GetCurrentCommandId(true);
            if let Some(insert) = (*(*relation).rd_tableam).tuple_insert {
                pg_guard_ffi_boundary(|| insert(relation, slot, command, 0, ptr::null_mut()));
            }
            index_row(target, slot, state);
            pg_sys::ExecCloseIndices(target);
            pg_sys::FreeExecutorState(state);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::CommandCounterIncrement();
        }
    }
}

/// Raises the ERROR of an `INSERT` in a read-only transaction.
pub fn refuse_if_read_only() {
    // SAFETY: reads the state of this process's transaction.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"INSERT".as_ptr()) }
}

/// The next value of a sequence of this extension, whatever the user may do with it; `None` if there is none.
pub fn next_value(sequence: &CStr) -> Option<i64> {
    let oid = pg_sys::Oid::from(super::table_oid(sequence)?);
    // SAFETY: an ERROR if it is no sequence; guarded by hand, as it is no binding of pgrx.
    Some(unsafe { pg_guard_ffi_boundary(|| nextval_internal(oid, false)) })
}

/// A value of type `text`, in the memory of the call.
pub fn text(text: &str) -> pg_sys::Datum {
    // SAFETY: copies so many bytes.
    unsafe { pg_sys::cstring_to_text_with_len(text.as_ptr().cast(), text.len() as i32) }.into()
}

/// The elements of an array of values of variable length aligned to four bytes, such as `text` and `jsonb`, where they
/// stand in the memory of the call.
pub fn elements(array: pg_sys::Datum) -> Vec<Option<pg_sys::Datum>> {
    const LENGTH: i32 = -1;
    const ALIGNMENT: std::ffi::c_char = b'i' as std::ffi::c_char;
    let (mut values, mut nulls, mut count) = (ptr::null_mut(), ptr::null_mut(), 0);
    // SAFETY: an array of such values, as the caller says; what comes back has `count` values and flags.
    unsafe {
        let array = pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let kind = (*array).elemtype;
        pg_sys::deconstruct_array(
            array,
            kind,
            LENGTH,
            false,
            ALIGNMENT,
            &mut values,
            &mut nulls,
            &mut count,
        );
        (0..count as usize)
            .map(|n| (!*nulls.add(n)).then(|| *values.add(n)))
            .collect()
    }
}

/// A value of type `jsonb`, in the memory of the call; an ERROR if the text is none, or has a zero byte.
pub fn jsonb(text: &str) -> pg_sys::Datum {
    let text = std::ffi::CString::new(text).unwrap_or_default();
    // SAFETY: `jsonb_in` takes a C string, and does not return null.
    unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(pg_sys::Datum::from(text.as_ptr()))]) }
        .unwrap_or(pg_sys::Datum::null())
}

/// Random UUIDs, whose bytes are drawn for many at once: a draw takes as long as what is left to do for two.
pub struct Uuids {
    random: Vec<uuid::Bytes>,
    left: usize,
}

impl Uuids {
    /// About so many will be asked for.
    pub fn new(count: usize) -> Uuids {
        Uuids {
            random: vec![uuid::Bytes::default(); count.clamp(1, 64)],
            left: 0,
        }
    }

    /// The next one, as `text` in the memory at hand.
    pub fn text(&mut self) -> pg_sys::Datum {
        if self.left == 0 {
            let bytes = self.random.as_flattened_mut();
            // SAFETY: fills the bytes there are.
            if !unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) } {
                let message = "could not generate random values".into();
                refuse(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, message, "");
            }
            self.left = self.random.len();
        }
        self.left -= 1;
        let uuid = uuid::Builder::from_random_bytes(self.random[self.left]).into_uuid();
        text(uuid.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
    }
}

/// A setting that is not empty, as `text`.
pub fn setting(name: &CStr) -> Option<pg_sys::Datum> {
    // SAFETY: null for a setting that does not exist, otherwise a C string that lives until it is set again.
    let value = unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value))?
    };
    (!value.is_empty()).then(|| text(&value.to_string_lossy()))
}

/// A value, or null, as a parameter of a statement.
pub fn parameter<'a>(value: Option<pg_sys::Datum>, kind: pg_sys::Oid) -> DatumWithOid<'a> {
    match value {
        // SAFETY: the caller names the type of the argument that the value came as; it outlives the call.
        Some(value) => unsafe { DatumWithOid::new(value, kind) },
        None => DatumWithOid::null_oid(kind),
    }
}
