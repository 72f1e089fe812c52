//! Deleting and appending rows without an executor between, as COPY appends them: a statement costs twice as much.
//!
//! Whoever has put triggers, generated columns or row security on a table gets statements instead: see
//! [`Table::is_plain`].

use std::ffi::CStr;
use std::ptr;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::ranges::Ranges;
use super::row::Columns;
use super::rows::Memory;
use super::values::{Texts, Value};

/// Where a version of a row stands (`ctid`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(super) block: u32,
    pub(super) offset: u16,
}

/// A table of this extension, open until the transaction ends or [`Table::close`].
pub struct Table {
    relation: pg_sys::Relation,
}

impl Table {
    /// Opens `jetstream.<name>` to change rows; `None` if there is no such table. To be called in a transaction.
    pub fn open(name: &CStr) -> Option<Table> {
        let oid = pg_sys::Oid::from(super::table_oid(name)?);
        // SAFETY: opens what was found, or raises an ERROR if it has just been dropped.
        let relation = unsafe { pg_sys::table_open(oid, pg_sys::RowExclusiveLock as i32) };
        Some(Table { relation })
    }

    pub(super) fn relation(&self) -> pg_sys::Relation {
        self.relation
    }

    /// Whether rows may be changed without a statement: there are no triggers of the given kinds
    /// (`TRIGGER_TYPE_INSERT`, `TRIGGER_TYPE_DELETE`) but `ours`, no generated columns and no row security.
    pub fn is_plain(&self, kinds: u32, ours: &CStr) -> bool {
        // SAFETY: the relation is open; its descriptors live as long, and trigger names are C strings.
        unsafe {
            let constraints = (*(*self.relation).rd_att).constr;
            if (*(*self.relation).rd_rel).relrowsecurity
                || !constraints.is_null() && (*constraints).has_generated_stored
            {
                return false;
            }
            let triggers = (*self.relation).trigdesc;
            triggers.is_null()
                || (0..(*triggers).numtriggers as usize)
                    .map(|number| &*(*triggers).triggers.add(number))
                    .all(|trigger| trigger.tgtype as u32 & kinds == 0 || CStr::from_ptr(trigger.tgname) == ours)
        }
    }

    /// Whether it is a partition of some table.
    pub fn is_partition(&self) -> bool {
        // SAFETY: the relation is open.
        unsafe { (*(*self.relation).rd_rel).relispartition }
    }

