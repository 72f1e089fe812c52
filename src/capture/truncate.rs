//! TRUNCATE: of the captured table one message, of a single partition its rows.

use std::cell::Cell;
use std::rc::Rc;

use pgrx::pg_sys::{SubTransactionId, TriggerData};

use super::batch::{Change, Op};
use super::plan::Plan;
use super::{Statement, rows};
use crate::pg;
use crate::pg::rows::with_all_as_old;
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
/// transaction ends. Of a partition that is named itself, the rows are captured as deleted.
pub fn capture(plan: &Rc<Plan>, data: &TriggerData) -> bool {
    let here: Emptied = (plan.head.relation_id, pg::transaction_start(), pg::subtransaction());
    if plan.config.partition {
        let told = EMPTIED.get() == Some(here) || trigger::is_partitioned(data);
        return !told && with_all_as_old(data, |data| rows::changes(plan, data));
    }
    let mut statement = Statement::new(plan.clone(), Some(data));
    statement.add(&Change {
        key: plan.whole(),
        ..Change::bare(Op::Truncate)
    });
    statement.end();
    EMPTIED.set(Some(here));
    true
}
