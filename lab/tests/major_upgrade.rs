//! `pg_upgrade` to a later major version with pending messages. Run by hand, because it requires a second PostgreSQL:
//! `cargo run -p lab -- setup --second-major 17`, then `cargo test -p lab --test major_upgrade -- --ignored`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use lab::lab::DATABASE;
use lab::paths::Paths;
use lab::postgres::{Postgres, Stop};
use lab::user::ServerUser;
use lab::{Lab, second_major, wait_until};

fn put(from: u32, to: u32) -> String {
    format!(
        "insert into jetstream.outbox (subject, payload, key) \
         select 'up.' || n % 3, to_jsonb(n), 'k' || n % 3 from generate_series({from}, {to}) n"
    )
}

/// Runs `pg_upgrade`, which starts and stops both servers itself.
fn pg_upgrade(old: &Postgres, new: &Postgres, (from, to): (&Paths, &Paths), folder: &Path) {
    let output = ServerUser::find()
        .unwrap()
        .command(to.pg_bin().join("pg_upgrade"))
        .args(["-U", "postgres", "--jobs", "2", "--socketdir", "/tmp"])
        .arg("-b")
        .arg(from.pg_bin())
        .arg("-B")
        .arg(to.pg_bin())
        .arg("-d")
        .arg(old.data())
        .arg("-D")
        .arg(new.data())
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "requires a second PostgreSQL: cargo run -p lab -- setup --second-major 17"]
fn what_is_owed_before_pg_upgrade_is_published_once_after_it() {
    let paths = Paths::ready().unwrap();
    let other = second_major::at_hand(&paths)
        .expect("no second PostgreSQL found: run `cargo run -p lab -- setup --second-major 17`");
    let mut lab = Lab::builder().start().unwrap();
    lab.sql("select jetstream.create_stream('UP', array['up.>'], duplicate_window => '1 s')")
        .unwrap();
    lab.wait_connected().unwrap();
    lab.sql(&put(1, 300)).unwrap();
    lab.wait_for_messages("UP", 300).unwrap();
    lab.wait_drained().unwrap();
    lab.nats.pause().unwrap();
    lab.sql(&put(301, 600)).unwrap();
    lab.wait_until("messages are in flight", || {
        Ok(lab.value("select in_flight > 0 from jetstream.status()")? == "t")
    })
    .unwrap();
    // The server stores the messages in flight, and their acknowledgements are lost.
    lab.postgres.stop(Stop::Immediate).unwrap();
    lab.nats.resume().unwrap();
    lab.postgres.start_again().unwrap();
    lab.sql("select jetstream.pause()").unwrap();
    lab.postgres.stop(Stop::Fast).unwrap();

    let mut new = Postgres::builder().of(other.clone()).start().unwrap();
    new.stop(Stop::Fast).unwrap();
    let before = lab.message_count("UP").unwrap();
    let (folder, user) = (tempfile::tempdir().unwrap(), ServerUser::find().unwrap());
    user.own(folder.path()).unwrap();
    pg_upgrade(&lab.postgres, &new, (&paths, &other), folder.path());
    assert_eq!(
        lab.message_count("UP").unwrap(),
        before,
        "a message was published while the cluster was copied"
    );

    new.start_again().unwrap();
    let value = |query: &str| new.value(DATABASE, query);
    assert!(
        value("select version()")
            .unwrap()
            .starts_with(&format!("PostgreSQL {}", other.major))
    );
    assert_eq!(value("select count(*) > 0 from jetstream.outbox").unwrap(), "t");
    new.sql(DATABASE, &put(601, 900)).unwrap();
    value("select jetstream.resume()").unwrap();
    wait_until(Duration::from_secs(60), "nothing is pending after the upgrade", || {
        Ok(value("select count(*) from jetstream.outbox")? == "0")
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", new.log_tail()));
    let mut by_key: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for message in lab.stream_messages("UP").unwrap() {
        let number = message.json().unwrap().as_u64().unwrap();
        by_key.entry(message.subject).or_default().push(number);
    }
    for key in 0..3 {
        let expected: Vec<u64> = (1..=900).filter(|n| n % 3 == key).collect();
        assert_eq!(by_key[&format!("up.{key}")], expected);
    }
    let kept = "select count(*) from jetstream.history where success";
    assert!(
        value(kept).unwrap().parse::<u32>().unwrap() >= 900,
        "the history was lost"
    );
}
