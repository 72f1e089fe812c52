//! Rows designed to break the worker. A publisher must not be able to stop messages of other users.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use e2e_support::{LATER, SOON, account, arrived, drained, eventually, exactly_once, insert, lab, worker};
use lab::Lab;
use lab::lab::DATABASE;
use lab::process;

/// Peak memory of the worker in MB.
fn peak_mb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Runs the statement as a publisher. Whether it is refused or accepted, the worker must continue with all other
/// messages.
fn survives(lab: &Lab, what: &str, statement: &str) {
    let pid = worker(lab);
    let taken = lab.sql(&format!("set role jetstream_publisher; {statement}"));
    let n = 1_000_000 + i64::from(pid) + lab.message_count("S").unwrap() as i64;
    lab.sql(&insert("s.after", n, n)).unwrap();
    eventually(
        lab,
        SOON,
        &format!("a message is delivered after {what} ({taken:?})"),
        || Ok(lab.value("select count(*) from jetstream.outbox where subject = 's.after'")? == "0"),
    );
    // Also waits for a cycle that no commit has caused.
    let cycles = || lab.value("select cycles from jetstream.status()").unwrap();
    let before = cycles();
    eventually(lab, SOON, "cycles", || Ok(cycles() != before));
    assert_eq!(
        worker(lab),
        pid,
        "{what} ({taken:?}) has ended the worker\n{}",
        account(lab)
    );
    assert!(!lab.postgres.log().contains("PANIC"), "{what}");
}

#[test]
fn no_value_a_publisher_can_insert_stops_the_worker() {
    let lab = lab(&[
        ("pg_jetstream.poll_interval", "200ms"),
        ("log_min_messages", "log"),
        ("pg_jetstream.max_attempts", "2"),
    ]);
    lab.sql("create role app in role jetstream_publisher").unwrap();
    for (what, statement) in [
        (
            "the time infinity",
            "select jetstream.publish('s.p', '1', deliver_at => 'infinity')",
        ),
        (
            "the time -infinity",
            "select jetstream.publish('s.p', '1', deliver_at => '-infinity')",
        ),
        (
            "the last possible time",
            "select jetstream.publish('s.p', '1', deliver_at => '294276-12-31 23:59:59+00')",
        ),
        (
            "the first possible time",
            "select jetstream.publish('s.p', '1', deliver_at => '4714-11-24 00:00:00+00 BC')",
        ),
        (
            "the longest possible TTL",
            "select jetstream.publish('s.p', '1', ttl => '10000 days')",
        ),
        (
            "a TTL of months",
            "select jetstream.publish('s.p', '1', ttl => '1 mon 1 ms')",
        ),
        (
            "a number that is short in SQL and long in JSON",
            "select jetstream.publish('s.p', '[1e131071]')",
        ),
        (
            "a header with such a number",
            "select jetstream.publish('s.p', '1', headers => '{\"a\": 1e131071}')",
        ),
        (
            "a header with a number that is too large for a float",
            "select jetstream.publish('s.p', '1', headers => '{\"a\": 1e400}')",
        ),
        (
            "many headers",
            "select jetstream.publish('s.p', '1', headers => (select jsonb_object_agg('h' || n, repeat('v', 100)) from generate_series(1, 20000) n))",
        ),
        (
            "a long header",
            "select jetstream.publish('s.p', '1', headers => jsonb_build_object('h', repeat('v', 5000000)))",
        ),
        (
            "a long key",
            "select jetstream.publish('s.p', '1', key => repeat('k', 1000000))",
        ),
        ("an empty key", "select jetstream.publish('s.p', '1', key => '')"),
        (
            "a key of control characters",
            "select jetstream.publish('s.p', '1', key => E'\\x01\\n\\r')",
        ),
        (
            "an odd message id",
            "select jetstream.publish('s.p', '1', message_id => E'\\t\\u00a0\\u202e ')",
        ),
        (
            "an odd webhook",
            "insert into jetstream.outbox (subject, payload, webhook) values ('s.p', '1', -2147483648)",
        ),
        (
            "deep nesting",
            "select jetstream.publish('s.p', (repeat('[', 2000) || repeat(']', 2000))::jsonb)",
        ),
        (
            "deep headers",
            "select jetstream.publish('s.p', '1', headers => (repeat('[', 2000) || repeat(']', 2000))::jsonb)",
        ),
        (
            "the longest subject",
            "select jetstream.publish('s.' || repeat('x', 253), '1')",
        ),
        (
            "a subject of the server",
            "select jetstream.publish('$JS.API.STREAM.DELETE.S', '1')",
        ),
        (
            "a header reserved for JetStream",
            "select jetstream.publish('s.p', '1', headers => '{\"Nats-Expected-Stream\": \"X\", \"Nats-Rollup\": \"all\"}')",
        ),
        (
            "a header that lets a message go",
            "select jetstream.publish('s.p', '1', headers => '{\"Nats-TTL\": \"x\", \"Nats-Expected-Last-Sequence\": \"-1\"}')",
        ),
    ] {
        survives(&lab, what, statement);
    }
    let errors = lab
        .postgres
        .log()
        .lines()
        .filter(|line| line.contains("pg_jetstream worker") && (line.contains("ERROR") || line.contains("FATAL")))
        .count();
    assert_eq!(errors, 0, "{}", lab.postgres.log());
}

