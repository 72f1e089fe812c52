//! A stream or a right that comes back in NATS is found out within seconds, though no new message shows it, and though the
//! connection may not use JetStream's API.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Config;
use e2e_support::{arrived, becomes, new_worker, worker};
use lab::{Lab, process};
use nix::sys::signal::Signal;

/// Users of the server: `app` may publish to these subjects only.
fn users(subjects: &str) -> String {
    format!(
        "authorization {{ users: [
             {{ user: app, password: pw, permissions: {{ publish: [{subjects}], subscribe: \"_INBOX.>\" }} }},
             {{ user: admin, password: pw }} ] }}
         no_auth_user: admin"
    )
}

/// Creates a stream without the extension.
fn create(lab: &Lab, name: &str, subjects: &[&str]) {
    let config = Config {
        name: name.to_owned(),
        subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
        ..Config::default()
    };
    lab.jetstream(async |context| {
        context.create_stream(config).await?;
        Ok(())
    })
    .unwrap();
}

fn soon(lab: &Lab, stream: &str, count: u64, since: Instant) {
    arrived(lab, stream, count);
    let took = since.elapsed();
    assert!(took < Duration::from_secs(6), "{stream} after {took:?}");
}

#[test]
fn a_stream_or_a_right_that_comes_back_is_found_out_and_costs_no_attempt() {
    let mut lab = Lab::builder()
        .nats_extra(&users("\"open.>\", \"free\", \"free.>\""))
        .set("pg_jetstream.retry_backoff_base", "30min")
        .set("pg_jetstream.retry_backoff_max", "30min")
        .start()
        .unwrap();
    create(&lab, "OPEN", &["open.>", "closed.>"]);
    lab.sql("update jetstream.connections set auth_type = 'password', username = 'app', password = 'pw'")
        .unwrap();
    worker(&lab);
    lab.sql("select jetstream.publish('open.a', '1')").unwrap();
    arrived(&lab, "OPEN", 1);

    // More subjects than are watched.
    lab.sql(
        "select jetstream.publish('free.' || n, '1', key => 'k' || n) from generate_series(1, 90) n;
         select jetstream.publish('free.1', '2', key => 'k1');
         select jetstream.publish('closed.a', '1') from generate_series(1, 3)",
    )
    .unwrap();
    becomes(&lab, "failing", "select failing from jetstream.status()", "93");
    // A new worker knows them from the outbox.
    let before = worker(&lab);
    process::signal(before, Signal::SIGTERM).unwrap();
    new_worker(&lab, before);
    let denied = || {
        let log = lab.nats.log();
        log.lines()
            .filter(|line| line.contains("Publish Violation") && line.contains("closed.a"))
            .count()
    };
    let before = denied();
    std::thread::sleep(Duration::from_secs(11));
    let denials = denied() - before;
    assert!((2..=7).contains(&denials), "{denials} attempts of what is denied");
    // All is as after the first attempt.
    let attempts =
        "select min(attempts) || ' ' || max(attempts) || ' ' || (min(deliver_at) > now() + interval '20 minutes')
                    from jetstream.outbox where attempts > 0";
    becomes(&lab, "attempts that do not count", attempts, "1 1 true");
    assert_eq!(lab.value("select retried from jetstream.status()").unwrap(), "0");

    let since = Instant::now();
    create(&lab, "FREE", &["free.>"]);
    soon(&lab, "FREE", 91, since);

    lab.sql("select jetstream.publish('open.late', '1'); select jetstream.publish('free', '1')")
        .unwrap();
    arrived(&lab, "OPEN", 2);
    becomes(&lab, "failing again", "select failing from jetstream.status()", "4");
    let since = Instant::now();
    create(&lab, "LATE", &["free"]);
    soon(&lab, "LATE", 1, since);

    lab.nats
        .rewrite(users("\"open.>\", \"free\", \"free.>\", \"closed.>\""))
        .unwrap();
    let since = Instant::now();
    lab.nats.reload().unwrap();
    soon(&lab, "OPEN", 5, since);
    becomes(&lab, "nothing left", "select count(*) from jetstream.outbox", "0");
}
