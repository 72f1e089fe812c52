//! Nothing that dies takes a message with it, and none arrives twice.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::Duration;

use e2e_support::{LATER, Writers, arrived, drained, eventually, exactly_once, insert, lab, new_worker, worker};
use lab::Lab;
use lab::lab::DATABASE;
use lab::postgres::Stop;
use lab::process;
use nix::sys::signal::Signal;

const BACKLOG: i64 = 50_000;

/// Stores a backlog while the worker is paused, and returns once it is partly drained.
fn in_mid_drain(lab: &Lab, round: i64) {
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&insert("s.backlog", round * BACKLOG + 1, (round + 1) * BACKLOG))
        .unwrap();
    let before = lab.message_count("S").unwrap();
    lab.sql("select jetstream.resume()").unwrap();
    arrived(lab, "S", before + 5_000);
}

fn all_arrived(lab: &Lab, rounds: i64) {
    drained(lab, LATER);
    exactly_once(lab, "S", 1..=rounds * BACKLOG);
}

#[test]
fn killing_the_worker_in_mid_drain_loses_nothing() {
    let lab = lab(&[]);
    in_mid_drain(&lab, 0);
    let pid = worker(&lab);
    process::signal(pid, Signal::SIGKILL).unwrap();
    new_worker(&lab, pid);
    all_arrived(&lab, 1);
}

#[test]
fn a_worker_that_is_terminated_or_cancelled_comes_back_and_goes_on() {
    let lab = lab(&[]);
    for (round, way) in ["pg_terminate_backend", "pg_cancel_backend"].into_iter().enumerate() {
        in_mid_drain(&lab, round as i64);
        let pid = worker(&lab);
        lab.sql(&format!("select {way}({pid})")).unwrap();
        if way == "pg_terminate_backend" {
            new_worker(&lab, pid);
        }
        drained(&lab, LATER);
    }
    all_arrived(&lab, 2);
    let pid = worker(&lab);
    for _ in 0..5 {
        lab.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity where backend_type ilike 'pg_jetstream worker%'",
        )
        .unwrap();
    }
    new_worker(&lab, pid);
    lab.sql(&insert("s.after", 2 * BACKLOG + 1, 2 * BACKLOG + 10)).unwrap();
    drained(&lab, LATER);
    exactly_once(&lab, "S", 1..=2 * BACKLOG + 10);
}

#[test]
fn a_launcher_that_is_terminated_or_killed_comes_back() {
    let lab = lab(&[]);
    let launcher = |lab: &Lab| lab.postgres.backends("pg_jetstream launcher").unwrap()[0];
    for (round, signal) in [Signal::SIGTERM, Signal::SIGKILL].into_iter().enumerate() {
        in_mid_drain(&lab, round as i64);
        let pid = launcher(&lab);
        process::signal(pid, signal).unwrap();
        eventually(&lab, LATER, "a new launcher", || {
            let now = lab.postgres.backends("pg_jetstream launcher")?;
            Ok(now.len() == 1 && now[0] != pid)
        });
        drained(&lab, LATER);
    }
    // The new launcher looks after the worker, which it may not have started itself.
    let pid = worker(&lab);
    process::signal(pid, Signal::SIGTERM).unwrap();
    new_worker(&lab, pid);
    all_arrived(&lab, 2);
    let workers = lab.postgres.backends("pg_jetstream worker%").unwrap();
    assert_eq!(workers.len(), 1, "{workers:?}");
}

#[test]
fn killing_the_nats_server_in_mid_drain_loses_nothing() {
    let mut lab = lab(&[]);
    for round in 0..2 {
        in_mid_drain(&lab, round);
        lab.nats.kill9().unwrap();
        lab.nats.restart().unwrap();
        drained(&lab, LATER);
    }
    all_arrived(&lab, 2);
    assert_eq!(
        lab.value("select retried from jetstream.status()").unwrap(),
        "0",
        "an outage is no attempt"
    );
}

