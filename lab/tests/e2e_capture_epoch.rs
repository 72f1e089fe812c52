//! Positions of changes grow when the cluster changes, too.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use capture_support::{capture_lab, position, settled};
use e2e_support::{SOON, eventually, program};
use lab::Lab;
use lab::lab::DATABASE;

#[test]
fn a_restored_database_counts_on() {
    let first = capture_lab();
    first
        .sql(
            "create table t (id int primary key, v int); select jetstream.capture('t', format => 'row'); insert into t values (1, 0)",
        )
        .unwrap();
    // The new cluster's log is shorter.
    for _ in 0..8 {
        first.sql("update t set v = v + 1").unwrap();
        for _ in 0..8 {
            first
                .sql("select pg_logical_emit_message(false, 'x', 'y'); select pg_switch_wal()")
                .unwrap();
        }
    }
    settled(&first, SOON);
    let dump = program(&first, "pg_dump", &["-f", "dump.sql", DATABASE]);
    assert!(dump.status.success(), "{dump:?}");

    let second = Lab::builder()
        .set("pg_jetstream.databases", "postgres,copy")
        .start()
        .unwrap();
    second.sql("create database copy").unwrap();
    let file = first.nats.dir().join("dump.sql");
    let restored = program(
        &second,
        "psql",
        &["-q", "-v", "ON_ERROR_STOP=1", "-f", file.to_str().unwrap(), "copy"],
    );
    assert!(
        restored.status.success(),
        "{}",
        String::from_utf8_lossy(&restored.stderr)
    );
    // The restored connection leads to the first cluster's NATS.
    second.postgres.sql("copy", "update t set v = v + 1").unwrap();
    let changes = || {
        let mut messages = first.stream_messages("postgres_replication").unwrap();
        messages.retain(|message| message.subject.ends_with(".update"));
        messages
    };
    eventually(&second, SOON, "the change of the new cluster", || {
        Ok(changes().len() == 9)
    });
    let messages = changes();
    let positions: Vec<_> = messages.iter().map(position).collect();
    assert!(positions.is_sorted(), "{positions:?}");
    let [.., before, last] = &positions[..] else { panic!() };
    assert!(
        before.1 > last.1 && before.0 < last.0,
        "the log is shorter, the epoch is later: {positions:?}"
    );
    let body = messages.last().unwrap().json().unwrap();
    assert_eq!((&body["epoch"], &body["new"]["v"]), (&last.0.into(), &9.into()));
    let epochs = "select count(*) = 2 and max(epoch) = EPOCH from jetstream.capture_epochs";
    let epochs = epochs.replace("EPOCH", &last.0.to_string());
    assert_eq!(second.postgres.value("copy", &epochs).unwrap(), "t");
}
