//! A condition on a table's rows, analyzed with the rights of the table's owner.
//!
//! Analysis calls the input functions of the types of literals, and with them what domains check: code of whoever wrote
//! the condition, who may be anybody that owns a table.

use std::ffi::CString;
use std::ptr::null_mut;

use pgrx::pg_sys::{self, Oid};
use pgrx::spi::Spi;

use super::settings::Changed;

/// Why a condition is not taken; what PostgreSQL itself has against it is an ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The caller has not the rights of the table's owner.
    #[error("must be owner of the table")]
    NotOwner,
    /// No such table.
    #[error("the table does not exist")]
    NoTable,
    /// The text goes on behind the expression.
    #[error("it is not one expression")]
    NotOneExpression,
    /// Aggregates, window functions or functions that return sets.
    #[error("it is not of one row: aggregates, window functions and functions that return sets cannot be used")]
    NotOfOneRow,
}

/// Another user's rights, until this is dropped. What can outlive that, as deferred triggers and prepared statements,
/// is refused meanwhile.
struct AsUser {
    before: Oid,
    context: i32,
}

impl AsUser {
    fn new(user: Oid) -> AsUser {
        let (mut before, mut context) = (pg_sys::InvalidOid, 0);
        // SAFETY: the end of the (sub)transaction restores both too.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut before, &mut context);
            pg_sys::SetUserIdAndSecContext(user, context | pg_sys::SECURITY_RESTRICTED_OPERATION as i32);
        }
        AsUser { before, context }
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        // SAFETY: what GetUserIdAndSecContext gave.
        unsafe { pg_sys::SetUserIdAndSecContext(self.before, self.context) }
    }
}

/// Analyzes `condition` as the trigger of a capture will: on a row of a transition table of `relation`, in a query without
/// parameters and with `search_path` narrowed. Nothing is planned or executed. `trigger` depends on what it names from
/// then on.
pub fn analyze(relation: Oid, condition: &str, trigger: Option<Oid>) -> Result<(), Refusal> {
    // Nobody will name this table in a condition: it has other names for the trigger.
    let query = CString::new(format!("select ({condition}) is true from \"captured rows\""))
        .map_err(|_| Refusal::NotOneExpression)?;
    let lock = pg_sys::AccessShareLock as i32;
    // SAFETY: opened here; the caller's rights are looked up before anything is done with the owner's.
    let (table, owner) = unsafe {
        let table = pg_sys::try_relation_open(relation, lock);
        if table.is_null() {
            return Err(Refusal::NoTable);
        }
        (table, (*(*table).rd_rel).relowner)
    };
    // SAFETY: looks up the catalog.
    let may = unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner) };
    let result = if may {
        let user = AsUser::new(owner);
        let mut settings = Changed::default();
        settings.set(c"search_path", c"pg_catalog, pg_temp");
        let result = prepare(relation, &query, trigger);
        settings.undo_all();
        drop(user);
        result
    } else {
        Err(Refusal::NotOwner)
    };
    // SAFETY: opened above; the lock stays until the transaction ends.
    unsafe { pg_sys::relation_close(table, pg_sys::NoLock as i32) };
    result
}

fn prepare(relation: Oid, query: &CString, trigger: Option<Oid>) -> Result<(), Refusal> {
    // It outlives the connection to SPI.
    let mut rows = pg_sys::EphemeralNamedRelationData::default();
    rows.md.name = c"captured rows".as_ptr().cast_mut();
    rows.md.reliddesc = relation;
    rows.md.enrtype = pg_sys::EphemeralNameRelationType::ENR_NAMED_TUPLESTORE;
    Spi::connect(|_| {
        // SAFETY: connected; the plan, and all that is read of it, lives until the connection ends.
        unsafe {
            pg_sys::SPI_register_relation(&mut rows);
            let plan = pg_sys::SPI_prepare(query.as_ptr(), 0, null_mut());
            if plan.is_null() {
                return Err(Refusal::NotOneExpression);
            }
            let parsed: *mut pg_sys::CachedPlanSource = only(pg_sys::SPI_plan_get_plan_sources(plan))?;
            let query: *mut pg_sys::Query = only((*parsed).query_list)?;
            let target = expression(&*query)?;
            if let Some(trigger) = trigger {
                let depender = pg_sys::ObjectAddress {
                    classId: pg_sys::TriggerRelationId,
                    objectId: trigger,
                    objectSubId: 0,
                };
                pg_sys::recordDependencyOnExpr(
                    &depender,
                    target,
                    (*query).rtable,
                    pg_sys::DependencyType::DEPENDENCY_NORMAL,
                );
            }
        }
        Ok(())
    })
}

/// What a query selects, if it is `select expression from table` and no more.
///
/// # Safety
///
/// An analyzed query.
unsafe fn expression(query: &pg_sys::Query) -> Result<*mut pg_sys::Node, Refusal> {
    if query.commandType != pg_sys::CmdType::CMD_SELECT || !query.utilityStmt.is_null() || query.jointree.is_null() {
        return Err(Refusal::NotOneExpression);
    }
    if query.hasAggs || query.hasWindowFuncs || query.hasTargetSRFs {
        return Err(Refusal::NotOfOneRow);
    }
    // SAFETY: the parts of a query are null or nodes of their kinds.
    unsafe {
        let more = [
            query.cteList,
            query.groupClause,
            query.groupingSets,
            query.windowClause,
            query.distinctClause,
            query.sortClause,
            query.rowMarks,
        ];
        let filters = [
            query.havingQual,
            query.limitOffset,
            query.limitCount,
            query.setOperations,
            (*query.jointree).quals,
        ];
        let _: *mut pg_sys::Node = only((*query.jointree).fromlist)?;
        let _: *mut pg_sys::Node = only(query.rtable)?;
        let target: *mut pg_sys::TargetEntry = only(query.targetList)?;
        if more.iter().any(|list| !list.is_null()) || filters.iter().any(|node| !node.is_null()) {
            return Err(Refusal::NotOneExpression);
        }
        Ok((*target).expr.cast())
    }
}

/// The one element of a list.
///
/// # Safety
///
/// A list of pointers to `T`, or null.
unsafe fn only<T>(list: *mut pg_sys::List) -> Result<*mut T, Refusal> {
    // SAFETY: as above; there is an element.
    unsafe {
        if list.is_null() || (*list).length != 1 {
            return Err(Refusal::NotOneExpression);
        }
        Ok((*(*list).elements).ptr_value.cast())
    }
}
