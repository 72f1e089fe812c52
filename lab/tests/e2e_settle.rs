//! Rows that other sessions have changed or locked, many late commits, and histories with user-defined indexes,
//! triggers and constraints.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use e2e_support::{SOON, arrived, becomes, drained, exactly_once, insert, lab, numbers, worker};
use lab::Lab;
use lab::lab::DATABASE;

/// An operator's changes to pending rows take effect. A changed row is sent with its new content, a deleted one is not
/// sent, a row that was only locked is sent as usual, and a row that is still locked is sent when the lock is released.
#[test]
fn a_row_that_somebody_has_touched_goes_as_it_stands_now() {
    let lab = lab(&[]);
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&insert("s.x", 1, 3_000)).unwrap();
    let mut operator = lab.postgres.client(DATABASE).unwrap();
    let mut run = |sql: &str| operator.batch_execute(sql).unwrap();
    let numbered = |n: &str| format!("(payload ->> 'n')::bigint {n}");
    // Each statement leaves a mark on the rows: locked, deleted and rolled back, or changed and rolled back.
    run(&format!(
        "begin; select from jetstream.outbox where {} for update; commit",
        numbered("<= 1500")
    ));
    run(&format!(
        "begin; delete from jetstream.outbox where {}; rollback",
        numbered("between 100 and 200")
    ));
    run(&format!(
        "begin; update jetstream.outbox set subject = 's.never' where {}; rollback",
        numbered("< 50")
    ));
    run(&format!(
        "update jetstream.outbox set subject = 's.changed' where {}",
        numbered("= 60")
    ));
    run(&format!("delete from jetstream.outbox where {}", numbered("= 70")));
    run(&format!(
        "begin; update jetstream.outbox set subject = 's.late' where {}",
        numbered("= 80")
    ));
    lab.sql("select jetstream.resume()").unwrap();
    arrived(&lab, "S", 2_998);
    becomes(&lab, "one row is locked", "select count(*) from jetstream.outbox", "1");
    assert!(!numbers(&lab, "S").contains(&80));
    run("commit");
    drained(&lab, SOON);
    exactly_once(&lab, "S", (1..=3_000).filter(|n| *n != 70));
    let mut renamed: Vec<(String, i64)> = lab
        .stream_messages("S")
        .unwrap()
        .iter()
        .filter(|message| message.subject != "s.x")
        .map(|message| (message.subject.clone(), e2e_support::number(message)))
        .collect();
    renamed.sort();
    assert_eq!(renamed, [("s.changed".to_owned(), 60), ("s.late".to_owned(), 80)]);
}

/// A claim in which every row has been locked before still remembers which transactions were open, like any other
/// claim.
#[test]
fn a_late_row_is_found_at_once_behind_rows_that_had_all_been_touched() {
    let lab = lab(&[]);
    lab.sql("select jetstream.pause()").unwrap();
    let mut late = lab.postgres.client(DATABASE).unwrap();
    late.batch_execute(&format!("begin; {}", insert("s.late", 1, 1)))
        .unwrap();
    lab.sql(&insert("s.x", 2, 10)).unwrap();
    lab.sql("begin; select from jetstream.outbox for update; commit")
        .unwrap();
    lab.sql("select jetstream.resume()").unwrap();
    arrived(&lab, "S", 9);
    late.batch_execute("commit").unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", 1..=10);
}

/// A transaction commits late with more rows than one claim takes. All of them are sent once, and each key in order.
#[test]
fn a_crowd_of_late_rows_arrives_once_and_in_order() {
    const ROWS: i64 = 14_000;
    let lab = lab(&[("autovacuum", "off")]);
    let keyed = |from: i64, to: i64| {
        format!(
            "insert into jetstream.outbox (subject, key, payload) \
             select 's.k' || n % 40, case n % 40 when 0 then 'a' when 1 then 'b' end, jsonb_build_object('n', n) \
             from generate_series({from}, {to}) n order by n"
        )
    };
    let mut late = lab.postgres.client(DATABASE).unwrap();
    late.batch_execute(&format!("begin; {}", keyed(1, ROWS / 2))).unwrap();
    lab.sql(&insert("s.early", 1_000_001, 1_002_000)).unwrap();
    arrived(&lab, "S", 2_000);
    late.batch_execute(&format!("{}; commit", keyed(ROWS / 2 + 1, ROWS)))
        .unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", (1..=ROWS).chain(1_000_001..=1_002_000));
    for subject in ["s.k0", "s.k1"] {
        let of_key: Vec<i64> = lab
            .stream_messages("S")
            .unwrap()
            .iter()
            .filter(|message| message.subject == subject)
            .map(e2e_support::number)
            .collect();
        assert!(of_key.is_sorted(), "{subject} is out of order");
    }
}

