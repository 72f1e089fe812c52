//! Looking up messages that may have been stored before they are sent again, over bad connections and with few
//! permissions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_nats::ConnectOptions;
use async_nats::jetstream::stream::RetentionPolicy;
use lab::chaos::proxy::Mode;
use lab::error::RelayError;
use lab::message::{ConnectionSpec, LinkState, Message, Outcome};
use lab::nats::NatsServer;
use lab::relay::{Command, Plan};
use relay_support::{Admin, PATIENCE, Rig, api_requests, limits, message, proxied, spec, stream_spec};

/// The recovery plan that a worker leaves behind after it sent to `s.>`.
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
    // The relay has asked whether JetStream is enabled and for its streams. The answer is on its way.
    let deadline = Instant::now() + PATIENCE;
    while api_requests(&server) < before + 2 {
        assert!(Instant::now() < deadline, "recovery did not begin");
    }
    proxy.set(Mode::Stall);
    let other = ConnectionSpec {
        name: "other".into(),
        ..spec(&server.url())
    };
    assert!(rig.relay.send(Command::Connections(vec![slow, other])));
    rig.until("the other connection is up", |rig| {
        rig.links
            .iter()
            .any(|link| link.0 == "other" && link.1 == LinkState::Connected)
    });
    proxy.set(Mode::Pass);
    rig.wait_settled(2);
    assert!(matches!(rig.outcome(1), Outcome::Stored { duplicate: true, .. }));
    assert!(matches!(rig.outcome(2), Outcome::Stored { duplicate: false, .. }));
    assert_eq!(
        proxy.accepted(),
        1,
        "the relay reconnected in the middle of the recovery"
    );
}

/// Users of a server: one with all permissions, and the relay's, which may not publish to `deny`.
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

/// Changes the subjects to which the relay's user may not publish.
fn deny(server: &mut NatsServer, subjects: &str) {
    let reloads = |server: &NatsServer| server.log().matches("Reloaded server configuration").count();
    let before = reloads(server);
    server.rewrite(users(subjects)).unwrap();
    server.reload().unwrap();
    lab::wait_until(PATIENCE, "the server has reloaded", || Ok(reloads(server) > before)).unwrap();
}

/// Creates a stream that forgets message ids immediately.
fn forgetful(admin: &Admin) {
    admin.create_with("S", "s.>", |config| config.duplicate_window = WINDOW);
}

const WINDOW: Duration = Duration::from_millis(200);

/// A message that an earlier worker sent without receiving an acknowledgement. It was stored longer ago than the
/// duplicate window.
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

/// The message as a worker publishes it again after this failure.
fn again(message: Message, error: &RelayError) -> Message {
    let since = SystemTime::now() - Duration::from_secs(10);
    Message {
        unsure_since: error.is_unsure().then_some(since),
        ..message
    }
}

