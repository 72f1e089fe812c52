//! Capture gives no user additional rights, neither through the functions in a condition nor over captures of other
//! users.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use capture_support::{capture_lab, settled};
use e2e_support::{SOON, becomes};
use lab::Lab;

const CAPTURED: &str = "select tgrelid::regclass, tgname from pg_trigger where tgname like 'jetstream_capture%' \
                        order by tgrelid::regclass::text, tgname";

/// A lab with two publishers. Each owns one schema and nothing else: `mallory` owns `m`, and `victim` owns `v`.
fn two_publishers() -> Lab {
    let lab = capture_lab();
    lab.sql(
        "create role mallory in role jetstream_publisher; create role victim in role jetstream_publisher;
         create schema m authorization mallory; create schema v authorization victim; grant usage on schema m, v to public",
    )
    .unwrap();
    lab
}

fn code(lab: &Lab, role: &str, sql: &str) -> String {
    lab.failure(&format!("set role {role}; {sql}"))
        .unwrap_or_else(|error| panic!("{error:#}"))
}

fn run(lab: &Lab, role: &str, sql: &str) {
    lab.sql(&format!("set role {role}; {sql}"))
        .unwrap_or_else(|error| panic!("{error:#}"));
}

/// SQL that creates by hand a trigger like those of `capture`.
fn trigger(table: &str, argument: &serde_json::Value) -> String {
    format!(
        "create trigger jetstream_capture_insert after insert on {table} referencing new table as new_rows \
         for each statement execute function jetstream.capture_changes({})",
        quoted(&argument.to_string())
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn argument(condition: &str) -> serde_json::Value {
    serde_json::json!({"table": 0, "format": "row", "prefix": "m", "connection": "default", "columns": null, "key": null,
        "condition": condition, "transactions": false, "partition": false})
}

#[test]
fn a_condition_gets_no_rights_from_whoever_alters_the_table() {
    let lab = two_publishers();
    run(
        &lab,
        "mallory",
        "create table m.ran (by text);
         create function m.f(v text) returns boolean language plpgsql as
             'begin insert into m.ran values (current_user); return true; end';
         create domain m.d as text check (m.f(value));
         create table m.t (id int primary key, v text); create table m.u (id int primary key, v text);
         create table m.w (id int primary key, v text)",
    );
    let is_super = || {
        lab.value("select rolsuper from pg_roles where rolname = 'mallory'")
            .unwrap()
    };
    // The text contains several statements.
    let several = "true) is true from (select 1) r; do $d$ begin if current_user = 'postgres' then \
                   execute 'alter role mallory superuser'; end if; end $d$; select (true";
    let capture = format!("select jetstream.capture('m.t', condition => {})", quoted(several));
    let refused = lab.sql(&format!("set role mallory; {capture}")).is_err();
    // The argument may come from a trigger that a user has created by hand.
    for (table, condition) in [("m.t", several), ("m.u", "v = any ('{1}'::m.d[])")] {
        let made = lab.sql(&format!("set role mallory; {}", trigger(table, &argument(condition))));
        let altered = lab.sql(&format!("alter table {table} add column x int"));
        assert_eq!(is_super(), "f", "{table}: {made:?} {altered:?}");
    }
    assert!(refused, "several statements were accepted as a condition");
    // Analysis runs the checks of a domain. It does so with the rights of the table's owner, whichever user causes it.
    lab.sql("delete from m.ran; alter table m.u add column y int").unwrap();
    run(
        &lab,
        "mallory",
        "select jetstream.capture('m.w', condition => 'v = any (''{1}''::m.d[])')",
    );
    lab.sql("alter table m.w add column x int").unwrap();
    assert_eq!(
        lab.value("select string_agg(distinct by, ',') from m.ran").unwrap(),
        "mallory"
    );
    // No other user can start the analysis.
    lab.sql("create table public.mine (id int, v text)").unwrap();
    for call in [
        "select jetstream.capture_analyze('public.mine'::regclass, 'v = any (''{1}''::m.d[])')",
        "select jetstream.capture_check_condition('public.mine', 'v = any (''{1}''::m.d[])')",
        "select jetstream.capture_depend('m.w'::regclass, 'true', 1)",
    ] {
        assert_eq!(code(&lab, "mallory", call), "42501", "{call}");
    }
    assert_eq!(
        lab.value("select string_agg(distinct by, ',') from m.ran").unwrap(),
        "mallory"
    );
}

#[test]
fn what_a_condition_runs_leaves_nothing_behind() {
    let lab = two_publishers();
    lab.sql("create table public.loot (by text); grant insert on public.loot to public")
        .unwrap();
    run(
        &lab,
        "mallory",
        "create table m.q (id int);
         create function m.late() returns trigger language plpgsql as
             'begin insert into public.loot values (current_user); return null; end';
         create constraint trigger late after insert on m.q deferrable initially deferred for each row execute function m.late();
         create function m.f(v text) returns boolean language plpgsql as
             'begin insert into m.q values (1); return true; end';
         create domain m.d as text check (m.f(value));
         create function m.g(v text) returns boolean language plpgsql as
             'begin perform set_config(''jetstream_test.left'', ''behind'', false); return true; end';
         create domain m.e as text check (m.g(value));
         create table m.t (id int primary key, v text); create table m.u (id int primary key, v text)",
    );
    run(
        &lab,
        "mallory",
        "select jetstream.capture('m.u', condition => 'v = any (''{1}''::m.e[])')",
    );
    // A deferred trigger would run with the rights of the user who commits.
    let altered = lab.sql(&format!(
        "{}; alter table m.t add column x int",
        trigger("m.t", &argument("v = any ('{1}'::m.d[])"))
    ));
    assert!(altered.is_err(), "{altered:?}");
    assert_eq!(lab.value("select count(*) from public.loot").unwrap(), "0");
    let left = "alter table m.u add column x int; select current_user || current_setting('jetstream_test.left', true)";
    let left = lab.sql(left).unwrap().concat();
    assert!(
        left.last().is_none_or(|left| left.is_empty() || left == "postgres"),
        "{left:?}"
    );
}

#[test]
fn a_condition_is_one_expression_on_one_row() {
    let lab = two_publishers();
    run(&lab, "mallory", "create table m.t (id int primary key, b int)");
    for (condition, expected) in [
        ("b = $1", "42P02"),
        ("count(*) > 0", "42803"),
        ("row_number() over () = 1", "42803"),
        ("generate_series(1, 2) = b", "42804"),
        ("true) is true from \"captured rows\" where (true", "42601"),
        ("true), (true", "42601"),
        ("true) is true union select (true", "42601"),
        ("true) is true limit (1", "42601"),
        ("b", "42804"),
        ("ctid is null", "42703"),
        ("rows.b > 1", "42P01"),
        ("t.b > 1", "42P01"),
    ] {
        let call = format!("select jetstream.capture('m.t', condition => {})", quoted(condition));
        assert_eq!(code(&lab, "mallory", &call), expected, "{condition}");
    }
    for condition in [
        "b > 1",
        "b in (1, 2) and exists (select)",
        "(select max(n) from unnest(array[b]) n) > 1",
    ] {
        run(
            &lab,
            "mallory",
            &format!(
                "select jetstream.capture('m.t', condition => '{condition}'); insert into m.t values (1, 2); \
                 update m.t set b = 0; delete from m.t"
            ),
        );
    }
    // The owner may have no rights on the schema.
    lab.sql("revoke usage on schema m from public; alter schema m owner to postgres; alter table m.t add column c int")
        .unwrap();
}

#[test]
fn schemas_are_captured_by_their_owners() {
    let lab = two_publishers();
    run(&lab, "victim", "select jetstream.capture_schema('v')");
    for (sql, expected) in [
        ("select jetstream.capture_schema('v')", "42501"),
        (
            "update jetstream.capture_schemas set schema = 'm' where schema = 'v'",
            "42501",
        ),
        ("delete from jetstream.capture_schemas", "42501"),
        (
            "insert into jetstream.capture_schemas select 'future', options from jetstream.capture_schemas",
            "3F000",
        ),
        (
            "select jetstream.capture_schema('m'); update jetstream.capture_schemas set schema = 'v' where schema = 'm'",
            "42501",
        ),
    ] {
        assert_eq!(code(&lab, "mallory", sql), expected, "{sql}");
    }
    // Not even in a session in which the head of a dump has run.
    let restores = "set check_function_bodies = off; set row_security = off;
         insert into jetstream.capture_schemas select 'future', options from jetstream.capture_schemas";
    assert_eq!(code(&lab, "mallory", restores), "3F000");
    lab.sql("create schema future; create table future.t (id int primary key)")
        .unwrap();
    run(&lab, "victim", "create table v.t (id int primary key)");
    assert_eq!(
        lab.value("select string_agg(\"table\"::text, ',') from jetstream.captures")
            .unwrap(),
        "v.t"
    );
}

#[test]
fn nobody_ends_the_capture_of_anothers_partitions() {
    let lab = two_publishers();
    run(
        &lab,
        "victim",
        "create table v.p (id int primary key) partition by range (id);
         create table v.p1 partition of v.p for values from (0) to (10); select jetstream.capture('v.p')",
    );
    let before = lab.sql(CAPTURED).unwrap();
    let known = lab
        .value("select encode(tgargs, 'escape') from pg_trigger where tgrelid = 'v.p'::regclass limit 1")
        .unwrap();
    let known: serde_json::Value = serde_json::from_str(known.trim_end_matches("\\000")).unwrap();
    run(
        &lab,
        "mallory",
        &format!(
            "create table m.x (id int primary key); {}; select jetstream.capture_members('m.x'); alter table m.x add column y int",
            trigger("m.x", &known)
        ),
    );
    run(&lab, "mallory", "drop table m.x");
    assert_eq!(lab.sql(CAPTURED).unwrap(), before);
    // Neither does a copy by the same owner, as if a dump were restored next to the original.
    run(
        &lab,
        "victim",
        &format!(
            "create table v.x (id int primary key); {}; alter table v.x add column y int",
            trigger("v.x", &known)
        ),
    );
    run(&lab, "victim", "drop table v.x");
    assert_eq!(lab.sql(CAPTURED).unwrap(), before);
    run(&lab, "victim", "alter table v.p detach partition v.p1");
    let count = "select count(*) from pg_trigger where tgrelid = 'v.p1'::regclass";
    assert_eq!(lab.value(count).unwrap(), "0");
}

#[test]
fn streams_are_asked_for_by_captures_alone() {
    let lab = two_publishers();
    let streams = || {
        lab.value("select string_agg(subjects::text, ',') from jetstream.streams")
            .unwrap()
    };
    let asked = lab.sql("set role mallory; select jetstream.capture_stream('orders', 'default')");
    assert!(asked.is_err(), "{}", streams());
    run(&lab, "victim", "create table v.t (id int primary key)");
    run(&lab, "mallory", "select jetstream.capture_stream('v.t')");
    assert_eq!(streams(), "");
    run(
        &lab,
        "victim",
        "select jetstream.capture('v.t', subject_prefix => 'cdc')",
    );
    assert_eq!(streams(), "{cdc.>}");
}

#[test]
fn a_trigger_that_is_none_of_captures_is_in_nobodys_way() {
    let lab = two_publishers();
    run(&lab, "victim", "create table v.t (id int primary key)");
    run(&lab, "mallory", "create table m.t (id int primary key)");
    for argument in [
        "{\"partition\": \"x\"}",
        "{\"partition\": false, \"table\": \"x\"}",
        "[]",
        "7",
        "x",
    ] {
        let made = format!(
            "create trigger jetstream_capture_insert after insert on m.t for each statement \
             execute function jetstream.capture_changes('{argument}')"
        );
        run(&lab, "mallory", &made);
        run(
            &lab,
            "victim",
            "select jetstream.capture('v.t'); alter table v.t add column x int; alter table v.t drop column x",
        );
        assert_eq!(
            lab.value("select count(*) from jetstream.captures").unwrap(),
            "1",
            "{argument}"
        );
        run(&lab, "mallory", "drop trigger jetstream_capture_insert on m.t");
    }
    settled(&lab, SOON);
}

#[test]
fn schema_public_belongs_to_the_databases_owner() {
    let lab = capture_lab();
    lab.sql(
        "create role dba login in role jetstream_publisher; create role app in role jetstream_publisher; grant app to dba;
         create role other; grant create on schema public to app, other; alter database postgres owner to dba",
    )
    .unwrap();
    let owner = lab
        .value("select nspowner::regrole from pg_namespace where nspname = 'public'")
        .unwrap();
    if owner != "pg_database_owner" {
        lab.sql("alter schema public owner to dba").unwrap();
    }
    run(&lab, "dba", "select jetstream.capture_schema('public')");
    run(&lab, "dba", "create table public.mine (id int primary key)");
    run(&lab, "app", "create table public.theirs (id int primary key)");
    run(&lab, "other", "create table public.others (id int primary key)");
    assert_eq!(
        lab.value("select string_agg(\"table\"::text, ',' order by \"table\"::text) from jetstream.captures")
            .unwrap(),
        "mine,theirs"
    );
    assert!(lab.postgres.log_contains(
        "WARNING:  table public.others is not captured: the owner of schema \"public\" does not have the rights of its owner"
    ));
}

#[test]
fn what_no_table_can_be_captured_with_is_refused_for_a_schema() {
    let lab = two_publishers();
    for (options, expected) in [
        ("format => 'avro'", "22023"),
        ("operations => '{merge}'", "22023"),
        ("operations => '{}'", "22023"),
        ("subject_prefix => null", "22004"),
        ("subject_prefix => 'a b'", "22023"),
        ("connection => 'nowhere'", "23503"),
    ] {
        let call = format!("select jetstream.capture_schema('m', {options})");
        assert_eq!(code(&lab, "mallory", &call), expected, "{options}");
    }
    run(
        &lab,
        "mallory",
        "select jetstream.capture_schema('m'); create table m.t (id int primary key)",
    );
    assert_eq!(lab.value("select count(*) from jetstream.captures").unwrap(), "1");
    assert_eq!(
        code(
            &lab,
            "mallory",
            "update jetstream.capture_schemas set options = options || '{\"format\": \"avro\"}'"
        ),
        "22023"
    );
}

#[test]
fn a_connection_that_does_not_exist_is_refused_or_reported() {
    let lab = two_publishers();
    let mut own = argument("true");
    own["connection"] = "nosuch".into();
    run(&lab, "mallory", "create table m.stray (id int primary key)");
    // What a person writes names the table itself; what a dump brings names the one that was dumped.
    let mut exact = own.clone();
    exact["table"] = lab
        .value("select 'm.stray'::regclass::oid")
        .unwrap()
        .parse::<u32>()
        .unwrap()
        .into();
    assert_eq!(code(&lab, "mallory", &trigger("m.stray", &exact)), "23503");
    run(&lab, "mallory", &trigger("m.stray", &own));
    run(&lab, "mallory", "insert into m.stray values (1)");
    let reported = "select last_error like '%connection \"nosuch\", which does not exist%' from jetstream.status()";
    becomes(&lab, "the changes are reported", reported, "t");
    assert!(
        lab.postgres
            .log_contains("captured changes wait for connection \"nosuch\"")
    );
    // Others go on, and these when the connection is there.
    lab.sql("create table t (id int primary key); select jetstream.capture('t'); insert into t values (1)")
        .unwrap();
    becomes(
        &lab,
        "others go on",
        "select count(*) from jetstream.capture_queue where connection <> 'nosuch'",
        "0",
    );
    let url = lab.nats.url();
    lab.sql(&format!(
        "insert into jetstream.connections (name, url) values ('nosuch', '{url}')"
    ))
    .unwrap();
    becomes(
        &lab,
        "they are messages",
        "select count(*) from jetstream.capture_queue",
        "0",
    );
}
