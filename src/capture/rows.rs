//! From the transition tables of a trigger to changes.

use std::rc::Rc;

use pgrx::pg_sys::{self, Oid, TriggerData};
use pgrx::{PgMemoryContexts, PgSqlErrorCode};

use super::batch::{Change, Op};
use super::head::Format;
use super::plan::Plan;
use super::settings::Fixed;
use super::{Statement, fail, json, truncate};

/// The table whose trigger this is.
pub fn relation(data: &TriggerData) -> Oid {
    // SAFETY: PostgreSQL gives a trigger an open relation.
    unsafe { (*data.tg_relation).rd_id }
}

/// Captures what the statement did; false if that was nothing.
pub fn capture(plan: &Rc<Plan>, data: &TriggerData) -> bool {
    let event = data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK;
    if event == pg_sys::TRIGGER_EVENT_TRUNCATE {
        return truncate::capture(plan, data);
    }
    let mut old = Rows::of(data, data.tg_oldtable);
    let mut new = Rows::of(data, data.tg_newtable);
    let first = (
        old.as_mut().is_some_and(|rows| rows.next(plan.width)),
        new.as_mut().is_some_and(|rows| rows.next(plan.width)),
    );
    if !first.0 && !first.1 {
        return false;
    }
    truncate::forget();
    let fixed = Fixed::enter(plan.config.condition.is_some());
    let wanted = Wanted::of(plan, data);
    let mut memory = PgMemoryContexts::new("rows of pg_jetstream's capture");
    let mut statement = Statement::new(plan.clone());
    let mut texts = Texts::default();
    let mut number = 0;
    loop {
        // SAFETY: nothing that is allocated for a row is used after it.
        unsafe {
            memory.reset();
            memory.switch_to(|_| {
                one(
                    &mut statement,
                    &mut texts,
                    &wanted,
                    number,
                    old.as_ref().map(|rows| &rows.row),
                    new.as_ref().map(|rows| &rows.row),
                )
            });
        }
        number += 1;
        let more_old = old.as_mut().is_some_and(|rows| rows.next(plan.width));
        let more_new = new.as_mut().is_some_and(|rows| rows.next(plan.width));
        if !more_old && !more_new {
            break;
        }
        pgrx::check_for_interrupts!();
    }
    statement.flush();
    fixed.leave();
    true
}

/// What a row's texts are put together in, again and again.
#[derive(Default)]
pub(super) struct Texts {
    pub(super) old: Vec<u8>,
    new: Vec<u8>,
    pub(super) old_key: Vec<u8>,
    new_key: Vec<u8>,
    changed: Vec<u8>,
}

fn one(
    statement: &mut Statement,
    texts: &mut Texts,
    wanted: &Wanted,
    number: usize,
    old: Option<&Row>,
    new: Option<&Row>,
) {
    let plan = statement.plan.clone();
    let old = old.filter(|_| wanted.before(number));
    let new = new.filter(|_| wanted.after(number));
    if let Some(row) = old {
        row.key(&plan, &mut texts.old_key);
    }
    if let Some(row) = new {
        row.key(&plan, &mut texts.new_key);
    }
    let key = |text: &[u8]| if plan.key.is_empty() { None } else { Some(text.to_vec()) };
    let stays = old.is_some() && new.is_some() && texts.old_key == texts.new_key;
    if let Some(row) = new {
        row.object(&plan, &mut texts.new);
    }
    if let Some(row) = old
        && (!stays || plan.full_old)
    {
        row.object(&plan, &mut texts.old);
    }
    if stays {
        let typed = plan.head.format == Format::Row || plan.head.format == Format::Cloudevents;
        if typed && let (Some(old), Some(new)) = (old, new) {
            changed(&plan, old, new, &mut texts.changed);
        }
        statement.add(&Change {
            op: Op::Update,
            key: key(&texts.new_key).as_deref(),
            old: plan.full_old.then_some(&texts.old),
            new: Some(&texts.new),
            changed: typed.then_some(&texts.changed),
        });
        return;
    }
    // An update of the key is the end of one row and the beginning of another: each has its place in the order of its
    // own key.
    if old.is_some() {
        statement.add(&Change {
            key: key(&texts.old_key).as_deref(),
            old: Some(&texts.old),
            ..Change::bare(Op::Delete)
        });
    }
    if new.is_some() {
        statement.add(&Change {
            key: key(&texts.new_key).as_deref(),
            new: Some(&texts.new),
            ..Change::bare(Op::Insert)
        });
    }
}

/// Names of the columns whose values differ, as a JSON array.
fn changed(plan: &Plan, old: &Row, new: &Row, out: &mut Vec<u8>) {
    out.clear();
    out.push(b'[');
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for column in &plan.columns {
        before.clear();
        after.clear();
        let mut value = column.value.borrow_mut();
        if let Some(datum) = old.value(column.at) {
            value.write(&mut before, datum);
        }
        if let Some(datum) = new.value(column.at) {
            value.write(&mut after, datum);
        }
        if before != after {
            if out.len() > 1 {
                out.push(b',');
            }
            json::string(out, column.name.as_bytes());
        }
    }
    out.push(b']');
}

/// A row taken apart.
pub(super) struct Row(pub(super) *mut pg_sys::TupleTableSlot);

/// A transition table, read from its start.
struct Rows {
    store: *mut pg_sys::Tuplestorestate,
    pointer: i32,
    row: Row,
}

