//! Outages and configurations in which other outbox implementations lose messages or stop for good.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use lab::lab::DATABASE;
use lab::postgres::Postgres;
use lab::{Lab, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

fn insert(source: &str, from: u32, to: u32) -> String {
    format!(
        "insert into jetstream.outbox (subject, payload, key) \
         select 'peers.{source}', to_jsonb(n), '{source}' from generate_series({from}, {to}) n"
    )
}

fn stream(lab: &Lab) {
    lab.sql("select jetstream.create_stream('PEERS', array['peers.>'])")
        .unwrap();
    lab.wait_connected().unwrap();
}

/// Configures database `name` to publish to this NATS server.
fn join(postgres: &Postgres, name: &str, url: &str) {
    if name != DATABASE {
        postgres.sql(DATABASE, &format!("create database {name}")).unwrap();
    }
    postgres.sql(name, "create extension pg_jetstream").unwrap();
    let point = format!("update jetstream.connections set url = '{url}' where name = 'default'");
    postgres.sql(name, &point).unwrap();
}

fn drained(postgres: &Postgres, database: &str) {
    let owed = "select count(*) from jetstream.outbox";
    wait_until(PATIENCE, &format!("nothing is pending in {database}"), || {
        Ok(postgres.value(database, owed)? == "0")
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", postgres.log_tail()));
}

/// The numbers of each source, in stream order.
fn by_source(lab: &Lab) -> BTreeMap<String, Vec<u64>> {
    let mut all: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for message in lab.stream_messages("PEERS").unwrap() {
        let number = message.json().unwrap().as_u64().unwrap();
        all.entry(message.subject).or_default().push(number);
    }
    all
}

/// Duration of the outage: a few seconds, or OUTAGE_SECONDS.
fn outage() -> Duration {
    let seconds = std::env::var("OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

#[test]
fn nats_away_for_long_is_reached_again_without_a_reload() {
    let mut lab = Lab::builder().set("pg_jetstream.max_attempts", "3").start().unwrap();
    stream(&lab);
    lab.sql(&insert("a", 1, 100)).unwrap();
    lab.wait_for_messages("PEERS", 100).unwrap();
    lab.nats.kill9().unwrap();
    lab.sql(&insert("a", 101, 200)).unwrap();
    std::thread::sleep(outage());
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "0");
    lab.nats.restart().unwrap();
    drained(&lab.postgres, DATABASE);
    assert_eq!(by_source(&lab)["peers.a"], (1..=200).collect::<Vec<_>>());
}

#[test]
fn each_worker_terminated_in_turn_comes_back_to_its_database() {
    let databases = [DATABASE, "second", "third"];
    let lab = Lab::builder()
        .set("pg_jetstream.databases", "postgres, second, third")
        .start()
        .unwrap();
    stream(&lab);
    for name in &databases[1..] {
        join(&lab.postgres, name, &lab.nats.url());
    }
    for round in 0..2 {
        for name in databases {
            let worker = format!("backend_type = 'pg_jetstream worker' and datname = '{name}'");
            let kill = format!("select count(pg_terminate_backend(pid)) from pg_stat_activity where {worker}");
            wait_until(PATIENCE, &format!("a worker of {name} to terminate"), || {
                Ok(lab.value(&kill)? == "1")
            })
            .unwrap();
            for source in databases {
                let number = round * 3 + 1 + databases.iter().position(|database| *database == name).unwrap() as u32;
                lab.postgres.sql(source, &insert(source, number, number)).unwrap();
            }
        }
    }
    for name in databases {
        drained(&lab.postgres, name);
        assert_eq!(by_source(&lab)[&format!("peers.{name}")], [1, 2, 3, 4, 5, 6], "{name}");
    }
}

#[test]
fn two_databases_and_two_clusters_publish_to_one_stream() {
    let mut lab = Lab::builder()
        .set("pg_jetstream.databases", "postgres, second")
        .start()
        .unwrap();
    stream(&lab);
    let url = lab.nats.url();
    join(&lab.postgres, "second", &url);
    let mut other = Postgres::start().unwrap();
    join(&other, DATABASE, &url);
    for round in 0..3 {
        let (from, to) = (round * 400 + 1, round * 400 + 400);
        lab.sql(&insert("a", from, to)).unwrap();
        lab.postgres.sql("second", &insert("b", from, to)).unwrap();
        other.sql(DATABASE, &insert("c", from, to)).unwrap();
        match round {
            0 => lab.postgres.kill9().and_then(|()| lab.postgres.start_again()).unwrap(),
            1 => lab.nats.restart().unwrap(),
            _ => other.kill9().and_then(|()| other.start_again()).unwrap(),
        }
    }
    drained(&lab.postgres, DATABASE);
    drained(&lab.postgres, "second");
    drained(&other, DATABASE);
    let all = by_source(&lab);
    let expected: Vec<u64> = (1..=1200).collect();
    for source in ["a", "b", "c"] {
        assert_eq!(all[&format!("peers.{source}")], expected, "{source}");
    }
}
