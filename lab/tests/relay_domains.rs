//! Leaf nodes, JetStream domains and accounts that import: what can be published is published, and looked up where it is.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;

use std::ops::RangeInclusive;
use std::time::Duration;

use async_nats::ConnectOptions;
use lab::chaos::proxy::{Mode, Proxy};
use lab::error::RelayError;
use lab::message::{ConnectionSpec, LinkState, Message, Outcome};
use lab::nats::{NatsServer, free_port};
use lab::relay::{Command, Limits};
use relay_support::{Admin, PATIENCE, Rig, limits, message, proxied, spec, stream_spec};

const WINDOW: Duration = Duration::from_millis(300);

/// A hub whose JetStream is domain `hub`, with a stream `S` that takes `s.>` and forgets ids at once, and a leaf node.
fn hub_and_leaf(leaf_jetstream: bool) -> (NatsServer, NatsServer, Admin) {
    let port = free_port().unwrap();
    let hub = NatsServer::builder()
        .domain("hub")
        .extra(format!("leafnodes {{ listen: \"127.0.0.1:{port}\" }}"))
        .start()
        .unwrap();
    let admin = Admin::new(&hub.url());
    admin.create_with("S", "s.>", |config| config.duplicate_window = WINDOW);
    let leaf = NatsServer::builder().extra(format!(
        "leafnodes {{ remotes: [ {{ url: \"nats://127.0.0.1:{port}\" }} ] }}"
    ));
    let leaf = match leaf_jetstream {
        true => leaf.domain("leaf"),
        false => leaf.without_jetstream(),
    };
    let leaf = leaf.start().unwrap();
    lab::wait_until(PATIENCE, "the leaf is connected", || {
        Ok(leaf.monitor("/leafz")?.contains("\"leafnodes\": 1"))
    })
    .unwrap();
    (hub, leaf, admin)
}

/// A relay on a bad way to the leaf node.
struct Lossy {
    rig: Rig,
    _runtime: tokio::runtime::Runtime,
    _proxy: Proxy,
}

/// Publishes message `first`, and five more whose acks are lost and whose ids the stream forgets.
fn lose_acks(
    leaf: &NatsServer,
    admin: &Admin,
    with: impl FnOnce(ConnectionSpec) -> ConnectionSpec,
    first: Option<i64>,
    lost: RangeInclusive<i64>,
) -> Lossy {
    let (runtime, proxy, url) = proxied(leaf);
    let quick = Limits {
        ack_timeout: Duration::from_secs(2),
        ..limits()
    };
    let mut rig = Rig::connected(quick, with(spec(&url)));
    rig.publish_and_wait(first.map(|id| message(id, "s.a")));
    let stored = admin.count("S") + 5;
    proxy.set(Mode::DropAcks);
    rig.publish(lost.map(|id| message(id, "s.a")));
    lab::wait_until(PATIENCE, "what is sent is stored", || Ok(admin.count("S") == stored)).unwrap();
    std::thread::sleep(2 * WINDOW);
    proxy.renew();
    rig.wait_settled(5 + first.iter().count());
    Lossy {
        rig,
        _runtime: runtime,
        _proxy: proxy,
    }
}

#[track_caller]
fn stored(rig: &Rig, ids: RangeInclusive<i64>) {
    for id in ids {
        let outcome = rig.outcome(id);
        assert!(matches!(outcome, Outcome::Stored { .. }), "{id}: {outcome:?}");
    }
}

#[test]
fn through_a_leaf_node_with_its_own_jetstream() {
    let (_hub, leaf, admin) = hub_and_leaf(true);
    // The domain is learned from the first acknowledgement ...
    let lossy = lose_acks(&leaf, &admin, |spec| spec, Some(1), 2..=6);
    stored(&lossy.rig, 1..=6);
    assert_eq!(admin.count("S"), 6, "one copy each");
    // ... or given, and streams are then made there.
    let of_hub = |spec| ConnectionSpec {
        domain: Some("hub".to_owned()),
        ..spec
    };
    let mut lossy = lose_acks(&leaf, &admin, of_hub, None, 11..=15);
    let rig = &mut lossy.rig;
    stored(rig, 11..=15);
    assert_eq!(admin.count("S"), 11, "one copy each");
    assert!(rig.relay.send(Command::Streams(vec![stream_spec("MADE", "made.>")])));
    rig.until("the stream", |rig| !rig.synced.is_empty());
    assert_eq!(rig.synced, [(1, None)]);
    assert!(admin.config("MADE").is_some());
    // Otherwise what is in doubt is not sent again, and the reason says what to do.
    let lossy = lose_acks(&leaf, &admin, |spec| spec, None, 21..=25);
    for id in 21..=25 {
        let Outcome::Failed(RelayError::NotLookedUp(reason)) = lossy.rig.outcome(id) else {
            panic!("{:?}", lossy.rig.outcome(id));
        };
        assert!(reason.contains("connections.domain"), "{reason}");
    }
    assert_eq!(admin.count("S"), 16, "one copy each");
}

