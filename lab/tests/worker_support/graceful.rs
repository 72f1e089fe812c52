//! SIGTERM loses no message and makes no call twice. A worker that dies in the last attempt leaves a dead letter.

use std::time::Duration;

use super::endpoint::Answer::{Slow, Status};
use super::endpoint::Endpoint;
use super::{Kind, LONG, Place, header};
use crate::e2e_support::eventually;

/// Stops one of two workers while it has work in hand. Each call is made once, and the statistics are exact.
pub fn a_stop_loses_nothing_and_calls_nothing_twice(kind: &Kind) {
    let place = Place::new(kind, Endpoint::start([("while", &[Slow(300)][..])]));
    let webhook = place.webhook("stop", None, "");
    let call = "jetstream.webhook_call(WEBHOOK, '{\"plan\": \"while\"}', message_id => 'call-' || n)";
    let call = call.replace("WEBHOOK", &webhook.to_string());
    place
        .lab
        .sql(&format!("select {call} from generate_series(1, 400) n"))
        .unwrap();
    let variables = [("BATCH_SIZE", "10"), ("ACK_WAIT_MS", "3000")];
    let mut first = place.worker("first", &variables);
    let mut second = place.worker("second", &variables);
    eventually(&place.lab, LONG, "both workers are busy", || {
        Ok(place.endpoint.count() >= 60)
    });
    first.terminate();
    first.ended(Duration::from_secs(20));
    assert!(place.endpoint.count() < 400, "stopped too late to prove anything");
    place.finished(400);
    second.terminate();
    second.ended(Duration::from_secs(20));
    let calls = place.endpoint.by_key();
    assert_eq!(calls.len(), 400);
    let twice: Vec<_> = calls
        .iter()
        .filter(|(_, calls)| calls.len() > 1)
        .map(|(id, _)| id)
        .collect();
    assert!(twice.is_empty(), "called more than once: {twice:?}");
    let sums = ["messages_delivered", "messages_acknowledged", "messages_redelivered"].map(|column| place.sum(column));
    assert_eq!(sums, [400, 400, 0], "delivered, acknowledged, redelivered");
    let ended = "select bool_and(messages_delivered > 0 and not active) and count(*) = 2 from jetstream.rule_nats_consumer_stats";
    assert_eq!(place.lab.value(ended).unwrap(), "t");
}

/// The only worker dies in the only attempt. The message is not called again, but it is not lost.
pub fn a_death_in_the_last_attempt_leaves_a_dead_letter(kind: &Kind) {
    let place = Place::new(kind, Endpoint::start([("forever", &[Slow(60_000), Status(200)][..])]));
    let webhook = place.webhook("last", None, "");
    place
        .lab
        .sql(&format!(
            "select jetstream.webhook_call({webhook}, '{{\"plan\": \"forever\"}}', message_id => 'call-1')"
        ))
        .unwrap();
    let variables = [("MAX_DELIVER", "1"), ("ACK_WAIT_MS", "1000")];
    let mut first = place.worker("first", &variables);
    eventually(&place.lab, LONG, "the call", || Ok(place.endpoint.count() == 1));
    first.kill9();
    let mut second = place.worker("second", &variables);
    eventually(&place.lab, LONG, "there is a dead letter", || {
        Ok(place.lab.message_count("WEBHOOKS_DEAD")? == 1)
    });
    place.finished(1);
    second.terminate();
    second.ended(Duration::from_secs(20));
    assert_eq!(place.endpoint.count(), 1, "called again");
    let dead = place.dead();
    assert_eq!(header(&dead["call-1"], "Dead-Letter-Attempts"), "1");
    assert_eq!(header(&dead["call-1"], "Dead-Letter-Worker"), "second");
    assert_eq!(place.shown_as_dead(), ["call-1"]);
}
