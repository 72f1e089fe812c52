//! A connection that cannot work reports its reason once, does not affect other connections, and works as soon as its
//! row is fixed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use async_nats::ConnectOptions;
use e2e_support::{
    SOON, arrived, becomes, count_on, count_with, drained, eventually, exactly_once, insert, lab, worker,
};
use lab::Lab;
use lab::lab::DATABASE;
use lab::nats::NatsServer;

/// Inserts messages for a connection other than `default`.
fn insert_for(connection: &str, subject: &str, from: i64, to: i64) -> String {
    insert(subject, from, to)
        .replace("(subject, payload)", "(connection, subject, payload)")
        .replace("select '", &format!("select '{connection}', '"))
}

fn state(lab: &Lab, connection: &str, state: &str) {
    let query = format!("select jetstream.health('{connection}') ->> 'connection_state'");
    becomes(lab, &format!("connection {connection} {state}"), &query, state);
}

#[test]
fn rows_that_cannot_work_fail_visibly_and_alone_until_they_are_put_right() {
    let lab = lab(&[]);
    let guarded = NatsServer::builder()
        .extra("authorization { token: right }")
        .start()
        .unwrap();
    let url = guarded.url();
    let rows = [
        (
            "badtoken",
            format!("'{url}', 'token', 'wrong', false, null, null"),
            "authorization",
        ),
        (
            "badca",
            format!("'{url}', 'token', 'right', true, '/no/such/ca.pem', null"),
            "/no/such/ca.pem",
        ),
        (
            "badcreds",
            format!("'{url}', 'credentials', null, false, null, '/no/such/file.creds'"),
            "/no/such/file.creds",
        ),
        (
            "badhost",
            "'nats://no.such.host.invalid:4222', 'none', null, false, null, null".to_owned(),
            "",
        ),
    ];
    let pid = worker(&lab);
    for (name, values, _) in &rows {
        lab.sql(&format!(
            "insert into jetstream.connections (name, url, auth_type, token, tls_required, tls_ca_file, credentials_file)
             values ('{name}', {values})"
        ))
        .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        lab.sql(&insert_for(name, "s.waits", 1, 3)).unwrap();
    }
    lab.sql(&insert("s.x", 1, 1_000)).unwrap();
    arrived(&lab, "S", 1_000);
    for (name, _, reason) in &rows {
        let shown = format!(
            "select jetstream.health('{name}') ->> 'connection_state' in ('failed', 'disconnected')
                 and jetstream.health('{name}') ->> 'detail' ilike '%{reason}%' and jetstream.health('{name}') ->> 'detail' <> ''"
        );
        becomes(&lab, &format!("the reason of {name}"), &shown, "t");
        if *name != "badhost" {
            state(&lab, name, "failed");
        }
    }
    std::thread::sleep(std::time::Duration::from_secs(2));
    for (name, _, _) in &rows {
        let lines = lab
            .postgres
            .log()
            .lines()
            .filter(|line| line.contains(&format!("\"{name}\"")))
            .count();
        assert_eq!(lines, 1, "{name} in the log:\n{}", lab.postgres.log());
    }
    assert_eq!(
        lab.value("select count(*) from jetstream.outbox where attempts > 0")
            .unwrap(),
        "0"
    );
    assert_eq!(lab.value("select count(*) from jetstream.outbox").unwrap(), "12");
    assert!(!lab.postgres.log_contains("right"), "a secret in the log");

    // The connections are fixed one after the other, without a restart.
    lab.sql("update jetstream.connections set token = 'right' where name = 'badtoken'")
        .unwrap();
    lab.sql(&format!(
        "update jetstream.connections set url = '{url}', auth_type = 'token', token = 'right', tls_required = false,
             tls_ca_file = null where name <> 'default' and name <> 'badtoken'"
    ))
    .unwrap();
    lab.sql("insert into jetstream.streams (name, connection, subjects) values ('S', 'badtoken', array['s.>'])")
        .unwrap();
    drained(&lab, SOON);
    assert_eq!(
        count_with(ConnectOptions::with_token("right".into()), &guarded, "S"),
        12
    );
    assert_eq!(worker(&lab), pid, "the worker was replaced");
    exactly_once(&lab, "S", 1..=1_000);
}

/// Secrets in a row do not appear in the log, in status(), or for users who may read the tables.
#[test]
fn secrets_are_shown_to_nobody() {
    let lab = lab(&[("pg_jetstream.log_level", "trace"), ("log_min_messages", "debug1")]);
    lab.sql("create role looker in role jetstream_reader").unwrap();
    let guarded = NatsServer::builder()
        .extra("authorization { user: app, password: othersecret }")
        .start()
        .unwrap();
    for (name, url) in [
        ("absent", "nats://app:hushhush@127.0.0.1:1".to_owned()),
        ("refused", guarded.url().replace("nats://", "nats://app:hushhush@")),
        ("welcome", guarded.url().replace("nats://", "nats://app:othersecret@")),
    ] {
        // Credentials in a URL are never shown, whether the URL is accepted or refused.
        let _ = lab.sql(&format!(
            "insert into jetstream.connections (name, url) values ('{name}', '{url}')"
        ));
        let shown =
            format!("select jetstream.health('{name}') ->> 'connection_state' not in ('unknown', 'connecting')");
        eventually(&lab, SOON, "a state", || {
            Ok(lab.value(&shown).is_err() || lab.value(&shown)? == "t")
        });
    }
    let mut seen = lab
        .sql("set role looker; select url, cluster_urls from jetstream.connections")
        .unwrap_or_default()
        .concat();
    seen.extend(lab.sql("select to_json(s) from jetstream.status() s").unwrap().concat());
    // The statements of this test, which the server logs, are not a leak.
    let log = lab.postgres.log();
    seen.extend(
        log.lines()
            .filter(|line| line.contains("pg_jetstream"))
            .map(str::to_owned),
    );
    let leaks: Vec<_> = seen
        .iter()
        .filter(|text| text.contains("hushhush") || text.contains("othersecret"))
        .collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
}