#[test]
fn through_a_leaf_node_without_jetstream() {
    let (hub, leaf, admin) = hub_and_leaf(false);
    let mut rig = Rig::connected(limits(), spec(&leaf.url()));
    assert!(rig.relay.send(Command::Streams(vec![stream_spec("MADE", "made.>")])));
    rig.publish_and_wait([message(1, "s.a"), message(2, "nowhere.a"), message(3, "s.a")]);
    stored(&rig, 1..=1);
    stored(&rig, 3..=3);
    assert!(
        matches!(rig.outcome(2), Outcome::Failed(RelayError::NoStream { .. })),
        "{:?}",
        rig.outcome(2)
    );
    let (_, state, detail) = rig.links.last().unwrap();
    assert_eq!(*state, LinkState::Connected);
    assert!(
        detail.contains("cannot be managed") && detail.contains("looked up"),
        "{detail}"
    );
    assert!(
        rig.synced[0].1.as_ref().unwrap().contains("JetStream is not enabled"),
        "{:?}",
        rig.synced
    );
    // The acknowledgement has named the domain, whose API can be reached.
    let lossy = lose_acks(&leaf, &admin, |spec| spec, Some(11), 12..=16);
    stored(&lossy.rig, 11..=16);
    assert_eq!(admin.count("S"), 8, "one copy each");
    // Given, everything can be done.
    let mut rig = Rig::connected(
        limits(),
        ConnectionSpec {
            domain: Some("hub".to_owned()),
            ..spec(&leaf.url())
        },
    );
    assert!(rig.relay.send(Command::Streams(vec![stream_spec("MADE", "made.>")])));
    rig.until("the stream", |rig| !rig.synced.is_empty());
    assert_eq!(rig.synced, [(1, None)]);
    drop(hub);
}

#[test]
fn an_account_that_imports_the_subjects_or_the_api_too() {
    let accounts = "accounts {
        A {
            jetstream: enabled
            users: [ { user: a, password: a } ]
            exports: [ { service: \"s.>\" }, { service: \"$JS.API.>\", response: stream } ]
        }
        B { users: [ { user: b, password: b } ], imports: [ { service: { account: A, subject: \"s.>\" } } ] }
        C {
            users: [ { user: c, password: c } ]
            imports: [
                { service: { account: A, subject: \"s.>\" } }
                { service: { account: A, subject: \"$JS.API.>\" }, to: \"JS.A.API.>\" }
            ]
        }
    }";
    let server = NatsServer::builder().extra(accounts).start().unwrap();
    let login = ConnectOptions::with_user_and_password("a".into(), "a".into());
    let admin = Admin::with(login, &server.url());
    admin.create("S", "s.>");
    let of = |user: &str| spec(&server.url().replace("nats://", &format!("nats://{user}:{user}@")));
    let mut rig = Rig::connected(limits(), of("b"));
    rig.publish_and_wait((1..=10).map(|id| message(id, "s.a")));
    stored(&rig, 1..=10);
    assert!(
        rig.links.last().unwrap().2.contains("cannot be managed"),
        "{:?}",
        rig.links
    );
    let imported = ConnectionSpec {
        api_prefix: Some("JS.A.API".to_owned()),
        ..of("c")
    };
    let mut rig = Rig::connected(limits(), imported);
    assert!(rig.relay.send(Command::Streams(vec![stream_spec("MADE", "made.>")])));
    rig.until("the stream", |rig| !rig.synced.is_empty());
    assert_eq!(rig.synced, [(1, None)]);
    // An earlier attempt is found through the imported API.
    let sent_before = Message {
        unsure_since: Some(std::time::SystemTime::now() - Duration::from_secs(10)),
        ..message(1, "s.a")
    };
    rig.publish_and_wait([sent_before]);
    assert!(
        matches!(
            rig.outcome(1),
            Outcome::Stored {
                duplicate: true,
                sequence: 1,
                ..
            }
        ),
        "{:?}",
        rig.outcome(1)
    );
    assert_eq!(admin.count("S"), 10);
}
