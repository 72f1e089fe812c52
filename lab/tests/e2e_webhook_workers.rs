//! Runs the workers that make the HTTP calls, each kind in the same scenarios, on real servers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;
mod worker_support;

use std::path::Path;
use std::sync::LazyLock;

use lab::paths::Paths;
use lab::tools;
use worker_support::{
    Kind, answers, build, graceful, queue, repository, secrets, silence, started, thousand, throughput,
};

/// `examples/webhook-worker`, in the build profile of these tests.
static RUST: LazyLock<Kind> = LazyLock::new(|| {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    build(
        &repository(),
        &[
            env!("CARGO"),
            "build",
            "-q",
            "--profile",
            profile,
            "-p",
            "webhook-worker",
        ],
    );
    // The test's own path is target/<profile>/deps/<name>.
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

/// `examples/nats-workers/nodejs`.
static NODEJS: LazyLock<Kind> = LazyLock::new(|| {
    let paths = Paths::ready().unwrap();
    let dir = repository().join("examples/nats-workers/nodejs");
    tools::npm_ci(&paths, &dir).unwrap();
    let node = tools::node(&paths).unwrap();
    Kind {
        name: "nodejs",
        command: vec![
            node.get_program().to_str().unwrap().to_owned(),
            dir.join("worker.js").to_str().unwrap().to_owned(),
        ],
        dir,
    }
});

/// The same by `npm start`.
static NPM: LazyLock<Kind> = LazyLock::new(|| Kind {
    name: NODEJS.name,
    command: tools::npm(&Paths::ready().unwrap(), &["start"]).unwrap(),
    dir: NODEJS.dir.clone(),
});

/// `examples/nats-workers/go`.
static GO: LazyLock<Kind> = LazyLock::new(|| {
    let paths = Paths::ready().unwrap();
    let dir = repository().join("examples/nats-workers/go");
    let worker = tools::go_build(&paths, &dir, "webhook-worker-go").unwrap();
    Kind {
        name: "go",
        command: vec![worker.get_program().to_str().unwrap().to_owned()],
        dir,
    }
});

#[test]
fn rust_thousand_calls() {
    thousand::thousand_calls(&RUST);
}

#[test]
fn rust_started_as_documented() {
    started::two_on_one_machine_report_and_stop(&RUST, &RUST, false);
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
fn rust_secrets_go_to_their_own_server() {
    secrets::secrets_go_to_the_webhooks_own_server(&RUST);
}

#[test]
fn rust_redirects_take_no_secrets_along() {
    secrets::a_redirect_takes_no_secrets_to_another_server(&RUST);
}

#[test]
fn rust_a_database_that_refuses() {
    secrets::a_database_that_refuses_costs_no_attempt(&RUST);
}

#[test]
fn rust_silent_database() {
    silence::a_silent_database_keeps_no_worker_from_ending(&RUST);
}

#[test]
fn rust_health_and_metrics() {
    answers::health_readiness_and_metrics(&RUST);
}

#[test]
fn nodejs_thousand_calls() {
    thousand::thousand_calls(&NODEJS);
}

#[test]
fn nodejs_started_as_documented() {
    started::two_on_one_machine_report_and_stop(&NODEJS, &NPM, true);
}

#[test]
fn nodejs_stops_gracefully() {
    graceful::a_stop_loses_nothing_and_calls_nothing_twice(&NODEJS);
}

#[test]
fn nodejs_death_in_the_last_attempt() {
    graceful::a_death_in_the_last_attempt_leaves_a_dead_letter(&NODEJS);
}

#[test]
fn nodejs_requests() {
    answers::a_request_is_what_the_envelope_says(&NODEJS);
}

#[test]
fn nodejs_private_addresses() {
    answers::private_addresses_and_endless_answers_are_refused(&NODEJS);
}

#[test]
fn nodejs_what_cannot_be_called() {
    answers::what_cannot_be_called_is_dead_with_its_reason(&NODEJS);
}

#[test]
fn nodejs_secrets_go_to_their_own_server() {
    secrets::secrets_go_to_the_webhooks_own_server(&NODEJS);
}

#[test]
fn nodejs_redirects_take_no_secrets_along() {
    secrets::a_redirect_takes_no_secrets_to_another_server(&NODEJS);
}

#[test]
fn nodejs_a_database_that_refuses() {
    secrets::a_database_that_refuses_costs_no_attempt(&NODEJS);
}

#[test]
fn nodejs_silent_database() {
    silence::a_silent_database_keeps_no_worker_from_ending(&NODEJS);
}

#[test]
fn nodejs_health_and_metrics() {
    answers::health_readiness_and_metrics(&NODEJS);
}

#[test]
fn go_thousand_calls() {
    thousand::thousand_calls(&GO);
}

#[test]
fn go_started_as_documented() {
    started::two_on_one_machine_report_and_stop(&GO, &GO, true);
}

#[test]
fn go_stops_gracefully() {
    graceful::a_stop_loses_nothing_and_calls_nothing_twice(&GO);
}

#[test]
fn go_death_in_the_last_attempt() {
    graceful::a_death_in_the_last_attempt_leaves_a_dead_letter(&GO);
}

#[test]
fn go_requests() {
    answers::a_request_is_what_the_envelope_says(&GO);
}

#[test]
fn go_private_addresses() {
    answers::private_addresses_and_endless_answers_are_refused(&GO);
}

#[test]
fn go_what_cannot_be_called() {
    answers::what_cannot_be_called_is_dead_with_its_reason(&GO);
}

#[test]
fn go_secrets_go_to_their_own_server() {
    secrets::secrets_go_to_the_webhooks_own_server(&GO);
}

#[test]
fn go_redirects_take_no_secrets_along() {
    secrets::a_redirect_takes_no_secrets_to_another_server(&GO);
}

#[test]
fn go_a_database_that_refuses() {
    secrets::a_database_that_refuses_costs_no_attempt(&GO);
}

#[test]
fn go_silent_database() {
    silence::a_silent_database_keeps_no_worker_from_ending(&GO);
}

#[test]
fn go_health_and_metrics() {
    answers::health_readiness_and_metrics(&GO);
}

#[test]
fn rust_queue() {
    queue::the_queue_is_drained_by_lease_without_nats(&RUST);
}

#[test]
fn rust_queue_that_refuses() {
    queue::a_database_that_refuses_makes_no_call_twice(&RUST);
}

#[test]
fn rust_mode_both() {
    queue::mode_both_calls_twice_with_one_key(&RUST);
}

/// Requires an idle machine, and an endpoint that is not a debug build.
#[test]
#[ignore = "a benchmark; run it with --release as described in the worker's README"]
fn rust_throughput() {
    let rate = throughput::calls_per_second(&RUST, 50_000);
    assert!(rate >= 5000.0, "{rate:.0} calls/s");
}
