//! Captures follow changes of table definitions, and are part of a dump.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use capture_support::{Rebuilt, capture_lab, position, settled};
use e2e_support::{SOON, program};
use lab::lab::DATABASE;

#[test]
fn definitions_change_under_a_capture() {
    let lab = capture_lab();
    lab.sql(
        "create schema \"we.ird\"; create table \"we.ird\".\"Tab le\" (id int primary key, a text, b int, c int);
         select jetstream.capture('\"we.ird\".\"Tab le\"', columns => '{id,a,b}', condition => 'a is distinct from ''no''',
             format => 'row', subject_prefix => 'cdc', transactions => true)",
    )
    .unwrap();
    let table = "\"we.ird\".\"Tab le\"";
    for statement in [
        "insert into T values (1, 'yes', 1, 1), (2, 'no', 2, 2)",
        "update T set a = 'no' where id = 1",
        "update T set a = 'yes', c = 3",
        "alter table T rename column b to bee",
        "alter table T alter column bee type numeric",
        "update T set bee = 1.50 where id = 1",
        "begin; insert into T values (3, 'no'); savepoint x; insert into T values (4, 'yes'); rollback to x; commit",
        "begin; insert into T values (5, 'yes'); prepare transaction 'p'",
        "commit prepared 'p'",
    ] {
        lab.sql(&statement.replace('T', table)).unwrap();
    }
    assert_eq!(
        lab.failure(&format!("alter table {table} drop column a")).unwrap(),
        "42703"
    );
    lab.sql(&format!(
        "alter table {table} rename to plain; alter schema \"we.ird\" rename to w"
    ))
    .unwrap();
    lab.sql("delete from w.plain where id = 2").unwrap();
    settled(&lab, SOON);
    let rebuilt = Rebuilt::read(&lab, "cdc_replication");
    // The stream guarantees no order across rows, but the positions do.
    let mut messages = rebuilt.messages.clone();
    messages.sort_by_key(position);
    let told: Vec<String> = messages
        .iter()
        .map(|message| {
            let (subject, body) = (&message.subject, message.json().unwrap());
            let row = if body["new"].is_null() {
                &body["old"]
            } else {
                &body["new"]
            };
            match body["op"].as_str().unwrap() {
                "begin" | "commit" | "relation" => subject.clone(),
                _ => format!("{subject} {row} {}", body["changed"]),
            }
        })
        .filter(|line| !line.contains("transactions"))
        .collect();
    let t = "cdc.we%2Eird.Tab%20le";
    assert_eq!(
        told,
        [
            format!("{t}.relation"),
            format!("{t}.insert {{\"a\":\"yes\",\"b\":1,\"id\":1}} null"),
            format!("{t}.delete {{\"a\":\"yes\",\"b\":1,\"id\":1}} null"),
            format!("{t}.insert {{\"a\":\"yes\",\"b\":2,\"id\":2}} null"),
            format!("{t}.insert {{\"a\":\"yes\",\"b\":1,\"id\":1}} null"),
            format!("{t}.relation"),
            format!("{t}.relation"),
            format!("{t}.update {{\"a\":\"yes\",\"bee\":\"1.50\",\"id\":1}} [\"bee\"]"),
            format!("{t}.insert {{\"a\":\"yes\",\"bee\":null,\"id\":5}} null"),
            "cdc.we%2Eird.plain.relation".to_owned(),
            "cdc.w.plain.relation".to_owned(),
            "cdc.w.plain.delete {\"a\":\"yes\",\"bee\":\"2\",\"id\":2} null".to_owned(),
        ]
    );
    // Each begin has a commit of the same transaction, and the outbox has no message of another transaction between
    // them.
    let count = |name: &str| rebuilt.count(&format!("cdc.transactions.{name}.event"));
    assert!(
        count("begin") > 3 && count("begin") == count("commit"),
        "{:?}",
        rebuilt.subjects
    );
}

