//! Messages with the same key arrive in order, whatever fails on the way. Other messages do not wait for them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::collections::BTreeMap;
use std::time::Duration;

use e2e_support::{
    LATER, SOON, arrived, drained, eventually, exactly_once, lab, new_worker, number, numbers, stream, worker,
};
use lab::Lab;
use lab::lab::DATABASE;
use lab::process;
use nix::sys::signal::Signal;

/// Inserts messages `from` to `to`, alternating between `keys` keys: `<prefix>.k0` and so on. The key is also the
/// subject.
fn keyed(prefix: &str, keys: i64, from: i64, to: i64) -> String {
    format!(
        "insert into jetstream.outbox (subject, payload, key)
         select '{prefix}.k' || n % {keys}, jsonb_build_object('n', n), '{prefix}.k' || n % {keys}
         from generate_series({from}, {to}) n order by n"
    )
}

/// Inserts messages `from` to `to` with one key.
fn of_key(key: &str, from: i64, to: i64) -> String {
    format!(
        "insert into jetstream.outbox (subject, payload, key)
         select 's.x', jsonb_build_object('n', n), '{key}' from generate_series({from}, {to}) n order by n"
    )
}

/// Checks that the numbers in each subject of the stream increase.
fn in_order(lab: &Lab, stream: &str) {
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    for message in lab.stream_messages(stream).unwrap() {
        let n = number(&message);
        if let Some(before) = last.insert(message.subject.clone(), n) {
            assert!(before < n, "{n} after {before} of {}", message.subject);
        }
    }
}

#[test]
fn a_key_waits_for_its_failing_message_and_no_other_does() {
    let lab = lab(&[]);
    lab.sql("update jetstream.streams set subjects = array['s.>', 'good.>'], synced_at = null")
        .unwrap();
    e2e_support::synced(&lab, "S");
    // k0's subject has no stream. The subject of k1 and of messages without a key has one.
    lab.sql(
        "insert into jetstream.outbox (subject, payload, key)
         select case when n % 3 = 0 then 'missing.k0' when n % 3 = 1 then 'good.k1' else 'good.none' end,
                jsonb_build_object('n', n), case when n % 3 < 2 then 'k' || n % 3 end
         from generate_series(1, 900) n order by n",
    )
    .unwrap();
    arrived(&lab, "S", 600);
    in_order(&lab, "S");
    let failing = "select count(*) = 1 and min(attempts) > 1 from jetstream.outbox where attempts > 0";
    e2e_support::becomes(&lab, "the first message of the key is failing", failing, "t");
    assert_eq!(lab.value("select count(*) from jetstream.outbox").unwrap(), "300");
    assert_eq!(lab.value("select held_keys from jetstream.status()").unwrap(), "1");
    // Inserts more messages of both keys while k0 waits, and replaces the worker meanwhile.
    lab.sql("insert into jetstream.outbox (subject, payload, key) select 'missing.k0', jsonb_build_object('n', n), 'k0' from generate_series(901, 950) n").unwrap();
    lab.sql("insert into jetstream.outbox (subject, payload, key) select 'good.k1', jsonb_build_object('n', n), 'k1' from generate_series(951, 1000) n").unwrap();
    arrived(&lab, "S", 650);
    let pid = worker(&lab);
    process::signal(pid, Signal::SIGTERM).unwrap();
    new_worker(&lab, pid);
    eventually(&lab, SOON, "the new worker holds back the key", || {
        Ok(lab.value("select held_keys from jetstream.status()")? == "1")
    });
    stream(&lab, "LATE", "missing.>");
    drained(&lab, LATER);
    let late: Vec<i64> = (1..=300).map(|n| n * 3).chain(901..=950).collect();
    assert_eq!(numbers(&lab, "LATE"), late);
    exactly_once(&lab, "S", (1..=900).filter(|n| n % 3 != 0).chain(951..=1000));
}

/// Failures come and go at random for each key separately: a stream takes few messages per subject, and refuses more
/// until another task makes room.
#[test]
fn keys_keep_their_order_through_failures_crashes_and_outages() {
    let mut lab = lab(&[]);
    lab.sql("select jetstream.create_stream('O', array['o.>'], discard => 'new', max_messages => 300)")
        .unwrap();
    e2e_support::synced(&lab, "O");
    let conninfo = lab.postgres.conninfo(DATABASE);
    let writer = std::thread::spawn(move || {
        let mut client = postgres::Client::connect(&conninfo, postgres::NoTls).unwrap();
        for from in (1..=6_000).step_by(50) {
            client.batch_execute(&keyed("o", 17, from, from + 49)).unwrap();
        }
    });
    writer.join().unwrap();
    for room in 1..=20 {
        arrived(&lab, "O", (300 * room).min(6_000) - 20);
        match room {
            4 => {
                let pid = worker(&lab);
                process::signal(pid, Signal::SIGKILL).unwrap();
                new_worker(&lab, pid);
            }
            8 => lab.nats.restart().unwrap(),
            12 => {
                lab.postgres.kill9().unwrap();
                std::thread::sleep(Duration::from_millis(200));
                lab.postgres.start_again().unwrap();
            }
            16 => {
                let pid = worker(&lab);
                process::signal(pid, Signal::SIGTERM).unwrap();
                new_worker(&lab, pid);
            }
            _ => {}
        }
        let more = (room + 1) * 300;
        eventually(&lab, SOON, "more room", || {
            Ok(lab
                .sql(&format!(
                    "update jetstream.streams set max_messages = {more} where name = 'O'"
                ))
                .is_ok())
        });
    }
    drained(&lab, LATER);
    exactly_once(&lab, "O", 1..=6_000);
    in_order(&lab, "O");
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "0");
}

