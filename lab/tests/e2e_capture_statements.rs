//! What each kind of statement publishes, and what is not captured, according to docs/capture.md.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use std::io::Write;

use capture_support::{Rebuilt, capture_lab, position, same, settled};
use e2e_support::{SOON, becomes, eventually};
use lab::Lab;
use lab::lab::DATABASE;
use lab::postgres::sqlstate;
use serde_json::Value;

/// The changes in a stream in the order of their positions: last token of the subject, and id of the row.
fn told(lab: &Lab, stream: &str) -> Vec<String> {
    let mut messages = lab.stream_messages(stream).unwrap();
    messages.sort_by_key(position);
    let line = |message: &lab::StoredMessage| {
        let body = message.json().unwrap();
        let change = body.as_object().unwrap().values().next().unwrap();
        let row = [&change["new_tuple"], &change["old_tuple"]].map(|row| row["id"].as_str());
        let operation = message.subject.rsplit('.').next().unwrap().to_owned();
        let id = row.into_iter().flatten().next();
        id.map_or(operation.clone(), |id| format!("{operation} {id}"))
    };
    messages.iter().map(line).collect()
}

#[test]
fn statements_publish_the_rows_they_changed() {
    let lab = capture_lab();
    lab.sql("create table t (id int primary key, v text); select jetstream.capture('t')")
        .unwrap();
    let mut client = lab.postgres.client(DATABASE).unwrap();
    let mut copy = client.copy_in("copy t from stdin").unwrap();
    copy.write_all(b"1\ta\n2\tb\n3\tc\n").unwrap();
    copy.finish().unwrap();
    let merge = lab
        .value("select current_setting('server_version_num')::int >= 150000")
        .unwrap()
        == "t";
    let mut expected = vec!["relation", "insert 1", "insert 2", "insert 3"];
    let mut run = |statement: &str, changes: &[&'static str]| {
        lab.sql(statement).unwrap();
        expected.extend(changes);
    };
    run(
        "insert into t values (1, 'x'), (4, 'd') on conflict do nothing",
        &["insert 4"],
    );
    run(
        "insert into t values (5, 'e'), (1, 'y') on conflict (id) do update set v = excluded.v",
        &["insert 5", "update 1"],
    );
    if merge {
        run(
            "merge into t using (values (1), (2), (6)) s (id) on t.id = s.id when matched and s.id = 1 then delete \
             when matched then update set v = 'm' when not matched then insert values (s.id, 'm')",
            &["insert 6", "update 2", "delete 1"],
        );
    }
    run(
        "with gone as (delete from t where id = 3 returning v) insert into t select 7, v from gone",
        &["insert 7", "delete 3"],
    );
    run(
        "insert into t values (8, 'no'); delete from t where false",
        &["insert 8"],
    );
    run(
        "do $$ begin insert into t values (9, 'no'); raise exception 'no'; exception when others then null; end $$",
        &[],
    );
    settled(&lab, SOON);
    // The order in which triggers of one statement fire is not defined.
    let mut found = told(&lab, "postgres_replication");
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    same(&lab, &Rebuilt::read(&lab, "postgres_replication"), "t");
}

#[test]
fn nothing_is_told_while_disabled_or_of_what_was_there() {
    let lab = capture_lab();
    lab.sql("create table t (id int primary key, v text); insert into t values (1, 'before'), (2, 'before')")
        .unwrap();
    lab.sql("select jetstream.capture('t')").unwrap();
    lab.sql("alter table t disable trigger user; insert into t values (3, 'unseen')")
        .unwrap();
    assert_eq!(lab.value("select enabled from jetstream.captures").unwrap(), "f");
    lab.sql("alter table t enable trigger user; update t set id = id")
        .unwrap();
    settled(&lab, SOON);
    assert_eq!(
        told(&lab, "postgres_replication"),
        ["relation", "update 1", "update 2", "update 3"]
    );
}

#[test]
fn a_row_too_long_for_a_message_is_refused() {
    let lab = capture_lab();
    lab.sql("create table t (id int primary key, v text); select jetstream.capture('t')")
        .unwrap();
    let statement = "insert into t values (1, repeat('x', 65 * 1024 * 1024))";
    let refused = lab.sql(statement).unwrap_err();
    assert_eq!(sqlstate(&refused), Some("54000"), "{refused:#}");
    assert!(format!("{refused:#}").contains("public.t"), "{refused:#}");
    lab.sql("select jetstream.capture('t', columns => '{id}')").unwrap();
    lab.sql(statement).unwrap();
    settled(&lab, SOON);
    assert_eq!(told(&lab, "postgres_replication").last().unwrap(), "insert 1");
}

