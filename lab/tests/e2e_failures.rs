//! A message that cannot be published reports the reason, is retried or becomes a dead letter as it should, and can be
//! redriven.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::Duration;

use async_nats::jetstream;
use e2e_support::{SOON, arrived, becomes, drained, exactly_once, insert, lab, numbers, quick_lab, stream, synced};
use lab::Lab;

fn publish_bytes(lab: &Lab, subject: &str, size: usize) {
    lab.sql(&format!(
        "select jetstream.publish_raw('{subject}', convert_to(repeat('x', {size}), 'UTF8'))"
    ))
    .unwrap();
}

#[test]
fn what_is_too_large_is_a_dead_letter_at_once_with_both_sizes() {
    let lab = quick_lab(Lab::builder().nats_extra("max_payload: 100000"));
    lab.sql("select jetstream.create_stream('SMALL', array['small.>'], max_message_size => 2000)")
        .unwrap();
    synced(&lab, "SMALL");
    publish_bytes(&lab, "s.large", 100_001);
    publish_bytes(&lab, "small.large", 3_000);
    publish_bytes(&lab, "small.fits", 1_000);
    publish_bytes(&lab, "s.huge", 30_000_000);
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    drained(&lab, SOON);
    assert_eq!(lab.message_count("SMALL").unwrap(), 1);
    let dead = lab
        .sql("select subject, attempts, reason, octet_length(raw) from jetstream.dead_letters order by id")
        .unwrap();
    let find = |subject: &str| {
        dead.iter()
            .find(|row| row[0] == subject)
            .unwrap_or_else(|| panic!("{dead:?}"))
    };
    for (subject, limit, size) in [
        ("s.large", "100000", 100_001),
        ("s.huge", "100000", 30_000_000),
        ("small.large", "2000", 3_000),
    ] {
        let row = find(subject);
        assert_eq!(
            (row[1].as_str(), row[3].as_str()),
            ("1", size.to_string().as_str()),
            "{row:?}"
        );
        // The size on the wire includes the body and a few headers.
        let told = row[2].split_whitespace().filter_map(|word| word.parse::<i64>().ok());
        assert!(
            told.clone().any(|n| (size..size + 200).contains(&n)) && told.into_iter().any(|n| n.to_string() == limit),
            "{row:?}"
        );
    }
    let failed = "select count(*) from jetstream.recent_failures where state = 'dead'";
    assert_eq!(lab.value(failed).unwrap(), "3");
    assert!(lab.postgres.log_contains("dead letter"));
}

#[test]
fn what_a_change_of_the_stream_lets_through_is_not_given_up_while_the_change_is_on_its_way() {
    let lab = lab(&[]);
    lab.sql("select jetstream.create_stream('SMALL', array['small.>'], max_message_size => 2000)")
        .unwrap();
    synced(&lab, "SMALL");
    for n in 1..=10 {
        // One commit hands both to the relay. The message reaches the server before the stream is changed.
        let limit = n * 10_000;
        lab.sql(&format!(
            "begin;
             update jetstream.streams set max_message_size = {limit} where name = 'SMALL';
             select jetstream.publish_raw('small.large', convert_to(repeat('x', {limit} - 1000), 'UTF8'));
             commit"
        ))
        .unwrap();
        drained(&lab, SOON);
        let dead = lab.sql("select subject, reason from jetstream.dead_letters").unwrap();
        assert!(dead.is_empty(), "change {n}: {dead:?}");
        assert_eq!(lab.message_count("SMALL").unwrap(), n);
    }
    // After the change, a message that is still too large becomes a dead letter.
    publish_bytes(&lab, "small.larger", 200_000);
    drained(&lab, SOON);
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "1");
}