#[test]
fn a_hot_key_stays_in_order_and_starves_nobody() {
    let lab = lab(&[]);
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&keyed("s.hot", 1, 1, 5_000)).unwrap();
    lab.sql(&keyed("s.cold", 50, 5_001, 6_000)).unwrap();
    lab.sql(&e2e_support::insert("s.none", 6_001, 7_000)).unwrap();
    lab.sql("select jetstream.resume()").unwrap();
    drained(&lab, LATER);
    exactly_once(&lab, "S", 1..=7_000);
    in_order(&lab, "S");
    // All other messages were delivered before half of the hot key was.
    let all = lab.stream_messages("S").unwrap();
    let place = |n: i64| all.iter().position(|message| number(message) == n).unwrap();
    let last_other = (5_001..=7_000).map(place).max().unwrap();
    assert!(last_other < place(2_500), "the hot key was sent first");
    // Even one message at a time, a hot key has a useful speed.
    let seconds = lab
        .value(
            "select extract(epoch from max(published_at) - min(published_at)) from jetstream.history where key = 's.hot.k0'",
        )
        .unwrap();
    assert!(
        seconds.parse::<f64>().unwrap() < 20.0,
        "5000 messages with one key took {seconds} s"
    );
}

#[test]
fn unkeyed_messages_go_in_insert_order_and_pass_a_failing_one() {
    let lab = lab(&[]);
    lab.sql(
        "insert into jetstream.outbox (subject, payload)
         select case when n = 1 then 'nobody.takes.this' else 's.x' end, jsonb_build_object('n', n)
         from generate_series(1, 5000) n order by n",
    )
    .unwrap();
    arrived(&lab, "S", 4_999);
    assert_eq!(numbers(&lab, "S"), (2..=5_000).collect::<Vec<_>>());
    stream(&lab, "LATE", "nobody.>");
    drained(&lab, SOON);
    assert_eq!(numbers(&lab, "LATE"), [1]);
}

/// Deleting the failing message unblocks its key, and so does moving it to the dead letters.
#[test]
fn a_key_goes_on_when_its_failing_message_is_deleted_or_buried() {
    let mut lab = lab(&[]);
    let first = |n: i64| format!("select jetstream.publish('missing.{n}', '{{\"n\": {n}}}', key => 'k')");
    let next = |n: i64| format!("select jetstream.publish('s.{n}', '{{\"n\": {n}}}', key => 'k')");
    let failing = "select coalesce(max(attempts), 0) > 1 from jetstream.outbox";
    lab.sql(&first(1)).unwrap();
    lab.sql(&next(2)).unwrap();
    e2e_support::becomes(&lab, "a message is failing", failing, "t");
    lab.sql("delete from jetstream.outbox where attempts > 0").unwrap();
    arrived(&lab, "S", 1);
    lab.sql(&first(3)).unwrap();
    lab.sql(&next(4)).unwrap();
    e2e_support::becomes(&lab, "a message is failing", failing, "t");
    lab.postgres.set(&[("pg_jetstream.max_attempts", "3")]).unwrap();
    drained(&lab, SOON);
    assert_eq!(numbers(&lab, "S"), [2, 4]);
    assert_eq!(
        lab.value("select string_agg(subject, ',') from jetstream.dead_letters")
            .unwrap(),
        "missing.3"
    );
}

/// A failing message is returned without an attempt, because its connection was changed. It still holds back its key.
#[test]
fn a_key_waits_for_its_failing_message_when_the_connection_changes_in_mid_attempt() {
    let mut lab = lab(&[]);
    lab.sql("select jetstream.publish('missing.k', '{\"n\": 1}', key => 'k')")
        .unwrap();
    lab.sql(&of_key("k", 2, 10)).unwrap();
    let failed = |times: &str| {
        format!(
            "select count(*) = 1 from jetstream.outbox where attempts {times} and deliver_at > now() + interval '1 s'"
        )
    };
    lab.postgres
        .set(&[
            ("pg_jetstream.retry_backoff_base", "3s"),
            ("pg_jetstream.retry_backoff_max", "3s"),
        ])
        .unwrap();
    e2e_support::becomes(&lab, "the failing message waits", &failed("> 0"), "t");
    let attempts = lab.value("select max(attempts) from jetstream.outbox").unwrap();
    lab.nats.pause().unwrap();
    let in_flight = "select in_flight from jetstream.status()";
    e2e_support::becomes(&lab, "its next attempt is in flight", in_flight, "1");
    lab.sql("update jetstream.connections set reconnect_delay_ms = 400")
        .unwrap();
    e2e_support::becomes(&lab, "the attempt is returned", in_flight, "0");
    lab.nats.resume().unwrap();
    e2e_support::becomes(&lab, "there is another attempt", &failed(&format!("> {attempts}")), "t");
    assert_eq!(lab.message_count("S").unwrap(), 0, "messages overtook the failing one");
    stream(&lab, "LATE", "missing.>");
    drained(&lab, SOON);
    assert_eq!(numbers(&lab, "LATE"), [1]);
    assert_eq!(numbers(&lab, "S"), (2..=10).collect::<Vec<_>>());
}

/// Scheduled messages that come due while their key is very busy are sent in their turn, and do not wait for the sweep.
#[test]
fn delayed_messages_of_a_hot_key_are_not_left_behind() {
    let lab = lab(&[]);
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&of_key("hot", 1, 20_000)).unwrap();
    lab.sql("update jetstream.outbox set deliver_at = clock_timestamp() + id / 20 * interval '4 ms' where id % 20 = 0")
        .unwrap();
    lab.sql("select jetstream.resume()").unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=20_000);
}
