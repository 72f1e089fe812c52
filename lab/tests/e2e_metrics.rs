//! `jetstream.metrics` reports what has happened.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use e2e_support::{SOON, eventually};
use e2e_support::{account, becomes, drained, insert, lab, new_worker, quick_lab, synced, worker};
use lab::Lab;

/// The value of a metric, selected by a part of its labels.
fn metric(name: &str, labels: &str) -> String {
    format!("select value from jetstream.metrics where name = 'pg_jetstream_{name}' and labels @> '{labels}'")
}

fn value(lab: &Lab, name: &str, labels: &str) -> f64 {
    let rows = lab.sql(&metric(name, labels)).unwrap().concat();
    assert_eq!(rows.len(), 1, "{name} {labels}: {rows:?}\n{}", account(lab));
    rows[0].parse().unwrap()
}

fn settles_at(lab: &Lab, name: &str, labels: &str, expected: &str) {
    becomes(lab, name, &metric(name, labels), expected);
}

#[test]
fn known_traffic_is_counted() {
    let lab = quick_lab(lab::Lab::builder().nats_extra("max_payload: 65536"));
    lab.sql(&insert("s.a", 1, 1000)).unwrap();
    drained(&lab, SOON);
    lab.sql("select jetstream.publish('s.a', '1', 'same'), jetstream.publish('s.b', '2', 'same')")
        .unwrap();
    lab.sql("select jetstream.publish('s.large', to_jsonb(repeat('x', 100000)))")
        .unwrap();
    drained(&lab, SOON);
    settles_at(&lab, "worker_stored_total", "{}", "1002");
    settles_at(&lab, "worker_duplicates_total", "{}", "1");
    settles_at(&lab, "worker_dead_total", "{}", "1");
    settles_at(&lab, "worker_retried_total", "{}", "0");
    assert_eq!(value(&lab, "worker_claimed_total", "{}"), 1003.0);
    assert_eq!(value(&lab, "worker_in_flight_messages", "{}"), 0.0);
    assert_eq!(value(&lab, "outbox_owed_messages", "{}"), 0.0);
    let connection = r#"{"connection": "default"}"#;
    assert_eq!(value(&lab, "connection_up", connection), 1.0);
    assert_eq!(value(&lab, "connection_lag_seconds", connection), 0.0);
    assert_eq!(value(&lab, "connection_dead_letters", connection), 1.0);
    assert_eq!(value(&lab, "connection_failed_messages", connection), 1.0);
    assert_eq!(value(&lab, "history_days_ahead", "{}"), 7.0);

    // The histogram agrees with the individual entries of the history.
    let different = "select labels ->> 'le', value,
             (select count(*) from jetstream.history where success and latency_ms <= (labels ->> 'le')::float8 * 1000)
         from jetstream.metrics where name = 'pg_jetstream_worker_latency_seconds_bucket'
           and value <> (select count(*) from jetstream.history
                         where success and latency_ms <= (labels ->> 'le')::float8 * 1000)";
    assert_eq!(lab.sql(different).unwrap(), Vec::<Vec<String>>::new());
    assert_eq!(value(&lab, "worker_latency_seconds_count", "{}"), 1002.0);
    let sum = "select abs(value - (select sum(latency_ms) / 1000 from jetstream.history where success)) < 0.001 * value
         from jetstream.metrics where name = 'pg_jetstream_worker_latency_seconds_sum'";
    assert_eq!(lab.value(sum).unwrap(), "t");

    // No stream takes the message, so it is retried.
    lab.sql("select jetstream.publish('nowhere', '1')").unwrap();
    settles_at(&lab, "connection_failing_messages", connection, "1");
    eventually(&lab, SOON, "there are two more attempts", || {
        Ok(lab.value(&metric("worker_retried_total", "{}"))?.parse::<u32>()? >= 2)
    });
}

#[test]
fn a_backlog_and_its_reason_show() {
    let mut lab = lab(&[]);
    let pid = worker(&lab);
    let connection = r#"{"connection": "default"}"#;
    lab.sql("select jetstream.pause()").unwrap();
    settles_at(&lab, "worker_paused", "{}", "1");
    lab.sql(&insert("s.a", 1, 999)).unwrap();
    assert_eq!(value(&lab, "outbox_owed_messages", "{}"), 999.0, "counted");
    lab.sql(&insert("s.a", 1000, 5000)).unwrap();
    settles_at(&lab, "outbox_owed_messages", "{}", "5000");
    lab.sql("update jetstream.outbox set created_at = now() - interval '1 hour' where id = (select min(id) from jetstream.outbox)")
        .unwrap();
    let lag = value(&lab, "connection_lag_seconds", connection);
    assert!((3600.0..3700.0).contains(&lag), "{lag}");

    lab.nats.stop().unwrap();
    settles_at(&lab, "connection_up", connection, "0");
    assert_eq!(value(&lab, "worker_up", "{}"), 1.0);
    lab.nats.restart().unwrap();
    settles_at(&lab, "connection_up", connection, "1");
    lab.sql("select jetstream.resume()").unwrap();
    drained(&lab, SOON);
    settles_at(&lab, "worker_stored_total", "{}", "5000");
    settles_at(&lab, "connection_lag_seconds", connection, "0");

    // JetStream does not change the storage of an existing stream.
    let stream = r#"{"connection": "default", "stream": "S"}"#;
    assert_eq!(value(&lab, "stream_sync_error", stream), 0.0);
    lab.sql("update jetstream.streams set storage = 'memory'").unwrap();
    settles_at(&lab, "stream_sync_error", stream, "1");
    lab.sql("update jetstream.streams set storage = 'file'").unwrap();
    synced(&lab, "S");
    settles_at(&lab, "stream_sync_error", stream, "0");

    // A new worker counts from zero, and reports since when.
    let started = value(&lab, "worker_start_time_seconds", "{}");
    lab.sql(&format!("select pg_terminate_backend({pid})")).unwrap();
    new_worker(&lab, pid);
    eventually(&lab, SOON, "the new worker has completed a cycle", || {
        Ok(lab.value(&metric("worker_cycles_total", "{}"))? != "0")
    });
    assert_eq!(value(&lab, "worker_stored_total", "{}"), 0.0);
    assert_eq!(value(&lab, "worker_latency_seconds_count", "{}"), 0.0);
    assert!(value(&lab, "worker_start_time_seconds", "{}") > started);

    lab.postgres.set(&[("pg_jetstream.databases", "elsewhere")]).unwrap();
    settles_at(&lab, "worker_up", "{}", "0");
    assert_eq!(value(&lab, "connection_up", connection), 0.0);
}
