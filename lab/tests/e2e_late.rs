//! Transactions that commit after later messages have been sent. Their messages are found immediately, through the
//! commit ring or, if it has lost them, without it. The sweep would find them too, but it runs once a minute, so these
//! tests allow only seconds.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::Duration;

use e2e_support::{SOON, drained, eventually, exactly_once, insert, lab, new_worker, worker};
use lab::lab::{DATABASE, Lab};
use postgres::Client;

/// Much shorter than the interval between sweeps, and than the time from the start of a worker to its first sweep.
const AT_ONCE: Duration = Duration::from_secs(8);

/// Inserts messages and waits until they are delivered. Transactions that are still open commit late.
fn overtake(lab: &Lab, from: i64, to: i64) {
    lab.sql(&insert("s.other", from, to)).unwrap();
    eventually(lab, AT_ONCE, "the other messages are delivered", || {
        Ok(lab.value("select count(*) from jetstream.outbox")? == "0")
    });
}

fn stored(lab: &Lab, count: u64) {
    eventually(lab, AT_ONCE, &format!("the stream holds {count} messages"), || {
        Ok(lab.message_count("S")? >= count)
    });
}

fn client(lab: &Lab) -> Client {
    lab.postgres.client(DATABASE).unwrap()
}

/// Inserts two messages in every possible way, with many messages of other transactions between and after them.
#[test]
fn what_was_inserted_in_any_way_is_found_as_it_commits() {
    type Way = (&'static str, fn(&mut Client, i64));
    let ways: [Way; 6] = [
        ("insert", |client, n| {
            client.batch_execute(&insert("s.late", n, n)).unwrap()
        }),
        ("publish", |client, n| {
            let call = format!("select jetstream.publish('s.late', '{{\"n\": {n}}}')");
            client.batch_execute(&call).unwrap();
        }),
        ("publish_batch", |client, n| {
            let call = format!("select jetstream.publish_batch('s.late', array['{{\"n\": {n}}}'::jsonb])");
            client.batch_execute(&call).unwrap();
        }),
        ("copy", |client, n| {
            let mut to = client
                .copy_in("copy jetstream.outbox (subject, payload) from stdin")
                .unwrap();
            std::io::Write::write_all(&mut to, format!("s.late\t{{\"n\": {n}}}\n").as_bytes()).unwrap();
            to.finish().unwrap();
        }),
        ("savepoints", |client, n| {
            let (lost, kept) = (insert("s.late", -n, -n), insert("s.late", n, n));
            let text = format!("savepoint p; {lost}; rollback to p; savepoint p; {kept}; release p");
            client.batch_execute(&text).unwrap();
        }),
        ("txid given", |client, n| {
            let text = "insert into jetstream.outbox (txid, subject, payload) \
                        values (pg_current_xact_id(), 's.late', jsonb_build_object('n', ";
            client.batch_execute(&format!("{text}{n}))")).unwrap();
        }),
    ];
    let lab = lab(&[]);
    let mut at = 0;
    for (way, put) in ways {
        let mut late = client(&lab);
        late.batch_execute("begin").unwrap();
        put(&mut late, at + 1);
        overtake(&lab, at + 100, at + 299);
        put(&mut late, at + 2);
        overtake(&lab, at + 300, at + 499);
        late.batch_execute("commit").unwrap();
        at += 1_000;
        let count = at / 1_000 * 402;
        eprintln!("{way}");
        stored(&lab, count as u64);
    }
    let expected = (0..at / 1_000).flat_map(|n| [1, 2].into_iter().chain(100..=499).map(move |one| n * 1_000 + one));
    exactly_once(&lab, "S", expected);
}

#[test]
fn a_prepared_transaction_is_found_as_it_commits() {
    let lab = lab(&[]);
    lab.sql(&format!("begin; {}; prepare transaction 'p'", insert("s.late", 1, 1)))
        .unwrap();
    overtake(&lab, 100, 300);
    lab.sql("commit prepared 'p'").unwrap();
    stored(&lab, 202);
    exactly_once(&lab, "S", (100..=300).chain([1]));
}

/// Transactions of another database overwrite the commit ring, while the worker of this database has no reason to read
/// it.
#[test]
fn a_transaction_whose_note_was_lost_is_found_as_it_commits() {
    let lab = lab(&[("pg_jetstream.poll_interval", "60s")]);
    let mut late = client(&lab);
    late.batch_execute(&format!("begin; {}", insert("s.late", 1, 1)))
        .unwrap();
    overtake(&lab, 100, 300);
    // Far from the first message, so that the first one is recorded in the commit ring now.
    late.batch_execute(&insert("s.late", 2, 2)).unwrap();
    overtake(&lab, 301, 400);
    lab.sql("create database other").unwrap();
    let mut other = lab.postgres.client("other").unwrap();
    let text = "insert into jetstream.outbox (subject, payload) values ('s.other', '{}')";
    for command in [
        "create extension pg_jetstream",
        "set synchronous_commit = off",
        &format!("do $$ begin for n in 1..10000 loop {text}; commit; end loop; end $$"),
    ] {
        other.batch_execute(command).unwrap();
    }
    late.batch_execute("commit").unwrap();
    stored(&lab, 303);
    exactly_once(&lab, "S", (100..=400).chain([1, 2]));
}

#[test]
fn a_transaction_older_than_the_worker_is_found_as_it_commits() {
    let lab = lab(&[]);
    let mut late = client(&lab);
    late.batch_execute(&format!("begin; {}", insert("s.late", 1, 1)))
        .unwrap();
    overtake(&lab, 100, 300);
    let before = worker(&lab);
    lab.sql("select pg_terminate_backend(pid) from jetstream.status()")
        .unwrap();
    new_worker(&lab, before);
    worker(&lab);
    overtake(&lab, 301, 500);
    late.batch_execute("commit").unwrap();
    stored(&lab, 402);
    drained(&lab, SOON);
    exactly_once(&lab, "S", (100..=500).chain([1]));
}