#[track_caller]
fn denied(rig: &Rig, id: i64) -> RelayError {
    match rig.outcome(id) {
        Outcome::Failed(error @ RelayError::Denied { .. }) => error,
        other => panic!("{other:?}"),
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
    deny(&mut server, "nothing");
    rig.links.clear();
    assert!(rig.relay.send(Command::Reconnect("default".into())));
    rig.wait_state(LinkState::Connected);
    let before = admin.count("S");
    rig.publish_and_wait([stored_unheard(&admin, 2)]);
    found(&rig, 2);
    assert_eq!(admin.count("S"), before + 1);
}

#[test]
fn what_was_stored_before_a_right_was_taken_away_is_not_stored_again_when_it_is_given_back() {
    let mut server = NatsServer::builder().extra(users("nothing")).start().unwrap();
    let admin = admin_of(&server);
    forgetful(&admin);
    let (_runtime, proxy, url) = proxied(&server);
    let mut rig = Rig::connected(limits(), spec(&url.replace("nats://", "nats://relay:r@")));
    // The acknowledgement of this message is lost, and the next message is denied.
    proxy.set(Mode::DropAcks);
    rig.publish([message(1, "s.a")]);
    lab::wait_until(PATIENCE, "the acknowledgement is dropped", || Ok(proxy.swallowed() > 0)).unwrap();
    proxy.set(Mode::Pass);
    deny(&mut server, "s.a");
    rig.publish([message(2, "s.a")]);
    rig.wait_settled(2);
    let errors = [denied(&rig, 1), denied(&rig, 2)];
    deny(&mut server, "nothing");
    std::thread::sleep(2 * WINDOW);
    rig.clear();
    rig.publish_and_wait([1, 2].map(|id| again(message(id, "s.a"), &errors[id as usize - 1])));
    assert_eq!(admin.message_ids("S"), ["m1", "m2"]);
    found(&rig, 1);
    assert_eq!(proxy.accepted(), 1, "the session was interrupted");
}

#[test]
fn what_is_never_permitted_is_not_looked_for_where_each_has_its_subject() {
    let server = NatsServer::builder().extra(users("\"s.>\"")).start().unwrap();
    let admin = admin_of(&server);
    forgetful(&admin);
    let mut rig = Rig::connected(limits(), relay_of(&server));
    let of_its_own = |id| message(id, &format!("s.{id}"));
    let asked = api_requests(&server);
    rig.publish_and_wait((1..=100).map(of_its_own));
    let errors: Vec<RelayError> = (1..=100).map(|id| denied(&rig, id)).collect();
    rig.clear();
    rig.publish_and_wait((1..=100).map(|id| again(of_its_own(id), &errors[id as usize - 1])));
    for id in 1..=100 {
        denied(&rig, id);
    }
    assert_eq!(api_requests(&server), asked);
    // Several messages have one subject, and their outcome is unknown. They are looked up together.
    rig.clear();
    rig.publish_and_wait((1..=100).map(|id| message(id, "s.a")));
    let errors: Vec<RelayError> = (1..=100).map(|id| denied(&rig, id)).collect();
    assert!(errors[0].is_unsure());
    rig.clear();
    rig.publish_and_wait((1..=100).map(|id| again(message(id, "s.a"), &errors[id as usize - 1])));
    for id in 1..=100 {
        denied(&rig, id);
    }
    assert!(api_requests(&server) - asked < 20);
}

/// Stores messages on `s.a` like an earlier worker did, and waits until the stream has forgotten their ids.
fn stored_before(server: &NatsServer, ids: std::ops::RangeInclusive<i64>) {
    Rig::connected(limits(), spec(&server.url())).publish_and_wait(ids.map(|id| message(id, "s.a")));
    std::thread::sleep(2 * WINDOW);
}

#[test]
fn of_what_is_found_only_what_is_asked_for_is_kept_and_not_longer_than_it_is_owed() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    forgetful(&admin);
    stored_before(&server, 1..=5);
    let mut rig = Rig::new(limits());
    let plan = Plan {
        message_ids: Some(Arc::new([1, 3, 4].map(|id| format!("m{id}")).into())),
        ..plan()
    };
    assert!(rig.relay.send(Command::Recover("default".into(), plan)));
    rig.connect(spec(&server.url()));
    rig.publish_and_wait([1, 2, 3].map(|id| message(id, "s.a")));
    assert_eq!(admin.count("S"), 6, "message 2, which is not in the plan, was not sent");
    for id in [1, 3] {
        found(&rig, id);
    }
    assert!(rig.relay.send(Command::Recovered("default".into())));
    rig.publish_and_wait([message(4, "s.a")]);
    assert_eq!(admin.count("S"), 7);
    // Before the tail is read, none of its messages is needed any more.
    rig.clear();
    assert!(rig.relay.send(Command::Recover("default".into(), self::plan())));
    let again = ConnectionSpec {
        connect_timeout: Duration::from_secs(3),
        ..spec(&server.url())
    };
    server.pause().unwrap();
    rig.connect(again);
    assert!(rig.relay.send(Command::Recovered("default".into())));
    rig.publish([message(5, "s.a")]);
    server.resume().unwrap();
    rig.wait_settled(1);
    assert_eq!(admin.count("S"), 8);
}

/// Number of messages that clients have sent to the server. Each message of a work queue is requested separately.
fn sent(server: &NatsServer) -> u64 {
    let report: serde_json::Value = serde_json::from_str(&server.monitor("/varz").unwrap()).unwrap();
    report["in_msgs"].as_u64().unwrap()
}

#[test]
fn a_work_queue_is_read_no_further_back_than_to_the_oldest_message_owed() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create_with("S", "s.>", |config| {
        config.duplicate_window = WINDOW;
        config.retention = RetentionPolicy::WorkQueue;
    });
    stored_before(&server, 1..=3000);
    stored_before(&server, 3000..=3000);
    let recovered = |since| {
        let plan = Plan {
            since: Some(since),
            ..plan()
        };
        let asked = sent(&server);
        let mut rig = Rig::new(limits());
        assert!(rig.relay.send(Command::Recover("default".into(), plan)));
        rig.connect(spec(&server.url()));
        rig.wait_state(LinkState::Connected);
        (sent(&server) - asked, rig)
    };
    // A minute is allowed for the clocks, so that this is a moment ago.
    let (asked, _) = recovered(SystemTime::now() + Duration::from_millis(59_900));
    assert!(asked < 200, "{asked}");
    let (asked, mut rig) = recovered(SystemTime::now() - Duration::from_secs(60));
    assert!(asked > 3000, "{asked}");
    rig.publish_and_wait([1, 3000].map(|id| message(id, "s.a")));
    for id in [1, 3000] {
        found(&rig, id);
    }
    let sequence = |id| match rig.outcome(id) {
        Outcome::Stored { sequence, .. } => sequence,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (sequence(1), sequence(3000)),
        (1, 3000),
        "the first of two copies is found"
    );
}
