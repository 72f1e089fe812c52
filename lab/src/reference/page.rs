//! The text of the page.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};

use super::catalog::{Argument, Catalog, Function, Grant, Relation, Setting};
use super::errors;

/// The sections of functions: title, the role that identifies them, and a sentence.
const SECTIONS: [(&str, &str, &str); 5] = [
    (
        "Publish",
        "jetstream_publisher",
        "For `jetstream_publisher` and `jetstream_admin`.",
    ),
    (
        "Look",
        "jetstream_reader",
        "For `jetstream_reader` and `jetstream_admin`.",
    ),
    (
        "Work on webhooks",
        "jetstream_webhook_worker",
        "For `jetstream_webhook_worker`.",
    ),
    ("Administer", "jetstream_admin", "For `jetstream_admin`."),
    ("For the worker", "jetstream_worker", "The worker calls these."),
];

pub(super) fn page(catalog: &Catalog, version: &str) -> Result<String> {
    let mut page = String::new();
    write!(
        page,
        "# Reference\n\nVersion {version}. Written by `lab/run reference` from the comments in the catalog, which psql shows too \
         (`\\d+`, `\\df+`).\nAll objects are in schema `jetstream`.\n\n\
         [Functions](#functions) · [Tables and views](#tables-and-views) · [Settings](#settings) · \
         [Message headers](#message-headers) · [Limits](#limits) · [Errors](#errors)\n"
    )?;
    functions(&mut page, catalog)?;
    relations(&mut page, catalog)?;
    settings(&mut page, &catalog.settings)?;
    page.push_str(include_str!("fixed.txt"));
    errors_section(&mut page, catalog)?;
    Ok(page)
}

/// Escapes text for a table cell.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|").replace('<', "&lt;")
}

fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}

/// Shortens PostgreSQL's long type names to their usual form.
fn short(kind: &str) -> String {
    kind.replace("timestamp with time zone", "timestamptz")
        .replace("character varying", "varchar")
}

fn functions(page: &mut String, catalog: &Catalog) -> Result<()> {
    page.push_str("\n## Functions\n\nArguments with a default can be left out, and given by name: `name => value`.\n");
    let mut left: Vec<&Function> = catalog
        .functions
        .iter()
        .filter(|function| function.is_called())
        .collect();
    for (title, role, who) in SECTIONS {
        let (mut here, others): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|function| function.roles.iter().any(|known| known == role));
        left = others;
        // Publishing functions come first, and those of the rule engine last.
        let rank = |function: &&Function| match function.name.split('_').next() {
            Some("publish") => 0,
            Some("rule") => 2,
            _ => 1,
        };
        here.sort_by_key(rank);
        write!(page, "\n### {title}\n\n{who}\n")?;
        for function in here {
            one_function(page, catalog, function)?;
        }
    }
    page.push_str(
        "\n### Used by other functions, triggers and the worker\n\nNot to be called.\n\n| Function | |\n|---|---|\n",
    );
    for function in catalog.functions.iter().filter(|function| !function.is_called()) {
        let name = code(&format!("{}({})", function.name, short(&function.identity)));
        writeln!(page, "| {name} | {} |", cell(&function.about()))?;
    }
    Ok(())
}

fn one_function(page: &mut String, catalog: &Catalog, function: &Function) -> Result<()> {
    let (results, arguments): (Vec<&Argument>, Vec<&Argument>) = function
        .arguments
        .iter()
        .partition(|argument| matches!(argument.mode.as_str(), "t" | "o"));
    let returns = match results.is_empty() {
        true => short(&function.returns),
        false => "table".to_owned(),
    };
    let names: Vec<&str> = arguments
        .iter()
        .filter_map(|argument| argument.name.as_deref())
        .collect();
    write!(page, "\n#### {}\n\n", function.name)?;
    write!(
        page,
        "`{}({}) → {returns}`\n\n{}.\n",
        function.name,
        names.join(", "),
        function.about()
    )?;
    let also: Vec<String> = function
        .roles
        .iter()
        .filter(|role| !matches!(role.as_str(), "jetstream_admin" | "jetstream_publisher"))
        .map(|role| code(role))
        .collect();
    if also.len() > 1 {
        write!(page, "\nAlso for {}.\n", also.join(", "))?;
    }
    let meaning = |argument: &Argument| {
        let name = argument.name.as_deref().unwrap_or_default();
        cell(&catalog.meaning(function, name).unwrap_or_default())
    };
    if !arguments.is_empty() {
        page.push_str("\n| Argument | Type | Default | |\n|---|---|---|---|\n");
    }
    for argument in arguments {
        let name = code(argument.name.as_deref().unwrap_or_default());
        let default = argument.default.as_deref().map(|text| code(&shown_default(text)));
        let default = default.unwrap_or_default();
        writeln!(
            page,
            "| {name} | {} | {default} | {} |",
            short(&argument.kind),
            meaning(argument)
        )?;
    }
    if !results.is_empty() {
        page.push_str("\n| Column | Type | |\n|---|---|---|\n");
    }
    for result in results {
        let name = code(result.name.as_deref().unwrap_or_default());
        writeln!(page, "| {name} | {} | {} |", short(&result.kind), meaning(result))?;
    }
    Ok(())
}