/// A body of a few bytes in the table can be a gigabyte of text. It must be refused or become a dead letter, within
/// bounded memory.
#[test]
fn a_body_that_grows_when_it_is_written_out_does_not_take_the_memory() {
    let lab = lab(&[]);
    let pid = worker(&lab);
    for count in [700, 7_000, 10_000] {
        let _ = lab.sql(&format!(
            "select jetstream.publish('s.grows', (select jsonb_agg('1e131071'::numeric) from generate_series(1, {count})))"
        ));
    }
    lab.sql(&insert("s.after", 1, 10)).unwrap();
    arrived(&lab, "S", 10);
    drained(&lab, LATER);
    assert_eq!(worker(&lab), pid, "the worker was replaced");
    let peak = peak_mb(pid);
    assert!(peak < 400, "{peak} MB");
}

/// With many large bodies pending, memory is bounded by bytes and not only by rows.
#[test]
fn large_bodies_are_read_a_few_at_a_time() {
    let lab = lab(&[]);
    let pid = worker(&lab);
    lab.sql("alter table jetstream.outbox alter raw set storage external")
        .unwrap();
    lab.sql("select jetstream.pause()").unwrap();
    for _ in 0..6 {
        lab.sql(
            "insert into jetstream.outbox (subject, raw)
             select 's.large', convert_to(repeat('x', 10000000), 'UTF8') from generate_series(1, 10)",
        )
        .unwrap();
    }
    lab.sql("select jetstream.resume()").unwrap();
    drained(&lab, LATER);
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "60");
    let peak = peak_mb(pid);
    assert!(peak < 250, "{peak} MB for 60 messages of 10 MB");
    assert!(process::alive(pid));
}

/// In another encoding, ids and keys would differ between the database and NATS.
#[test]
fn a_database_in_another_encoding_is_refused_with_the_reason() {
    let lab = lab(&[]);
    for encoding in ["latin1", "sql_ascii"] {
        lab.sql(&format!(
            "create database {encoding} encoding '{encoding}' template template0"
        ))
        .unwrap();
        let said = lab.postgres.sql(encoding, "create extension pg_jetstream").unwrap_err();
        assert_eq!(lab::postgres::sqlstate(&said), Some("0A000"), "{said:#}");
        assert!(format!("{said:#}").contains("needs a database in UTF8"), "{said:#}");
    }
}

/// Transaction ids so old that the server no longer knows whether they committed.
#[test]
fn messages_older_than_the_commit_log_are_published() {
    let mut lab = lab(&[
        ("autovacuum_freeze_max_age", "100000"),
        ("autovacuum_naptime", "1s"),
        ("vacuum_freeze_min_age", "0"),
    ]);
    lab.nats.kill9().unwrap();
    lab.sql(&insert("s.old", 1, 10)).unwrap();
    // The commit log has 32768 transactions per page and 32 pages per segment. An old page is removed only with its
    // whole segment.
    lab.sql("create table burn (i int); create procedure burn(n int) language plpgsql as $$ begin for i in 1..n loop perform pg_current_xact_id(); commit; end loop; end $$").unwrap();
    let mut client = lab.postgres.client(DATABASE).unwrap();
    client.batch_execute("set synchronous_commit = off").unwrap();
    client.batch_execute("call burn(1300000)").unwrap();
    eventually(&lab, LATER, "the commit log is truncated", || {
        for database in ["postgres", "template1"] {
            lab.postgres.sql(database, "vacuum freeze")?;
        }
        Ok(!lab.postgres.data().join("pg_xact/0000").exists())
    });
    lab.nats.restart().unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=10);
}
