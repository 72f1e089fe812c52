//! Calls per second of one worker with a local endpoint, and the processor time of a call in each process.

use std::time::Duration;

use lab::bench::cpu::Meter;

use super::endpoint::Endpoint;
use super::{Kind, LONG, Place};
use crate::e2e_support::{drained, eventually};

/// Starts one worker with this many calls waiting in the stream. Prints calls per second, and the processor time of one
/// call.
pub fn calls_per_second(kind: &Kind, calls: usize) -> f64 {
    let place = Place::new(kind, Endpoint::start([]));
    let webhook = place.webhook("fast", None, "");
    let call = format!("jetstream.webhook_call({webhook}, jsonb_build_object('n', n))");
    place
        .lab
        .sql(&format!("select count({call}) from generate_series(1, {calls}) n"))
        .unwrap();
    drained(&place.lab, LONG);
    let mut worker = place.worker("fast", &[("BATCH_SIZE", "256")]);
    let meter = Meter::of_lab(&place.lab)
        .unwrap()
        .process("webhook worker", worker.pid())
        .process("endpoint", std::process::id())
        .start();
    eventually(&place.lab, LONG, "all calls", || Ok(place.endpoint.count() >= calls));
    let used = meter.stop();
    worker.terminate();
    worker.ended(Duration::from_secs(20));
    assert_eq!(place.sum("messages_acknowledged"), calls);
    assert_eq!(place.endpoint.by_key().len(), calls);
    let seen = place.endpoint.seen();
    let took = seen[seen.len() - 1].at - seen[0].at;
    let rate = calls as f64 / took.as_secs_f64();
    println!("{calls} calls in {took:.2?}: {rate:.0} calls/s; processor time of one, µs:");
    for (role, micros) in used.micros_each(calls) {
        println!("  {role:18} {micros:6.1}");
    }
    rate
}
