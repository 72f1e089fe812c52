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
    lab.postgres.sql("copy", "insert into p1 values (2, 'after')").unwrap();
    assert_ne!(value("select count(*) from jetstream.capture_queue"), before);
}