impl Rows {
    fn of(data: &TriggerData, store: *mut pg_sys::Tuplestorestate) -> Option<Rows> {
        if store.is_null() {
            return None;
        }
        // SAFETY: a transition table of the trigger at hand, which lives until the trigger returns; it gets a read
        // pointer of its own, as other triggers of the statement read it too. Its rows are of the trigger's table.
        unsafe {
            let pointer = pg_sys::tuplestore_alloc_read_pointer(store, pg_sys::EXEC_FLAG_REWIND as i32);
            pg_sys::tuplestore_select_read_pointer(store, pointer);
            pg_sys::tuplestore_rescan(store);
            let slot = pg_sys::MakeSingleTupleTableSlot((*data.tg_relation).rd_att, &pg_sys::TTSOpsMinimalTuple);
            Some(Rows {
                store,
                pointer,
                row: Row(slot),
            })
        }
    }

    /// Goes to the next row and takes its first `width` columns apart; false at the end.
    fn next(&mut self, width: usize) -> bool {
        // SAFETY: as above; a row has at least as many columns as its table.
        unsafe {
            pg_sys::tuplestore_select_read_pointer(self.store, self.pointer);
            if !pg_sys::tuplestore_gettupleslot(self.store, true, false, self.row.0) {
                return false;
            }
        }
        self.row.take_apart(width);
        true
    }
}

impl Row {
    /// Takes the first `width` columns apart.
    pub(super) fn take_apart(&self, width: usize) {
        // SAFETY: the slot holds a row, of at least as many columns.
        unsafe {
            if width > usize::from((*self.0).tts_nvalid as u16) {
                pg_sys::slot_getsomeattrs_int(self.0, width as i32);
            }
        }
    }

    /// A column of the row; none if null.
    fn value(&self, at: usize) -> Option<pg_sys::Datum> {
        // SAFETY: `take_apart` came at least this far.
        unsafe {
            let slot = &*self.0;
            (!*slot.tts_isnull.add(at)).then(|| *slot.tts_values.add(at))
        }
    }

    /// The row as a JSON object.
    pub(super) fn object(&self, plan: &Plan, out: &mut Vec<u8>) {
        out.clear();
        out.push(b'{');
        for (n, column) in plan.columns.iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&column.label);
            match self.value(column.at) {
                Some(datum) => column.value.borrow_mut().write(out, datum),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.push(b'}');
    }

    /// The key: table, then the values as JSON strings.
    pub(super) fn key(&self, plan: &Plan, out: &mut Vec<u8>) {
        const LONG: usize = 512;
        out.clear();
        out.extend_from_slice(plan.key_prefix.as_bytes());
        for (n, column) in plan.key.iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            match self.value(column.at) {
                Some(datum) => column.value.borrow_mut().write(out, datum),
                None => out.extend_from_slice(b"null"),
            }
        }
        // An index takes a third of a page at most. Keys that share their hash share their order, which is no harm.
        if out.len() > LONG {
            let hash = out.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            out.truncate(plan.key_prefix.len());
            out.extend_from_slice(format!("#{hash:016x}").as_bytes());
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // While an ERROR unwinds, memory goes with its context.
        if !std::thread::panicking() {
            // SAFETY: made by `of`, and not used any more.
            unsafe { pg_sys::ExecDropSingleTupleTableSlot(self.row.0) }
        }
    }
}

/// Which rows the condition wants; all if there is none.
struct Wanted {
    old: Option<Vec<bool>>,
    new: Option<Vec<bool>>,
}

impl Wanted {
    fn of(plan: &Plan, data: &TriggerData) -> Wanted {
        let Some(condition) = &plan.config.condition else {
            return Wanted { old: None, new: None };
        };
        let judge = |store: *mut pg_sys::Tuplestorestate, name: &str| {
            (!store.is_null()).then(|| {
                let query = format!("select ({condition}) is true from {name}");
                judge(data, &query).unwrap_or_else(|why| {
                    fail(
                        &plan.name(),
                        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                        &format!("condition ({condition}): {why}"),
                        "Capture the table again with another condition.",
                    )
                })
            })
        };
        Wanted {
            old: judge(data.tg_oldtable, "old_rows"),
            new: judge(data.tg_newtable, "new_rows"),
        }
    }

    fn before(&self, number: usize) -> bool {
        self.old.as_ref().is_none_or(|wanted| wanted.get(number) == Some(&true))
    }

    fn after(&self, number: usize) -> bool {
        self.new.as_ref().is_none_or(|wanted| wanted.get(number) == Some(&true))
    }
}

/// One boolean for each row of a transition table, in its order.
fn judge(data: &TriggerData, query: &str) -> Result<Vec<bool>, String> {
    pgrx::Spi::connect_mut(|client| {
        // SAFETY: connected; the trigger's data lives longer than the connection.
        let code = unsafe { pg_sys::SPI_register_trigger_data(std::ptr::from_ref(data).cast_mut()) };
        if code < 0 {
            return Err(format!("the transition tables cannot be read ({code})"));
        }
        let rows = client.update(query, None, &[]).map_err(|e| e.to_string())?;
        rows.map(|row| {
            row.get::<bool>(1)
                .map(|wanted| wanted == Some(true))
                .map_err(|e| e.to_string())
        })
        .collect()
    })
}
