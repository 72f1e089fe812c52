//! What an operator is shown is true: the verdict, the lag, what is scheduled, ids that are used twice; and what is
//! repaired is published without delay.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::{Duration, Instant};

use e2e_support::{SOON, arrived, becomes, connection, drained, eventually, insert, lab, stream, worker};
use lab::Lab;

/// Failing messages wait for half an hour, unless something makes them due.
fn patient() -> Lab {
    let lab = Lab::builder()
        .set("pg_jetstream.retry_backoff_base", "30min")
        .set("pg_jetstream.retry_backoff_max", "30min")
        .start()
        .unwrap();
    worker(&lab);
    lab
}

fn failing(lab: &Lab, count: i64) {
    becomes(
        lab,
        "failing messages",
        "select failing from jetstream.status()",
        &count.to_string(),
    );
}

fn number(lab: &Lab, query: &str) -> f64 {
    lab.value(query).unwrap().parse().unwrap()
}

#[test]
fn lag_counts_from_when_a_message_was_due_and_a_scheduled_one_is_not_late() {
    let lab = patient();
    lab.sql(
        "select jetstream.publish('later.a', '1', deliver_at => now() + interval '1 day');
         select jetstream.publish('later.b', '1', deliver_at => now() + interval '1 year', key => 'k')",
    )
    .unwrap();
    let state = |columns: &str| {
        lab.sql(&format!("select {columns} from jetstream.status()"))
            .unwrap()
            .concat()
    };
    assert_eq!(
        state("owed, scheduled, failing, lag is null, verdict"),
        ["0", "2", "0", "t", "healthy"]
    );
    let health =
        "select (jetstream.health('default') ->> 'owed') || ' ' || (jetstream.health('default') ->> 'scheduled')";
    assert_eq!(lab.value(health).unwrap(), "false 2");
    let summary = "select sum(owed) || ' ' || sum(scheduled) from jetstream.outbox_summary";
    assert_eq!(lab.value(summary).unwrap(), "0 2");
    let metric = |name: &str| {
        number(
            &lab,
            &format!("select sum(value) from jetstream.metrics where name = 'pg_jetstream_{name}'"),
        )
    };
    assert_eq!(metric("outbox_owed_messages"), 0.0);
    assert_eq!(metric("connection_scheduled_messages"), 2.0);

    // Twenty-two messages fail. The oldest was scheduled for a minute ago: that, and not when it was inserted or is tried
    // again, is since when it is late.
    lab.sql(
        "select jetstream.publish('nowhere.' || n, '1') from generate_series(1, 21) n;
         insert into jetstream.outbox (subject, payload, created_at, deliver_at)
         values ('nowhere.x', '1', now() - interval '1 hour', now() - interval '1 minute')",
    )
    .unwrap();
    failing(&lab, 22);
    for query in [
        "select extract(epoch from lag) from jetstream.status()",
        "select extract(epoch from oldest_failing) from jetstream.status()",
        "select jetstream.health('default') ->> 'lag_seconds'",
        "select jetstream.health() ->> 'oldest_failing_seconds'",
        "select value from jetstream.metrics where name = 'pg_jetstream_connection_lag_seconds'",
        "select value from jetstream.metrics where name = 'pg_jetstream_connection_oldest_failing_seconds'",
    ] {
        let lag = number(&lab, query);
        assert!((60.0..100.0).contains(&lag), "{query}: {lag}");
    }
    assert_eq!(
        state("owed, scheduled, failing, verdict"),
        ["22", "2", "22", "degraded"]
    );
    // So is the latency of what arrives in the end.
    lab.sql("select jetstream.create_stream('N', array['nowhere.>'])")
        .unwrap();
    arrived(&lab, "N", 22);
    becomes(
        &lab,
        "healthy again",
        "select verdict from jetstream.status()",
        "healthy",
    );
    let slowest = number(&lab, "select max(latency_ms) from jetstream.history where success");
    assert!((60_000.0..150_000.0).contains(&slowest), "{slowest}");
}

