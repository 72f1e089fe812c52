//! What the fault harness has found, each as a test of its own.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use lab::Lab;
use lab::lab::DATABASE;

const PUT: &str = "insert into jetstream.outbox (subject, payload) values ('found.x', '1')";

/// A transaction in progress whose id is newer than any that has ended is in no snapshot's list, but its rows may lie
/// below those of an older one that goes on inserting.
#[test]
fn a_row_below_the_cursor_of_a_transaction_newer_than_the_snapshot_is_found() {
    let lab = Lab::builder().set("autovacuum", "off").start().unwrap();
    lab.sql("select jetstream.create_stream('FOUND', array['found.>'])")
        .unwrap();
    lab.wait_connected().unwrap();
    lab.sql(PUT).unwrap();
    lab.wait_for_messages("FOUND", 1).unwrap();
    lab.wait_drained().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let mut older = lab.postgres.client(DATABASE).unwrap();
    let mut newer = lab.postgres.client(DATABASE).unwrap();
    older.batch_execute("begin; select pg_current_xact_id()").unwrap();
    newer.batch_execute(&format!("begin; {PUT}")).unwrap();
    older.batch_execute(&format!("{PUT}; commit")).unwrap();
    lab.wait_for_messages("FOUND", 2).unwrap();
    lab.wait_drained().unwrap();
    newer.batch_execute("commit").unwrap();
    lab.wait_for_messages("FOUND", 3).unwrap();
}