#[test]
fn a_dump_carries_the_captures() {
    let lab = capture_lab();
    lab.sql(
        "create table p (id int primary key, v text) partition by list (id); create table p1 partition of p default;
             select jetstream.capture('p', key => '{id}', columns => '{id,v}'); select jetstream.pause()",
    )
    .unwrap();
    // A dump contains this statement right after the trigger, before the triggers of partitions exist.
    lab.sql("alter table p enable always trigger jetstream_capture_insert")
        .unwrap();
    lab.sql("alter table p1 disable trigger jetstream_capture_delete")
        .unwrap();
    lab.sql("insert into p values (1, 'owed')").unwrap();
    let dump = program(&lab, "pg_dump", &["-f", "dump.sql", DATABASE]);
    assert!(dump.status.success(), "{dump:?}");
    lab.sql("create database copy").unwrap();
    let restored = program(&lab, "psql", &["-q", "-v", "ON_ERROR_STOP=1", "-f", "dump.sql", "copy"]);
    assert!(
        restored.status.success(),
        "{}",
        String::from_utf8_lossy(&restored.stderr)
    );
    let value = |sql: &str| lab.postgres.value("copy", sql).unwrap();
    let before = value("select count(*) from jetstream.capture_queue");
    assert_eq!(
        value("select operations::text from jetstream.captures"),
        "{delete,insert,truncate,update}"
    );
    let fire = "select string_agg(concat_ws(' ', t.tgrelid::regclass, substr(t.tgname, 19), t.tgenabled), ', '
            order by t.tgrelid::regclass::text, t.tgname)
        from pg_trigger t where t.tgname like 'jetstream_capture%' and t.tgrelid <> 0";
    assert_eq!(value(fire), lab.value(fire).unwrap());
    assert!(value(fire).contains("p insert A") && value(fire).contains("p1 delete D"));
    lab.postgres.sql("copy", "insert into p1 values (2, 'after')").unwrap();
    assert_ne!(value("select count(*) from jetstream.capture_queue"), before);
}

#[test]
fn a_capture_that_is_made_again_fires_as_before() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int primary key, v text) partition by list (id); create table t1 partition of t default;
         select jetstream.capture('t', columns => '{id,v}')",
    )
    .unwrap();
    for (table, states) in [
        ("t", ["enable always", "disable", "enable replica"]),
        ("t1", ["disable", "enable always", "enable"]),
    ] {
        for (operation, state) in ["insert", "update", "delete"].into_iter().zip(states) {
            lab.sql(&format!(
                "alter table {table} {state} trigger jetstream_capture_{operation}"
            ))
            .unwrap();
        }
    }
    let fire = |table: &str| {
        let states = "select string_agg(tgenabled, '' order by array_position('{insert,update,delete,truncate}'::text[], \
                      substr(tgname, 19))) from pg_trigger where tgname like 'jetstream_capture%' and tgrelid = ";
        lab.value(&format!("{states} '{table}'::regclass")).unwrap()
    };
    let captured = |sql: &str| {
        lab.sql(sql).unwrap();
        (fire("t"), fire("t1"))
    };
    let states = |own: &str, partition: &str| (own.to_owned(), partition.to_owned());
    assert_eq!(captured("alter table t rename column v to w"), states("ADRO", "DAOO"));
    // A user who captures the table again wants its changes.
    assert_eq!(captured("select jetstream.capture('t')"), states("AORO", "OAOO"));
    assert_eq!(
        captured("select jetstream.capture('t', operations => '{update,delete}')"),
        states("OR", "AO")
    );
    lab.sql("set session_replication_role = replica; insert into t values (1, 'x'); delete from t")
        .unwrap();
    settled(&lab, SOON);
    let messages = lab.stream_messages("postgres_replication").unwrap();
    let rows = messages.iter().filter(|message| !message.subject.ends_with("relation"));
    let subjects: Vec<&str> = rows.map(|message| message.subject.as_str()).collect();
    assert_eq!(subjects, ["postgres.public.t.delete"]);
}

#[test]
fn a_schema_that_is_renamed_stays_captured() {
    let lab = capture_lab();
    lab.sql(
        "create schema app; create schema other; select jetstream.capture_schema('app'); alter schema other rename to third;
         alter schema app rename to app2; create schema app; create table app.not (id int); create table app2.t (id int)",
    )
    .unwrap();
    let value = |sql: &str| lab.value(sql).unwrap();
    assert_eq!(
        value("select string_agg(\"table\"::text, ',') from jetstream.captures"),
        "app2.t"
    );
    assert_eq!(
        value("select string_agg(schema, ',') from jetstream.capture_schemas"),
        "app2"
    );
    lab.sql("drop schema app2 cascade; alter schema third rename to app2; create table app2.u (id int)")
        .unwrap();
    assert_eq!(value("select count(*) from jetstream.captures"), "0");
    assert_eq!(value("select count(*) from jetstream.capture_schemas"), "0");
}

