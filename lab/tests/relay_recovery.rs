//! Looking for what may have been stored before it is sent again: on bad links, and with few rights.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;

use std::time::{Duration, Instant, SystemTime};

use async_nats::ConnectOptions;
use lab::chaos::proxy::Mode;
use lab::message::{ConnectionSpec, LinkState, Message, Outcome};
use lab::nats::NatsServer;
use lab::relay::{Command, Plan};
use relay_support::{Admin, PATIENCE, Rig, api_requests, limits, message, proxied, spec, stream_spec};

/// What a worker leaves behind that sent to `s.>`.
fn plan() -> Plan {
    Plan {
        subjects: vec!["s.a".to_owned()],
        up_to: i64::MAX,
        ..Plan::default()
    }
}

#[test]
fn another_connection_that_is_added_does_not_disturb_one_that_recovers() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    Rig::connected(limits(), spec(&server.url())).publish_and_wait([message(1, "s.a")]);
    let (_runtime, proxy, url) = proxied(&server);
    let slow = ConnectionSpec {
        connect_timeout: Duration::from_secs(20),
        ..spec(&url)
    };
    let mut rig = Rig::new(limits());
    assert!(rig.relay.send(Command::Recover("default".into(), plan())));
    proxy.set(Mode::Delay(Duration::from_millis(300)));
    let before = api_requests(&server);
    rig.connect(slow.clone());
    rig.publish([message(1, "s.a"), message(2, "s.a")]);
    // JetStream was asked whether it is there, and for its streams: the answer is under way.
    let deadline = Instant::now() + PATIENCE;
    while api_requests(&server) < before + 2 {
        assert!(Instant::now() < deadline, "no recovery begins");
    }
    proxy.set(Mode::Stall);
    let other = ConnectionSpec {
        name: "other".into(),
        ..spec(&server.url())
    };
    assert!(rig.relay.send(Command::Connections(vec![slow, other])));
    rig.until("the other one is connected", |rig| {
        rig.links
            .iter()
            .any(|link| link.0 == "other" && link.1 == LinkState::Connected)
    });
    proxy.set(Mode::Pass);
    rig.wait_settled(2);
    assert!(matches!(rig.outcome(1), Outcome::Stored { duplicate: true, .. }));
    assert!(matches!(rig.outcome(2), Outcome::Stored { duplicate: false, .. }));
    assert_eq!(proxy.accepted(), 1, "what was begun was gone on with");
}

/// The users of a server: one that may do everything, and the relay's, that may not publish to `deny`.
fn users(deny: &str) -> String {
    format!(
        "authorization {{ users: [
            {{ user: admin, password: a }}
            {{ user: relay, password: r, permissions: {{ publish: {{ deny: [{deny}] }} }} }}
        ] }}"
    )
}

fn admin_of(server: &NatsServer) -> Admin {
    let options = ConnectOptions::with_user_and_password("admin".into(), "a".into());
    Admin::with(options, &server.url())
}

fn relay_of(server: &NatsServer) -> ConnectionSpec {
    spec(&server.url().replace("nats://", "nats://relay:r@"))
}

/// A stream that forgets message ids at once.
fn forgetful(admin: &Admin) {
    admin.create_with("S", "s.>", |config| config.duplicate_window = WINDOW);
}

const WINDOW: Duration = Duration::from_millis(200);

/// A message that an earlier worker sent without hearing of it, stored longer ago than the stream remembers its id.
fn stored_unheard(admin: &Admin, id: i64) -> Message {
    let message = message(id, "s.a");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", message.message_id.as_str());
    admin.runtime.block_on(async {
        let ack = admin.js.publish_with_headers("s.a", headers, message.payload.clone());
        ack.await.unwrap().await.unwrap();
    });
    std::thread::sleep(2 * WINDOW);
    Message {
        unsure_since: Some(SystemTime::now() - Duration::from_secs(10)),
        ..message
    }
}

#[track_caller]
fn found(rig: &Rig, id: i64) {
    let outcome = rig.outcome(id);
    assert!(
        matches!(outcome, Outcome::Stored { duplicate: true, .. }),
        "{outcome:?}"
    );
}

#[test]
fn an_account_that_may_not_change_streams_still_looks_into_them() {
    let users = users("\"$JS.API.STREAM.UPDATE.>\"");
    let server = NatsServer::builder().extra(users).start().unwrap();
    let admin = admin_of(&server);
    forgetful(&admin);
    let mut rig = Rig::connected(limits(), relay_of(&server));
    let wanted = stream_spec("S", "s.>,t.>");
    assert!(rig.relay.send(Command::Streams(vec![wanted])));
    rig.until("the stream cannot be changed", |rig| {
        rig.synced.last().is_some_and(|one| one.1.is_some())
    });
    rig.publish_and_wait([stored_unheard(&admin, 1)]);
    found(&rig, 1);
    assert_eq!(admin.count("S"), 1);
}

#[test]
fn an_account_that_may_not_read_streams_publishes_and_looks_once_it_may() {
    let listing = users("\"$JS.API.STREAM.LIST\"");
    let mut server = NatsServer::builder().extra(listing).start().unwrap();
    let admin = admin_of(&server);
    forgetful(&admin);
    let mut rig = Rig::connected(limits(), relay_of(&server));
    rig.publish_and_wait([stored_unheard(&admin, 1)]);
    assert!(matches!(rig.outcome(1), Outcome::Stored { .. }));
    server.rewrite(users("nothing")).unwrap();
    server.reload().unwrap();
    rig.links.clear();
    assert!(rig.relay.send(Command::Reconnect("default".into())));
    rig.wait_state(LinkState::Connected);
    let before = admin.count("S");
    rig.publish_and_wait([stored_unheard(&admin, 2)]);
    found(&rig, 2);
    assert_eq!(admin.count("S"), before + 1);
}
