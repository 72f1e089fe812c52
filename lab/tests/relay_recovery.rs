//! Looking for what may have been stored before it is sent again: on bad links, and with few rights.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;

use std::time::{Duration, Instant};

use lab::chaos::proxy::{Mode, Proxy};
use lab::message::{ConnectionSpec, LinkState, Outcome};
use lab::nats::NatsServer;
use lab::relay::{Command, Plan};
use relay_support::{Admin, PATIENCE, Rig, api_requests, limits, message, spec};
use tokio::runtime::Runtime;

fn proxied(server: &NatsServer) -> (Runtime, Proxy, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let proxy = Proxy::start(runtime.handle(), &[server.port()]).unwrap();
    let url = proxy.urls().remove(0);
    (runtime, proxy, url)
}

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
        rig.links.iter().any(|link| link.0 == "other" && link.1 == LinkState::Connected)
    });
    proxy.set(Mode::Pass);
    rig.wait_settled(2);
    assert!(matches!(rig.outcome(1), Outcome::Stored { duplicate: true, .. }));
    assert!(matches!(rig.outcome(2), Outcome::Stored { duplicate: false, .. }));
    assert_eq!(proxy.accepted(), 1, "what was begun was gone on with");
}
