//! Changes in the capture queue are pending like any other message. A pause keeps them from being published, but not
//! from being unpacked.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use capture_support::{capture_lab, settled};
use e2e_support::{SOON, becomes, synced};

const OWED: &str = "select string_agg(format('%s %s %s', connection, subject, owed), ', ' order by subject)
    from jetstream.outbox_summary where failing = 0 and next_attempt is null and last_error is null";

#[test]
fn captured_changes_are_owed_before_they_are_messages_and_while_paused() {
    let mut lab = capture_lab();
    lab.sql(
        "create table \"we.ird\" (id int primary key); select jetstream.capture('\"we.ird\"', transactions => true)",
    )
    .unwrap();
    settled(&lab, SOON);
    synced(&lab, "postgres_replication");
    let before = lab.message_count("postgres_replication").unwrap();
    becomes(&lab, "nothing is pending", "select jetstream.outbox_lag() is null", "t");
    // A worker that starts now is paused from its first cycle.
    lab.postgres.set(&[("pg_jetstream.databases", "")]).unwrap();
    lab.wait_until("no worker", || {
        Ok(lab.postgres.backends("pg_jetstream worker%")?.is_empty())
    })
    .unwrap();
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql("insert into \"we.ird\" select generate_series(1, 1000)")
        .unwrap();
    assert_ne!(lab.value("select count(*) from jetstream.capture_queue").unwrap(), "0");
    assert_eq!(
        lab.value(OWED).unwrap(),
        "default postgres.public.we%2Eird.* 1000, default postgres.transactions.*.event 2"
    );
    let captured = lab
        .value("select extract(epoch from at)::text from jetstream.capture_queue order by at limit 1")
        .unwrap();
    for connection in ["", "'default'"] {
        let late = format!(
            "select jetstream.outbox_lag({connection}) between clock_timestamp() - to_timestamp({captured}) - interval '1 s' \
             and clock_timestamp() - to_timestamp({captured}) + interval '1 s'"
        );
        assert_eq!(lab.value(&late).unwrap(), "t");
    }
    assert_eq!(
        lab.value("select jetstream.outbox_lag('nowhere') is null").unwrap(),
        "t"
    );
    assert_eq!(lab.value("select jetstream.health() ->> 'owed'").unwrap(), "true");
    assert_eq!(lab.value("select oldest = (select min(at) from jetstream.capture_queue) from jetstream.outbox_summary order by oldest limit 1").unwrap(), "t");

    lab.postgres.set(&[("pg_jetstream.databases", "postgres")]).unwrap();
    becomes(
        &lab,
        "the queue is unpacked",
        "select count(*) from jetstream.capture_queue",
        "0",
    );
    assert_eq!(
        lab.value(OWED).unwrap(),
        "default postgres.public.we%2Eird.insert 1000, default postgres.transactions.begin.event 1, \
         default postgres.transactions.commit.event 1"
    );
    // The message has the time of the change, not of its creation.
    assert_eq!(
        lab.value("select extract(epoch from min(created_at))::text from jetstream.outbox")
            .unwrap(),
        captured
    );
    // Each message can still be deleted.
    assert_eq!(
        lab.sql("delete from jetstream.outbox where convert_from(raw, 'UTF8')::jsonb @> '{\"Insert\": {\"new_tuple\": {\"id\": \"7\"}}}' returning id")
            .unwrap()
            .len(),
        1
    );
    becomes(
        &lab,
        "the worker is paused",
        "select state from jetstream.status()",
        "paused",
    );
    assert_eq!(lab.message_count("postgres_replication").unwrap(), before);

    lab.sql("select jetstream.resume()").unwrap();
    settled(&lab, SOON);
    assert_eq!(lab.message_count("postgres_replication").unwrap(), before + 1001);
    assert_eq!(lab.value("select jetstream.outbox_lag() is null").unwrap(), "t");
}

#[test]
fn what_the_first_version_left_in_the_queue_is_owed_and_published() {
    let lab = capture_lab();
    lab.sql("create table t (id int primary key); select jetstream.capture('t')")
        .unwrap();
    settled(&lab, SOON);
    let head = r#"{"format":"pgoutput","connection":"default","prefix":"postgres","database":"shop","schema":"public","table":"t","relation_id":7}"#;
    let store = |bodies: [&str; 2]| {
        let row = |number, body: &str| format!("({number}, 1, 'aabb', 'default', '{head}', {body})");
        format!(
            "insert into jetstream.capture_queue (number, changes, salt, connection, head, body) values {}, {}",
            row(1, bodies[0]),
            row(2, bodies[1])
        )
    };
    // Each field follows its length in four bytes. A begin has no fields.
    let none = "'\\xffffffff'::bytea";
    let field = |text: &str| format!("'\\x{:02x}000000'::bytea || '{text}'", text.len());
    let insert = format!(
        "'i'::bytea || {} || {none} || {} || {none}",
        field("public.t:\"1\""),
        field("{\"id\":\"1\"}")
    );
    let begin = format!("'b'::bytea || {none} || {none} || {none} || {none}");
    // Rolled back, so that the worker does not see it.
    let owed = lab
        .sql(&format!("begin; {}; {OWED}; rollback", store([&insert, &begin])))
        .unwrap();
    assert_eq!(
        owed.concat().concat(),
        "default postgres.public.t.* 1, default postgres.transactions.*.event 1"
    );
    lab.sql(&store([&insert, &insert])).unwrap();
    settled(&lab, SOON);
    let messages = lab.stream_messages("postgres_replication").unwrap();
    let stored = messages.last().unwrap();
    assert_eq!(stored.subject, "postgres.public.t.insert");
    assert_eq!(stored.json().unwrap()["Insert"]["new_tuple"]["id"], "1");
    becomes(
        &lab,
        "it keeps the key it was stored with",
        "select count(*) from jetstream.history where key = 'public.t:\"1\"'",
        "2",
    );
}

#[test]
fn a_table_captured_with_no_columns_as_its_key_is_one_order() {
    let lab = capture_lab();
    lab.sql(
        "create table t (id int primary key); select jetstream.capture('t', key => '{}');
         create table u (id int); select jetstream.capture('u');
         create table v (id int primary key); select jetstream.capture('v')",
    )
    .unwrap();
    for table in ["t", "u", "v"] {
        lab.sql(&format!(
            "insert into {table} values (1), (2); update {table} set id = id + 2; truncate {table}"
        ))
        .unwrap();
    }
    settled(&lab, SOON);
    let keys = "select string_agg(concat_ws(' ', subject, key, n), ', ' order by subject, key) from ( \
                select substr(subject, 17) as subject, key, count(*) as n from jetstream.history group by 1, 2) s";
    becomes(
        &lab,
        "keys",
        keys,
        "t.insert public.t: 2, t.relation public.t: 1, t.truncate public.t: 1, t.update public.t: 2, \
         u.insert 2, u.relation 1, u.truncate 1, u.update 2, \
         v.delete public.v:\"1\" 1, v.delete public.v:\"2\" 1, \
         v.insert public.v:\"1\" 1, v.insert public.v:\"2\" 1, v.insert public.v:\"3\" 1, v.insert public.v:\"4\" 1, \
         v.relation 1, v.truncate 1",
    );
}
