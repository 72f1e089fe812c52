//! `lab/run lint`: what every statement of `sql/` must observe, so that nothing of the extension runs what another role
//! has put into a schema.
//!
//! The install script is run by a superuser. What a constraint, default, view or index calls is bound once, by the
//! `search_path` of that moment; what a function calls is bound whenever it runs. So both are pinned.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::release;
use crate::sql_script::{Statement, statements};

/// Operators and functions are found in `pg_catalog` alone.
const PIN: &str = "set local search_path = pg_catalog, pg_temp";

/// The file that pins all those after it.
const PINNED: &str = "search_path.sql";

/// What each function in SQL or PL/pgSQL has.
const FUNCTION_PIN: &str = "set search_path = pg_catalog, pg_temp";

/// The file whose statements every script begins with.
const GUARD: &str = "guard.sql";

/// The last statement of that file, for the functions in Rust, which come next and name no schema. An upgrade script has
/// none of them.
const UNPIN: &str = "set local search_path = jetstream, pg_temp";

/// What breaks the rules, one line each.
pub fn run(paths: &Paths) -> Result<Vec<String>> {
    let guard = fs::read_to_string(paths.root.join("sql").join(GUARD))?;
    let mut found = Vec::new();
    for (name, script) in files(&paths.root.join("sql"), "sql")? {
        // Upgrade scripts are generated from what is checked here.
        if !name.contains("--") {
            found.extend(check(&name, &script));
        }
    }
    let version = release::version(paths)?;
    for (name, script) in files(&paths.root.join("migrations"), "sql")? {
        if name.ends_with(&format!("--{version}.sql")) {
            found.extend(check_guard(&name, &script, &guard));
        }
    }
    let installed = release::installed_script(paths, &version);
    if installed.exists() {
        found.extend(check_order(&fs::read_to_string(installed)?));
    }
    Ok(found)
}

/// The files of a folder and those below it, by name.
fn files(folder: &Path, extension: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let file = entry?.path();
        if file.is_dir() {
            found.extend(files(&file, extension)?);
        } else if file.extension().is_some_and(|e| e == extension) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(&file)?));
        }
    }
    found.sort();
    Ok(found)
}

fn check(file: &str, script: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, statement) in statements(script).iter().enumerate() {
        let words: Vec<String> = statement.text.split_whitespace().map(str::to_lowercase).collect();
        let mut complain = |what: &str| {
            let head: String = statement
                .text
                .lines()
                .next()
                .unwrap_or_default()
                .chars()
                .take(70)
                .collect();
            found.push(format!("{file}:{}: {what}: {head}", statement.line));
        };
        let is_pin = match file {
            GUARD => statement.text == PIN && number == 0 || statement.text == UNPIN,
            PINNED => statement.text == PIN,
            _ => false,
        };
        if words[0] == "set" && !is_pin || words[0] == "reset" {
            complain("changes a setting, on which the meaning of later statements depends");
        }
        if words[0] != "create" {
            continue;
        }
        if words[1] == "or" || words.windows(3).any(|w| w == ["if", "not", "exists"]) && words[1] != "function" {
            complain("adopts an object that another role may have created");
        } else if !names(&words).iter().all(|name| name.starts_with("jetstream.")) {
            complain("names an object without its schema");
        }
        let in_sql = words.iter().any(|w| w == "plpgsql" || w == "sql");
        if words[1] == "function" && in_sql && !head(statement).contains(FUNCTION_PIN) {
            complain(&format!("has no `{FUNCTION_PIN}`"));
        }
    }
    found
}

/// A function up to its body.
fn head<'a>(statement: &Statement<'a>) -> &'a str {
    statement.text.split("$$").next().unwrap_or_default()
}

/// The objects that a `create` names: the new one, and those that it is for.
fn names(words: &[String]) -> Vec<&str> {
    let after = |word: &str| {
        let at = words.iter().position(|w| w == word)?;
        words.get(at + 1).map(String::as_str)
    };
    // Indexes and triggers are where their table is; event triggers and roles are in no schema.
    match words[1].as_str() {
        "index" | "unique" => after("on").into_iter().collect(),
        "trigger" | "event" | "constraint" => [if words[1] == "event" { None } else { after("on") }, after("function")]
            .into_iter()
            .flatten()
            .collect(),
        "role" => Vec::new(),
        _ => words.get(2).map(String::as_str).into_iter().collect(),
    }
}

