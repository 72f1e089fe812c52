//! An outage of NATS neither slows down producers nor loses messages.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::{Duration, Instant};

use e2e_support::{
    LATER, SOON, Writers, arrived, connection, count_on, drained, eventually, exactly_once, insert, lab, worker,
};
use lab::Lab;

/// Transactions per second that commit during `span`.
fn rate(lab: &Lab, span: Duration) -> f64 {
    let count = || {
        lab.value("select count(*) from business")
            .unwrap()
            .parse::<f64>()
            .unwrap()
    };
    let (before, start) = (count(), Instant::now());
    std::thread::sleep(span);
    (count() - before) / start.elapsed().as_secs_f64()
}

#[test]
fn ten_seconds_without_nats_lose_nothing_and_cost_the_writers_nothing() {
    let mut lab = lab(&[]);
    Writers::prepare(&lab);
    let writers = Writers::start(&lab, 4, Duration::from_millis(2));
    arrived(&lab, "S", 200);
    let with = rate(&lab, Duration::from_secs(3));
    lab.nats.kill9().unwrap();
    let without = rate(&lab, Duration::from_secs(10));
    lab.nats.restart().unwrap();
    let committed = writers.finish(&lab);
    drained(&lab, LATER);
    assert!(
        without > with * 0.7,
        "{without} transactions/s without NATS, {with} with NATS"
    );
    exactly_once(&lab, "S", committed);
    let used =
        "select count(*) filter (where attempts > 1), count(*) filter (where not success) from jetstream.history";
    assert_eq!(lab.sql(used).unwrap(), [["0", "0"]], "the outage has used up attempts");
}

/// The server hangs without closing its sockets, for longer than the acknowledgement timeout.
#[test]
fn a_server_that_hangs_is_an_outage_too() {
    let lab = lab(&[("pg_jetstream.ack_timeout", "1s")]);
    Writers::prepare(&lab);
    let writers = Writers::start(&lab, 2, Duration::from_millis(2));
    arrived(&lab, "S", 100);
    lab.nats.pause().unwrap();
    let without = rate(&lab, Duration::from_secs(4));
    lab.nats.resume().unwrap();
    let committed = writers.finish(&lab);
    drained(&lab, LATER);
    assert!(without > 50.0, "{without} transactions/s while NATS hangs");
    exactly_once(&lab, "S", committed);
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "0");
}

#[test]
fn postgresql_starts_without_nats_and_publishes_once_it_is_there() {
    let mut lab = lab(&[]);
    lab.nats.kill9().unwrap();
    lab.postgres.restart().unwrap();
    lab.sql(&insert("s.x", 1, 3_000)).unwrap();
    let state = "select connection_state in ('connecting', 'disconnected') from \
                 (select jetstream.health() ->> 'connection_state' as connection_state) h";
    e2e_support::becomes(&lab, "the connection is down", state, "t");
    lab.nats.restart().unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=3_000);
}

#[test]
fn a_connection_that_is_down_does_not_hold_up_another() {
    let lab = lab(&[]);
    let mut other = connection(&lab, "other");
    lab.sql("select jetstream.create_stream('T', array['t.>'], connection => 'other')")
        .unwrap();
    e2e_support::synced(&lab, "T");
    let to_other = |from: i64, to: i64| {
        insert("t.x", from, to)
            .replace("(subject, payload)", "(connection, subject, payload)")
            .replace("select 't.x'", "select 'other', 't.x'")
    };
    lab.sql(&to_other(1, 100)).unwrap();
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    drained(&lab, SOON);
    assert_eq!(
        (
            count_on(&other, "T"),
            count_on(&other, "S"),
            lab.message_count("T").unwrap()
        ),
        (100, 0, 0)
    );
    exactly_once(&lab, "S", 1..=100);

    other.kill9().unwrap();
    lab.sql(&to_other(101, 10_100)).unwrap();
    lab.sql(&insert("s.x", 101, 10_100)).unwrap();
    arrived(&lab, "S", 10_100);
    let health = lab.value("select jetstream.health('other')").unwrap();
    assert!(health.contains("disconnected"), "{health}");
    assert_eq!(
        lab.value("select jetstream.health('default') ->> 'healthy'").unwrap(),
        "true"
    );
    assert_eq!(
        lab.value("select jetstream.health() ->> 'verdict'").unwrap(),
        "degraded"
    );
    other.restart().unwrap();
    drained(&lab, LATER);
    assert_eq!(count_on(&other, "T"), 10_100);
    assert_eq!(
        lab.value("select count(*) from jetstream.history where duplicate or not success")
            .unwrap(),
        "0"
    );
}

