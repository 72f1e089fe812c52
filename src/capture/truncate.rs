//! TRUNCATE: of the captured table one message, of a single partition its rows.

use std::cell::Cell;
use std::rc::Rc;

use pgrx::pg_sys::{SubTransactionId, TriggerData};

use super::batch::{Change, Op};
use super::plan::Plan;
use super::rows::{Texts, key, object};
use super::{Statement, settings};
use crate::pg;
use crate::pg::rows::{Memory, each_row_of_table};
use crate::pg::trigger;

/// The table that was truncated as a whole, and where: start of the transaction, subtransaction.
type Emptied = (u32, i64, SubTransactionId);

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
    let here: Emptied = (plan.head.relation_id, pg::transaction_start(), pg::subtransaction());
    if plan.config.partition {
        return EMPTIED.get() != Some(here) && rows(plan, data);
    }
    let mut statement = Statement::new(plan.clone());
    statement.add(&Change {
        key: plan.whole(),
        ..Change::bare(Op::Truncate)
    });
    statement.end();
    EMPTIED.set(Some(here));
    true
}

/// Captures all rows of a partition as deleted; false if there are none.
fn rows(plan: &Rc<Plan>, data: &TriggerData) -> bool {
    if trigger::is_partitioned(data) {
        return false;
    }
    let settings = settings::fix(plan.needs);
    let mut memory = Memory::of_rows();
    let mut statement = None;
    let mut texts = Texts::default();
    each_row_of_table(data, plan.width, |row| {
        let statement = statement.get_or_insert_with(|| Statement::new(plan.clone()));
        memory.run(|| {
            object(row, plan, &mut texts.old);
            key(row, plan, &mut texts.old_key);
            statement.add(&Change {
                key: plan.keyed.then_some(&texts.old_key),
                old: Some(&texts.old),
                ..Change::bare(Op::Delete)
            });
        });
    });
    settings.undo();
    statement.map(Statement::end).is_some()
}
