//! A message that was sent once is not sent again, however long the crash or outage lasts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use lab::Lab;

/// A lab with a stream that forgets message ids after one second.
fn start(settings: &[(&str, &str)]) -> Lab {
    let mut builder = Lab::builder();
    for (name, value) in settings {
        builder = builder.set(name, value);
    }
    let lab = builder.start().unwrap();
    lab.sql("select jetstream.create_stream('S', array['s.>'], duplicate_window => '1 second')")
        .unwrap();
    lab.wait_until("the stream exists", || {
        Ok(lab.value("select synced_at is not null from jetstream.streams")? == "t")
    })
    .unwrap();
    lab
}

fn owe(lab: &Lab, from: u32, to: u32) {
    lab.sql(&format!(
        "insert into jetstream.outbox (subject, payload, message_id, key) \
         select 's.' || i % 10, to_jsonb(i), 'm' || i, case when i % 3 = 0 then 'k' || i % 7 end \
         from generate_series({from}, {to}) i"
    ))
    .unwrap();
}

/// Waits until some of the pending messages have been delivered, but not all.
fn wait_mid_drain(lab: &Lab, floor: u64) {
    lab.wait_until("the drain is under way", || Ok(lab.message_count("S")? > floor))
        .unwrap();
    assert_ne!(
        lab.value("select exists (select from jetstream.outbox)").unwrap(),
        "f",
        "the drain was too fast to be interrupted"
    );
}

/// Waits until the stream's duplicate window has passed.
fn outlast_the_window() {
    std::thread::sleep(Duration::from_millis(2500));
}

fn assert_each_once(lab: &Lab, count: usize) {
    lab.wait_drained().unwrap();
    let mut copies = BTreeMap::new();
    for message in lab.stream_messages("S").unwrap() {
        *copies.entry(message.id().unwrap().to_owned()).or_insert(0) += 1;
    }
    let twice: Vec<_> = copies.iter().filter(|(_, n)| **n > 1).take(5).collect();
    assert!(twice.is_empty(), "stored more than once: {twice:?}\n{}", lab.logs());
    assert_eq!(copies.len(), count, "{}", lab.logs());
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "0");
}

#[test]
fn a_crash_of_postgresql_beyond_the_duplicate_window() {
    let mut lab = start(&[
        ("pg_jetstream.batch_size", "200"),
        ("pg_jetstream.max_in_flight", "200"),
    ]);
    for round in 0..3 {
        owe(&lab, round * 20_000 + 1, (round + 1) * 20_000);
        wait_mid_drain(&lab, u64::from(round) * 20_000 + 2_000);
        lab.postgres.kill9().unwrap();
        outlast_the_window();
        lab.postgres.start_again().unwrap();
    }
    assert_each_once(&lab, 60_000);
}

#[test]
fn a_crash_of_nats_beyond_the_duplicate_window() {
    let mut lab = start(&[
        ("pg_jetstream.batch_size", "200"),
        ("pg_jetstream.max_in_flight", "200"),
    ]);
    for round in 0..3 {
        owe(&lab, round * 20_000 + 1, (round + 1) * 20_000);
        wait_mid_drain(&lab, u64::from(round) * 20_000 + 2_000);
        lab.nats.kill9().unwrap();
        outlast_the_window();
        lab.nats.restart().unwrap();
        lab.wait_drained().unwrap();
    }
    assert_each_once(&lab, 60_000);
}

#[test]
fn a_changed_connection_in_mid_drain() {
    let lab = start(&[
        ("pg_jetstream.batch_size", "200"),
        ("pg_jetstream.max_in_flight", "200"),
    ]);
    owe(&lab, 1, 20_000);
    wait_mid_drain(&lab, 2_000);
    lab.sql("update jetstream.connections set enabled = false").unwrap();
    lab.wait_until("the connection is closed", || {
        Ok(lab.value("select connections -> 0 ->> 'state' from jetstream.status()")? == "disabled")
    })
    .unwrap();
    outlast_the_window();
    lab.sql("update jetstream.connections set enabled = true").unwrap();
    assert_each_once(&lab, 20_000);
}
