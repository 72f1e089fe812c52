//! The streams that the relay keeps as asked.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;

use std::time::Duration;

use async_nats::jetstream::stream::{DiscardPolicy, StorageType};
use lab::error::RelayError;
use lab::message::{LinkState, Origin, Outcome, StreamSpec};
use lab::nats::NatsServer;
use lab::relay::Command;
use relay_support::{Admin, Rig, api_requests, limits, message, spec, stream_spec};

fn set(rig: &mut Rig, specs: Vec<StreamSpec>) -> Vec<(i64, Option<String>)> {
    rig.synced.clear();
    let count = specs.len();
    assert!(rig.relay.send(Command::Streams(specs)));
    rig.until("streams are looked at", |rig| rig.synced.len() >= count);
    rig.synced.clone()
}

#[test]
fn created_as_asked_before_the_first_message_needs_it() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    let mut wanted = stream_spec("S", "s.>,t.*");
    wanted.storage = "memory".to_owned();
    wanted.discard = "new".to_owned();
    wanted.max_messages = 10_000;
    wanted.max_messages_per_subject = 5_000;
    wanted.max_bytes = 100_000_000;
    wanted.max_age = Duration::from_secs(3600);
    wanted.max_message_size = 10_000;
    wanted.duplicate_window = Duration::from_secs(300);
    wanted.allow_message_ttl = true;
    wanted.allow_atomic = true;
    wanted.description = Some("what is sold".to_owned());
    let mut rig = Rig::new(limits());
    assert!(rig.relay.send(Command::Streams(vec![wanted])));
    rig.connect(spec(&server.url()));
    rig.publish((1..=1000).map(|id| message(id, "s.a")));
    rig.wait_settled(1000);
    assert!(
        rig.settled
            .iter()
            .all(|one| matches!(one.outcome, Outcome::Stored { .. })),
        "{:?}",
        rig.settled
            .iter()
            .find(|one| !matches!(one.outcome, Outcome::Stored { .. }))
    );
    assert_eq!(rig.synced, [(1, None)]);
    let config = admin.config("S").unwrap();
    assert_eq!(config.subjects, ["s.>", "t.*"]);
    assert_eq!(
        (config.storage, config.discard),
        (StorageType::Memory, DiscardPolicy::New)
    );
    assert_eq!((config.max_messages, config.max_messages_per_subject), (10_000, 5_000));
    assert_eq!((config.max_bytes, config.max_message_size), (100_000_000, 10_000));
    assert_eq!(
        (config.max_age, config.duplicate_window),
        (Duration::from_secs(3600), Duration::from_secs(300))
    );
    assert!(config.allow_message_ttl && config.allow_atomic_publish);
    assert_eq!(config.description.as_deref(), Some("what is sold"));
}

#[test]
fn changed_where_different_keeping_what_is_not_managed() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create_with("S", "s.>", |config| {
        config.max_consumers = 7;
        config.allow_rollup = true;
    });
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    rig.publish([message(1, "s.a")]);
    rig.wait_settled(1);
    let mut wanted = stream_spec("S", "s.>,u.>");
    wanted.origin = Some(Origin::Created);
    wanted.max_age = Duration::from_secs(86_400);
    assert_eq!(set(&mut rig, vec![wanted.clone()]), [(1, None)]);
    let config = admin.config("S").unwrap();
    assert_eq!(config.subjects, ["s.>", "u.>"]);
    assert_eq!(config.max_age, Duration::from_secs(86_400));
    assert_eq!(config.max_consumers, 7);
    assert!(config.allow_rollup);
    assert_eq!(admin.count("S"), 1);
    // Nothing to do is done without asking for an update, and reported all the same.
    let before = api_requests(&server);
    assert_eq!(set(&mut rig, vec![wanted]), [(1, None)]);
    assert_eq!(api_requests(&server) - before, 1);
}