#[test]
fn a_connection_is_switched_off_moved_and_removed_without_losing_what_it_owes() {
    let lab = lab(&[]);
    let other = e2e_support::connection(&lab, "other");
    lab.sql("select jetstream.create_stream('T', array['t.>'], connection => 'other')")
        .unwrap();
    state(&lab, "other", "connected");
    lab.sql("update jetstream.connections set enabled = false where name = 'other'")
        .unwrap();
    state(&lab, "other", "disabled");
    lab.sql(&insert_for("other", "t.x", 1, 100)).unwrap();
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    arrived(&lab, "S", 100);
    assert_eq!(
        lab.failure("delete from jetstream.connections where name = 'other'")
            .unwrap(),
        "23503"
    );
    // A new name would leave its messages without a connection.
    assert_eq!(
        lab.failure("update jetstream.connections set name = 'renamed' where name = 'other'")
            .unwrap(),
        "23503"
    );
    assert_eq!(count_on(&other, "T"), 0);
    lab.sql("update jetstream.connections set enabled = true where name = 'other'")
        .unwrap();
    drained(&lab, SOON);
    assert_eq!(count_on(&other, "T"), 100);

    // The connection moves to another server while messages are in flight.
    other.pause().unwrap();
    lab.sql(&insert_for("other", "t.x", 101, 300)).unwrap();
    eventually(&lab, SOON, "messages are in flight", || {
        Ok(lab.value("select in_flight from jetstream.status()")? == "200")
    });
    let third = NatsServer::start().unwrap();
    lab.sql(&format!(
        "update jetstream.connections set url = '{}' where name = 'other'",
        third.url()
    ))
    .unwrap();
    drained(&lab, SOON);
    assert_eq!(count_on(&third, "T"), 200);
    other.resume().unwrap();

    lab.sql("delete from jetstream.streams where connection = 'other'")
        .unwrap();
    // A connection cannot be removed while anything refers to it: dead letters, captures, or messages that are being
    // inserted.
    let rename = "update jetstream.connections set name = 'renamed' where name = 'other'";
    let remove = "delete from jetstream.connections where name = 'other'";
    let stays = |code: &str| {
        assert_eq!(lab.failure(rename).unwrap(), code);
        assert_eq!(lab.failure(remove).unwrap(), code);
    };
    lab.sql("insert into jetstream.dead_letters (outbox_id, connection, subject, payload,
                 message_id, attempts, reason, created_at) values (1, 'other', 't.dead', '1', 'dead', 1, 'test', now())")
        .unwrap();
    stays("23503");
    // Dead letters of another connection do not keep these from being redriven.
    lab.sql(
        "insert into jetstream.dead_letters (outbox_id, connection, subject, payload, message_id, attempts, reason,
                 created_at) values (2, 'gone', 't.gone', '1', 'gone', 1, 'test', now())",
    )
    .unwrap();
    assert_eq!(lab.value("select jetstream.redrive_all()").unwrap(), "1");
    drained(&lab, SOON);
    lab.sql("create table captured (id int primary key); select jetstream.capture('captured', connection => 'other')")
        .unwrap();
    stays("23503");
    lab.sql("select jetstream.uncapture('captured')").unwrap();
    drained(&lab, SOON);
    let mut writer = lab.postgres.client(DATABASE).unwrap();
    writer
        .batch_execute("begin; select jetstream.publish('t.open', '1', connection => 'other')")
        .unwrap();
    stays("55P03");
    writer.batch_execute("rollback").unwrap();

    lab.sql("delete from jetstream.streams where connection = 'other'")
        .unwrap();
    lab.sql(rename).unwrap();
    lab.sql("delete from jetstream.connections where name = 'renamed'")
        .unwrap();
    assert_eq!(
        lab.failure("select jetstream.publish('t.x', '1', connection => 'other')")
            .unwrap(),
        "23503"
    );
    // Without "default", a plain publish would have no connection.
    assert_eq!(lab.failure("delete from jetstream.connections").unwrap(), "23503");
    assert_eq!(
        lab.failure("update jetstream.connections set name = 'x'").unwrap(),
        "23503"
    );
}

#[test]
fn a_prefix_goes_in_front_once_and_a_missing_default_stream_is_shown() {
    let lab = lab(&[]);
    lab.sql("update jetstream.connections set subject_prefix = 's.app', default_stream = 'MISSING'")
        .unwrap();
    lab.sql(&insert("orders", 1, 1)).unwrap();
    lab.sql(&insert("s.app.orders", 2, 2)).unwrap();
    lab.sql(&insert("s.apple", 3, 3)).unwrap();
    drained(&lab, SOON);
    let subjects: Vec<_> = lab
        .stream_messages("S")
        .unwrap()
        .into_iter()
        .map(|message| message.subject)
        .collect();
    assert_eq!(subjects, ["s.app.orders", "s.app.orders", "s.app.s.apple"]);
    let told = "select jetstream.health() ->> 'detail' like '%stream \"MISSING\" does not exist%'";
    becomes(&lab, "the missing stream is reported", told, "t");
}
