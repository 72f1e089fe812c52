//! The workers that make the HTTP calls, each kind against the same scenarios, on real servers.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;
mod worker_support;

use std::path::Path;
use std::sync::LazyLock;

use worker_support::{Kind, answers, build, graceful, repository, thousand};

/// `examples/webhook-worker`, built as these tests are.
static RUST: LazyLock<Kind> = LazyLock::new(|| {
    build(&repository(), &[env!("CARGO"), "build", "-q", "-p", "webhook-worker"]);
    // target/debug/deps/<this test>
    let own = std::env::current_exe().unwrap();
    let binary = own
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .unwrap()
        .join("webhook-worker");
    Kind {
        name: "rust",
        command: vec![binary.to_str().unwrap().to_owned()],
        dir: repository(),
    }
});

#[test]
fn rust_thousand_calls() {
    thousand::thousand_calls(&RUST);
}

#[test]
fn rust_stops_gracefully() {
    graceful::a_stop_loses_nothing_and_calls_nothing_twice(&RUST);
}

#[test]
fn rust_death_in_the_last_attempt() {
    graceful::a_death_in_the_last_attempt_leaves_a_dead_letter(&RUST);
}

#[test]
fn rust_requests() {
    answers::a_request_is_what_the_envelope_says(&RUST);
}

#[test]
fn rust_private_addresses() {
    answers::private_addresses_and_endless_answers_are_refused(&RUST);
}

#[test]
fn rust_what_cannot_be_called() {
    answers::what_cannot_be_called_is_dead_with_its_reason(&RUST);
}

#[test]
fn rust_health_and_metrics() {
    answers::health_readiness_and_metrics(&RUST);
}