/// The workers of a subscription run in the replica role, in which triggers fire only if they are enabled for it.
/// Workers that apply changes fire only row triggers, which a capture does not have. TRUNCATE has only statement
/// triggers.
#[test]
fn a_subscriber_of_logical_replication_publishes_nothing_of_its_own_accord() {
    let lab = Lab::builder().set("wal_level", "logical").start().unwrap();
    lab.sql("create database source").unwrap();
    let source = |sql: &str| lab.postgres.sql("source", sql).unwrap();
    for table in ["plain", "always"] {
        source(&format!(
            "create table {table} (id int primary key); insert into {table} values (1), (2)"
        ));
        lab.sql(&format!(
            "create table {table} (id int primary key); select jetstream.capture('{table}')"
        ))
        .unwrap();
    }
    for operation in ["insert", "update", "delete", "truncate"] {
        lab.sql(&format!(
            "alter table always enable always trigger jetstream_capture_{operation}"
        ))
        .unwrap();
    }
    source("create publication p for all tables");
    source("select pg_create_logical_replication_slot('s', 'pgoutput')");
    lab.sql(&format!(
        "create subscription s connection '{}' publication p with (create_slot = false, slot_name = 's')",
        lab.postgres.conninfo("source")
    ))
    .unwrap();
    becomes(
        &lab,
        "the initial copy is complete",
        "select string_agg(srsubstate::text, '') from pg_subscription_rel",
        "rr",
    );
    source("insert into plain values (3); insert into always values (3)");
    source("update plain set id = 10 where id = 1; update always set id = 10 where id = 1");
    source("delete from plain where id = 2; delete from always where id = 2");
    let ids = |table: &str| format!("select array_agg(id order by id)::text from {table}");
    for table in ["plain", "always"] {
        becomes(&lab, "changes applied", &ids(table), "{3,10}");
    }
    source("truncate plain, always");
    for table in ["plain", "always"] {
        becomes(&lab, "TRUNCATE applied", &format!("select count(*) from {table}"), "0");
    }
    settled(&lab, SOON);
    let messages = lab.stream_messages("postgres_replication").unwrap();
    let mut subjects: Vec<&str> = messages.iter().map(|message| message.subject.as_str()).collect();
    subjects.sort();
    let t = "postgres.public";
    assert_eq!(
        subjects,
        [
            format!("{t}.always.insert"),
            format!("{t}.always.insert"),
            format!("{t}.always.relation"),
            format!("{t}.always.truncate"),
            format!("{t}.plain.relation"),
        ],
        "{messages:?}"
    );
    let copied: Vec<Value> = messages
        .iter()
        .filter(|message| message.subject.ends_with("insert"))
        .map(|message| message.json().unwrap()["Insert"]["new_tuple"]["id"].clone())
        .collect();
    assert_eq!(copied, ["1", "2"]);
    lab.sql("drop subscription s").unwrap();
}

#[test]
fn what_is_not_captured_is_as_documented() {
    let lab = capture_lab();
    lab.sql(
        "create table parent (id int primary key); create table child (id int primary key, parent int references parent on delete cascade on update cascade);
         create table base (id int primary key); create table heir (more text) inherits (base);
         select jetstream.capture('parent'), jetstream.capture('child'), jetstream.capture('base', subject_prefix => 'other')",
    )
    .unwrap();
    // A message sent before its stream exists is retried, possibly after later messages with other keys.
    lab.wait_for_streams().unwrap();
    lab.sql("insert into parent values (1), (2); insert into child values (10, 1), (20, 2)")
        .unwrap();
    lab.sql("update parent set id = 3 where id = 2; delete from parent where id = 1")
        .unwrap();
    lab.sql("begin; set local session_replication_role = replica; insert into parent values (99); commit")
        .unwrap();
    lab.sql("insert into heir values (1, 'direct')").unwrap();
    lab.sql("update base set id = id + 1").unwrap();
    settled(&lab, SOON);
    let rebuilt = Rebuilt::read(&lab, "postgres_replication");
    same(&lab, &rebuilt, "child");
    let ids = |subject: &str, tuple: &str| -> Vec<String> {
        let bodies = rebuilt.bodies(subject);
        bodies
            .iter()
            .map(|body| {
                body.as_object().unwrap().values().next().unwrap()[tuple]["id"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    assert_eq!(
        ids("postgres.public.parent.insert", "new_tuple"),
        ["1", "2", "3"],
        "not 99"
    );
    assert_eq!(ids("postgres.public.child.update", "new_tuple"), ["20"]);
    assert_eq!(ids("postgres.public.child.delete", "old_tuple"), ["10"]);
    // Statements on the parent also affect rows of the child, and are reported with the columns of the parent.
    let base: Vec<String> = lab
        .stream_messages("other_replication")
        .unwrap()
        .iter()
        .map(|m| m.subject.clone())
        .collect();
    assert_eq!(
        base,
        [
            "other.public.base.relation",
            "other.public.base.delete",
            "other.public.base.insert"
        ]
    );
    eventually(&lab, SOON, "the outbox is empty", || {
        Ok(lab.value("select count(*) from jetstream.outbox")? == "0")
    });
}

/// The worker inserts captured changes into the outbox directly, without a statement, unless this would bypass triggers
/// or constraints that users have added.
#[test]
fn what_others_have_added_to_the_outbox_sees_captured_changes() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int primary key); select jetstream.capture('t'); create table seen (subject text);
         grant insert on seen to jetstream_worker;
         create function note() returns trigger language plpgsql as
             $$ begin insert into public.seen values (new.subject); return new; end $$",
    )
    .unwrap();
    settled(&lab, SOON);
    lab.sql("insert into t values (1)").unwrap();
    settled(&lab, SOON);
    lab.sql(
        "create trigger note before insert on jetstream.outbox for each row execute function note();
         alter table jetstream.outbox enable always trigger note;
         insert into t values (2); insert into t values (3)",
    )
    .unwrap();
    settled(&lab, SOON);
    let seen = "select count(*) || ' ' || min(subject) from seen";
    assert_eq!(lab.value(seen).unwrap(), "2 postgres.public.t.insert");
    lab.sql("drop trigger note on jetstream.outbox; alter table jetstream.outbox add column note text default 'none'")
        .unwrap();
    lab.sql("insert into t values (4)").unwrap();
    settled(&lab, SOON);
    let expected = ["relation", "insert 1", "insert 2", "insert 3", "insert 4"];
    assert_eq!(told(&lab, "postgres_replication"), expected);
}