/// Publishes 100 messages and waits until the history has all of them.
fn recorded(lab: &Lab, from: i64) {
    lab.sql(&insert("s.x", from, from + 99)).unwrap();
    drained(lab, SOON);
    let history = format!("select count(*) from jetstream.history where subject = 's.x' and sequence >= {from}");
    becomes(lab, "the history is complete", &history, "100");
}

/// Indexes, triggers and constraints that users add to the history or the outbox work as they would with statements.
#[test]
fn indexes_triggers_and_constraints_that_users_add_are_served() {
    let lab = lab(&[]);
    recorded(&lab, 1);
    lab.sql("create index on jetstream.history (message_id); create unique index on jetstream.history (outbox_id, published_at)")
        .unwrap();
    recorded(&lab, 101);
    let through_index = "set enable_seqscan = off; set enable_bitmapscan = off; \
         select count(*) from jetstream.history h join (select message_id, sequence from jetstream.history offset 0) i \
         on h.message_id = i.message_id where i.sequence > 100";
    let found = lab.sql(through_index).unwrap();
    assert_eq!(found.concat().last().unwrap(), "100");

    lab.sql(
        "alter table jetstream.history add constraint small check (attempts < 100), add column note text default 'x'",
    )
    .unwrap();
    recorded(&lab, 201);
    let noted = "select count(*) from jetstream.history where sequence > 200 and note = 'x'";
    assert_eq!(lab.value(noted).unwrap(), "100");

    lab.sql("create table seen (n bigint, what text); grant insert on seen to jetstream_worker")
        .unwrap();
    lab.sql(
        "create function note_insert() returns trigger language plpgsql as \
         $$begin insert into public.seen values (new.sequence, 'recorded'); return new; end$$; \
         create trigger note after insert on jetstream.history for each row execute function note_insert()",
    )
    .unwrap();
    recorded(&lab, 301);
    assert_eq!(
        lab.value("select count(*) from seen where what = 'recorded'").unwrap(),
        "100"
    );

    lab.sql(
        "create function note_delete() returns trigger language plpgsql as \
         $$begin insert into public.seen values (old.id, 'gone'); return old; end$$; \
         create trigger note after delete on jetstream.outbox for each row execute function note_delete()",
    )
    .unwrap();
    recorded(&lab, 401);
    assert_eq!(
        lab.value("select count(*) from seen where what = 'gone'").unwrap(),
        "100"
    );
    exactly_once(&lab, "S", 1..=500);
}

#[test]
fn the_history_of_one_message_is_found_by_its_outbox_id() {
    let lab = lab(&[]);
    lab.sql(&insert("s.x", 1, 20_000)).unwrap();
    drained(&lab, SOON);
    lab.sql(
        "select brin_summarize_new_values(i.indexrelid) from pg_index i join pg_class c on c.oid = i.indexrelid \
             where c.relkind = 'i' and c.relname like 'history%outbox_id%'",
    )
    .unwrap();
    let plan = lab
        .sql("explain (costs off) select * from jetstream.history where outbox_id = 777")
        .unwrap();
    assert!(plan.concat().join("\n").contains("outbox_id"), "{plan:?}");
    assert_eq!(
        lab.value("select count(*) from jetstream.history where outbox_id in (1, 777, 20000)")
            .unwrap(),
        "3"
    );
    // Rows in blocks that the index has already summarized are also found through it.
    lab.sql(&insert("s.x", 20_001, 21_500)).unwrap();
    drained(&lab, SOON);
    let through_index = "set enable_seqscan = off; select count(*) from generate_series(20001, 21500) n \
         cross join lateral (select from jetstream.history h where h.outbox_id = n offset 0) h";
    becomes(
        &lab,
        "the history is complete",
        "select count(*) from jetstream.history",
        "21500",
    );
    assert_eq!(lab.sql(through_index).unwrap().concat().last().unwrap(), "1500");
}