#[test]
fn a_partition_is_not_captured_alone() {
    let lab = capture_lab();
    lab.sql(
        "create table p (id int) partition by list (id); create table p1 partition of p for values in (1);
         create table p2 (id int); create table q (id int) partition by list (id)",
    )
    .unwrap();
    assert_eq!(lab.failure("select jetstream.capture('p1')").unwrap(), "42809");
    lab.sql("select jetstream.capture('p2')").unwrap();
    lab.sql("alter table p attach partition p2 for values in (2)").unwrap();
    let warning = "WARNING:  table public.p2 is captured, but is a partition of public.p, which is not";
    assert!(lab.postgres.log_contains(warning), "{}", lab.postgres.log_tail());
    lab.sql("alter table p detach partition p2; select jetstream.capture('q'); alter table q attach partition p2 for values in (2)")
        .unwrap();
    lab.sql("insert into q values (2); insert into p2 values (2)").unwrap();
    settled(&lab, SOON);
    let subjects = Rebuilt::read(&lab, "postgres_replication").subjects;
    assert_eq!(subjects.get("postgres.public.q.insert"), Some(&2), "{subjects:?}");
    assert_eq!(lab.postgres.log().matches("which is not: what is written").count(), 1);
}

#[test]
fn foreign_partitions_are_left_out() {
    let lab = capture_lab();
    lab.sql(
        "create extension file_fdw; create server files foreign data wrapper file_fdw;
         create table gp (id int, v text) partition by list (id); create table gp2 partition of gp for values in (2);
         select jetstream.capture('gp');
         create foreign table gp1 partition of gp for values in (1) server files options (program 'echo 1,x', format 'csv')",
    )
    .unwrap();
    lab.sql("alter table gp add column w int; alter table gp detach partition gp1; alter table gp drop column w")
        .unwrap();
    lab.sql("alter table gp attach partition gp1 for values in (1); select jetstream.capture('gp'); insert into gp values (2, 'y')")
        .unwrap_err();
    lab.sql("alter foreign table gp1 drop column w").unwrap();
    lab.sql("alter table gp attach partition gp1 for values in (1)")
        .unwrap();
    lab.sql("select jetstream.capture('gp'); insert into gp values (2, 'y')")
        .unwrap();
    lab.sql("select jetstream.uncapture('gp')").unwrap();
}

#[test]
fn what_a_condition_needs_stays() {
    let lab = capture_lab();
    lab.sql(
        "create schema fx; create type fx.mood as enum ('sad', 'ok'); create domain fx.number as int;
         create function fx.ok(n int) returns boolean language sql as 'select n > 0';
         create table t (id int primary key, m fx.mood, d int) partition by list (id);
         create table t1 partition of t default;
         select jetstream.capture('t', format => 'row', condition => 'fx.ok(id) and m = ''sad''::fx.mood and d::fx.number > 0')",
    )
    .unwrap();
    let mut client = lab.postgres.client(DATABASE).unwrap();
    for statement in [
        "drop function fx.ok(int)",
        "drop domain fx.number",
        "drop type fx.mood",
        "drop schema fx",
        "alter function fx.ok(int) rename to fine",
        "alter function fx.ok(int) set schema public",
        "alter type fx.mood rename value 'sad' to 'blue'",
        "alter type fx.mood rename to moods",
        "alter domain fx.number rename to digits",
        "alter schema fx rename to fy",
    ] {
        let error = client.batch_execute(statement).expect_err(statement);
        let error = error.as_db_error().unwrap();
        let told = format!("{} {:?} {:?}", error.message(), error.detail(), error.hint());
        let by_postgres = statement.starts_with("drop");
        assert!(
            told.contains(if by_postgres {
                "trigger jetstream_capture_insert on table t depends on"
            } else {
                "of the capture of table public.t does not work"
            }),
            "{statement}: {told}"
        );
        lab.sql("insert into t values (1, 'sad', 1); delete from t1").unwrap();
    }
    for statement in [
        "alter type fx.mood add value 'angry'",
        "alter type fx.mood rename value 'ok' to 'fine'",
        "alter function fx.ok(int) stable",
        "create function fx.other() returns int language sql as 'select 1'",
        "drop function fx.other()",
    ] {
        lab.sql(statement).unwrap();
    }
    // `cascade` ends the capture, as it drops everything else that depends on the function.
    lab.sql("drop function fx.ok(int) cascade; insert into t values (1, 'sad', 1)")
        .unwrap();
    let left = "select (select count(*) from pg_trigger where tgname like 'jetstream_capture%' and tgrelid <> 0) \
                + (select count(*) from jetstream.capture_relations)";
    assert_eq!(lab.value(left).unwrap(), "0");
}