#[test]
fn the_death_and_every_kind_of_stop_of_postgresql_in_mid_drain_lose_nothing() {
    let mut lab = lab(&[]);
    for round in 0..4 {
        in_mid_drain(&lab, round);
        match round {
            0 => lab.postgres.kill9().unwrap(),
            1 => lab.postgres.stop(Stop::Immediate).unwrap(),
            2 => lab.postgres.stop(Stop::Fast).unwrap(),
            _ => lab.postgres.stop(Stop::Smart).unwrap(),
        }
        lab.postgres.start_again().unwrap();
        drained(&lab, LATER);
    }
    all_arrived(&lab, 4);
}

#[test]
fn crashes_of_everything_under_load_leave_exactly_what_was_committed() {
    let mut lab = lab(&[]);
    Writers::prepare(&lab);
    let writers = Writers::start(&lab, 4, Duration::from_millis(1));
    for round in 0..3 {
        let enough = writers.so_far() + 300;
        eventually(&lab, LATER, "writers that write", || Ok(writers.so_far() >= enough));
        match round {
            0 => lab.nats.restart().unwrap(),
            1 => {
                lab.postgres.kill9().unwrap();
                lab.postgres.start_again().unwrap();
            }
            _ => process::signal(worker(&lab), Signal::SIGKILL).unwrap(),
        }
    }
    let enough = writers.so_far() + 300;
    eventually(&lab, LATER, "writers that write", || Ok(writers.so_far() >= enough));
    let committed = writers.finish(&lab);
    drained(&lab, LATER);
    exactly_once(&lab, "S", committed);
}

/// What is published must survive the loss of all that was not flushed: `synchronous_commit = off` must not let a
/// message out whose transaction is gone after a crash.
#[test]
fn a_message_is_not_published_before_its_commit_is_on_disk() {
    let mut lab = lab(&[
        ("wal_writer_delay", "10s"),
        ("wal_writer_flush_after", "1GB"),
        ("autovacuum", "off"),
    ]);
    Writers::prepare(&lab);
    let mut client = lab.postgres.client(DATABASE).unwrap();
    client.batch_execute("set synchronous_commit = off").unwrap();
    for n in 1..=3_i64 {
        client.execute("insert into business values ($1)", &[&n]).unwrap();
    }
    arrived(&lab, "S", 3);
    lab.postgres.kill9().unwrap();
    lab.postgres.start_again().unwrap();
    assert_eq!(
        e2e_support::committed(&lab),
        [1, 2, 3],
        "published, but not committed after the crash"
    );
    drained(&lab, LATER);
    exactly_once(&lab, "S", 1..=3);
}

/// An orderly end leaves nothing of unknown outcome: not even a stream that forgets message ids at once gets a message
/// twice.
#[test]
fn an_orderly_stop_needs_no_duplicate_window() {
    let mut lab = lab(&[]);
    lab.sql("update jetstream.streams set duplicate_window = '100ms', synced_at = null where name = 'S'")
        .unwrap();
    e2e_support::synced(&lab, "S");
    for round in 0..3 {
        in_mid_drain(&lab, round);
        let pid = worker(&lab);
        match round {
            0 => lab.postgres.stop(Stop::Fast).unwrap(),
            1 => process::signal(pid, Signal::SIGTERM).unwrap(),
            _ => lab.postgres.set(&[("pg_jetstream.databases", "")]).unwrap(),
        }
        assert!(process::wait_gone(&[pid], Duration::from_secs(20)), "the worker ends");
        // Longer than the stream remembers.
        std::thread::sleep(Duration::from_millis(200));
        match round {
            0 => lab.postgres.start_again().unwrap(),
            1 => {}
            _ => lab.postgres.set(&[("pg_jetstream.databases", "postgres")]).unwrap(),
        }
        drained(&lab, LATER);
    }
    all_arrived(&lab, 3);
}
