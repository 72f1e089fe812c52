//! The queue in PostgreSQL, for workers that use it with leases.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::endpoint::Answer::{RetryAfter, Slow, Status};
use super::endpoint::{Answers, Endpoint, Seen};
use super::{Kind, LONG, Place, shows};
use crate::e2e_support::eventually;

const PLANS: [(&str, Answers); 5] = [
    ("fine", &[Status(200)]),
    ("unavailable", &[Status(503), Status(200)]),
    ("busy", &[RetryAfter(429, 2), Status(200)]),
    ("missing", &[Status(404)]),
    ("slow", &[Slow(700)]),
];
const CALLS: usize = 300;
/// BATCH_SIZE, the number of calls that the killed worker may have had in hand.
const IN_HAND: usize = 10;

/// Two workers run without NATS, and one of them is killed. Each call ends as planned, and those that the killed worker
/// had in hand are made again.
pub fn the_queue_is_drained_by_lease_without_nats(kind: &Kind) {
    let mut place = Place::new(kind, Endpoint::start(PLANS));
    place.lab.nats.stop().unwrap();
    let url = place.endpoint.url("/queue");
    place
        .lab
        .sql(&format!(
            "insert into jetstream.webhooks (id, name, url, retry_base_ms, headers)
             values (1, 'queue', '{url}', 300, '{{\"Authorization\": \"Bearer {{{{secret:token}}}}\"}}');
             select jetstream.rule_webhook_secret_set(1, 'token', 's3cret');
             select jetstream.webhook_call(1, jsonb_build_object('n', n, 'plan',
                 (array['fine', 'unavailable', 'busy', 'missing', 'slow'])[n % 5 + 1]), message_id => 'call-' || n)
             from generate_series(1, {CALLS}) n"
        ))
        .unwrap();
    let batch = IN_HAND.to_string();
    let variables = [
        ("NATS_URL", ""),
        ("QUEUE_ENABLED", "true"),
        ("BATCH_SIZE", batch.as_str()),
        ("QUEUE_LEASE_MS", "4000"),
        ("QUEUE_POLL_INTERVAL_MS", "100"),
    ];
    let mut first = place.worker("first", &variables);
    let mut second = place.worker("second", &variables);
    eventually(&place.lab, LONG, "both workers are busy", || {
        Ok(place.endpoint.count() >= 60)
    });
    first.kill9();
    let left = "select count(*) > 0 from jetstream.webhook_calls where worker = 'first' and status = 'claimed'";
    assert_eq!(
        place.lab.value(left).unwrap(),
        "t",
        "the killed worker had no calls in hand, so the test proves nothing"
    );
    let ended = "select count(*) from jetstream.webhook_calls where status in ('succeeded', 'dead')";
    shows(&place.lab, "all calls have ended", ended, &CALLS.to_string());
    second.terminate();
    second.ended(Duration::from_secs(20));

    let as_planned =
        "select payload ->> 'plan', status, max(response_status) from jetstream.webhook_calls group by 1, 2 order by 1";
    let rows = place.lab.sql(as_planned).unwrap();
    let expected = ["busy", "fine", "missing", "slow", "unavailable"].map(|plan| match plan {
        "missing" => [plan, "dead", "404"],
        _ => [plan, "succeeded", "200"],
    });
    assert_eq!(rows, expected);
    let calls = place.endpoint.by_key();
    assert_eq!(calls.len(), CALLS);
    let planned = |calls: &[Seen]| match calls[0].answer {
        Status(503) | RetryAfter(..) => 2,
        _ => 1,
    };
    let differing: Vec<_> = calls
        .iter()
        .filter(|(_, calls)| calls.len() != planned(calls))
        .map(|(id, _)| id)
        .collect();
    assert!(differing.len() <= IN_HAND, "{differing:?}");
    for calls in calls.values() {
        assert_eq!(calls[0].headers["authorization"], "Bearer s3cret");
    }
    check_retry_after(&place, &calls);
}

/// Checks the time at which the second attempt was due. The time at which it was made depends on the number of calls
/// due before it.
fn check_retry_after(place: &Place, calls: &BTreeMap<String, Vec<Seen>>) {
    let due = "select message_id, extract(epoch from scheduled_at)
               from jetstream.webhook_calls where payload ->> 'plan' = 'busy'";
    let rows = place.lab.sql(due).unwrap();
    assert_eq!(rows.len(), CALLS / PLANS.len());
    let (now, since) = (Instant::now(), SystemTime::UNIX_EPOCH.elapsed().unwrap());
    let delay = |row: &[String]| {
        let first = since - (now - calls[&row[0]][0].at);
        row[1].parse::<f64>().unwrap() - first.as_secs_f64()
    };
    let delays = rows.iter().map(|row| delay(row));
    let early: Vec<_> = delays.filter(|delay| *delay < 2.0).collect();
    assert!(early.len() <= IN_HAND, "due before Retry-After, seconds: {early:?}");
}

/// While the database refuses the outcome of a call, the worker reports it again and does not repeat the call.
pub fn a_database_that_refuses_makes_no_call_twice(kind: &Kind) {
    let place = Place::new(kind, Endpoint::start([]));
    let webhook = place.webhook("queue", None, "publish_mode = 'queue'");
    let name = "jetstream.webhook_complete(bigint, integer, text, double precision, text, integer)";
    let rename = |from: &str, to: &str| {
        let name = name.replace("webhook_complete", from);
        place.lab.sql(&format!("alter function {name} rename to {to}")).unwrap();
    };
    rename("webhook_complete", "hidden");
    let call = format!("select jetstream.webhook_call({webhook}, '{{}}', message_id => 'one')");
    place.lab.sql(&call).unwrap();
    let variables = [("NATS_URL", ""), ("QUEUE_ENABLED", "true"), ("QUEUE_LEASE_MS", "20000")];
    let mut worker = place.worker("w", &variables);
    eventually(&place.lab, LONG, "told twice", || {
        Ok(worker.log().matches("cannot say how call").count() >= 2)
    });
    rename("hidden", "webhook_complete");
    shows(
        &place.lab,
        "the call's end",
        "select status || ' ' || attempts from jetstream.webhook_calls",
        "succeeded 1",
    );
    worker.terminate();
    worker.ended(Duration::from_secs(20));
    assert_eq!(place.endpoint.count(), 1);
}

/// With mode `both`, the call is made from the queue and from NATS, and the endpoint sees the same key twice.
pub fn mode_both_calls_twice_with_one_key(kind: &Kind) {
    let place = Place::new(kind, Endpoint::start([]));
    let webhook = place.webhook("both", None, "publish_mode = 'both'");
    place
        .lab
        .sql(&format!(
            "select jetstream.webhook_call({webhook}, '{{}}', message_id => 'one')"
        ))
        .unwrap();
    let mut worker = place.worker("w", &[("QUEUE_ENABLED", "true")]);
    shows(
        &place.lab,
        "the queue's",
        "select status from jetstream.webhook_calls",
        "succeeded",
    );
    place.finished(1);
    worker.terminate();
    worker.ended(Duration::from_secs(20));
    let calls = place.endpoint.by_key();
    assert_eq!((calls.len(), calls["one"].len()), (1, 2));
}