#[test]
fn a_full_stream_refuses_until_there_is_room_and_holds_nobody_up() {
    let lab = lab(&[]);
    lab.sql("select jetstream.create_stream('FULL', array['full.>'], discard => 'new', max_messages => 5)")
        .unwrap();
    synced(&lab, "FULL");
    lab.sql(&insert("full.x", 1, 20)).unwrap();
    lab.sql(&insert("s.x", 1, 1_000)).unwrap();
    arrived(&lab, "S", 1_000);
    let waiting = "select count(*) || ' ' || bool_and(last_error like '%maximum messages exceeded%' and attempts > 0 \
                   and deliver_at is not null and failed_at is not null) from jetstream.outbox";
    becomes(&lab, "fifteen refused messages have their reason", waiting, "15 true");
    assert_eq!(lab.value("select failing from jetstream.outbox_summary").unwrap(), "15");
    lab.sql("update jetstream.streams set max_messages = 100 where name = 'FULL'")
        .unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "FULL", 1..=20);
}

#[test]
fn no_stream_ends_in_a_dead_letter_and_every_way_back_works() {
    let lab = lab(&[("pg_jetstream.max_attempts", "3")]);
    lab.sql(
        "insert into jetstream.outbox (subject, payload, headers, message_id, key, ttl)
         select 'a.' || n, jsonb_build_object('n', n), '{\"h\": [\"1\", \"2\"]}', 'id' || n, 'k' || n, null
         from generate_series(1, 5) n",
    )
    .unwrap();
    lab.sql("insert into jetstream.outbox (subject, raw) values ('b.raw', '\\x00ff')")
        .unwrap();
    drained(&lab, SOON);
    let reasons = lab
        .sql("select attempts, reason from jetstream.dead_letters where subject = 'a.1'")
        .unwrap();
    assert_eq!(reasons[0][0], "3");
    assert!(
        reasons[0][1].contains("a.1") && reasons[0][1].contains("no stream"),
        "{reasons:?}"
    );
    let failed = lab
        .sql("select count(*), bool_and(attempts = 3 and error <> '') from jetstream.history where not success")
        .unwrap();
    assert_eq!(failed, [["6", "t"]]);

    // Discarded for good. The history names the user.
    lab.sql("select jetstream.discard(id) from jetstream.dead_letters where subject = 'a.1'")
        .unwrap();
    let said = lab
        .value("select error from jetstream.history where subject = 'a.1' order by published_at desc limit 1")
        .unwrap();
    assert!(
        said.contains("discarded by postgres") && said.contains("no stream"),
        "{said}"
    );
    let counted = "select failed from jetstream.publish_summary where subject = 'a.1'";
    assert_eq!(lab.value(counted).unwrap(), "1", "it failed once");
    assert_eq!(lab.failure("select jetstream.discard(999999)").unwrap(), "P0002");
    assert_eq!(lab.failure("select jetstream.redrive(999999)").unwrap(), "P0002");

    // Redriven too early: the message becomes a dead letter again, and its attempts start again from zero.
    lab.sql("select jetstream.redrive(id) from jetstream.dead_letters where subject = 'a.2'")
        .unwrap();
    drained(&lab, SOON);
    assert_eq!(
        lab.value("select attempts from jetstream.dead_letters where subject = 'a.2'")
            .unwrap(),
        "3"
    );

    stream(&lab, "A", "a.>");
    stream(&lab, "B", "b.>");
    lab.sql("select jetstream.redrive(id, true) from jetstream.dead_letters where subject = 'a.3'")
        .unwrap();
    assert_eq!(lab.value("select jetstream.redrive_all('b.*')").unwrap(), "1");
    assert_eq!(lab.value("select jetstream.redrive_all('nothing.>')").unwrap(), "0");
    assert_eq!(lab.value("select jetstream.redrive_all()").unwrap(), "3");
    drained(&lab, SOON);
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "0");
    exactly_once(&lab, "A", 2..=5);
    let all = lab.stream_messages("A").unwrap();
    for message in &all {
        let (n, id) = (e2e_support::number(message), message.id().unwrap());
        assert_eq!(id == format!("id{n}"), n != 3, "{n}: {id}");
        assert_eq!(message.header("h"), Some("2"));
    }
    assert_eq!(&lab.stream_messages("B").unwrap()[0].payload[..], b"\x00\xff");
    let keys = "select count(*) from jetstream.history where success and key = 'k' || right(subject, 1)";
    assert_eq!(lab.value(keys).unwrap(), "4");
}

