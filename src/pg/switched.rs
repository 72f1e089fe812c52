//! `alter table … disable trigger all` on a table of this extension, as `pg_restore --disable-triggers` does.

use std::ffi::CStr;

use pgrx::pg_sys::{self, AlterTableType, NodeTag};
use pgrx::{Spi, pg_guard};

use super::refuse;

/// Lets the extension do what its triggers would have done. To be called behind every statement: it costs the others a
/// comparison.
///
/// # Safety
///
/// A statement that has been executed.
pub unsafe fn after(statement: *const pg_sys::PlannedStmt) {
    // SAFETY: a utility statement has a tree, whose tag tells its kind.
    unsafe {
        let tree = (*statement).utilityStmt;
        if (*tree).type_ == NodeTag::T_AlterTableStmt {
            alter_table(tree.cast());
        }
    }
}

/// # Safety
///
/// As above.
#[pg_guard]
unsafe extern "C-unwind" fn alter_table(statement: *const pg_sys::AlterTableStmt) {
    // SAFETY: the parts of a statement are null or nodes of their kinds; names are C strings.
    unsafe {
        let (Some(table), Some(list)) = ((*statement).relation.as_ref(), (*statement).cmds.as_ref()) else {
            return;
        };
        if table.schemaname.is_null() || CStr::from_ptr(table.schemaname) != c"jetstream" {
            return;
        }
        let commands = std::slice::from_raw_parts(list.elements, list.length as usize);
        for command in commands {
            let enabled = match (*command.ptr_value.cast::<pg_sys::AlterTableCmd>()).subtype {
                AlterTableType::AT_EnableTrigAll => true,
                AlterTableType::AT_DisableTrigAll => false,
                _ => continue,
            };
            pg_sys::CommandCounterIncrement();
            // Earlier SQL has no such function until the extension is updated.
            let known = "select pg_catalog.to_regprocedure('jetstream.triggers_switched(name, boolean)') is not null";
            if !matches!(Spi::get_one::<bool>(known), Ok(Some(true))) {
                return;
            }
            let name = CStr::from_ptr(table.relname).to_string_lossy();
            let done = Spi::run_with_args(
                "select jetstream.triggers_switched($1::name, $2)",
                &[name.as_ref().into(), enabled.into()],
            );
            if let Err(error) = done {
                let code = pgrx::PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;
                refuse(code, format!("triggers of jetstream.{name}: {error}"), "");
            }
        }
    }
}