    /// Closes it; its lock is held until the transaction ends.
    pub fn close(self) {
        // SAFETY: opened by `open` and closed once, as this takes the value.
        unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) }
    }

    /// Number of a column, from 1; `None` if there is none of this name.
    fn column(&self, name: &CStr) -> Option<usize> {
        // SAFETY: the relation is open; looks up a name.
        let number = unsafe { pg_sys::get_attnum((*self.relation).rd_id, name.as_ptr()) };
        (number > 0).then_some(number as usize)
    }

    /// Whether only these columns (from 0) have defaults.
    fn defaults_are_among(&self, columns: &[usize]) -> bool {
        // SAFETY: the relation is open; its descriptor lists `num_defval` defaults.
        unsafe {
            let constraints = (*(*self.relation).rd_att).constr;
            constraints.is_null()
                || (0..usize::from((*constraints).num_defval))
                    .map(|number| (*(*constraints).defval.add(number)).adnum)
                    .all(|column| columns.contains(&(column as usize - 1)))
        }
    }

    /// Deletes the rows that stand at these places with these values of two columns of eight bytes. Returns the values
    /// of those that it left: they have moved, or somebody holds them.
    pub fn delete(&self, columns: [&CStr; 2], rows: impl Iterator<Item = (Place, (i64, i64))>) -> Vec<(i64, i64)> {
        let (Some(first), Some(second)) = (self.column(columns[0]), self.column(columns[1])) else {
            return rows.map(|(_, values)| values).collect();
        };
        // SAFETY: as in `ExecDelete` (nodeModifyTable.c), without triggers: a slot of the table's kind, the snapshot
        // that `transaction` has pushed, this transaction's command id. The row is looked at before it is deleted, for
        // another may have taken its place. Calls through the table's access method are guarded by hand.
        unsafe {
            let relation = self.relation;
            let (Some(fetch), Some(delete)) = (
                (*(*relation).rd_tableam).tuple_fetch_row_version,
                (*(*relation).rd_tableam).tuple_delete,
            ) else {
                return rows.map(|(_, values)| values).collect();
            };
            // The table may have been rewritten since; it does not become shorter while it is open.
            let blocks = pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
            let slot = pg_sys::table_slot_create(relation, ptr::null_mut());
            let snapshot = pg_sys::GetActiveSnapshot();
            let command = pg_sys::GetCurrentCommandId(true);
            let mut left = Vec::new();
            for (place, values) in rows {
                let mut tid = place.item_pointer();
                let found =
                    place.block < blocks && pg_guard_ffi_boundary(|| fetch(relation, &mut tid, snapshot, slot)) && {
                        pg_sys::slot_getsomeattrs_int(slot, first.max(second) as i32);
                        let value = |column: usize| (*(*slot).tts_values.add(column - 1)).value() as i64;
                        (value(first), value(second)) == values
                    };
                let mut failure = pg_sys::TM_FailureData::default();
                let deleted = found
                    && pg_guard_ffi_boundary(|| {
                        delete(
                            relation,
                            &mut tid,
                            command,
                            snapshot,
                            ptr::null_mut(),
                            false,
                            &mut failure,
                            false,
                        )
                    }) == pg_sys::TM_Result::TM_Ok;
                if !deleted {
                    left.push(values);
                }
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::CommandCounterIncrement();
            left
        }
    }

    /// Appends rows, which have values for these columns and nulls for the others. Returns how many it has appended:
    /// it stops at rows that a partition does not take, and appends none if another column has a default. A violated
    /// constraint is an ERROR.
    pub fn append<'a, const N: usize>(&self, columns: [&CStr; N], rows: impl Iterator<Item = [Value<'a>; N]>) -> usize {
        self.append_checked(columns, rows, |_| ())
    }

    /// The same, but first `check` is shown each row, and may raise an ERROR. What `rows` allocates lives as long as is
    /// needed.
    pub fn append_checked<'a, const N: usize>(
        &self,
        columns: [&CStr; N],
        mut rows: impl Iterator<Item = [Value<'a>; N]>,
        mut check: impl FnMut(&Columns),
    ) -> usize {
        let mut places = [0; N];
        for (place, name) in places.iter_mut().zip(columns) {
            match self.column(name) {
                Some(number) => *place = number - 1,
                None => return 0,
            }
        }
        if !self.defaults_are_among(&places) {
            return 0;
        }
        let mut appender = Appender::new(self.relation);
        let mut memory = Memory::new();
        let mut appended = 0;
        loop {
            let taken = memory.run(|| {
                let chunk: Vec<_> = rows.by_ref().take(CHUNK).collect();
                let appended = !chunk.is_empty() && appender.append(&places, &chunk, &mut check);
                appended.then_some(chunk.len())
            });
            let Some(taken) = taken else { break };
            appended += taken;
        }
        appender.end();
        appended
    }
}

impl Place {
    pub(super) fn of(pointer: pg_sys::ItemPointerData) -> Place {
        Place {
            block: u32::from(pointer.ip_blkid.bi_hi) << 16 | u32::from(pointer.ip_blkid.bi_lo),
            offset: pointer.ip_posid,
        }
    }

    fn item_pointer(self) -> pg_sys::ItemPointerData {
        pg_sys::ItemPointerData {
            ip_blkid: pg_sys::BlockIdData {
                bi_hi: (self.block >> 16) as u16,
                bi_lo: (self.block & 0xFFFF) as u16,
            },
            ip_posid: self.offset,
        }
    }
}

/// Rows appended at once: several pages full.
const CHUNK: usize = 128;

/// What an append needs besides the table: COPY's set of slots, and indexes held open.
struct Appender {
    relation: pg_sys::Relation,
    target: *mut pg_sys::ResultRelInfo,
    state: *mut pg_sys::EState,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    ranges: Vec<Ranges>,
    texts: Texts,
    /// Where the slots live.
    memory: pg_sys::MemoryContext,
}

impl Appender {
    fn new(relation: pg_sys::Relation) -> Appender {
        // SAFETY: the relation is open for as long as this lives.
        let (target, state, ranges, memory) = unsafe {
            let (target, state) = open_indexes(relation);
            (target, state, Ranges::of(target), pg_sys::CurrentMemoryContext)
        };
        Appender {
            relation,
            target,
            state,
            slots: Vec::new(),
            ranges,
            texts: Texts::default(),
            memory,
        }
    }

