//! Rows of a trigger's tables, taken apart where they stand; and one row into a table of this extension.

use std::cell::Cell;
use std::marker::PhantomData;

use pgrx::PgMemoryContexts;
use pgrx::pg_sys::{self, Datum, TriggerData, Tuplestorestate};

use super::fields::Field;
use super::values::{Texts, Value};

/// Memory for what is made of a row, or of a few.
pub struct Memory(PgMemoryContexts);

thread_local! {
    static MEMORY: Cell<pg_sys::MemoryContext> = const { Cell::new(std::ptr::null_mut()) };
}

impl Memory {
    /// Memory of its own, freed with what it is made in at the latest.
    pub fn new() -> Memory {
        Memory(PgMemoryContexts::new("rows of pg_jetstream"))
    }

    /// The same for all statements of this process, because making it for each costs a statement of one row more than its
    /// use. To be asked for once at a time: by a trigger that calls nothing that could fire another.
    pub fn of_rows() -> Memory {
        if MEMORY.get().is_null() {
            // SAFETY: makes a context that lives as long as the process; the name is a constant.
            MEMORY.set(unsafe {
                pg_sys::AllocSetContextCreateInternal(
                    pg_sys::TopMemoryContext,
                    c"rows of pg_jetstream's capture".as_ptr(),
                    pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                )
            });
        }
        Memory(PgMemoryContexts::For(MEMORY.get()))
    }

    /// Frees what the last call has left, and runs `body` in this memory.
    pub fn run<R>(&mut self, body: impl FnOnce() -> R) -> R {
        // SAFETY: values and texts of rows are given to closures alone, so that nothing outlives the call that made it.
        unsafe {
            self.0.reset();
            self.0.switch_to(|_| body())
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // While an ERROR unwinds it is left to the next call.
        if !std::thread::panicking() {
            // SAFETY: as above.
            unsafe { self.0.reset() }
        }
    }
}

/// A row, taken apart as far as [`Row::take_apart`] was asked to.
pub struct Row(*mut pg_sys::TupleTableSlot);

impl Row {
    /// Takes the first `width` columns apart; at most as many as the table has.
    fn take_apart(&self, width: usize) {
        // SAFETY: the slot holds a row of at least as many columns.
        unsafe {
            if width > usize::from((*self.0).tts_nvalid as u16) {
                pg_sys::slot_getsomeattrs_int(self.0, width as i32);
            }
        }
    }

    /// A column, from 0; none if null. Panics if the row is not taken apart so far.
    pub fn field(&self, at: usize) -> Option<Field<'_>> {
        // SAFETY: the slot holds a row, with values and flags of the columns that are valid; it changes only through a
        // mutable borrow of what it is part of.
        unsafe {
            let slot = &*self.0;
            assert!(
                at < usize::from(slot.tts_nvalid as u16),
                "column {at} is not taken apart"
            );
            (!*slot.tts_isnull.add(at)).then(|| Field::new(*slot.tts_values.add(at)))
        }
    }
}

/// A transition table, read from its start.
pub struct Transition<'a> {
    store: *mut Tuplestorestate,
    pointer: i32,
    row: Row,
    trigger: PhantomData<&'a TriggerData>,
}

