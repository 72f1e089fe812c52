//! Hostile servers and hostile rows, end to end: the worker stays the same, and everything else continues.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use e2e_support::{
    SOON, account, becomes, connection, count_on, drained, eventually, exactly_once, insert, lab, worker,
};
use lab::hostile::{Ack, Act, Hostile, greeting};
use lab::process::private_mb;

/// An operator may write what no producer can; the outbox refuses what cannot be, and the worker survives what was written
/// past the check.
#[test]
fn far_times_are_refused_and_harmless_all_the_same() {
    let lab = lab(&[]);
    let pid = worker(&lab);
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&insert("s.a", 1, 6)).unwrap();
    let times = ["-infinity", "infinity", "294276-01-01", "4713-01-01 BC", "12000-01-01"];
    for column in ["unsure_since", "created_at"] {
        for time in times {
            let refused = lab
                .sql(&format!("update jetstream.outbox set {column} = '{time}'"))
                .unwrap_err();
            assert_eq!(lab::postgres::sqlstate(&refused), Some("23514"), "{refused:#}");
            let text = format!("{refused:#}");
            assert!(
                text.contains(&format!("{column} is not in the years 1970 to 9999")),
                "{text}"
            );
        }
    }
    lab.sql("alter table jetstream.outbox disable trigger outbox_check")
        .unwrap();
    for (n, time) in times.iter().enumerate() {
        lab.sql(&format!(
            "update jetstream.outbox set unsure_since = '{time}', created_at = '{time}' where payload ->> 'n' = '{}'",
            n + 1
        ))
        .unwrap();
    }
    lab.sql("alter table jetstream.outbox enable always trigger outbox_check")
        .unwrap();
    lab.sql("truncate jetstream.positions; select jetstream.resume()")
        .unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=6);
    assert_eq!(worker(&lab), pid, "{}", account(&lab));
    // A worker that begins with such rows reads the streams for them.
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&insert("s.a", 7, 9)).unwrap();
    lab.sql("alter table jetstream.outbox disable trigger outbox_check")
        .unwrap();
    lab.sql("update jetstream.outbox set created_at = '12000-01-01'; truncate jetstream.positions")
        .unwrap();
    lab.sql("alter table jetstream.outbox enable always trigger outbox_check")
        .unwrap();
    lab.sql("select pg_terminate_backend(pid) from jetstream.status()")
        .unwrap();
    e2e_support::new_worker(&lab, pid);
    lab.sql("select jetstream.resume()").unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=9);
    assert!(!lab.postgres.log().contains("panicked"), "{}", account(&lab));
}

/// One connection's server does its worst, another one's messages go, and what is shown can be read.
#[test]
fn a_hostile_server_harms_neither_the_worker_nor_other_connections_nor_monitoring() {
    let lab = lab(&[("pg_jetstream.ack_timeout", "1s")]);
    let other = connection(&lab, "bad");
    lab.sql("select jetstream.create_stream('B', array['b.>'], connection => 'bad')")
        .unwrap();
    e2e_support::synced(&lab, "B");
    let pid = worker(&lab);
    let before = private_mb(pid).unwrap();
    let hostile = Hostile::start(other.port(), Act::Honest).unwrap();
    lab.sql(&format!(
        "update jetstream.connections set url = '{}', connection_timeout_ms = 1000 where name = 'bad'",
        hostile.url()
    ))
    .unwrap();
    becomes(
        &lab,
        "the hostile server is reached",
        "select jetstream.health('bad') ->> 'connected'",
        "true",
    );
    let text = |text: &str| text.as_bytes().to_vec();
    let long = "x".repeat(900_000);
    let acts = [
        Act::Says(text("SSH-2.0-OpenSSH_9.6\r\n")),
        Act::Says(text("-ERR\r\n")),
        Act::Says(greeting("\"server_name\":\"a\\u0000b\"")),
        Act::Endless(text("INFO {\"a\":\""), text("x")),
        Act::Flood(text("MSG _INBOX.x 1 3221225472\r\n"), text("x")),
        Act::Inject(text("-ERR 'a\0b\u{1b}[2J'\r\n")),
        Act::Acks(Ack::Instead(text(&format!("{{\"stream\":\"{long}\",\"seq\":1}}")))),
        Act::Acks(Ack::Instead(text("{\"stream\":\"B\",\"seq\":18446744073709551615}"))),
        Act::Acks(Ack::Instead(text(&format!(
            "{{\"error\":{{\"code\":503,\"err_code\":10077,\"description\":\"a\\u0000{long}\"}}}}"
        )))),
    ];
    for (n, act) in (1..).zip(&acts) {
        hostile.set(act.clone());
        lab.sql(&format!(
            "select jetstream.publish('b.a', '{{\"n\": {n}}}', connection => 'bad')"
        ))
        .unwrap();
        lab.sql(&insert("s.a", n, n)).unwrap();
        eventually(&lab, SOON, "the other connection's message", || {
            Ok(lab.value("select count(*) from jetstream.outbox where connection = 'default'")? == "0")
        });
        std::thread::sleep(std::time::Duration::from_millis(1200));
        for query in [
            "select count(*) from (select to_jsonb(s) from jetstream.status() s) x",
            "select jetstream.health('bad') is not null",
            "select count(*) > 0 from jetstream.metrics",
            "select coalesce(max(octet_length(last_error)), 0) < 7000 from jetstream.outbox",
            "select not coalesce(bool_or(position('\\x00'::bytea in convert_to(last_error, 'UTF8')) > 0), false) from jetstream.outbox",
        ] {
            let value = lab.value(query);
            assert!(matches!(value.as_deref(), Ok("t" | "1")), "{act:?}: {query}: {value:?}");
        }
        let grown = private_mb(pid).unwrap_or(u64::MAX).saturating_sub(before);
        assert!(grown < 150, "{n}: the worker has grown by {grown} MB");
    }
    hostile.set(Act::Honest);
    drained(&lab, SOON);
    assert_eq!(worker(&lab), pid, "{}", account(&lab));
    assert_eq!(count_on(&other, "B"), acts.len() as u64);
    exactly_once(&lab, "S", 1..=acts.len() as i64);
    assert_eq!(
        lab.value("select max(length(stream)) from jetstream.history").unwrap(),
        "1"
    );
    assert_eq!(
        lab.value("select min(sequence) > 0 from jetstream.history").unwrap(),
        "t"
    );
}
