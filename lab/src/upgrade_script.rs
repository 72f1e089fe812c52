//! `lab/run upgrade-script`: writes the script that updates the last released version to this one.
//!
//! DDL is written by hand, in `migrations/A--B.sql`. Everything that can be replaced as a whole (functions, views,
//! comments, rights) is taken from the install script of this version, where it differs from that of the last one.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::release;
use crate::sql_script::{Statement, statements};

/// The line of the handwritten part before which the generated statements go. Without it they go to the end.
const HERE: &str = "-- generated statements\n";

/// The first line of the script.
const HEADER: &str = "-- Written by `lab/run upgrade-script` from migrations/ and sql/. Do not edit.";

/// A symbol that every version of the library has. `create function` looks its symbol up in the library that is
/// loaded, which is the old one until the server is restarted, so that new functions are created with this one first.
const KNOWN_SYMBOL: &str = "reload_worker_wrapper";

/// Writes the script for the version in `Cargo.toml`; its path. None if no older version is released.
pub fn write(paths: &Paths) -> Result<Option<PathBuf>> {
    let Some((file, script)) = make(paths)? else {
        return Ok(None);
    };
    if !same(&fs::read_to_string(&file).unwrap_or_default(), &script) {
        fs::write(&file, script)?;
    }
    Ok(Some(file))
}

/// Whether two scripts have the same statements. pgrx puts those that do not depend on each other in any order.
pub fn same(one: &str, other: &str) -> bool {
    let sorted = |script| {
        let mut texts: Vec<_> = statements(script).iter().map(|statement| statement.text).collect();
        texts.sort_unstable();
        texts.join(";\n")
    };
    sorted(one) == sorted(other)
}

/// The script as it should be, and where it belongs. The extension must be installed.
pub fn make(paths: &Paths) -> Result<Option<(PathBuf, String)>> {
    let version = release::version(paths)?;
    let mut released = release::frozen(&release::folder(paths))?;
    released.retain(|(released, _)| *released != version);
    let Some((last, frozen)) = released.pop() else {
        return Ok(None);
    };
    let by_hand = paths.root.join(format!("migrations/{last}--{version}.sql"));
    let by_hand =
        fs::read_to_string(&by_hand).with_context(|| format!("cannot read the DDL in {}", by_hand.display()))?;
    let installed = release::installed_script(paths, &version);
    let installed = fs::read_to_string(&installed)
        .with_context(|| format!("{} is not there: install the extension first", installed.display()))?;
    let file = paths.root.join(format!("sql/pg_jetstream--{last}--{version}.sql"));
    Ok(Some((file, script(&fs::read_to_string(frozen)?, &installed, &by_hand))))
}

/// The upgrade script between two install scripts, around the handwritten DDL.
fn script(old: &str, new: &str, by_hand: &str) -> String {
    let same: BTreeSet<&str> = statements(old).iter().map(|statement| statement.text).collect();
    let dropped: Vec<String> = statements(by_hand).iter().filter_map(dropped_object).collect();
    let mut generated = String::new();
    for statement in statements(new) {
        let lost = dropped.iter().any(|name| mentions(statement.text, name));
        // What is created here is granted to PUBLIC by default, as it was in the install script.
        let revokes = statement.text.starts_with("revoke ");
        if same.contains(statement.text) && !lost && !revokes {
            continue;
        }
        if let Some(text) = replaceable(&statement, old) {
            generated.push_str(&text);
            generated.push_str("\n\n");
        }
    }
    let (before, after) = by_hand.split_once(HERE).unwrap_or((by_hand, ""));
    let parts = [HEADER, before.trim(), generated.trim(), after.trim()];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n\n") + "\n"
}

/// The statement in a form that replaces what is there; none if it can be run only once.
fn replaceable(statement: &Statement<'_>, old: &str) -> Option<String> {
    let mut words = statement.text.split_whitespace().map(str::to_lowercase);
    let (first, second) = (words.next()?, words.next()?);
    match first.as_str() {
        "comment" | "grant" | "revoke" => Some(format!("{};", statement.text)),
        "create" => {
            let replaces = second == "or";
            let kind = if replaces { words.nth(1)? } else { second };
            if kind != "function" && kind != "view" {
                return None;
            }
            let at = statement.text.to_lowercase().find(&kind)?;
            let rest = &statement.text[at + kind.len()..];
            // Functions in Rust name no schema, and an upgrade script has none of its own on its search_path.
            let rest = match rest.trim_start().strip_prefix('"') {
                Some(name) => format!(" jetstream.\"{name}"),
                None => rest.to_owned(),
            };
            let text = format!("create or replace {kind}{rest};");
            Some(if kind == "function" {
                of_known_symbol(text, old)
            } else {
                text
            })
        }
        _ => None,
    }
}

