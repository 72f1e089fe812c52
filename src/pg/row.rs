//! The row a trigger is called for, as it comes, without reading what need not be read.

use pgrx::{FromDatum, PgSqlErrorCode, pg_sys};

use super::json::JsonText;
use super::refuse;
use super::values::text;

/// What happens to a row of the outbox.
pub struct RowTrigger {
    /// The row as it will be.
    pub new: Columns,
    /// The row as it was, if it is updated.
    pub old: Option<Columns>,
    result: pg_sys::Datum,
}

/// Columns of a row, counted from 0 in the order of the table. Each is asked for by its own type.
pub struct Columns(*mut pg_sys::TupleTableSlot);

/// An `interval`, each part by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Whole months.
    pub months: i32,
    /// Whole days.
    pub days: i32,
    /// The rest, microseconds.
    pub micros: i64,
}

impl RowTrigger {
    /// The call of a trigger `before insert or update ... for each row`; an ERROR for any other call.
    ///
    /// # Safety
    ///
    /// `call` is a call as PostgreSQL makes them.
    pub(super) unsafe fn new(call: pg_sys::FunctionCallInfo) -> RowTrigger {
        use pg_sys::{TRIGGER_EVENT_BEFORE, TRIGGER_EVENT_INSERT, TRIGGER_EVENT_ROW, TRIGGER_EVENT_UPDATE};
        const INSERT: u32 = TRIGGER_EVENT_INSERT | TRIGGER_EVENT_ROW | TRIGGER_EVENT_BEFORE;
        const UPDATE: u32 = TRIGGER_EVENT_UPDATE | TRIGGER_EVENT_ROW | TRIGGER_EVENT_BEFORE;
        const ALL: u32 = pg_sys::TRIGGER_EVENT_OPMASK | TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_TIMINGMASK;
        // SAFETY: the context of a call is null or a node; that of a trigger is its data.
        let data = unsafe {
            let node = (*call).context;
            let is_trigger = !node.is_null() && (*node).type_ == pg_sys::NodeTag::T_TriggerData;
            is_trigger.then(|| &*node.cast::<pg_sys::TriggerData>())
        };
        match data.map(|data| (data, data.tg_event & ALL)) {
            Some((data, INSERT)) => RowTrigger {
                new: Columns(data.tg_trigslot),
                old: None,
                result: pg_sys::Datum::from(data.tg_trigtuple),
            },
            Some((data, UPDATE)) => RowTrigger {
                new: Columns(data.tg_newslot),
                old: Some(Columns(data.tg_trigslot)),
                result: pg_sys::Datum::from(data.tg_newtuple),
            },
            _ => refuse(
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "outbox_check was not called before an insert or update of a row".into(),
                "It is the trigger of jetstream.outbox and of no other use.",
            ),
        }
    }

    /// What the trigger returns for the row to be stored as it is.
    pub(super) fn result(&self) -> pg_sys::Datum {
        self.result
    }
}

impl Columns {
    /// # Safety
    ///
    /// The slot holds a row, and is not freed while this lives.
    pub(super) unsafe fn of(slot: *mut pg_sys::TupleTableSlot) -> Columns {
        Columns(slot)
    }

    fn datum(&self, number: usize) -> Option<pg_sys::Datum> {
        // SAFETY: the slot of the row at hand, which outlives the trigger's call; it says how many columns it has, and
        // has taken apart those before `tts_nvalid`.
        unsafe {
            let slot = &*self.0;
            assert!(
                number < (*slot.tts_tupleDescriptor).natts as usize,
                "no column {number}"
            );
            if number >= slot.tts_nvalid as usize {
                pg_sys::slot_getsomeattrs_int(self.0, number as i32 + 1);
            }
            let slot = &*self.0;
            (!*slot.tts_isnull.add(number)).then(|| *slot.tts_values.add(number))
        }
    }

    /// Whether a column is null.
    pub fn is_null(&self, number: usize) -> bool {
        self.datum(number).is_none()
    }

    /// A column of type `text`.
    pub fn text(&self, number: usize) -> Option<String> {
        self.datum(number).map(text)
    }

    /// A column of type `jsonb`, as text.
    pub fn json(&self, number: usize) -> Option<JsonText> {
        let datum = self.datum(number)?;
        // SAFETY: a jsonb datum, as the caller says.
        unsafe { JsonText::from_datum(datum, false) }
    }

    /// A column of a type that is passed by value.
    pub fn value(&self, number: usize) -> Option<i64> {
        self.datum(number).map(|datum| datum.value() as i64)
    }

    /// A column of type `interval`.
    pub fn interval(&self, number: usize) -> Option<Interval> {
        let datum = self.datum(number)?;
        // SAFETY: an interval datum, as the caller says, points to one.
        let interval = unsafe { datum.cast_mut_ptr::<pg_sys::Interval>().read_unaligned() };
        Some(Interval {
            months: interval.month,
            days: interval.day,
            micros: interval.time,
        })
    }

    /// Bytes that a column of variable length takes where it stands, perhaps compressed; 0 if it is null.
    pub fn stored_bytes(&self, number: usize) -> usize {
        // SAFETY: a varlena datum, as the caller says.
        self.datum(number)
            .map_or(0, |datum| unsafe { pg_sys::toast_datum_size(datum) })
    }

    /// Bytes of a column of type `bytea` or `text`; 0 if it is null.
    pub fn full_bytes(&self, number: usize) -> usize {
        // SAFETY: a varlena datum, as the caller says.
        let with_header = self
            .datum(number)
            .map(|datum| unsafe { pg_sys::toast_raw_datum_size(datum) });
        with_header.map_or(0, |bytes| bytes.saturating_sub(pg_sys::VARHDRSZ))
    }

    /// Bytes of a column of type `jsonb` as text; 0 if it is null.
    pub fn json_text_bytes(&self, number: usize) -> usize {
        let Some(datum) = self.datum(number) else { return 0 };
        // SAFETY: a jsonb datum, as the caller says; its output function returns a C string.
        unsafe {
            pgrx::direct_function_call::<&std::ffi::CStr>(pg_sys::jsonb_out, &[Some(datum)])
                .map_or(0, |text| text.to_bytes().len())
        }
    }
}