/// The outbox is truncated while messages are in flight, and its ids start again. The outcomes of those messages do not
/// apply to the new rows with the same ids.
#[test]
fn a_row_that_has_the_id_of_a_message_in_flight_goes_too() {
    let settings: [&[(&str, &str)]; 2] = [&[], &[("pg_jetstream.history_payload", "on")]];
    std::thread::scope(|scope| {
        for settings in settings {
            scope.spawn(move || ids_begin_anew(&lab(settings)));
        }
    });
}

fn ids_begin_anew(lab: &Lab) {
    lab.nats.pause().unwrap();
    lab.sql(&insert("s.old", 1, 100)).unwrap();
    becomes(
        lab,
        "messages are in flight",
        "select in_flight from jetstream.status()",
        "100",
    );
    lab.sql("truncate jetstream.outbox restart identity").unwrap();
    lab.sql(&insert("s.new", 101, 200)).unwrap();
    assert_eq!(lab.value("select max(id) from jetstream.outbox").unwrap(), "100");
    lab.nats.resume().unwrap();
    arrived(lab, "S", 200);
    drained(lab, SOON);
    exactly_once(lab, "S", 1..=200);
}

/// The locations of rows are no longer valid after a rewrite.
#[test]
fn a_table_that_was_rewritten_with_messages_in_flight_does_not_end_the_worker() {
    let lab = lab(&[]);
    lab.sql("alter table jetstream.outbox set (autovacuum_enabled = off)")
        .unwrap();
    let pid = worker(&lab);
    lab.sql(&insert("s.x", 1, 20_000)).unwrap();
    drained(&lab, SOON);
    lab.nats.pause().unwrap();
    lab.sql(&insert("s.x", 20_001, 20_500)).unwrap();
    becomes(
        &lab,
        "messages are in flight",
        "select in_flight from jetstream.status()",
        "500",
    );
    lab.sql("vacuum full jetstream.outbox").unwrap();
    lab.nats.resume().unwrap();
    drained(&lab, SOON);
    assert_eq!(worker(&lab), pid, "the worker was replaced");
    exactly_once(&lab, "S", 1..=20_500);
}

/// The positions of a connection's streams are recorded while another connection hangs with messages in flight.
#[test]
fn a_connection_that_hangs_does_not_stop_the_positions_of_another() {
    // A long timeout, because messages that are sent again are duplicates, and a duplicate does not advance a position.
    let lab = lab(&[("pg_jetstream.ack_timeout", "60s")]);
    let other = e2e_support::connection(&lab, "other");
    lab.sql("select jetstream.create_stream('T', array['t.>'], connection => 'other')")
        .unwrap();
    e2e_support::synced(&lab, "T");
    other.pause().unwrap();
    lab.sql(
        "insert into jetstream.outbox (connection, subject, payload)
         select 'other', 't.x', jsonb_build_object('n', n) from generate_series(1, 100) n",
    )
    .unwrap();
    let in_flight = "select in_flight from jetstream.status()";
    becomes(&lab, "messages are in flight", in_flight, "100");
    std::thread::sleep(std::time::Duration::from_secs(2));
    lab.sql(&insert("s.x", 1, 50)).unwrap();
    arrived(&lab, "S", 50);
    let position = "select last_sequence from jetstream.positions where connection = 'default' and stream = 'S'";
    becomes(&lab, "the position advances", position, "50");
    assert_eq!(
        lab.value(in_flight).unwrap(),
        "100",
        "the other connection no longer hangs"
    );
    other.resume().unwrap();
    drained(&lab, SOON);
    let position = "select last_sequence from jetstream.positions where connection = 'other' and stream = 'T'";
    becomes(&lab, "the position of the other connection advances", position, "100");
}
