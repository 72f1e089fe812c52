//! Defects that chaos has found, each as a separate test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use lab::Lab;
use lab::lab::DATABASE;

const PUT: &str = "insert into jetstream.outbox (subject, payload) values ('found.x', '1')";

/// A transaction in progress whose id is newer than any that has ended is not in the in-progress list of a snapshot.
/// Still, its rows may have lower ids than those of an older transaction that continues to insert.
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

/// A message was stored but not settled, and the next worker cannot claim it yet. The worker after that one must still
/// recognize that it has been stored.
#[test]
fn a_position_does_not_pass_a_stored_message_that_is_still_owed() {
    let lab = short_window();
    lab.sql(PUT).unwrap();
    lab.wait_for_messages("FOUND", 1).unwrap();
    lab.wait_drained().unwrap();
    put_in_flight(&lab);
    let mut holder = stored_and_held(&lab);
    next_worker(&lab);
    let_positions_advance(&lab);
    next_worker(&lab);
    holder.batch_execute("commit").unwrap();
    lab.wait_drained().unwrap();
    assert_eq!(lab.message_count("FOUND").unwrap(), 5);
}

/// Scheduled messages with lower ids must not hide a message that was sent to a stream without a known position.
#[test]
fn an_unsettled_message_behind_many_delayed_ones_is_looked_for() {
    let lab = short_window();
    lab.sql(
        "insert into jetstream.outbox (subject, payload, deliver_at)
         select 'later.x', '1', now() + interval '1 day' from generate_series(1, 11000)",
    )
    .unwrap();
    put_in_flight(&lab);
    let mut holder = lab.postgres.client(DATABASE).unwrap();
    holder
        .batch_execute("begin; select from jetstream.outbox where subject = 'found.x' for update")
        .unwrap();
    lab.nats.resume().unwrap();
    lab.wait_for_messages("FOUND", 1).unwrap();
    next_worker(&lab);
    std::thread::sleep(Duration::from_millis(1500));
    holder.batch_execute("commit").unwrap();
    lab.wait_until("the message is settled", || {
        Ok(lab.value("select count(*) from jetstream.outbox where subject = 'found.x'")? == "0")
    })
    .unwrap();
    assert_eq!(lab.message_count("FOUND").unwrap(), 1);
}

/// A message was stored but not settled, and is held back by a failing message with the same key that was found only
/// later. No position may pass it.
#[test]
fn a_position_does_not_pass_a_stored_message_behind_a_failing_one_of_its_key() {
    let lab = short_window();
    lab.sql(PUT).unwrap();
    lab.wait_for_messages("FOUND", 1).unwrap();
    lab.wait_drained().unwrap();
    // Leaves ids 2 to 11 for a transaction that commits late.
    lab.sql("select setval('jetstream.outbox_id_seq', 11)").unwrap();
    put(
        &lab,
        "insert into jetstream.outbox (subject, payload, key) values ('found.x', '1', 'k')",
    );
    let mut holder = stored_and_held(&lab);
    lab.sql(
        "insert into jetstream.outbox (id, subject, payload, key, attempts, deliver_at, failed_at, last_error)
         overriding system value values (5, 'found.x', '1', 'k', 1, now() + interval '1 day', now(), 'refused')",
    )
    .unwrap();
    next_worker(&lab);
    holder.batch_execute("commit").unwrap();
    let_positions_advance(&lab);
    // Makes the stream look old. A stream created within the last minute is read completely.
    lab.sql("update jetstream.positions set updated_at = now() + interval '2 minutes'")
        .unwrap();
    next_worker(&lab);
    lab.sql("delete from jetstream.outbox where id = 5").unwrap();
    lab.wait_drained().unwrap();
    assert_eq!(lab.message_count("FOUND").unwrap(), 5);
}