impl<'a> Transition<'a> {
    /// The rows before the statement; none if the trigger has not asked for them.
    pub fn old(trigger: &'a TriggerData) -> Option<Transition<'a>> {
        Transition::of(trigger, trigger.tg_oldtable)
    }

    /// The rows after the statement.
    pub fn new(trigger: &'a TriggerData) -> Option<Transition<'a>> {
        Transition::of(trigger, trigger.tg_newtable)
    }

    fn of(trigger: &'a TriggerData, store: *mut Tuplestorestate) -> Option<Transition<'a>> {
        if store.is_null() {
            return None;
        }
        // SAFETY: a transition table of the trigger at hand, which lives until the trigger returns; it gets a read
        // pointer of its own, as other triggers of the statement read it too. Its rows are of the trigger's table.
        unsafe {
            let pointer = pg_sys::tuplestore_alloc_read_pointer(store, pg_sys::EXEC_FLAG_REWIND as i32);
            pg_sys::tuplestore_select_read_pointer(store, pointer);
            pg_sys::tuplestore_rescan(store);
            let slot = pg_sys::MakeSingleTupleTableSlot((*trigger.tg_relation).rd_att, &pg_sys::TTSOpsMinimalTuple);
            Some(Transition {
                store,
                pointer,
                row: Row(slot),
                trigger: PhantomData,
            })
        }
    }

    /// Goes to the next row and takes its first `width` columns apart; false at the end.
    pub fn next(&mut self, width: usize) -> bool {
        // SAFETY: as above.
        unsafe {
            pg_sys::tuplestore_select_read_pointer(self.store, self.pointer);
            if !pg_sys::tuplestore_gettupleslot(self.store, true, false, self.row.0) {
                return false;
            }
        }
        self.row.take_apart(width);
        true
    }

    /// How many rows it has.
    pub fn count(&self) -> i64 {
        // SAFETY: as above.
        unsafe { pg_sys::tuplestore_tuple_count(self.store) }
    }

    /// Goes back to before the first row.
    pub fn restart(&mut self) {
        // SAFETY: as above; the read pointer was made to be set back.
        unsafe {
            pg_sys::tuplestore_select_read_pointer(self.store, self.pointer);
            pg_sys::tuplestore_rescan(self.store);
        }
    }

    /// The row at hand.
    pub fn row(&self) -> &Row {
        &self.row
    }
}

impl Drop for Transition<'_> {
    fn drop(&mut self) {
        // While an ERROR unwinds, memory goes with its context.
        if !std::thread::panicking() {
            // SAFETY: made by `of`, and not used any more.
            unsafe { pg_sys::ExecDropSingleTupleTableSlot(self.row.0) }
        }
    }
}

/// Calls `with` with what a trigger would be told if a statement had deleted all rows of the trigger's table, whose
/// transition table is `old_rows`. The table has rows of its own: it is not partitioned. They are those that are there at
/// this moment: the snapshot of the transaction, or of the statement, is older than a lock that was waited for.
pub fn with_all_as_old<R>(trigger: &TriggerData, with: impl FnOnce(&TriggerData) -> R) -> R {
    // SAFETY: PostgreSQL gives a trigger an open relation; the scan is begun and ended here; a row is copied before the
    // next is asked for; the slot is for rows of this relation and does not own them. The copies of the trigger's data
    // live until `with` returns. What an ERROR leaves goes with its transaction and its memory context.
    unsafe {
        let relation = trigger.tg_relation;
        let store = pg_sys::tuplestore_begin_heap(false, false, pg_sys::work_mem);
        let slot = pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, &pg_sys::TTSOpsHeapTuple);
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let none = std::ptr::null_mut();
        let scan = pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, snapshot, 0, none);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            pg_sys::ExecStoreHeapTuple(tuple, slot, false);
            pg_sys::tuplestore_puttupleslot(store, slot);
            pgrx::check_for_interrupts!();
        }
        pg_sys::systable_endscan(scan);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        let mut named = *trigger.tg_trigger;
        named.tgoldtable = c"old_rows".as_ptr().cast_mut();
        named.tgnewtable = std::ptr::null_mut();
        let mut data = *trigger;
        data.tg_trigger = &mut named;
        data.tg_oldtable = store;
        data.tg_newtable = std::ptr::null_mut();
        let result = with(&data);
        pg_sys::tuplestore_end(store);
        pg_sys::UnregisterSnapshot(snapshot);
        result
    }
}

/// Inserts a row into a table as directly as PostgreSQL writes its own catalogs: no plan, no executor, no
/// triggers, and no right of the user's on the table. The values are all its columns, in their order and of their
/// types; false if there is no such table.
pub fn insert<const N: usize>(table: u32, row: [Value<'_>; N]) -> bool {
    let mut texts = Texts::default();
    texts.make_room(&[row]);
    let mut nulls = row.map(|value| matches!(value, Value::Null));
    let mut values = row.map(|value| texts.datum(value).unwrap_or(Datum::null()));
    // SAFETY: the relation is opened and closed here, the lock kept to the end of the transaction as for any insert;
    // values and nulls are as many as the table has columns. What they point to is copied into the tuple.
    unsafe {
        let relation = pg_sys::try_relation_open(pg_sys::Oid::from(table), pg_sys::RowExclusiveLock as i32);
        if relation.is_null() {
            return false;
        }
        assert_eq!((*(*relation).rd_att).natts as usize, N, "columns of table {table}");
        let tuple = pg_sys::heap_form_tuple((*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::CatalogTupleInsert(relation, tuple);
        pg_sys::heap_freetuple(tuple);
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
    }
    true
}