#[test]
fn a_condition_that_fails_is_told_to_the_writer() {
    let lab = capture_lab();
    lab.sql(
        "create function ok(n int) returns boolean language plpgsql as 'begin return 1 / n > 0; end';
         create table t (id int primary key); select jetstream.capture('t', condition => 'public.ok(id)')",
    )
    .unwrap();
    let mut client = lab.postgres.client(DATABASE).unwrap();
    let error = client.batch_execute("insert into t values (0)").unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "22012");
    assert_eq!(
        error.message(),
        "changes of table \"public.t\" cannot be captured: condition (public.ok(id)): division by zero"
    );
    assert!(error.hint().unwrap().contains("jetstream.uncapture"), "{error:?}");
    // The session can continue, and an error that the condition did not cause is reported unchanged.
    client.batch_execute("insert into t values (1)").unwrap();
    client
        .batch_execute(
            "create or replace function ok(n int) returns boolean language sql as 'select pg_sleep(60) is not null'",
        )
        .unwrap();
    let error = client
        .batch_execute("set statement_timeout = 200; insert into t values (2)")
        .unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.message(), "canceling statement due to statement timeout");
}

#[test]
fn columns_that_go_with_their_type_are_told() {
    let lab = capture_lab();
    lab.sql(
        "create type mood as enum ('sad'); create table t (id int primary key, m mood);
         create table u (id int primary key, m mood);
         select jetstream.capture('t', columns => '{id,m}'); select jetstream.capture('u', condition => 'm is not null')",
    )
    .unwrap();
    assert_eq!(lab.failure("drop type mood cascade").unwrap(), "42703");
    lab.sql("select jetstream.uncapture('u'); drop type mood cascade; insert into t values (1)")
        .unwrap();
    settled(&lab, SOON);
    let rebuilt = Rebuilt::read(&lab, "postgres_replication");
    let mut relations: Vec<_> = rebuilt
        .messages
        .iter()
        .filter(|m| m.subject == "postgres.public.t.relation")
        .collect();
    relations.sort_by_key(|message| position(message));
    assert_eq!(relations.len(), 2);
    let columns = relations[1].json().unwrap()["Relation"]["columns"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(columns, 1);
    assert_eq!(lab.value("select columns from jetstream.captures").unwrap(), "{id}");
}

#[test]
fn a_restored_capture_follows_its_columns() {
    let lab = capture_lab();
    lab.sql(
        "create function ok(n int) returns boolean language sql as 'select true';
         create table rn (gone int, id int primary key, a text, b text) partition by list (id);
         create table rn1 partition of rn default; alter table rn drop column gone;
         select jetstream.capture('rn', columns => '{id,a,b}', key => '{id}', format => 'row', condition => 'public.ok(1)');
         select jetstream.pause()",
    )
    .unwrap();
    let dump = program(&lab, "pg_dump", &["-f", "dump.sql", DATABASE]);
    assert!(dump.status.success(), "{dump:?}");
    lab.sql("create database copy").unwrap();
    let restored = program(&lab, "psql", &["-q", "-v", "ON_ERROR_STOP=1", "-f", "dump.sql", "copy"]);
    assert!(
        restored.status.success(),
        "{}",
        String::from_utf8_lossy(&restored.stderr)
    );
    let sql = |sql: &str| lab.postgres.sql("copy", sql).unwrap().concat();
    let captured = "select columns, key, (select count(*) from pg_trigger where tgrelid = 'rn1'::regclass) from jetstream.captures";
    sql("alter table rn rename a to aa");
    assert_eq!(sql(captured), ["{id,aa,b}", "{id}", "4"]);
    sql("alter table rn rename id to number; alter table rn rename aa to id; alter table rn drop column b");
    assert_eq!(sql(captured), ["{number,id}", "{number}", "4"]);
    // The restored capture also depends on what its condition requires.
    let error = lab.postgres.sql("copy", "drop function ok(int)").unwrap_err();
    assert_eq!(lab::postgres::sqlstate(&error), Some("2BP01"));
}
