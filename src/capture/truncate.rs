//! TRUNCATE: of the captured table one message, of a single partition its rows.

use std::cell::Cell;
use std::rc::Rc;

use pgrx::PgMemoryContexts;
use pgrx::pg_sys::{self, TriggerData};

use super::Statement;
use super::batch::{Change, Op};
use super::plan::Plan;
use super::rows::{Row, Texts};
use super::settings::Fixed;

/// The table that was truncated as a whole, and where: start of the transaction, subtransaction.
type Emptied = (u32, i64, pg_sys::SubTransactionId);

thread_local! {
    static EMPTIED: Cell<Option<Emptied>> = const { Cell::new(None) };
}

/// To be called when a table gets rows.
pub fn forget() {
    EMPTIED.set(None);
}

/// Captures a TRUNCATE before it happens. A statement that names the captured table comes here for it first and then
/// for its partitions, which hold nothing more to tell then: nobody else can put rows into them before this
/// transaction ends.
pub fn capture(plan: &Rc<Plan>, data: &TriggerData) -> bool {
    // SAFETY: called in a transaction.
    let (begun, level) = unsafe {
        (
            pg_sys::GetCurrentTransactionStartTimestamp(),
            pg_sys::GetCurrentSubTransactionId(),
        )
    };
    let here: Emptied = (plan.head.relation_id, begun, level);
    if plan.config.partition {
        return EMPTIED.get() != Some(here) && rows(plan, data);
    }
    let mut statement = Statement::new(plan.clone());
    statement.add(&Change::bare(Op::Truncate));
    statement.flush();
    EMPTIED.set(Some(here));
    true
}

/// Captures all rows of a partition as deleted; false if there are none.
fn rows(plan: &Rc<Plan>, data: &TriggerData) -> bool {
    // SAFETY: PostgreSQL gives a trigger an open relation, here locked against everybody else.
    let partitioned = unsafe { (*(*data.tg_relation).rd_rel).relkind } as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
    if partitioned {
        return false;
    }
    let fixed = Fixed::enter(false);
    let mut memory = PgMemoryContexts::new("rows of a truncated partition");
    let mut statement = None;
    // SAFETY: the scan is begun and ended here; a tuple is used before the next is asked for; the slot is for rows of
    // this relation and does not own them.
    unsafe {
        let relation = data.tg_relation;
        let slot = pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, &pg_sys::TTSOpsHeapTuple);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            pg_sys::GetActiveSnapshot(),
            0,
            std::ptr::null_mut(),
        );
        let mut texts = Texts::default();
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            pg_sys::ExecStoreHeapTuple(tuple, slot, false);
            let row = Row(slot);
            row.take_apart(plan.width);
            let statement = statement.get_or_insert_with(|| Statement::new(plan.clone()));
            memory.reset();
            memory.switch_to(|_| {
                row.object(plan, &mut texts.old);
                row.key(plan, &mut texts.old_key);
                statement.add(&Change {
                    key: (!plan.key.is_empty()).then_some(&texts.old_key),
                    old: Some(&texts.old),
                    ..Change::bare(Op::Delete)
                });
            });
            pgrx::check_for_interrupts!();
        }
        pg_sys::systable_endscan(scan);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
    }
    fixed.leave();
    if let Some(statement) = &mut statement {
        statement.flush();
    }
    statement.is_some()
}