/// A script begins with the guard, whose first statement is the pin.
fn check_guard(file: &str, script: &str, guard: &str) -> Vec<String> {
    let (mut guard, script) = (statements(guard), statements(script));
    guard.retain(|statement| statement.text != UNPIN);
    let same = guard.len() <= script.len() && guard.iter().zip(&script).all(|(one, other)| one.text == other.text);
    if !same || guard.first().is_none_or(|first| first.text != PIN) {
        return vec![format!("{file}:1: does not begin with the statements of sql/{GUARD}")];
    }
    Vec::new()
}

/// In the install script that pgrx has put together, only functions in C stand between the guard and the pin.
fn check_order(script: &str) -> Vec<String> {
    let all = statements(script);
    let guard = all.iter().position(|statement| statement.text == UNPIN);
    let pin = all.iter().rposition(|statement| statement.text == PIN);
    let (Some(guard), Some(pin)) = (guard, pin) else {
        return vec!["the install script does not pin its search_path".to_owned()];
    };
    let in_c = |text: &str| {
        let text = text.to_lowercase();
        text.contains("function") && text.contains("language c")
    };
    let loose = all.get(guard + 1..pin).unwrap_or_default().iter();
    let loose = loose.filter(|statement| !in_c(statement.text));
    let late = all[pin..]
        .iter()
        .filter(|statement| statement.text.contains("FUNCTION \""));
    let first = all.first().filter(|statement| statement.text != PIN);
    let found = first.into_iter().chain(loose).chain(late);
    let name = |statement: &Statement<'_>| {
        let line = statement.text.lines().next().unwrap_or_default();
        format!(
            "the install script, line {}: not where its search_path is right: {line}",
            statement.line
        )
    };
    found.map(name).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_scripts_of_the_extension_observe_the_rules() {
        assert_eq!(run(&Paths::find().unwrap()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn each_rule_is_seen_to_be_broken() {
        for (bad, why) in [
            ("set search_path = jetstream", "setting"),
            ("set local search_path = pg_catalog, pg_temp", "setting"),
            ("reset search_path", "setting"),
            ("create table if not exists jetstream.t (x int)", "adopts"),
            ("create or replace view jetstream.v as select 1", "adopts"),
            ("create table t (x int)", "schema"),
            ("create view v as select 1", "schema"),
            ("create index jetstream on t (x)", "schema"),
            (
                "create trigger t before insert on jetstream.t for each row execute function f()",
                "schema",
            ),
            (
                "create trigger t before insert on t for each row execute function jetstream.f()",
                "schema",
            ),
            ("create event trigger t on sql_drop execute function f()", "schema"),
            (
                "create function jetstream.f() returns int language sql as $$ select 1 $$",
                "has no",
            ),
            (
                "create function jetstream.f() returns int language plpgsql set search_path = jetstream as \
                 $$ begin set search_path = pg_catalog, pg_temp; end $$",
                "has no",
            ),
        ] {
            let found = check("x.sql", bad);
            assert!(found.len() == 1 && found[0].contains(why), "{bad}: {found:?}");
        }
        let good = "create function jetstream.f() returns int language sql set search_path = pg_catalog, pg_temp as $$ select 1 $$;
                    create function jetstream.g() returns int language c as 'MODULE_PATHNAME', 'g';
                    create index t_x on jetstream.t (x);
                    create trigger t before insert on jetstream.t for each row execute function jetstream.f()";
        assert_eq!(check("x.sql", good), Vec::<String>::new());
    }

    #[test]
    fn a_script_without_the_guard_is_seen() {
        let guard = format!("-- why\n{PIN};\ndo $$ begin end $$;\n{UNPIN};");
        let good = format!("{PIN};\ndo $$ begin end $$;\ndrop function jetstream.f();");
        assert_eq!(check_guard("m.sql", &good, &guard), Vec::<String>::new());
        assert_eq!(check_guard("m.sql", "drop function jetstream.f();", &guard).len(), 1);
        assert_eq!(
            check_guard("g.sql", "do $$ begin end $$;", "do $$ begin end $$;").len(),
            1
        );
    }

    #[test]
    fn what_stands_on_the_wrong_side_of_the_pin_is_seen() {
        let function = "CREATE FUNCTION \"f\"() RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'f'";
        let view = "create view jetstream.v as select 1";
        let order = |parts: &[&str]| check_order(&parts.join(";\n")).len();
        assert_eq!(order(&[PIN, "do $$ $$", UNPIN, function, PIN, view]), 0);
        assert_eq!(order(&[PIN, "do $$ $$", UNPIN, view, PIN, function]), 2);
        assert_eq!(order(&["do $$ $$", PIN, UNPIN, PIN]), 1);
        assert_eq!(order(&[function, view]), 1);
    }
}