#[test]
fn what_cannot_be_changed_is_an_error_with_both_values_and_nothing_is_lost() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    admin.create("W", "w.>");
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    rig.publish([message(1, "s.a")]);
    rig.wait_settled(1);
    let storage = StreamSpec {
        storage: "memory".to_owned(),
        origin: Some(Origin::Created),
        ..stream_spec("S", "s.>")
    };
    let retention = StreamSpec {
        id: 2,
        retention: "workqueue".to_owned(),
        origin: Some(Origin::Created),
        ..stream_spec("W", "w.>")
    };
    let overlap = StreamSpec {
        id: 3,
        ..stream_spec("O", "s.a")
    };
    let bad_name = StreamSpec {
        id: 4,
        ..stream_spec("a.b", "x.>")
    };
    let good = StreamSpec {
        id: 5,
        ..stream_spec("G", "g.>")
    };
    let synced = set(&mut rig, vec![storage, retention, overlap, bad_name, good]);
    let error = |id: i64| {
        synced
            .iter()
            .find(|one| one.0 == id)
            .unwrap()
            .1
            .clone()
            .unwrap_or_default()
    };
    assert!(
        error(1).contains("\"file\"") && error(1).contains("\"memory\""),
        "{}",
        error(1)
    );
    assert!(
        error(2).contains("\"limits\"") && error(2).contains("\"workqueue\""),
        "{}",
        error(2)
    );
    assert!(error(3).contains("overlap"), "{}", error(3));
    assert!(error(4).contains("invalid"), "{}", error(4));
    assert_eq!(error(5), "");
    assert_eq!(admin.count("S"), 1);
    assert_eq!(admin.config("S").unwrap().storage, StorageType::File);
}

#[test]
fn streams_are_looked_at_again_after_a_reconnect() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    assert_eq!(set(&mut rig, vec![stream_spec("S", "s.>")]), [(1, None)]);
    admin.delete("S");
    rig.synced.clear();
    assert!(rig.relay.send(Command::Reconnect("default".into())));
    rig.until("the stream is back", |rig| !rig.synced.is_empty());
    assert!(admin.config("S").is_some());
}

#[test]
fn a_missing_default_stream_is_told_with_the_state() {
    let server = NatsServer::start().unwrap();
    let mut with_default = spec(&server.url());
    with_default.default_stream = Some("ORDERS".to_owned());
    let mut rig = Rig::new(limits());
    rig.connect(with_default);
    let (state, detail) = rig.wait_detail("stream \"ORDERS\" does not exist");
    assert_eq!(state, LinkState::Connected);
    assert!(detail.contains("nats-server 2."), "{detail}");
    assert_eq!(set(&mut rig, vec![stream_spec("ORDERS", "orders.>")]), [(1, None)]);
    rig.until("the complaint is gone", |rig| {
        !rig.links.last().unwrap().2.contains("does not exist")
    });
}

#[test]
fn a_message_that_the_changed_stream_takes_is_not_refused_for_good_before_it_is_changed() {
    let server = NatsServer::start().unwrap();
    let mut small = stream_spec("S", "s.>");
    small.max_message_size = 1_000;
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    set(&mut rig, vec![small.clone()]);
    let mut large = small.clone();
    large.max_message_size = 10_000;
    let mut big = message(1, "s.a");
    big.payload = vec![b'x'; 5_000].into();
    let mut too_big = message(2, "s.a");
    too_big.payload = vec![b'x'; 50_000].into();
    // One after the other at once: what is published overtakes the change, which takes two requests.
    assert!(rig.relay.send(Command::Streams(vec![large])));
    rig.publish([big, too_big]);
    rig.wait_settled(2);
    let outcome = |id| &rig.settled.iter().find(|one| one.id == id).unwrap().outcome;
    assert!(matches!(outcome(1), Outcome::Stored { .. }), "{:?}", rig.settled);
    let Outcome::Failed(RelayError::TooLargeForStream { limit, .. }) = outcome(2) else {
        panic!("{:?}", rig.settled);
    };
    assert_eq!(
        *limit, 10_000,
        "the limit it is refused by is that of the changed stream"
    );
}

