//! What is committed arrives, as it was given; what is rolled back does not.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::Duration;

use async_nats::jetstream::consumer::pull::OrderedConfig;
use e2e_support::{SOON, arrived, drained, eventually, exactly_once, insert, lab, numbers, stream, synced};
use futures_util::StreamExt;
use lab::lab::DATABASE;
use serde_json::json;

#[test]
fn commit_publishes_and_rollback_does_not() {
    let lab = lab(&[]);
    lab.sql(&insert("s.a", 1, 1)).unwrap();
    lab.sql(&format!("begin; {}; rollback", insert("s.a", -1, -1))).unwrap();
    lab.sql(&format!(
        "begin; {}; savepoint x; {}; savepoint y; {}; release y; rollback to x; {}; commit",
        insert("s.a", 2, 2),
        insert("s.a", -2, -2),
        insert("s.a", -3, -3),
        insert("s.a", 3, 3)
    ))
    .unwrap();
    lab.sql(
        "do $$ begin
             begin
                 perform jetstream.publish('s.a', '{\"n\": -4}');
                 raise exception 'no';
             exception when raise_exception then
                 perform jetstream.publish('s.a', '{\"n\": 4}');
             end;
         end $$",
    )
    .unwrap();
    assert_eq!(
        lab.failure(&format!("begin; {}; select 1/0", insert("s.a", -5, -5)))
            .unwrap(),
        "22012"
    );
    lab.sql(&insert("s.a", 5, 5)).unwrap();
    drained(&lab, SOON);
    assert_eq!(numbers(&lab, "S"), [1, 2, 3, 4, 5]);
    let history =
        lab.sql("select success, duplicate, attempts, stream, sequence from jetstream.history order by outbox_id");
    assert_eq!(history.unwrap()[4], ["t", "f", "1", "S", "5"]);
}

#[test]
fn all_that_is_given_arrives() {
    let lab = lab(&[]);
    lab.sql(
        r#"select jetstream.publish('s.all', '{"a": [1, "ü", null]}', 'my id ü', '{"one": "1", "many": ["a", "b"], "n": 42, "yes": true}')"#,
    )
    .unwrap();
    lab.sql(r"select jetstream.publish_raw('s.raw', '\x00ff0a0d', headers => null)")
        .unwrap();
    lab.sql("select jetstream.publish_raw('s.empty', '')").unwrap();
    lab.sql("insert into jetstream.outbox (subject, payload) values ('s.plain', 'null')")
        .unwrap();
    // Numbers in headers as PostgreSQL has them.
    let numbers = [
        ("a", "12345678901234567890123"),
        ("c", "0.1234567890123456789"),
        ("f", "18446744073709551616"),
        ("g", &format!("1{}", "0".repeat(400))),
        ("h", "1.10"),
    ];
    let object: Vec<String> = numbers.iter().map(|(name, n)| format!("\"{name}\": {n}")).collect();
    lab.sql(&format!(
        "select jetstream.publish('s.numbers', '1', headers => '{{{}}}')",
        object.join(",")
    ))
    .unwrap();
    drained(&lab, SOON);
    let got = lab.stream_messages("S").unwrap();
    for (name, number) in numbers {
        assert_eq!(got[4].header(name), Some(number), "{name}");
    }
    assert_eq!(got[0].json().unwrap(), json!({"a": [1, "ü", null]}));
    assert_eq!(got[0].id(), Some("my id ü"));
    let headers = |name| got[0].header(name);
    assert_eq!(
        (headers("one"), headers("many"), headers("n"), headers("yes")),
        (Some("1"), Some("b"), Some("42"), Some("true"))
    );
    assert_eq!(&got[1].payload[..], b"\x00\xff\x0a\x0d");
    assert_eq!(&got[2].payload[..], b"");
    assert_eq!(&got[3].payload[..], b"null");
    assert_ne!(got[1].id(), got[2].id());
    assert_eq!(got[1].id().unwrap().len(), 36);
    // Every value of a header, in order, as a consumer gets them.
    let values = lab
        .jetstream(async |context| {
            let consumer = context
                .get_stream("S")
                .await?
                .create_consumer(OrderedConfig::default())
                .await?;
            let message = consumer.messages().await?.next().await.unwrap()?;
            let headers = message.headers.as_ref().unwrap();
            Ok(headers.get_all("many").map(ToString::to_string).collect::<Vec<_>>())
        })
        .unwrap();
    assert_eq!(values, ["a", "b"]);
}