/// Messages that wait for one connection must not use up the memory that all connections share.
#[test]
fn large_messages_for_a_server_that_hangs_leave_room_for_the_others() {
    let lab = lab(&[("pg_jetstream.max_in_flight_bytes", "1MB")]);
    let other = connection(&lab, "other");
    lab.sql("select jetstream.create_stream('T', array['t.>'], connection => 'other')")
        .unwrap();
    e2e_support::synced(&lab, "T");
    other.pause().unwrap();
    lab.sql(
        "insert into jetstream.outbox (connection, subject, raw)
         select 'other', 't.x', convert_to(repeat('x', 20000), 'UTF8') from generate_series(1, 200)",
    )
    .unwrap();
    eventually(&lab, SOON, "messages are in flight", || {
        Ok(lab.value("select in_flight > 10 from jetstream.status()")? == "t")
    });
    lab.sql(&insert("s.x", 1, 1_000)).unwrap();
    arrived(&lab, "S", 1_000);
    other.resume().unwrap();
    drained(&lab, LATER);
    assert_eq!(count_on(&other, "T"), 200);
}

#[test]
fn servers_that_come_and_go_at_random_leave_one_copy_of_each() {
    let mut lab = lab(&[]);
    Writers::prepare(&lab);
    let writers = Writers::start(&lab, 3, Duration::from_millis(1));
    for round in 0..8 {
        let enough = writers.so_far() + 100;
        eventually(&lab, LATER, "the producers make progress", || {
            Ok(writers.so_far() >= enough)
        });
        match round % 4 {
            0 => lab.nats.restart().unwrap(),
            1 => {
                lab.nats.stop().unwrap();
                lab.nats.restart().unwrap();
            }
            2 => {
                lab.sql("select jetstream.reload()").unwrap();
            }
            _ => {
                lab.sql(
                    "update jetstream.connections set description = 'x', reconnect_delay_ms = reconnect_delay_ms + 1",
                )
                .unwrap();
            }
        }
    }
    let committed = writers.finish(&lab);
    drained(&lab, LATER);
    worker(&lab);
    exactly_once(&lab, "S", committed);
}

/// With as many unacknowledged messages in flight as allowed, the worker has nothing to do.
#[test]
fn a_full_window_is_waited_for_in_peace() {
    let lab = lab(&[("pg_jetstream.max_in_flight", "10"), ("pg_jetstream.batch_size", "10")]);
    lab.sql(&insert("s.first", 1, 1)).unwrap();
    drained(&lab, SOON);
    lab.nats.pause().unwrap();
    lab.sql(&insert("s.more", 2, 1_000)).unwrap();
    // Longer than the interval at which the worker polls.
    std::thread::sleep(Duration::from_millis(1_500));
    let cycles = || -> i64 {
        lab.value("select cycles from jetstream.status()")
            .unwrap()
            .parse()
            .unwrap()
    };
    let before = cycles();
    std::thread::sleep(Duration::from_secs(1));
    let more = cycles() - before;
    lab.nats.resume().unwrap();
    drained(&lab, LATER);
    assert!(more < 50, "{more} cycles in a second");
    exactly_once(&lab, "S", 1..=1_000);
}
