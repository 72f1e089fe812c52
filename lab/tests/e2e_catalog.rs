//! Creates and drops extensions and databases while a worker is running.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::{Duration, Instant};

use e2e_support::{LATER, SOON, arrived, drained, eventually, exactly_once, insert, lab, stream, worker};
use lab::Lab;

fn create_extension(lab: &Lab, database: &str) {
    lab.postgres.sql(database, "create extension pg_jetstream").unwrap();
    let url = lab.nats.url();
    lab.postgres
        .sql(
            database,
            &format!("update jetstream.connections set url = '{url}', reconnect_delay_ms = 50"),
        )
        .unwrap();
}

fn drained_in(lab: &Lab, database: &str) {
    eventually(lab, SOON, &format!("the outbox in {database} is empty"), || {
        Ok(lab
            .postgres
            .value(database, "select not exists (select from jetstream.outbox)")?
            == "t")
    });
}

#[test]
fn the_extension_can_be_dropped_and_made_anew_under_load() {
    let lab = lab(&[]);
    let mut from = 1;
    for _ in 0..5 {
        lab.sql(&insert("s.x", from, from + 4_999)).unwrap();
        arrived(&lab, "S", from as u64);
        // Pending messages are dropped with the extension. Published ones stay in the stream.
        lab.sql("drop extension pg_jetstream cascade").unwrap();
        from += 5_000;
        create_extension(&lab, "postgres");
        lab.sql(&insert("s.x", from, from + 9)).unwrap();
        drained(&lab, SOON);
        from += 10;
    }
    let numbers = e2e_support::numbers(&lab, "S");
    let mut once = numbers.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), numbers.len(), "some were stored twice");
    for round in 1..=5 {
        let last = round * 5_010;
        assert!(
            (last - 9..=last).all(|n| once.binary_search(&n).is_ok()),
            "round {round}"
        );
    }
}

#[test]
fn a_dropped_extension_is_waited_for_without_errors() {
    let lab = lab(&[("pg_jetstream.poll_interval", "100ms")]);
    lab.sql(&insert("s.x", 1, 10)).unwrap();
    drained(&lab, SOON);
    lab.sql("drop extension pg_jetstream").unwrap();
    let waits = "select count(*) from pg_stat_activity where backend_type ilike 'pg_jetstream worker%' and query = ''";
    eventually(&lab, SOON, "the worker waits", || Ok(lab.value(waits)? == "1"));
    let errors = lab.postgres.log().matches("ERROR").count() + lab.postgres.log().matches("FATAL").count();
    let pid = lab.postgres.backends("pg_jetstream worker%").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        lab.postgres.backends("pg_jetstream worker%").unwrap(),
        pid,
        "one worker keeps running"
    );
    let now = lab.postgres.log().matches("ERROR").count() + lab.postgres.log().matches("FATAL").count();
    assert_eq!(now, errors, "{}", lab.postgres.log_tail());
    create_extension(&lab, "postgres");
    lab.sql(&insert("s.x", 11, 20)).unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=20);
}

