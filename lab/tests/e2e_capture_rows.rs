//! Statements with difficult rows: truncated partitions, rows that move, keys that are exchanged, and many rows in one
//! transaction.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use capture_support::{Rebuilt, capture_lab, same, settled, told};
use e2e_support::{LATER, SOON, becomes, eventually};
use lab::lab::DATABASE;

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
    // TRUNCATE requires no right to read.
    lab.sql("create role sweeper; grant truncate on t1 to sweeper; set role sweeper; truncate t1")
        .unwrap();
    assert_eq!(told(&lab), "R I1 I2 I4 I5 I7 I8 D1 D2 D4 D5 D7 D8");
}

#[test]
fn rows_that_move_and_vanish_are_told() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int, p int, v text, primary key (id, p)) partition by list (p);
         create table t1 partition of t for values in (1); create table t2 partition of t for values in (2);
         create function drops() returns trigger language plpgsql as
             $$ begin if new.id = 2 then return null; end if; return new; end $$;
         create trigger drops before insert on t2 for each row execute function drops();
         select jetstream.capture('t'); insert into t select n, 1, 'v' || n from generate_series(1, 4) n",
    )
    .unwrap();
    lab.sql("update t set p = 2").unwrap();
    assert_eq!(told(&lab), "R I1 I2 I3 I4 D1 D2 D3 D4 I1 I3 I4");
    same(&lab, &Rebuilt::read(&lab, "postgres_replication"), "t");
}

#[test]
fn rows_that_exchange_their_keys_keep_them() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int primary key deferrable, v text); select jetstream.capture('t');
         insert into t select n, 'v' || n from generate_series(1, 4) n",
    )
    .unwrap();
    lab.sql("update t set id = case when id < 3 then 3 - id else id end")
        .unwrap();
    assert_eq!(told(&lab), "R I1 I2 I3 I4 D1 D2 U3 U4 I2 I1");
    same(&lab, &Rebuilt::read(&lab, "postgres_replication"), "t");
    // One row enters the condition with the key of another row that leaves it.
    lab.sql("select jetstream.capture('t', condition => 'v <> ''v1'''); select pg_sleep(0)")
        .unwrap();
    lab.sql("update t set id = 3 - id, v = case v when 'v1' then 'now' else v end where id < 3")
        .unwrap();
    assert_eq!(told(&lab), "R I1 I2 I3 I4 D1 D2 U3 U4 I2 I1 R D1 I1 I2");
}

#[test]
fn a_large_transaction_is_unpacked_without_reading_it_again_and_again() {
    let lab = capture_lab();
    lab.sql("create table t (id int primary key, v text); select jetstream.capture('t')")
        .unwrap();
    settled(&lab, SOON);
    lab.sql("select jetstream.pause()").unwrap();
    let told = lab
        .sql(
            "begin; insert into t select n, 'value ' || n from generate_series(1, 300000) n;
             select count(*) from jetstream.capture_queue; commit",
        )
        .unwrap();
    let rows: i64 = told.concat().last().unwrap().parse().unwrap();
    assert!(rows > 1_000, "{rows}");
    let unpacked = "select count(*) from jetstream.outbox";
    eventually(&lab, LATER, "every change is a message", || {
        Ok(lab.value(unpacked)? == "300000")
    });
    // Only the worker uses this index.
    let read = || -> anyhow::Result<i64> {
        let query = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'capture_queue_txid'";
        Ok(lab.value(query)?.parse()?)
    };
    eventually(&lab, SOON, "what the worker read is counted", || Ok(read()? >= rows));
    let read = read().unwrap();
    assert!(read < rows * 2, "{read} rows of a queue of {rows} were read");
    let unordered = "select count(*) from (
            select split_part(message_id, '-', 3)::int as n, lag(split_part(message_id, '-', 3)::int) over (order by id) as before
            from jetstream.outbox) o where n <> before + 1";
    assert_eq!(lab.value(unordered).unwrap(), "0");
}
