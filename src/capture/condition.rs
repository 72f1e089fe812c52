//! Conditions on rows: what they may be, and which rows they want.

use std::panic::AssertUnwindSafe;

use pgrx::PgTryBuilder;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::pg_sys::{Oid, TriggerData};
use pgrx::prelude::*;

use super::fail;
use crate::pg::condition::{Refusal, analyze};
use crate::pg::{self, trigger};

/// Analyzes a condition on a table's rows with the rights of the table's owner, which the caller must have. ERROR if it
/// does not work.
#[pg_extern(volatile)]
fn capture_analyze(relation: Oid, condition: &str) {
    analyze(relation, condition, None).unwrap_or_else(|why| refuse(why));
}

/// The same, and makes a trigger of the table depend on the functions, types, operators and tables that the condition
/// names.
#[pg_extern(volatile)]
fn capture_depend(relation: Oid, condition: &str, trigger: Oid) {
    analyze(relation, condition, Some(trigger)).unwrap_or_else(|why| refuse(why));
}

fn refuse(why: Refusal) -> ! {
    let code = match why {
        Refusal::NotOwner => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        Refusal::NoTable => PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
        Refusal::NotOneExpression => PgSqlErrorCode::ERRCODE_SYNTAX_ERROR,
        Refusal::NotOfOneRow => PgSqlErrorCode::ERRCODE_GROUPING_ERROR,
    };
    pg::refuse(
        code,
        why.to_string(),
        "Give an expression that is true or false of one row.",
    )
}

/// One boolean for each row of the transition table `name`, in its order. ERROR that names the table if the condition
/// fails.
pub fn judge(table: &str, condition: &str, data: &TriggerData, name: &str) -> Vec<bool> {
    let query = format!("select ({condition}) is true from {name}");
    let fail = |code, why: &str| -> Vec<bool> {
        fail(
            table,
            code,
            &format!("condition ({condition}): {why}"),
            "Capture the table again with another condition, or end it with jetstream.uncapture.",
        )
    };
    let rows = PgTryBuilder::new(AssertUnwindSafe(|| rows(data, &query)))
        .catch_others(|cause| match cause {
            CaughtError::PostgresError(e) | CaughtError::ErrorReport(e) if is_own(e.sql_error_code()) => {
                Ok(fail(e.sql_error_code(), e.message()))
            }
            cause => cause.rethrow(),
        })
        .execute();
    rows.unwrap_or_else(|why| fail(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, &why))
}

/// Whether an ERROR is the condition's own, and not one of a lack of memory, a conflict or a cancelled statement.
fn is_own(code: PgSqlErrorCode) -> bool {
    // The first two characters of a SQLSTATE, six bits each.
    let class = |code: PgSqlErrorCode| code as i32 & 0xfff;
    ![
        PgSqlErrorCode::ERRCODE_TRANSACTION_ROLLBACK,
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
        PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        PgSqlErrorCode::ERRCODE_OPERATOR_INTERVENTION,
        PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
    ]
    .into_iter()
    .any(|other| class(other) == class(code))
}

fn rows(data: &TriggerData, query: &str) -> Result<Vec<bool>, String> {
    Spi::connect_mut(|client| {
        if !trigger::register_tables(data) {
            return Err("the transition tables cannot be read".to_owned());
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
