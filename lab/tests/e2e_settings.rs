//! Every setting takes effect on reload; what cannot work is said where one looks.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::Duration;

use e2e_support::{LATER, SOON, arrived, becomes, drained, eventually, exactly_once, insert, lab, worker};
use lab::Lab;

#[test]
fn settings_take_effect_on_reload() {
    let mut lab = lab(&[("pg_jetstream.history_retention", "2d")]);
    let pid = worker(&lab);
    let history = |lab: &Lab, subject: &str| {
        let query = format!(
            "select count(*), bool_or(payload is not null), bool_or(headers is not null), bool_or(raw is not null)
             from jetstream.history where subject = '{subject}'"
        );
        lab.sql(&query).unwrap().remove(0)
    };
    let reloaded = |lab: &mut Lab, settings: &[(&str, &str)]| {
        lab.postgres.set(settings).unwrap();
        let (name, value) = settings[0];
        becomes(
            lab,
            name,
            &format!("select setting from pg_settings where name = '{name}'"),
            value,
        );
        // The worker has seen it once it has made a cycle after the signal.
        let cycles = lab.value("select cycles from jetstream.status()").unwrap();
        eventually(lab, SOON, "a cycle", || {
            Ok(lab.value("select cycles from jetstream.status()")? != cycles)
        });
    };
    lab.sql(&insert("s.all", 1, 10)).unwrap();
    drained(&lab, SOON);
    assert_eq!(history(&lab, "s.all"), ["10", "f", "f", "f"]);

    reloaded(
        &mut lab,
        &[
            ("pg_jetstream.history_payload", "on"),
            ("pg_jetstream.max_attempts", "2"),
        ],
    );
    lab.sql("select jetstream.publish('s.payload', '{\"n\": 11}', headers => '{\"a\": 1}')")
        .unwrap();
    lab.sql("select jetstream.publish_raw('s.raw', '{\"n\": 12}')").unwrap();
    drained(&lab, SOON);
    assert_eq!(history(&lab, "s.payload"), ["1", "t", "t", "f"]);
    assert_eq!(history(&lab, "s.raw"), ["1", "f", "f", "t"]);

    reloaded(&mut lab, &[("pg_jetstream.history", "failures")]);
    lab.sql(&insert("s.failures", 13, 20)).unwrap();
    lab.sql(&insert("nobody.failures", 21, 22)).unwrap();
    drained(&lab, SOON);
    assert_eq!(history(&lab, "s.failures")[0], "0");
    assert_eq!(history(&lab, "nobody.failures")[0], "2");

    reloaded(&mut lab, &[("pg_jetstream.history", "none")]);
    lab.sql(&insert("s.none", 23, 30)).unwrap();
    lab.sql(&insert("nobody.none", 31, 32)).unwrap();
    drained(&lab, SOON);
    assert_eq!(
        (
            history(&lab, "s.none")[0].as_str(),
            history(&lab, "nobody.none")[0].as_str()
        ),
        ("0", "0")
    );
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "4");

    reloaded(
        &mut lab,
        &[("pg_jetstream.batch_size", "1"), ("pg_jetstream.max_in_flight", "1")],
    );
    lab.nats.pause().unwrap();
    lab.sql(&insert("s.few", 33, 100)).unwrap();
    eventually(&lab, SOON, "few in flight", || {
        let in_flight: i64 = lab.value("select in_flight from jetstream.status()")?.parse()?;
        assert!(in_flight <= 3, "{in_flight}");
        Ok(in_flight == 3)
    });
    lab.nats.resume().unwrap();
    drained(&lab, LATER);
    exactly_once(&lab, "S", (1..=20).chain(23..=30).chain(33..=100));
    assert_eq!(worker(&lab), pid, "the same worker all the time");

    // A value out of range changes nothing and stops nobody.
    lab.postgres
        .set(&[("pg_jetstream.batch_size", "-7"), ("pg_jetstream.history", "sometimes")])
        .unwrap();
    eventually(&lab, SOON, "complaints", || {
        Ok(lab
            .postgres
            .log_contains("invalid value for parameter \"pg_jetstream.history\""))
    });
    lab.sql(&insert("s.still", 101, 110)).unwrap();
    arrived(&lab, "S", 106);
}