/// A default as a user would write it: `'default'` instead of `'default'::text`, `null` instead of `NULL::text`.
fn shown_default(text: &str) -> String {
    let mut shown = text.to_owned();
    for kind in [
        "text[]",
        "text",
        "jsonb",
        "interval",
        "numeric",
        "timestamp with time zone",
    ] {
        shown = shown.replace(&format!("::{kind}"), "");
    }
    match shown.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        Some(inner) => inner.to_owned(),
        None if shown == "NULL" => "null".to_owned(),
        None => shown,
    }
}

fn relations(page: &mut String, catalog: &Catalog) -> Result<()> {
    page.push_str("\n## Tables and views\n");
    for relation in &catalog.relations {
        one_relation(page, relation)?;
    }
    Ok(())
}

fn one_relation(page: &mut String, relation: &Relation) -> Result<()> {
    let kind = if relation.kind == "v" { "View" } else { "Table" };
    let about = relation.comment.as_deref().unwrap_or_default();
    write!(page, "\n### {}\n\n{kind}. {about}.\n\n", relation.name)?;
    page.push_str("| Column | Type | Default | |\n|---|---|---|---|\n");
    for column in &relation.columns {
        let default = match &column.default {
            Some(text) => code(&shown_default(text)),
            None if column.required => "required".to_owned(),
            None => String::new(),
        };
        let about = cell(column.comment.as_deref().unwrap_or_default());
        writeln!(
            page,
            "| {} | {} | {default} | {about} |",
            code(&column.name),
            short(&column.kind)
        )?;
    }
    if !relation.constraints.is_empty() {
        page.push_str("\n| Constraint | |\n|---|---|\n");
    }
    for constraint in &relation.constraints {
        writeln!(
            page,
            "| {} | {} |",
            code(&constraint.name),
            code(&short(&constraint.definition))
        )?;
    }
    rights(page, &relation.grants)
}

fn rights(page: &mut String, grants: &[Grant]) -> Result<()> {
    let mut roles: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let whole = |grant: &Grant| grant.columns.is_none();
    let in_whole = |part: &Grant| {
        let same = |grant: &Grant| whole(grant) && grant.role == part.role && grant.right == part.right;
        !whole(part) && grants.iter().any(same)
    };
    for grant in grants.iter().filter(|grant| !in_whole(grant)) {
        let columns = grant
            .columns
            .as_ref()
            .map(|columns| format!(" ({})", columns.join(", ")));
        let right = format!("{}{}", grant.right, columns.unwrap_or_default());
        roles.entry(&grant.role).or_default().push(right);
    }
    if roles.is_empty() {
        page.push_str("\nNobody but the owner has a right on it.\n");
    } else {
        page.push_str("\n| Role | May |\n|---|---|\n");
    }
    for (role, rights) in roles {
        writeln!(page, "| {} | {} |", code(role), rights.join("; "))?;
    }
    Ok(())
}

