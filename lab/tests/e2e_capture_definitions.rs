//! Captures follow the definitions of their tables, and come along in a dump.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

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
    // Between rows the stream promises no order; the positions do.
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
    // Each begin has its commit, of the same transaction, with nothing of another's between the two in the outbox.
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
    // Of which a dump tells right after the trigger, before those of partitions are there.
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
    // Who captures a table again wants its changes.
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