#[test]
fn every_setting_has_a_comment_a_unit_and_takes_effect_on_reload() {
    let lab = lab(&[]);
    let settings = lab.sql("select name, context, unit, short_desc, min_val, max_val, vartype from pg_settings where name like 'pg\\_jetstream.%'").unwrap();
    for name in [
        "databases",
        "max_databases",
        "batch_size",
        "max_in_flight",
        "max_in_flight_bytes",
        "poll_interval",
        "ack_timeout",
        "max_attempts",
        "retry_backoff_base",
        "retry_backoff_max",
        "history",
        "history_payload",
        "history_retention",
        "log_level",
        "role",
    ] {
        assert!(
            settings.iter().any(|row| row[0] == format!("pg_jetstream.{name}")),
            "{name}"
        );
    }
    for row in settings {
        // What shared memory is asked for cannot change.
        let needs_restart = row[0] == "pg_jetstream.max_databases";
        assert_eq!(row[1], if needs_restart { "postmaster" } else { "sighup" }, "{row:?}");
        assert!(!row[3].is_empty(), "{row:?}");
        let counted = ["batch_size", "max_in_flight", "max_attempts", "max_databases"]
            .iter()
            .any(|name| row[0].ends_with(name));
        assert!(row[6] != "integer" || counted || !row[2].is_empty(), "no unit: {row:?}");
    }
}

#[test]
fn databases_are_added_and_removed_at_runtime() {
    let mut lab = lab(&[]);
    let first = worker(&lab);
    for name in ["one", "two"] {
        lab.sql(&format!("create database {name}")).unwrap();
        lab.postgres.sql(name, "create extension pg_jetstream").unwrap();
        let url = lab.nats.url();
        lab.postgres
            .sql(name, &format!("update jetstream.connections set url = '{url}'"))
            .unwrap();
    }
    let owed = |lab: &Lab, name: &str| {
        lab.postgres
            .value(name, "select count(*) from jetstream.outbox")
            .unwrap()
    };
    lab.postgres.sql("one", &insert("s.one", 1, 10)).unwrap();
    lab.postgres.sql("two", &insert("s.two", 11, 20)).unwrap();
    let told = lab
        .postgres
        .sql("one", "select state, last_error from jetstream.status()")
        .unwrap();
    assert_eq!(
        told[0],
        ["not running", "pg_jetstream.databases does not name this database"]
    );
    lab.postgres
        .set(&[("pg_jetstream.databases", "postgres,one,two")])
        .unwrap();
    arrived(&lab, "S", 20);
    assert_eq!(worker(&lab), first);
    lab.postgres.set(&[("pg_jetstream.databases", "two")]).unwrap();
    eventually(&lab, SOON, "two workers gone", || {
        Ok(lab.postgres.backends("pg_jetstream worker%")?.len() == 1)
    });
    lab.sql(&insert("s.x", 21, 30)).unwrap();
    lab.postgres.sql("one", &insert("s.one", 31, 40)).unwrap();
    lab.postgres.sql("two", &insert("s.two", 41, 50)).unwrap();
    arrived(&lab, "S", 30);
    assert_eq!(
        (owed(&lab, "postgres"), owed(&lab, "one")),
        ("10".to_owned(), "10".to_owned())
    );
    lab.postgres.set(&[("pg_jetstream.databases", "one,postgres")]).unwrap();
    arrived(&lab, "S", 50);
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=50);
}

#[test]
fn a_pause_outlasts_a_restart() {
    let mut lab = lab(&[]);
    assert_eq!(lab.value("select jetstream.pause()").unwrap(), "t");
    assert_eq!(lab.value("select jetstream.pause()").unwrap(), "f");
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    becomes(
        &lab,
        "a paused worker",
        "select state from jetstream.status()",
        "paused",
    );
    lab.postgres.restart().unwrap();
    becomes(
        &lab,
        "a paused worker",
        "select state from jetstream.status()",
        "paused",
    );
    assert_eq!(lab.message_count("S").unwrap(), 0);
    assert_eq!(lab.value("select jetstream.health() ->> 'healthy'").unwrap(), "false");
    assert_eq!(lab.value("select jetstream.resume()").unwrap(), "t");
    assert_eq!(lab.value("select jetstream.resume()").unwrap(), "f");
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=100);
}