#[test]
fn a_subject_the_account_may_not_publish_to_is_retried_with_its_reason() {
    let lab = quick_lab(Lab::builder().nats_extra(
        "authorization { users: [
             { user: app, password: pw, permissions: { publish: [\"s.>\", \"$JS.API.>\"], subscribe: \"_INBOX.>\" } },
             { user: admin, password: pw } ] }
         no_auth_user: admin",
    ));
    lab.sql("update jetstream.streams set subjects = array['s.>', 'denied.>'], synced_at = null")
        .unwrap();
    synced(&lab, "S");
    lab.sql("update jetstream.connections set auth_type = 'password', username = 'app', password = 'pw'")
        .unwrap();
    lab.sql(&insert("denied.x", 1_001, 1_003)).unwrap();
    lab.sql(&insert("s.x", 1, 500)).unwrap();
    arrived(&lab, "S", 500);
    let reason = "select count(*) || ' ' || bool_and(last_error like '%denied.x%not permitted%' and attempts > 0) from jetstream.outbox";
    becomes(&lab, "denied messages have their reason", reason, "3 true");
    lab.sql("update jetstream.connections set username = 'admin'").unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", (1..=500).chain(1_001..=1_003));
}

#[test]
fn streams_are_made_changed_and_say_what_cannot_be() {
    let lab = lab(&[]);
    lab.sql(
        "select jetstream.create_stream('FULLY', array['f.a', 'f.b.*'], storage => 'memory', retention => 'workqueue',
             discard => 'new', max_messages => 10, max_bytes => 100000, max_age => '1 hour', max_message_size => 1000,
             duplicate_window => '10 seconds', allow_message_ttl => true, allow_atomic => true, description => 'about')",
    )
    .unwrap();
    synced(&lab, "FULLY");
    let config = || {
        lab.jetstream(async |context| Ok(context.get_stream("FULLY").await?.cached_info().config.clone()))
            .unwrap()
    };
    let made = config();
    assert_eq!(
        (made.subjects, made.max_messages, made.max_bytes),
        (vec!["f.a".into(), "f.b.*".into()], 10, 100_000)
    );
    assert_eq!((made.max_age.as_secs(), made.duplicate_window.as_secs()), (3_600, 10));
    assert_eq!(
        (
            made.description.as_deref(),
            made.allow_message_ttl,
            made.allow_atomic_publish
        ),
        (Some("about"), true, true)
    );

    lab.sql(
        "select jetstream.create_stream('FULLY', array['f.>'], storage => 'memory', retention => 'workqueue',
        discard => 'new', max_messages => 20, allow_message_ttl => true, allow_atomic => true)",
    )
    .unwrap();
    becomes(
        &lab,
        "the stream is changed",
        "select jetstream.publish('f.new', '{\"n\": 1}') is not null",
        "t",
    );
    arrived(&lab, "FULLY", 1);
    assert_eq!((config().subjects, config().max_messages), (vec!["f.>".into()], 20));

    // Requests that JetStream cannot satisfy are reported, and stop nothing else. What SQL can see is refused.
    for subjects in ["array['f.x']", "array['a..b']"] {
        assert_eq!(
            lab.failure(&format!("select jetstream.create_stream('NEVER', {subjects})"))
                .unwrap(),
            "22023"
        );
    }
    lab.jetstream(async |context| {
        let theirs = async_nats::jetstream::stream::Config {
            name: "THEIRS".to_owned(),
            subjects: vec!["theirs.>".to_owned()],
            ..Default::default()
        };
        context.create_stream(theirs).await?;
        Ok(())
    })
    .unwrap();
    let broken = [
        (
            "update jetstream.streams set storage = 'file' where name = 'FULLY'",
            "FULLY",
            "storage",
        ),
        (
            "select jetstream.create_stream('OVER', array['theirs.x'])",
            "OVER",
            "overlap",
        ),
        (
            "select jetstream.create_stream('COPIES', array['c.>'], replicas => 3)",
            "COPIES",
            "replicas",
        ),
    ];
    for (ask, name, word) in broken {
        lab.sql(ask).unwrap();
        let told = format!("select sync_error ilike '%{word}%' from jetstream.streams where name = '{name}'");
        becomes(&lab, &format!("{name} has its reason"), &told, "t");
    }
    assert_eq!(lab.value("select jetstream.health() ->> 'healthy'").unwrap(), "false");
    // The error of a message that waits for such a stream names the stream, and so does the log.
    let asked = lab
        .value("insert into jetstream.outbox (subject, payload) values ('c.x', '1') returning id")
        .unwrap();
    becomes(
        &lab,
        "the message has the reason of its stream",
        &format!(
            "select last_error ~ 'no stream takes subject \"c.x\".*stream \"COPIES\" could not be made .*replicas'
                and last_error like '%' || (select sync_error from jetstream.streams where name = 'COPIES')
             from jetstream.outbox where id = {asked}"
        ),
        "t",
    );
    let log = lab.postgres.log();
    assert!(
        log.lines()
            .any(|line| line.contains("WARNING") && line.contains("stream is not as asked") && line.contains("COPIES")),
        "{log}"
    );
    lab.sql(&format!("delete from jetstream.outbox where id = {asked}"))
        .unwrap();
    lab.sql("delete from jetstream.streams where sync_error is not null and name <> 'FULLY'")
        .unwrap();
    lab.sql("update jetstream.streams set storage = 'memory' where name = 'FULLY'")
        .unwrap();
    synced(&lab, "FULLY");
    lab.sql(&insert("s.x", 1, 10)).unwrap();
    drained(&lab, SOON);
    assert_eq!(numbers(&lab, "S"), (1..=10).collect::<Vec<_>>());
    assert_eq!(lab.value("select jetstream.health() ->> 'healthy'").unwrap(), "true");
}