/// DROP DATABASE waits until every process has processed its barrier.
#[test]
fn databases_next_door_come_and_go_while_the_worker_works_and_while_it_idles() {
    let lab = lab(&[("pg_jetstream.poll_interval", "10min")]);
    let pid = worker(&lab);
    let version: u32 = lab.value("show server_version_num").unwrap().parse().unwrap();
    // Versions before 15 always copy the files.
    let strategies = version >= 150_000;
    for round in 0..6 {
        if round % 2 == 1 {
            lab.sql(&insert("s.x", round * 5_000 + 1, round * 5_000 + 5_000))
                .unwrap();
        }
        let start = Instant::now();
        let strategy = match round {
            _ if !strategies => "",
            0..3 => "strategy wal_log",
            _ => "strategy file_copy",
        };
        lab.sql(&format!("create database next{round} template template0 {strategy}"))
            .unwrap();
        lab.sql(&format!("drop database next{round}")).unwrap();
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
    drained(&lab, SOON);
    assert_eq!(worker(&lab), pid, "the worker was replaced");
    let expected = [1, 3, 5]
        .into_iter()
        .flat_map(|round| round * 5_000 + 1..=round * 5_000 + 5_000);
    exactly_once(&lab, "S", expected);
}

/// The name as it appears in a connection string.
const ODD: &str = "'Odd name'";

#[test]
fn a_listed_database_may_come_later_and_go_by_force() {
    let lab = lab(&[("pg_jetstream.databases", "postgres, later, \"Odd name\"")]);
    eventually(&lab, SOON, "a warning", || {
        Ok(lab
            .postgres
            .log_contains("database \"later\" in pg_jetstream.databases does not exist"))
    });
    lab.sql("create database \"Odd name\"").unwrap();
    create_extension(&lab, ODD);
    lab.postgres.sql(ODD, &insert("s.odd", 1, 10)).unwrap();
    drained_in(&lab, ODD);
    for round in 1..=2 {
        lab.sql("create database later").unwrap();
        create_extension(&lab, "later");
        lab.postgres
            .sql("later", &insert("s.later", round * 100 + 1, round * 100 + 50))
            .unwrap();
        drained_in(&lab, "later");
        let start = Instant::now();
        lab.sql("drop database later with (force)").unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    lab.sql(&insert("s.x", 1_001, 1_010)).unwrap();
    drained(&lab, SOON);
    exactly_once(
        &lab,
        "S",
        (1..=10).chain(101..=150).chain(201..=250).chain(1_001..=1_010),
    );
    let gone = "\"later\" in pg_jetstream.databases does not exist";
    eventually(&lab, SOON, "a warning that the database does not exist", || {
        Ok(lab.postgres.log().matches(gone).count() >= 2)
    });
}

/// After pg_dump and restore, connections, streams and pending messages exist, and the pending messages are published
/// exactly once.
#[test]
fn a_dump_carries_what_is_owed_and_how_to_send_it() {
    let mut lab = lab(&[]);
    stream(&lab, "D", "d.>");
    lab.nats.kill9().unwrap();
    lab.sql("update jetstream.connections set password = 'secret', description = 'mine' where name = 'default'")
        .unwrap();
    lab.sql("insert into jetstream.connections (name, enabled) values ('second', false)")
        .unwrap();
    lab.sql(&insert("d.x", 1, 500)).unwrap();
    lab.sql("select jetstream.publish('d.last', '{\"n\": 501}', 'an id', '{\"h\": 1}', key => 'k', ttl => null)")
        .unwrap();
    lab.sql("select jetstream.publish('d.second', '{\"n\": 0}', connection => 'second')")
        .unwrap();
    lab.sql(
        "insert into jetstream.dead_letters (outbox_id, connection, subject, payload, message_id, attempts, reason, created_at)
         values (7, 'default', 'd.dead', '{\"n\": 502}', 'dead', 3, 'why', now())",
    )
    .unwrap();
    lab.sql("create database restored").unwrap();
    let dump = e2e_support::program(&lab, "pg_dump", &["-Fc", "-f", "dump", "postgres"]);
    assert!(dump.status.success(), "{dump:?}");
    // The worker in the restored database runs from the start. Nothing may be sent to the default connection of a fresh
    // extension.
    lab.postgres.set(&[("pg_jetstream.databases", "restored")]).unwrap();
    let restore = e2e_support::program(&lab, "pg_restore", &["--exit-on-error", "-d", "restored", "dump"]);
    assert!(restore.status.success(), "{}", String::from_utf8_lossy(&restore.stderr));
    let in_it = |query: &str| lab.postgres.value("restored", query).unwrap();
    assert_eq!(
        in_it("select string_agg(name, ',' order by name) from jetstream.connections"),
        "default,second"
    );
    assert_eq!(
        in_it("select description || password from jetstream.connections where name = 'default'"),
        "minesecret"
    );
    assert_eq!(
        in_it("select string_agg(name, ',' order by name) from jetstream.streams"),
        "D,S"
    );
    assert_eq!(in_it("select count(*) from jetstream.outbox"), "502");
    assert_eq!(
        in_it("select jetstream.redrive(id) > 502 from jetstream.dead_letters"),
        "t"
    );
    in_it("select jetstream.publish('d.new', '{\"n\": 503}')");
    lab.nats.restart().unwrap();
    eventually(&lab, LATER, "only messages of the disabled connection are left", || {
        Ok(lab
            .postgres
            .value("restored", "select count(*) from jetstream.outbox")?
            == "1")
    });
    // The messages are still pending in the source database. The stream recognizes their ids.
    lab.postgres
        .set(&[("pg_jetstream.databases", "restored,postgres")])
        .unwrap();
    eventually(
        &lab,
        LATER,
        "only messages of the disabled connection are left in the source",
        || Ok(lab.value("select count(*) from jetstream.outbox")? == "1"),
    );
    exactly_once(&lab, "D", 1..=503);
}