#[test]
fn too_few_worker_processes_are_said_and_strand_nothing() {
    let mut lab = lab(&[]);
    // One is PostgreSQL's own (logical replication), one the launcher's.
    lab.postgres.set(&[("max_worker_processes", "2")]).unwrap();
    lab.postgres.restart().unwrap();
    let told = "select state || ': ' || last_error from jetstream.status()";
    becomes(
        &lab,
        "the reason",
        told,
        "not running: no background worker slot is free; raise max_worker_processes",
    );
    assert_eq!(
        lab.postgres
            .log()
            .matches("no background worker slot is free for database \"postgres\"")
            .count(),
        1
    );
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        lab.postgres.log().matches("no background worker slot is free").count(),
        1,
        "said once"
    );
    lab.postgres.set(&[("max_worker_processes", "8")]).unwrap();
    lab.postgres.restart().unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=100);
}

#[test]
fn without_the_library_preloaded_one_is_told_and_messages_wait() {
    let mut lab = lab(&[]);
    lab.sql("drop extension pg_jetstream").unwrap();
    lab.postgres
        .set(&[("shared_preload_libraries", ""), ("pg_jetstream.databases", "")])
        .unwrap();
    lab.postgres.restart().unwrap();
    let said = e2e_support::program(&lab, "psql", &["-c", "create extension pg_jetstream", "postgres"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    for part in [
        "WARNING",
        "shared_preload_libraries = 'pg_jetstream'",
        "pg_jetstream.databases",
        "postgresql.conf",
        "restart",
    ] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    let told = lab.sql("select state, last_error from jetstream.status()").unwrap();
    assert_eq!(
        told[0],
        ["not running", "shared_preload_libraries does not contain pg_jetstream"]
    );
    assert_eq!(lab.value("select jetstream.reload()").unwrap(), "f");
    let url = lab.nats.url();
    lab.sql(&format!("update jetstream.connections set url = '{url}'"))
        .unwrap();
    // Preloaded, but this database is not listed: said as well.
    lab.postgres
        .set(&[("shared_preload_libraries", "pg_jetstream")])
        .unwrap();
    lab.postgres.restart().unwrap();
    lab.sql("create database unlisted").unwrap();
    let said = e2e_support::program(&lab, "psql", &["-c", "create extension pg_jetstream", "unlisted"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("\"unlisted\" is not in pg_jetstream.databases"), "{said}");
    lab.postgres.set(&[("pg_jetstream.databases", "postgres")]).unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=100);
    let said = e2e_support::program(
        &lab,
        "psql",
        &[
            "-c",
            "drop extension pg_jetstream; create extension pg_jetstream",
            "postgres",
        ],
    );
    assert!(said.stderr.is_empty(), "{said:?}");
}

#[test]
fn the_worker_can_run_as_an_ordinary_role() {
    let mut lab = lab(&[]);
    let pid = worker(&lab);
    lab.sql("create role courier; grant jetstream_worker to courier")
        .unwrap();
    lab.postgres
        .set(&[("pg_jetstream.role", "courier"), ("pg_jetstream.max_attempts", "2")])
        .unwrap();
    becomes(&lab, "its role", "select role from jetstream.status()", "courier");
    assert_eq!(worker(&lab), pid);
    lab.sql(&insert("s.x", 1, 1_000)).unwrap();
    lab.sql(&insert("nobody.x", 1, 3)).unwrap();
    lab.sql(
        "select jetstream.publish('s.k', jsonb_build_object('n', n), key => 'k') from generate_series(1001, 1100) n",
    )
    .unwrap();
    lab.sql("select jetstream.publish('s.d', '{\"n\": 1101}', deliver_at => now() + interval '100 ms')")
        .unwrap();
    e2e_support::stream(&lab, "T", "t.>");
    lab.sql("create table public.kept (id integer primary key); select jetstream.capture('public.kept')")
        .unwrap();
    lab.sql("insert into public.kept select generate_series(1, 100)")
        .unwrap();
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql("select jetstream.resume()").unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=1_101);
    // With the relation message.
    e2e_support::arrived(&lab, "postgres_replication", 101);
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "3");
    becomes(&lab, "positions", "select count(*) > 0 from jetstream.positions", "t");
    let errors = lab
        .postgres
        .log()
        .lines()
        .filter(|line| line.contains("permission denied"))
        .count();
    assert_eq!(errors, 0, "{}", lab.postgres.log_tail());
}