fn settings(page: &mut String, settings: &[Setting]) -> Result<()> {
    page.push_str(
        "\n## Settings\n\nSet those named `pg_jetstream.…` in `postgresql.conf` or by `alter system`. They take effect on reload, except \
         `pg_jetstream.max_databases`,\nwhich needs a restart. `jetstream.traceparent` is set by a session or a transaction.\n\n| Setting | Default | Range | |\n|---|---|---|---|\n",
    );
    for setting in settings {
        let unit = setting.unit.as_deref();
        let range = match (&setting.values, &setting.least, &setting.most) {
            (Some(values), ..) => values.join(", "),
            (None, Some(least), Some(most)) => format!("{} to {}", amount(least, unit)?, amount(most, unit)?),
            _ => String::new(),
        };
        let default = match setting.default.as_str() {
            "" => "empty".to_owned(),
            value => code(value),
        };
        anyhow::ensure!(
            matches!(setting.context.as_str(), "postmaster" | "sighup" | "user"),
            "the page does not say when setting {} of context {} takes effect",
            setting.name,
            setting.context
        );
        writeln!(
            page,
            "| {} | {default} | {range} | {} |",
            code(&setting.name),
            cell(&setting.about)
        )?;
    }
    Ok(())
}

/// Converts a number in a setting's unit to the largest unit in which it is a whole number.
fn amount(number: &str, unit: Option<&str>) -> Result<String> {
    let larger: &[(u64, &str)] = match unit {
        None => return Ok(number.to_owned()),
        Some("ms") => &[(1000, "ms"), (60, "s"), (60, "min"), (24, "h"), (u64::MAX, "d")],
        Some("min") => &[(60, "min"), (24, "h"), (u64::MAX, "d")],
        Some("B") => &[(1024, "B"), (1024, "kB"), (1024, "MB"), (u64::MAX, "GB")],
        Some(unit) => anyhow::bail!("unknown unit {unit}"),
    };
    let mut number: u64 = number.parse()?;
    let mut shown = "";
    for (of_next, name) in larger {
        shown = name;
        if !number.is_multiple_of(*of_next) || number < *of_next {
            break;
        }
        number /= of_next;
    }
    Ok(format!("{number} {shown}"))
}

fn errors_section(page: &mut String, catalog: &Catalog) -> Result<()> {
    page.push_str("\n## Errors\n\n### A message that is refused\n\nAn insert into the outbox, and the functions that make one, fail with SQLSTATE 22023, as far as the table says nothing\nelse; the transaction is rolled back like after any other ERROR.\n\n| Error | Hint |\n|---|---|\n");
    for (error, hint) in errors::refusals() {
        writeln!(page, "| {} | {} |", cell(&shortened(&error)), cell(hint))?;
    }
    page.push_str(include_str!("refused.txt"));
    page.push_str("\n### A message that is not stored\n\nWhat `outbox.last_error` and `dead_letters.reason` say.\n\n| Reason | Then | What to do |\n|---|---|---|\n");
    for (reason, then, advice) in errors::reasons() {
        writeln!(page, "| {} | {then} | {advice} |", cell(&reason))?;
    }
    page.push_str("\n### Errors of functions\n\n`%` stands for a value. Constraints of the tables fail with 23514 (check), 23503 (foreign key) and 23505 (unique).\n\n| SQLSTATE | Error | Raised by |\n|---|---|---|\n");
    let mut raised: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for error in &catalog.raised {
        let state = errors::sqlstate(&error.condition);
        let state = state.with_context(|| format!("the SQLSTATE of {} is unknown", error.condition))?;
        let functions = raised.entry((state, &error.message)).or_default();
        functions.push(code(&error.function));
    }
    for ((state, message), functions) in raised {
        writeln!(page, "| {state} | {} | {} |", cell(message), functions.join(", "))?;
    }
    Ok(())
}

/// Shortens long values.
fn shortened(text: &str) -> String {
    text.replace(&"x".repeat(30), "")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn shows_amounts_and_defaults_as_one_writes_them() {
        assert_eq!(amount("600000", Some("ms")).unwrap(), "10 min");
        assert_eq!(amount("10", Some("ms")).unwrap(), "10 ms");
        assert_eq!(amount("5270400", Some("min")).unwrap(), "3660 d");
        assert_eq!(amount("65536", Some("B")).unwrap(), "64 kB");
        assert_eq!(amount("9999", None).unwrap(), "9999");
        assert_eq!(shown_default("'default'::text"), "'default'");
        assert_eq!(shown_default("NULL::text[]"), "null");
        assert_eq!(shown_default("(gen_random_uuid())::text"), "gen_random_uuid()");
        assert_eq!(
            shown_default("NULLIF(current_setting('a'::text, true), ''::text)"),
            "NULLIF(current_setting('a', true), '')"
        );
    }
}