#[test]
fn one_verdict_says_what_is_wrong_and_what_to_do() {
    let mut lab = lab(&[]);
    let mut other = connection(&lab, "a");
    becomes(&lab, "healthy", "select verdict from jetstream.status()", "healthy");
    assert_eq!(lab.value("select reasons from jetstream.status()").unwrap(), "[]");

    other.stop().unwrap();
    becomes(
        &lab,
        "one connection is down",
        "select verdict from jetstream.status()",
        "degraded",
    );
    lab.sql("select jetstream.publish('x', '1', connection => 'a')")
        .unwrap();
    assert_ne!(lab.value("select state from jetstream.status()").unwrap(), "idle");
    let reasons = "select count(*) from jsonb_array_elements(jetstream.health() -> 'reasons') r
                   where r ->> 'connection' = 'a' and r ->> 'reason' like 'connection \"a\" is %'
                     and r ->> 'next_step' like '%jetstream.reload(''a'')%'";
    assert_eq!(lab.value(reasons).unwrap(), "1");
    let each = "select concat_ws(' ', jetstream.health('a') ->> 'verdict', jetstream.health('default') ->> 'verdict',
                                 jetstream.health('default') ->> 'last_error' is null)";
    assert_eq!(lab.value(each).unwrap(), "down healthy t");
    // The error of one connection is not that of another.
    lab.sql("select jetstream.publish('nowhere', '1')").unwrap();
    becomes(
        &lab,
        "its own error",
        "select jetstream.health('default') ->> 'last_error' like '%no stream%'",
        "t",
    );
    let its_own = "select jetstream.health('a') ->> 'last_error' = jetstream.health('a') ->> 'detail'";
    assert_eq!(lab.value(its_own).unwrap(), "t");
    lab.sql("delete from jetstream.outbox where subject = 'nowhere'")
        .unwrap();

    lab.nats.stop().unwrap();
    becomes(&lab, "all are down", "select verdict from jetstream.status()", "down");
    lab.nats.restart().unwrap();
    other.restart().unwrap();
    lab.sql("delete from jetstream.outbox").unwrap();
    becomes(
        &lab,
        "healthy again",
        "select verdict from jetstream.status()",
        "healthy",
    );
    let verdict = "select verdict || ' ' || (reasons -> 0 ->> 'next_step') from jetstream.verdict()";
    lab.sql("select jetstream.pause()").unwrap();
    assert_eq!(lab.value(verdict).unwrap(), "down Call jetstream.resume().");
    lab.sql("select jetstream.resume()").unwrap();
    lab.sql("update jetstream.streams set storage = 'memory'").unwrap();
    becomes(
        &lab,
        "a stream that is not as asked",
        "select verdict from jetstream.status()",
        "degraded",
    );
    lab.postgres.set(&[("pg_jetstream.databases", "elsewhere")]).unwrap();
    becomes(&lab, "no worker", "select verdict from jetstream.status()", "down");
    assert!(lab.value(verdict).unwrap_or_default().starts_with("down "));
}

#[test]
fn what_is_repaired_is_published_without_delay() {
    let mut lab = patient();
    // A stream is created.
    lab.sql("select jetstream.publish('one.a', '1')").unwrap();
    failing(&lab, 1);
    lab.sql("select jetstream.create_stream('ONE', array['one.>'])")
        .unwrap();
    arrived(&lab, "ONE", 1);
    // A stream is created in NATS, and a new message shows that it is there: the others follow.
    lab.sql("select jetstream.publish('two.a', '1') from generate_series(1, 50)")
        .unwrap();
    failing(&lab, 50);
    lab.jetstream(async |context| {
        let config = async_nats::jetstream::stream::Config {
            name: "TWO".to_owned(),
            subjects: vec!["two.>".to_owned(), "three.>".to_owned()],
            ..Default::default()
        };
        context.create_stream(config).await?;
        Ok(())
    })
    .unwrap();
    lab.sql("select jetstream.publish('two.a', '1')").unwrap();
    arrived(&lab, "TWO", 51);
    // A connection is edited.
    lab.sql("select jetstream.publish('four.a', '1')").unwrap();
    failing(&lab, 1);
    lab.sql("update jetstream.connections set subject_prefix = 'three'")
        .unwrap();
    arrived(&lab, "TWO", 52);
    lab.sql("update jetstream.connections set subject_prefix = null")
        .unwrap();
    // By hand: only those that are asked for.
    lab.sql("select jetstream.publish('five.a', '1'); select jetstream.publish('six.a', '1')")
        .unwrap();
    failing(&lab, 2);
    let attempts = "select string_agg(subject || ' ' || attempts, ', ' order by subject) from jetstream.outbox";
    assert_eq!(lab.value("select jetstream.retry('five.*')").unwrap(), "1");
    becomes(&lab, "one more attempt", attempts, "five.a 2, six.a 1");
    assert_eq!(lab.value("select jetstream.retry('>', 'default')").unwrap(), "2");
    becomes(&lab, "an attempt of both", attempts, "five.a 3, six.a 2");
    lab.sql("delete from jetstream.outbox").unwrap();
    // The server is away for long enough that the delays between attempts have grown.
    lab.sql("update jetstream.connections set reconnect_delay_ms = 500")
        .unwrap();
    worker(&lab);
    lab.nats.stop().unwrap();
    lab.sql("select jetstream.publish('one.b', '1')").unwrap();
    std::thread::sleep(Duration::from_secs(6));
    lab.nats.restart().unwrap();
    let back = Instant::now();
    drained(&lab, SOON);
    assert!(back.elapsed() < Duration::from_secs(3), "{:?}", back.elapsed());
}