/// What others have made is used as it is; what is ours and was changed by others is named and left; what is gone comes back.
#[test]
fn streams_of_others_are_left_alone_and_what_others_did_to_ours_is_named() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    let week = Duration::from_secs(7 * 86_400);
    admin.create_with("THEIRS", "theirs.>", |config| {
        config.max_messages = 10_000_000;
        config.max_age = week;
    });
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    let with_limits = |id: i64, name: &str, subjects: &str| StreamSpec {
        id,
        mark: format!("{id}.1"),
        max_messages: 1_000_000,
        ..stream_spec(name, subjects)
    };
    let theirs = with_limits(1, "THEIRS", "theirs.a.*");
    let ours = with_limits(2, "OURS", "ours.>");
    let other_name = StreamSpec {
        accept_other: true,
        ..with_limits(3, "theirs_replication", "theirs.>")
    };
    let not_taken = with_limits(4, "THEIRS", "elsewhere.>");
    let synced = set(&mut rig, vec![theirs, ours.clone(), other_name, not_taken]);
    let error = |id: i64| {
        synced
            .iter()
            .rfind(|one| one.0 == id)
            .unwrap()
            .1
            .clone()
            .unwrap_or_default()
    };
    assert_eq!((error(1), error(2), error(3)), Default::default());
    assert!(
        error(4).contains("\"elsewhere.>\"") && error(4).contains("not created by"),
        "{}",
        error(4)
    );
    let origin = |rig: &Rig, id: i64| rig.reports.iter().rfind(|one| one.id == id).unwrap().origin;
    assert_eq!(
        [1, 2, 3].map(|id| origin(&rig, id)),
        [Some(Origin::Found), Some(Origin::Created), Some(Origin::Found)]
    );
    let config = admin.config("THEIRS").unwrap();
    assert_eq!((config.max_messages, config.max_age), (10_000_000, week));
    assert!(admin.config("theirs_replication").is_none());

    // A worker that did not live to write down that it made the stream knows it by its mark.
    let mut again = set(&mut rig, vec![ours.clone()]);
    assert_eq!(again.remove(0), (2, None));
    assert_eq!(origin(&rig, 2), Some(Origin::Created));

    // Others change it: named within a minute, not undone, also not by a change of something else.
    let mut edited = admin.config("OURS").unwrap();
    edited.max_messages = 5;
    edited.max_age = week;
    admin.runtime.block_on(admin.js.update_stream(&edited)).unwrap();
    rig.synced.clear();
    rig.until("the drift", |rig| !rig.synced.is_empty());
    let drift = rig.synced[0].1.clone().unwrap();
    assert!(drift.contains("max_messages is 5 there and 1000000 here"), "{drift}");
    assert!(drift.contains("max_age is 604800 s there and 0 s here"), "{drift}");
    let applied = rig.reports.iter().rfind(|one| one.id == 2).unwrap().applied.clone();
    let wanted = StreamSpec {
        subjects: vec!["ours.>".to_owned(), "more.>".to_owned()],
        origin: Some(Origin::Created),
        applied,
        ..ours
    };
    set(&mut rig, vec![wanted]);
    let config = admin.config("OURS").unwrap();
    assert_eq!(config.subjects, ["ours.>", "more.>"]);
    assert_eq!((config.max_messages, config.max_age), (5, week));

    // Deleted: a message that finds no stream brings it back, and is stored.
    admin.delete("OURS");
    rig.publish([message(1, "ours.a"), message(2, "more.a")]);
    rig.wait_settled(2);
    assert!(
        rig.settled
            .iter()
            .all(|one| matches!(one.outcome, Outcome::Stored { .. })),
        "{:?}",
        rig.settled
    );
    assert_eq!(admin.config("OURS").unwrap().max_messages, 1_000_000);
    // Without a message too.
    admin.delete("OURS");
    lab::wait_until(Duration::from_secs(60), "the stream is back", || {
        Ok(admin.config("OURS").is_some())
    })
    .unwrap();
}