/// A lab whose stream has a duplicate window of one second.
fn short_window() -> Lab {
    let lab = Lab::builder().start().unwrap();
    lab.sql("select jetstream.create_stream('FOUND', array['found.>'], duplicate_window => '1 s')")
        .unwrap();
    lab.wait_connected().unwrap();
    lab
}

/// Inserts a message that is sent to a paused server.
fn put_in_flight(lab: &Lab) {
    put(lab, PUT);
}

/// Runs a statement whose message is sent to a paused server.
fn put(lab: &Lab, statement: &str) {
    lab.nats.pause().unwrap();
    lab.sql(statement).unwrap();
    lab.wait_until("a message is in flight", || {
        Ok(lab.value("select in_flight > 0 from jetstream.status()")? == "t")
    })
    .unwrap();
}

/// Lets the server store the message in flight as the second one, while another session locks its row so that it cannot
/// be settled.
fn stored_and_held(lab: &Lab) -> postgres::Client {
    let mut holder = lab.postgres.client(DATABASE).unwrap();
    holder
        .batch_execute("begin; select from jetstream.outbox for update")
        .unwrap();
    lab.nats.resume().unwrap();
    lab.wait_for_messages("FOUND", 2).unwrap();
    holder
}

/// Stores three more messages, far enough apart that a position is written after each.
fn let_positions_advance(lab: &Lab) {
    for number in 3..=5 {
        lab.sql(PUT).unwrap();
        lab.wait_for_messages("FOUND", number).unwrap();
        std::thread::sleep(Duration::from_millis(1200));
    }
}

/// Terminates the worker and waits until another one is connected.
fn next_worker(lab: &Lab) {
    let worker = || lab.postgres.backends("pg_jetstream worker%");
    let before = worker().unwrap();
    lab.sql(&format!("select pg_terminate_backend({})", before[0])).unwrap();
    lab.wait_until("another worker is running", || {
        Ok(worker()?.first().is_some_and(|pid| *pid != before[0]))
    })
    .unwrap();
    lab.wait_connected().unwrap();
}

/// The rows of one transaction take many claims to scan, while other transactions commit messages with the same key.
/// The message that was inserted first must still be sent first.
#[test]
fn a_long_look_for_late_rows_lets_no_later_message_of_a_key_overtake() {
    let lab = Lab::builder()
        .set("pg_jetstream.batch_size", "20")
        .set("autovacuum", "off")
        .start()
        .unwrap();
    lab.sql("select jetstream.create_stream('FOUND', array['found.>'])")
        .unwrap();
    lab.wait_connected().unwrap();
    let mut crowd = lab.postgres.client(DATABASE).unwrap();
    let mut first = lab.postgres.client(DATABASE).unwrap();
    let mut second = lab.postgres.client(DATABASE).unwrap();
    let keyed = |n: usize| {
        format!("insert into jetstream.outbox (subject, key, payload) values ('found.key', 'k', '{{\"n\": {n}}}')")
    };
    let mut rows = 0;
    for round in 0..20 {
        crowd
            .batch_execute(
                "begin; insert into jetstream.outbox (subject, payload) select 'found.x', '1' from generate_series(1, 400)",
            )
            .unwrap();
        first.batch_execute(&format!("begin; {}", keyed(2 * round))).unwrap();
        lab.sql(PUT).unwrap();
        rows += 1;
        lab.wait_for_messages("FOUND", rows).unwrap();
        crowd.batch_execute("commit").unwrap();
        first.batch_execute("commit").unwrap();
        second.batch_execute(&keyed(2 * round + 1)).unwrap();
        rows += 402;
        lab.wait_for_messages("FOUND", rows).unwrap();
    }
    let of_key: Vec<i64> = lab
        .stream_messages("FOUND")
        .unwrap()
        .iter()
        .filter(|message| message.subject == "found.key")
        .map(|message| message.json().unwrap()["n"].as_i64().unwrap())
        .collect();
    assert_eq!(of_key, (0..40).collect::<Vec<_>>());
}