#[test]
fn an_id_that_another_message_has_used_is_counted_and_warned_of() {
    let mut lab = lab(&[]);
    lab.sql("select jetstream.publish('s.a', '1', 'same'), jetstream.publish('s.a', '2', 'other')")
        .unwrap();
    drained(&lab, SOON);
    lab.sql("select jetstream.publish('s.a', '3', 'same')").unwrap();
    lab.sql("select jetstream.publish('s.b', '4', 'same')").unwrap();
    drained(&lab, SOON);
    becomes(
        &lab,
        "counted",
        "select duplicates || ' ' || reused_ids from jetstream.status()",
        "2 2",
    );
    assert_eq!(
        lab.value("select value from jetstream.metrics where name = 'pg_jetstream_worker_reused_ids_total'")
            .unwrap(),
        "2"
    );
    let named = "select count(*) from jetstream.history where duplicate and success and message_id = 'same' and error like '%used this id%'";
    assert_eq!(lab.value(named).unwrap(), "2");
    assert_eq!(
        lab.value("select sum(reused_ids) from jetstream.publish_summary")
            .unwrap(),
        "2"
    );
    let warnings = lab
        .postgres
        .log()
        .lines()
        .filter(|line| line.contains("another message has used this id"))
        .count();
    assert_eq!(warnings, 1, "at most once an hour");

    // What is sent again by the product itself is no such id, whoever dies.
    lab.sql(&insert("s.c", 1, 3_000)).unwrap();
    eventually(&lab, SOON, "a part is stored", || Ok(lab.message_count("S")? > 100));
    lab.nats.stop().unwrap();
    lab.nats.restart().unwrap();
    drained(&lab, SOON);
    assert_eq!(lab.value("select reused_ids from jetstream.status()").unwrap(), "2");
}

#[test]
fn a_worker_at_rest_makes_no_transaction_and_misses_nothing() {
    let lab = Lab::builder().set("max_prepared_transactions", "5").start().unwrap();
    stream(&lab, "S", "s.>");
    lab.sql(&insert("s.a", 1, 1)).unwrap();
    drained(&lab, SOON);
    eventually(&lab, SOON, "a position", || {
        Ok(lab.value("select count(*) from jetstream.positions")? == "1")
    });
    std::thread::sleep(Duration::from_secs(4));
    let cycles = || number(&lab, "select cycles from jetstream.status()");
    let before = cycles();
    std::thread::sleep(Duration::from_secs(8));
    let made = cycles() - before;
    assert!(made <= 3.0, "{made} cycles in 8 s");
    // What wakes nobody is found as quickly as before.
    let hidden: [&[&str]; 4] = [
        &[
            "alter table jetstream.outbox disable trigger all",
            "insert into jetstream.outbox (subject, payload) values ('s.b', '1')",
            "alter table jetstream.outbox enable trigger all",
        ],
        &[
            "begin; insert into jetstream.outbox (subject, payload) values ('s.b', '1'); prepare transaction 'p'",
            "commit prepared 'p'",
        ],
        &[
            "set session_replication_role = replica; insert into jetstream.outbox (subject, payload) values ('s.b', '1')",
        ],
        &["select jetstream.publish('s.b', '1', deliver_at => now() + interval '3 seconds')"],
    ];
    for (number, statements) in hidden.iter().enumerate() {
        std::thread::sleep(Duration::from_secs(3));
        statements
            .iter()
            .for_each(|statement| drop(lab.sql(statement).unwrap()));
        let began = Instant::now();
        arrived(&lab, "S", 2 + number as u64);
        assert!(
            began.elapsed() < Duration::from_secs(6),
            "{statements:?}: {:?}",
            began.elapsed()
        );
    }
}