#[test]
fn a_known_id_is_stored_once_and_recorded_as_duplicate() {
    let lab = lab(&[]);
    for n in 1..=3 {
        lab.sql(&format!("select jetstream.publish('s.dup', '{{\"n\": {n}}}', 'same')"))
            .unwrap();
        drained(&lab, SOON);
    }
    assert_eq!(numbers(&lab, "S"), [1]);
    let history = lab
        .sql("select success, duplicate from jetstream.history order by outbox_id")
        .unwrap();
    assert_eq!(history, [["t", "f"], ["t", "t"], ["t", "t"]]);
    assert_eq!(
        lab.value("select duplicates from jetstream.publish_summary").unwrap(),
        "2"
    );
    assert_eq!(lab.value("select duplicates from jetstream.status()").unwrap(), "2");
    assert_eq!(
        lab.value("select stored = (select count(*) from jetstream.history where success) from jetstream.status()")
            .unwrap(),
        "t",
        "a duplicate counts once"
    );
}

#[test]
fn a_batch_arrives_in_its_order_with_its_ids() {
    let lab = lab(&[]);
    let ids = lab
        .sql(
            "select jetstream.publish_batch('s.batch',
                 (select array_agg(jsonb_build_object('n', n) order by n) from generate_series(1, 3000) n),
                 (select array_agg('id-' || n order by n) from generate_series(1, 3000) n),
                 '{\"h\": \"v\"}')",
        )
        .unwrap()
        .concat();
    let ids: Vec<i64> = ids.iter().map(|id| id.parse().unwrap()).collect();
    assert!(ids.len() == 3000 && ids.is_sorted());
    // An array whose lower bound is not 1 keeps its ids too.
    lab.sql("select jetstream.publish_batch('s.batch', '[0:1]={1,2}'::jsonb[], '[0:1]={x,y}'::text[])")
        .unwrap();
    drained(&lab, SOON);
    let got = lab.stream_messages("S").unwrap();
    assert_eq!(got.len(), 3002);
    for (message, n) in got.iter().zip(1..=3000) {
        assert_eq!(
            (e2e_support::number(message), message.id().unwrap()),
            (n, format!("id-{n}").as_str())
        );
        assert_eq!(message.header("h"), Some("v"));
    }
    assert_eq!((got[3000].id(), got[3001].id()), (Some("x"), Some("y")));
}

#[test]
fn an_application_role_publishes_from_its_trigger_and_copies_in() {
    let lab = lab(&[]);
    lab.sql(
        "create role app login; grant jetstream_publisher to app; create schema app authorization app;
         set role app;
         create table app.orders (id int primary key, total numeric);
         create function app.enqueue() returns trigger language plpgsql as $$
         begin
             perform jetstream.publish('s.orders', jsonb_build_object('n', new.id), key => new.id::text);
             return new;
         end $$;
         create trigger enqueue after insert or update on app.orders for each row execute function app.enqueue()",
    )
    .unwrap();
    let mut app = postgres::Client::connect(
        &lab.postgres.conninfo(DATABASE).replace("user=postgres", "user=app"),
        postgres::NoTls,
    )
    .unwrap();
    app.batch_execute("insert into app.orders select n, n from generate_series(1, 100) n")
        .unwrap();
    app.batch_execute("begin; insert into app.orders values (101, 1); rollback")
        .unwrap();
    use std::io::Write;
    let mut copy = app
        .copy_in("copy jetstream.outbox (subject, payload) from stdin")
        .unwrap();
    for n in 102..=200 {
        writeln!(copy, "s.copy\t{{\"n\": {n}}}").unwrap();
    }
    copy.finish().unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", (1..=100).chain(102..=200));
}

/// Delayed messages come at their time: not before, and within 50 ms of it most of the time (a busy machine is given
/// more for the slowest).
#[test]
fn delayed_messages_arrive_at_their_time() {
    let lab = lab(&[]);
    lab.sql(
        "insert into jetstream.outbox (subject, payload, deliver_at)
         select 's.later', jsonb_build_object('n', n), clock_timestamp() + n * interval '53 ms'
         from generate_series(1, 40) n order by n desc",
    )
    .unwrap();
    // One that is due at once, and one far in the future, whose time somebody brings forward.
    lab.sql("select jetstream.publish('s.now', '{\"n\": 0}', deliver_at => now() - interval '1 hour')")
        .unwrap();
    let id = lab
        .value("select jetstream.publish('s.far', '{\"n\": 41}', deliver_at => now() + interval '1 year')")
        .unwrap();
    arrived(&lab, "S", 41);
    lab.sql(&format!(
        "update jetstream.outbox set deliver_at = now() + interval '200 ms' where id = {id}"
    ))
    .unwrap();
    drained(&lab, SOON);
    assert_eq!(numbers(&lab, "S"), (0..=41).collect::<Vec<_>>());
    let late: Vec<f64> = lab
        .sql("select latency_ms from jetstream.history where subject = 's.later' order by latency_ms")
        .unwrap()
        .concat()
        .iter()
        .map(|ms| ms.parse().unwrap())
        .collect();
    assert!(late[0] >= 0.0, "before its time: {late:?}");
    assert!(
        late[late.len() * 3 / 4] < 50.0 && *late.last().unwrap() < 500.0,
        "late: {late:?}"
    );
}

