//! Statements whose rows are hard to tell: partitions that are truncated, rows that move, keys that are exchanged, and many
//! rows at once.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use capture_support::{Rebuilt, capture_lab, position, same, settled};
use e2e_support::{SOON, becomes};
use lab::Lab;
use lab::lab::DATABASE;

/// What happened to which row, in the order of positions: `D1 I2`.
fn told(lab: &Lab) -> String {
    settled(lab, SOON);
    let mut messages = lab.stream_messages("postgres_replication").unwrap();
    messages.sort_by_key(position);
    let line = |message: &lab::StoredMessage| {
        let body = message.json().unwrap();
        let (kind, change) = body.as_object().unwrap().iter().next().unwrap();
        let row = [&change["new_tuple"], &change["old_tuple"]];
        let id = row.into_iter().find_map(|row| row["id"].as_str().map(str::to_owned));
        format!("{}{}", &kind[..1], id.unwrap_or_default())
    };
    messages.iter().map(line).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_truncated_partition_tells_of_rows_that_came_while_it_was_waited_for() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int primary key, v text) partition by range (id);
         create table t1 partition of t for values from (0) to (100);
         create table t2 partition of t for values from (100) to (200);
         select jetstream.capture('t'); insert into t values (1, 'before'), (150, 'stays')",
    )
    .unwrap();
    for (isolation, id) in [("read committed", 2), ("repeatable read", 3)] {
        let mut writer = lab.postgres.client(DATABASE).unwrap();
        writer
            .batch_execute(&format!("begin; insert into t1 values ({id}, 'while waiting')"))
            .unwrap();
        std::thread::scope(|scope| {
            let truncation = scope.spawn(|| {
                lab.sql(&format!(
                    "set application_name = 'truncates'; begin isolation level {isolation}; truncate t1; commit"
                ))
            });
            becomes(
                &lab,
                "the truncation waits",
                "select count(*) from pg_stat_activity where application_name = 'truncates' and wait_event_type = 'Lock'",
                "1",
            );
            writer.batch_execute("commit").unwrap();
            truncation.join().unwrap().unwrap();
        });
    }
    assert_eq!(told(&lab), "R I1 I150 I2 D1 D2 I3 D3");
    same(&lab, &Rebuilt::read(&lab, "postgres_replication"), "t");
}

#[test]
fn a_truncated_partition_tells_no_rows_that_the_condition_excludes() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int primary key, secret boolean, v text) partition by list (id);
         create table t1 (gone int, v text, secret boolean, id int not null); alter table t1 drop column gone;
         alter table t attach partition t1 default; select jetstream.capture('t', condition => 'not secret')",
    )
    .unwrap();
    lab.sql("insert into t select n, n % 3 = 0, repeat('long', 1000) || n from generate_series(1, 9) n")
        .unwrap();
    // Who truncates needs no right to read.
    lab.sql("create role sweeper; grant truncate on t1 to sweeper; set role sweeper; truncate t1")
        .unwrap();
    assert_eq!(told(&lab), "R I1 I2 I4 I5 I7 I8 D1 D2 D4 D5 D7 D8");
}
