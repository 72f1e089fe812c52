//! Transactions that commit after later messages have left: what they inserted is found at once, by their notes or,
//! where these are lost, without them. The sweep once a minute would find it too, so that all of this counts in seconds.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::Duration;

use e2e_support::{SOON, drained, eventually, exactly_once, insert, lab, new_worker, worker};
use lab::lab::{DATABASE, Lab};
use postgres::Client;

/// Far less than the time from one sweep to the next, or from the start of a worker to the first.
const AT_ONCE: Duration = Duration::from_secs(8);

/// Inserts and waits until all is stored: whatever is open by then is late.
fn overtake(lab: &Lab, from: i64, to: i64) {
    lab.sql(&insert("s.other", from, to)).unwrap();
    eventually(lab, AT_ONCE, "the others have left", || {
        Ok(lab.value("select count(*) from jetstream.outbox")? == "0")
    });
}

fn stored(lab: &Lab, count: u64) {
    eventually(lab, AT_ONCE, &format!("{count} messages are stored"), || {
        Ok(lab.message_count("S")? >= count)
    });
}

fn client(lab: &Lab) -> Client {
    lab.postgres.client(DATABASE).unwrap()
}

/// Inserts two messages in each way there is, with more than a few messages of others between them and behind them.
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

/// Another database's transactions note more than is kept, while this one's worker has no reason to read.
#[test]
fn a_transaction_whose_note_was_lost_is_found_as_it_commits() {
    let lab = lab(&[("pg_jetstream.poll_interval", "60s")]);
    let mut late = client(&lab);
    late.batch_execute(&format!("begin; {}", insert("s.late", 1, 1)))
        .unwrap();
    overtake(&lab, 100, 300);
    // Far from the first, so that the first is noted now.
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
