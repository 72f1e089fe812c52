//! A table's rows are read with its current definition, regardless of snapshot, search path and settings of the
//! session.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use capture_support::{Rebuilt, capture_lab, same, settled};
use e2e_support::SOON;
use lab::Lab;
use lab::lab::DATABASE;
use serde_json::{Value, json};

/// Bodies of the inserts into a table, in pgoutput format.
fn inserted(lab: &Lab, table: &str) -> Vec<Value> {
    settled(lab, SOON);
    let rebuilt = Rebuilt::read(lab, "postgres_replication");
    let bodies = rebuilt.bodies(&format!("postgres.public.{table}.insert"));
    bodies.iter().map(|body| body["Insert"]["new_tuple"].clone()).collect()
}

#[test]
fn a_column_that_another_session_changed_is_read_as_what_it_is() {
    let lab = capture_lab();
    for (table, before, after, value, told) in [
        ("to_int", "text", "int using 0", "12345678", "12345678"),
        ("to_text", "int", "text", "'as long as it is'", "as long as it is"),
    ] {
        lab.sql(&format!(
            "create table {table} (id int primary key, v {before}); select jetstream.capture('{table}')"
        ))
        .unwrap();
        let mut client = lab.postgres.client(DATABASE).unwrap();
        for (id, isolation) in [(0, "repeatable read"), (1, "serializable")] {
            client
                .batch_execute(&format!("begin isolation level {isolation}; select 1 from pg_class"))
                .unwrap();
            lab.sql(&format!("alter table {table} alter v type {before} using null"))
                .unwrap();
            lab.sql(&format!("alter table {table} alter v type {after}")).unwrap();
            client
                .batch_execute(&format!("insert into {table} values ({id}, {value}); commit"))
                .unwrap();
        }
        let expected = ["0", "1"].map(|id| json!({"id": id, "v": told}));
        assert_eq!(inserted(&lab, table), expected);
    }
}

#[test]
fn columns_added_and_dropped_behind_an_old_snapshot_are_seen() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int primary key, gone text, v int) partition by range (id);
         create table t1 partition of t for values from (0) to (100); select jetstream.capture('t')",
    )
    .unwrap();
    let mut client = lab.postgres.client(DATABASE).unwrap();
    client
        .batch_execute("begin isolation level repeatable read; select 1 from pg_class")
        .unwrap();
    lab.sql("alter table t drop gone; alter table t add more text default 'm'")
        .unwrap();
    client
        .batch_execute("insert into t1 values (1, 10); insert into t values (2, 20); commit")
        .unwrap();
    let expected = [("1", "10"), ("2", "20")].map(|(id, v)| json!({"id": id, "v": v, "more": "m"}));
    assert_eq!(inserted(&lab, "t"), expected);
}

#[test]
fn nothing_of_a_schema_in_the_writers_path_is_called() {
    let lab = capture_lab();
    lab.sql(
        "create schema shared;
         create function shared.unnest(smallint[]) returns setof smallint language plpgsql as
             $$ begin raise exception 'unnest ran as %', current_user; end $$;
         create function shared.get(jsonb, text) returns jsonb language plpgsql as
             $$ begin raise exception 'an operator ran as %', current_user; end $$;
         create operator shared.-> (leftarg = jsonb, rightarg = text, function = shared.get);
         create table t (id int primary key, v text); select jetstream.capture('t')",
    )
    .unwrap();
    lab.sql("set search_path = shared, pg_catalog, public; insert into t values (1, 'a')")
        .unwrap();
    lab.sql("set search_path = shared, public; insert into t values (2, 'b')")
        .unwrap();
    let expected = [("1", "a"), ("2", "b")].map(|(id, v)| json!({"id": id, "v": v}));
    assert_eq!(inserted(&lab, "t"), expected);
}

#[test]
fn values_do_not_depend_on_the_search_path_or_on_how_bytes_are_shown() {
    let lab = capture_lab();
    lab.sql(
        "create schema app; create table app.target (); create type app.tone as enum ('low');
         create type two as (r regclass, b bytea);
         create function app.halve(integer) returns integer language sql as 'select $1 / 2';
         create domain place as regclass;
         create table t (id int primary key, r regclass, d place, types regtype[], f regprocedure, b bytea[], c two, tone app.tone);
         select jetstream.capture('t')",
    )
    .unwrap();
    for (id, settings) in [
        (1, "set search_path = app, public; set bytea_output = hex"),
        (2, "set search_path = public; set bytea_output = escape"),
    ] {
        lab.sql(&format!(
            "{settings}; insert into public.t values ({id}, 'app.target', 'app.target', '{{app.tone,int}}', 'app.halve(int)',
                 array['\\x01ff'::bytea], ('app.target', '\\x02'), 'low')"
        ))
        .unwrap();
        // The session's own settings are unchanged.
        let kept = lab
            .value(&format!(
                "{settings}; insert into public.t (id) values ({}); select 'app.target'::regclass || ' ' || current_setting('bytea_output')",
                id + 10
            ))
            .unwrap();
        let expected = if id == 1 { "target hex" } else { "app.target escape" };
        assert_eq!(kept, expected);
    }
    let expected = ["1", "2"].map(|id| {
        json!({"id": id, "r": "app.target", "d": "app.target", "types": "{app.tone,integer}", "f": "app.halve(integer)",
               "b": "{\"\\\\x01ff\"}", "c": "(app.target,\"\\\\x02\")", "tone": "low"})
    });
    let found = inserted(&lab, "t");
    let full = |row: &&Value| !row["r"].is_null();
    assert_eq!(found.iter().filter(full).cloned().collect::<Vec<_>>(), expected);
}

#[test]
fn columns_that_a_primary_key_includes_are_no_part_of_it() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int, v text, primary key (id) include (v)); select jetstream.capture('t');
         create table r (id int not null, v text); create unique index r_id on r (id) include (v);
         alter table r replica identity using index r_id; select jetstream.capture('r')",
    )
    .unwrap();
    for table in ["t", "r"] {
        lab.sql(&format!(
            "insert into {table} values (1, 'a'); update {table} set v = 'b' where id = 1"
        ))
        .unwrap();
    }
    settled(&lab, SOON);
    let rebuilt = Rebuilt::read(&lab, "postgres_replication");
    for table in ["t", "r"] {
        let relation = &rebuilt.bodies(&format!("postgres.public.{table}.relation"))[0]["Relation"];
        let flags: Vec<_> = relation["columns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|column| &column["flags"])
            .collect();
        assert_eq!(flags, [1, 0], "{table}");
        assert_eq!(rebuilt.count(&format!("postgres.public.{table}.update")), 1, "{table}");
        same(&lab, &rebuilt, table);
    }
}
