//! Indexes that keep the least and the greatest value of each range of blocks (BRIN, minmax): of the rows appended to a
//! block, only those two can change anything, and looking costs three reads of a page for each row.

use pgrx::pg_sys;

use super::bulk::Place;

/// Operator family `integer_minmax_ops` of BRIN (`pg_opfamily.dat`).
const INTEGER_MINMAX: pg_sys::Oid = pg_sys::Oid::from_u32(4054);

/// Such an index on one column of type `bigint`, open to insert rows.
pub(super) struct Ranges {
    index: pg_sys::Relation,
    /// Its place among the table's indexes.
    place: usize,
    /// Column of the table, from 0.
    column: usize,
}

impl Ranges {
    /// Those among the indexes of a target.
    ///
    /// # Safety
    ///
    /// The target's indexes are open, and stay so for as long as the result is used.
    pub(super) unsafe fn of(target: *mut pg_sys::ResultRelInfo) -> Vec<Ranges> {
        // SAFETY: the caller's promise; the arrays have as many elements as there are indexes, and at least one for
        // each column of an index.
        unsafe {
            let relation = &*(*target).ri_RelationDesc;
            let indexes = 0..(*target).ri_NumIndices as usize;
            let minmax = |place: usize| {
                let index = *(*target).ri_IndexRelationDescs.add(place);
                let info = &**(*target).ri_IndexRelationInfo.add(place);
                let column = usize::try_from(info.ii_IndexAttrNumbers[0]).ok()?.checked_sub(1)?;
                let kind = pg_sys::get_atttype(relation.rd_id, column as i16 + 1);
                let fits = (*(*index).rd_rel).relam == pg_sys::BRIN_AM_OID
                    && info.ii_NumIndexAttrs == 1
                    && info.ii_Predicate.is_null()
                    && *(*index).rd_opfamily == INTEGER_MINMAX
                    && kind == pg_sys::INT8OID;
                fits.then_some(Ranges { index, place, column })
            };
            indexes.filter_map(minmax).collect()
        }
    }

    /// Whether the index is among those that the next row is put into.
    ///
    /// # Safety
    ///
    /// The target is the one this was made [`of`](Ranges::of), with its indexes open.
    pub(super) unsafe fn take_part(&self, target: *mut pg_sys::ResultRelInfo, part: bool) {
        let index = if part { self.index } else { std::ptr::null_mut() };
        // SAFETY: the caller's promise; `ExecInsertIndexTuples` and `ExecCloseIndices` pass over a null.
        unsafe { *(*target).ri_IndexRelationDescs.add(self.place) = index }
    }

    /// For each row whether it is the least or the greatest of those next to it in its block, or null.
    ///
    /// # Safety
    ///
    /// The slots hold rows of the table, with all columns taken apart, that were just inserted.
    pub(super) unsafe fn extremes(&self, slots: &[*mut pg_sys::TupleTableSlot]) -> Vec<bool> {
        let value = |slot: *mut pg_sys::TupleTableSlot| {
            // SAFETY: the caller's promise; the column is one of the table's.
            unsafe {
                let null = *(*slot).tts_isnull.add(self.column);
                (!null).then(|| (*(*slot).tts_values.add(self.column)).value() as i64)
            }
        };
        // SAFETY: the caller's promise.
        let block = |slot: *mut pg_sys::TupleTableSlot| unsafe { Place::of((*slot).tts_tid).block };
        let mut extreme = Vec::with_capacity(slots.len());
        for same_block in slots.chunk_by(|a, b| block(*a) == block(*b)) {
            let values = || same_block.iter().map(|slot| value(*slot));
            let known = || values().flatten();
            let ends = [known().min(), known().max()];
            extreme.extend(values().map(|value| value.is_none() || ends.contains(&value)));
        }
        extreme
    }
}