    /// Appends the chunk; false, and nothing appended, if one of its rows does not belong into this partition.
    fn append<const N: usize>(
        &mut self,
        places: &[usize; N],
        chunk: &[[Value<'_>; N]],
        mut check: impl FnMut(&Columns),
    ) -> bool {
        self.fill(places, chunk);
        let count = chunk.len();
        // SAFETY: as `CopyMultiInsertBufferFlush` (copyfrom.c): the slots are filled, of the table's kind, and not used
        // elsewhere. The call through the table's access method is guarded by hand.
        unsafe {
            let Some(insert) = (*(*self.relation).rd_tableam).multi_insert else {
                return false;
            };
            for slot in &self.slots[..count] {
                check(&Columns::of(*slot));
                if (*(*self.relation).rd_rel).relispartition
                    && !pg_sys::ExecPartitionCheck(self.target, *slot, self.state, false)
                {
                    return false;
                }
                if !(*(*self.relation).rd_att).constr.is_null() {
                    pg_sys::ExecConstraints(self.target, *slot, self.state);
                }
            }
            let command = pg_sys::GetCurrentCommandId(true);
            let slots = self.slots.as_mut_ptr();
            pg_guard_ffi_boundary(|| insert(self.relation, slots, count as i32, command, 0, ptr::null_mut()));
            if (*self.target).ri_NumIndices > 0 {
                let slots = &self.slots[..count];
                let summarized: Vec<Vec<bool>> = self.ranges.iter().map(|index| index.extremes(slots)).collect();
                for (row, slot) in slots.iter().enumerate() {
                    for (index, extreme) in self.ranges.iter().zip(&summarized) {
                        index.take_part(self.target, extreme[row]);
                    }
                    index_row(self.target, *slot, self.state);
                }
            }
        }
        true
    }

    /// Puts the rows of a chunk into slots.
    fn fill<const N: usize>(&mut self, places: &[usize; N], chunk: &[[Value<'_>; N]]) {
        self.texts.make_room(chunk);
        // SAFETY: as `NextCopyFrom` and `CopyFrom` fill and store a slot: emptied first, all columns set. Texts are kept
        // until the next chunk; the insert copies them.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.memory);
            while self.slots.len() < chunk.len() {
                self.slots
                    .push(pg_sys::table_slot_create(self.relation, ptr::null_mut()));
            }
            pg_sys::MemoryContextSwitchTo(before);
            let width = (*(*self.relation).rd_att).natts as usize;
            for (row, &slot) in chunk.iter().zip(&self.slots) {
                if let Some(clear) = (*(*slot).tts_ops).clear {
                    pg_guard_ffi_boundary(|| clear(slot));
                }
                std::slice::from_raw_parts_mut((*slot).tts_isnull, width).fill(true);
                for (value, &place) in row.iter().zip(places) {
                    let Some(datum) = self.texts.datum(*value) else {
                        continue;
                    };
                    *(*slot).tts_values.add(place) = datum;
                    *(*slot).tts_isnull.add(place) = false;
                }
                pg_sys::ExecStoreVirtualTuple(slot);
            }
        }
    }

    fn end(self) {
        // SAFETY: undoes `new` and `fill`, once.
        unsafe {
            for slot in self.slots {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
            }
            for index in &self.ranges {
                index.take_part(self.target, true);
            }
            pg_sys::ExecCloseIndices(self.target);
            pg_sys::FreeExecutorState(self.state);
            pg_sys::CommandCounterIncrement();
        }
    }
}

/// Opens the indexes of a table to insert rows, as `CopyFrom` (copyfrom.c) prepares its target. What is made lives in the
/// memory at hand.
///
/// # Safety
///
/// The relation is open, and stays so for as long as the result is used.
pub(super) unsafe fn open_indexes(relation: pg_sys::Relation) -> (*mut pg_sys::ResultRelInfo, *mut pg_sys::EState) {
    // SAFETY: the caller's promise.
    unsafe {
        let target = pgrx::PgBox::<pg_sys::ResultRelInfo>::alloc_node(pg_sys::NodeTag::T_ResultRelInfo).into_pg();
        pg_sys::InitResultRelInfo(target, relation, 0, ptr::null_mut(), 0);
        pg_sys::ExecOpenIndices(target, false);
        let state = pg_sys::CreateExecutorState();
        #[cfg(feature = "pg13")]
        {
            (*state).es_result_relation_info = target;
        }
        (target, state)
    }
}

/// # Safety
///
/// The slot holds a row that was just inserted into the target's table, whose indexes are open.
pub(super) unsafe fn index_row(
    target: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    state: *mut pg_sys::EState,
) {
    let (none, nothing) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the caller's promise; the signature is that of each major version.
    unsafe {
        #[cfg(feature = "pg13")]
        let _ = (target, pg_sys::ExecInsertIndexTuples(slot, state, false, none, nothing));
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        pg_sys::ExecInsertIndexTuples(target, slot, state, false, false, none, nothing);
        #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
        pg_sys::ExecInsertIndexTuples(target, slot, state, false, false, none, nothing, false);
    }
}