/// A function of a symbol that the old library lacks is created with one that it has, and then gets its own.
fn of_known_symbol(text: String, old: &str) -> String {
    let marker = "'MODULE_PATHNAME', '";
    let Some((before, rest)) = text.split_once(marker) else {
        return text;
    };
    let Some((symbol, after)) = rest.split_once('\'') else {
        return text;
    };
    if old.contains(&format!("{marker}{symbol}'")) {
        return text;
    }
    let name = object_name(&text).unwrap_or_default();
    let name = name.rsplit('.').next().unwrap_or_default().trim_matches('"');
    format!(
        "{before}{marker}{KNOWN_SYMBOL}'{after}\n\
         update pg_catalog.pg_proc set prosrc = '{symbol}'\n\
         where pronamespace = 'jetstream'::pg_catalog.regnamespace and proname = '{name}' and prosrc = '{KNOWN_SYMBOL}';"
    )
}

/// The name behind `create … function` or `create … view`.
fn object_name(text: &str) -> Option<String> {
    let mut words = text.split_whitespace();
    words.find(|word| ["function", "view"].contains(&word.to_lowercase().as_str()))?;
    words
        .next()
        .map(|word| word.split('(').next().unwrap_or(word).to_owned())
}

/// The function or view that a statement drops, without its arguments: what is created again needs its comments and
/// rights again.
fn dropped_object(statement: &Statement<'_>) -> Option<String> {
    let text = statement.text.to_lowercase();
    if !text.starts_with("drop ") {
        return None;
    }
    let name = object_name(&text.replace("if exists ", ""))?;
    Some(name.trim_end_matches([';', ',']).to_owned())
}

fn mentions(text: &str, name: &str) -> bool {
    let text = text.replace('"', "");
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_statements_is_no_difference() {
        assert!(same("select 1;\nselect 2;", "-- why\nselect 2;\n\nselect 1;"));
        assert!(!same("select 1;\nselect 2;", "select 1;"));
        assert!(!same("select 1;", "select 1; select 1;"));
    }

    #[test]
    fn takes_what_differs_and_can_be_replaced() {
        let old = "create function a.f() returns int language sql as 'select 1';\ncreate table a.t (x int);\n\
                   comment on table a.t is 'T';";
        let new = "-- src/x.rs\nCREATE  FUNCTION a.f() returns int language sql as 'select 2';\n\
                   create table a.t (x int, y int);\ncomment on table a.t is 'T';\ncomment on column a.t.y is 'Y';";
        assert_eq!(
            script(old, new, "alter table a.t add column y int;\n"),
            "-- Written by `lab/run upgrade-script` from migrations/ and sql/. Do not edit.\n\n\
             alter table a.t add column y int;\n\n\
             create or replace function a.f() returns int language sql as 'select 2';\n\n\
             comment on column a.t.y is 'Y';\n"
        );
    }

    #[test]
    fn what_is_dropped_by_hand_gets_its_comments_and_rights_again() {
        let both = "create view a.v as select 1;\ncomment on view a.v is 'V';\ngrant select on a.v, a.w to r;\n\
                    comment on view a.vw is 'other';";
        assert_eq!(
            script(both, both, "drop view a.v;\n-- generated statements\nselect 1;\n"),
            "-- Written by `lab/run upgrade-script` from migrations/ and sql/. Do not edit.\n\n\
             drop view a.v;\n\ncreate or replace view a.v as select 1;\n\ncomment on view a.v is 'V';\n\n\
             grant select on a.v, a.w to r;\n\nselect 1;\n"
        );
    }

    #[test]
    fn what_is_created_is_left_to_nobody() {
        let old = "revoke all on all functions in schema a from public;";
        let new = format!("create function a.f() returns int language sql as 'select 1';\n{old}");
        assert!(script(old, &new, "").ends_with(&format!("\n\n{old}\n")));
    }

    #[test]
    fn a_new_symbol_is_set_behind_the_library_that_is_loaded() {
        let new = "CREATE  FUNCTION \"g\"() RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'g_wrapper';";
        let script = script("", new, "");
        assert!(
            script.contains("'MODULE_PATHNAME', 'reload_worker_wrapper';"),
            "{script}"
        );
        assert!(script.contains("set prosrc = 'g_wrapper'"), "{script}");
        assert!(
            script.contains("create or replace function jetstream.\"g\"()"),
            "{script}"
        );
        assert!(script.contains("proname = 'g'"), "{script}");
    }
}