/// Its commit has the worker look for its time, in whatever way it was inserted: the next look would be much later.
#[test]
fn a_delayed_message_is_looked_for_at_its_commit() {
    let lab = lab(&[("pg_jetstream.poll_interval", "10min")]);
    let soon = "deliver_at => clock_timestamp() + interval '300 ms'";
    let delayed = |n: i64| {
        format!(
            "insert into jetstream.outbox (subject, payload, deliver_at)
             values ('s.x', '{{\"n\": {n}}}', clock_timestamp() + interval '300 ms')"
        )
    };
    let ways = [
        delayed(1),
        format!("select jetstream.publish('s.x', '{{\"n\": 2}}', {soon})"),
        format!("select jetstream.publish_raw('s.x', '{{\"n\": 3}}', {soon})"),
        format!("select jetstream.publish_batch('s.x', array['{{\"n\": 4}}'::jsonb], {soon})"),
        // One transaction, whose last message is none.
        format!("{}; {}", delayed(5), insert("s.x", 6, 6)),
    ];
    for way in &ways {
        lab.sql(way).unwrap();
        drained(&lab, SOON);
    }
    exactly_once(&lab, "S", 1..=6);
}

#[test]
fn a_message_with_a_time_to_live_goes_by_itself() {
    let lab = lab(&[]);
    stream(&lab, "PLAIN", "p.>");
    lab.sql("select jetstream.create_stream('TTL', array['t.>'], allow_message_ttl => true)")
        .unwrap();
    synced(&lab, "TTL");
    lab.sql("select jetstream.publish('t.short', '{\"n\": 1}', ttl => '1 second')")
        .unwrap();
    lab.sql("select jetstream.publish('t.long', '{\"n\": 2}', ttl => '1 hour')")
        .unwrap();
    drained(&lab, SOON);
    let ttl: Vec<_> = lab
        .stream_messages("TTL")
        .unwrap()
        .iter()
        .map(|m| m.header("Nats-TTL").unwrap().to_owned())
        .collect();
    assert_eq!(ttl.last().unwrap().trim_end_matches('s'), "3600");
    // Counted, not read: a message that goes while it is read would be waited for.
    eventually(&lab, SOON, "the short one gone", || Ok(lab.message_count("TTL")? == 1));
    assert_eq!(numbers(&lab, "TTL"), [2]);
    // A stream that does not take it: given up at once, with the reason.
    lab.sql("select jetstream.publish('p.ttl', '{\"n\": 3}', ttl => '1 hour')")
        .unwrap();
    drained(&lab, SOON);
    let dead = lab
        .sql("select subject, attempts, ttl, reason from jetstream.dead_letters")
        .unwrap();
    assert_eq!(dead[0][..3], ["p.ttl", "1", "01:00:00"], "{dead:?}");
    assert!(dead[0][3].contains("per-message TTL is disabled"), "{dead:?}");
}

#[test]
fn a_commit_is_noticed_at_once_and_not_by_the_poll() {
    let lab = lab(&[("pg_jetstream.poll_interval", "60s")]);
    for n in 1..=50_u64 {
        let before = std::time::Instant::now();
        lab.sql(&insert("s.now", n as i64, n as i64)).unwrap();
        arrived(&lab, "S", n);
        assert!(before.elapsed() < Duration::from_secs(10), "only by the poll");
    }
    let p95 = lab.value("select p95_ms from jetstream.performance").unwrap();
    assert!(p95.parse::<f64>().unwrap() < 250.0, "{p95} ms");
}

/// The trace context of a transaction goes with its messages, unless they bring their own; a wrong one is not sent.
#[test]
fn the_trace_context_of_a_transaction_goes_on_the_wire() {
    let lab = lab(&[]);
    let context = |n: u8| format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b71692033{n:02x}-01");
    let mut session = lab.postgres.client(DATABASE).unwrap();
    session
        .batch_execute(&format!(
            "begin; set local jetstream.traceparent = '{}'; {}; \
             select jetstream.publish('s.x', '{{\"n\": 2}}', headers => '{{\"a\": \"b\"}}'); \
             select jetstream.publish('s.x', '{{\"n\": 3}}', headers => '{{\"Traceparent\": \"{}\"}}'); commit; \
             {}; set jetstream.traceparent = 'not a context'; {}",
            context(1),
            insert("s.x", 1, 1),
            context(2),
            insert("s.x", 4, 4),
            insert("s.x", 5, 5),
        ))
        .unwrap();
    arrived(&lab, "S", 5);
    let sent: Vec<_> = lab
        .stream_messages("S")
        .unwrap()
        .iter()
        .map(|message| {
            let header = message.header("traceparent").or(message.header("Traceparent"));
            (e2e_support::number(message), header.map(str::to_owned))
        })
        .collect();
    let expected = [
        (1, Some(context(1))),
        (2, Some(context(1))),
        (3, Some(context(2))),
        (4, None),
        (5, None),
    ];
    assert_eq!(sent, expected);
}