/// A stored message without an acknowledgement becomes a dead letter. When it is redriven, it is found in the stream
/// and not sent again, although the stream has forgotten its id.
#[test]
fn a_dead_letter_that_may_be_stored_is_looked_for_before_it_is_sent_again() {
    let lab = lab(&[
        ("pg_jetstream.ack_timeout", "300ms"),
        ("pg_jetstream.max_attempts", "1"),
    ]);
    let set_no_ack = |no_ack: bool| {
        lab.jetstream(async |context| {
            let config = jetstream::stream::Config {
                name: "MUTE".to_owned(),
                subjects: vec!["mute.>".to_owned()],
                duplicate_window: Duration::from_millis(500),
                no_ack,
                ..Default::default()
            };
            context.create_or_update_stream(config).await?;
            Ok(())
        })
        .unwrap();
    };
    set_no_ack(true);
    lab.sql("select jetstream.publish('mute.one', '{\"n\": 1}'), jetstream.publish('mute.all', '{\"n\": 2}')")
        .unwrap();
    becomes(
        &lab,
        "there are two dead letters",
        "select count(*) from jetstream.dead_letters where reason like '%no acknowledgement%' and unsure_since < now()",
        "2",
    );
    arrived(&lab, "MUTE", 2);
    std::thread::sleep(Duration::from_secs(1));
    set_no_ack(false);
    lab.sql("select jetstream.redrive(id) from jetstream.dead_letters where subject = 'mute.one'")
        .unwrap();
    lab.sql("select jetstream.redrive_all('mute.all')").unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "MUTE", 1..=2);
    let stored = "select count(*) from jetstream.history where success and sequence is not null";
    assert_eq!(lab.value(stored).unwrap(), "2");
}
