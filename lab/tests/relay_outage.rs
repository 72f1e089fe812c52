//! Servers that stop, die, hang and come back, and how the relay reacts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use lab::chaos::proxy::Mode;
use lab::error::RelayError;
use lab::message::{ConnectionSpec, LinkState, Message, Outcome};
use lab::nats::{NatsServer, free_port};
use lab::relay::{Command, Limits};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay_support::{Admin, Rig, keyed, limits, message, proxied, spec};

fn quick_acks() -> Limits {
    Limits {
        ack_timeout: Duration::from_millis(800),
        ..limits()
    }
}

/// Subscribes to `quiet.>`, so that publishing does not fail with "no responders", but never acknowledges.
fn silent_listener(admin: &Admin) -> async_nats::Subscriber {
    admin.runtime.block_on(async {
        let listener = admin.client.subscribe("quiet.>").await.unwrap();
        admin.client.flush().await.unwrap();
        listener
    })
}

/// Checks that every message was reported as stored once, and is in the stream once.
#[track_caller]
fn all_stored_once(rig: &Rig, admin: &Admin, count: usize) {
    let failed: Vec<_> = rig
        .settled
        .iter()
        .filter(|one| !matches!(one.outcome, Outcome::Stored { .. }))
        .collect();
    assert!(failed.is_empty(), "{:?}", &failed[..failed.len().min(5)]);
    let ids: HashSet<i64> = rig.settled.iter().map(|one| one.id).collect();
    assert_eq!((ids.len(), rig.settled.len()), (count, count));
    let stored = admin.message_ids("S");
    assert_eq!(stored.iter().collect::<HashSet<_>>().len(), count);
    assert_eq!(stored.len(), count);
}

/// Numbers of the stored messages whose subject has this ending, in stream order.
fn numbers(admin: &Admin, ending: &str) -> Vec<i64> {
    let stored = admin
        .stored("S")
        .into_iter()
        .filter(|one| one.subject.ends_with(ending));
    stored
        .map(|one| one.headers.get("Nats-Msg-Id").unwrap().as_str()[1..].parse().unwrap())
        .collect()
}

#[test]
fn an_ack_that_does_not_come_from_a_server_that_answers_is_a_failure_of_the_message() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let _listener = silent_listener(&admin);
    let mut rig = Rig::connected(quick_acks(), spec(&server.url()));
    rig.publish([keyed(1, "quiet.a", "k"), keyed(2, "s.a", "k"), message(3, "s.a")]);
    rig.wait_settled(3);
    match rig.outcome(1) {
        Outcome::Failed(error) => {
            assert_eq!(
                error,
                RelayError::AckTimeout {
                    subject: "quiet.a".to_owned(),
                    millis: 800
                }
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(rig.outcome(2), Outcome::HeldBack));
    assert!(matches!(rig.outcome(3), Outcome::Stored { .. }));
    assert_eq!(rig.links.last().unwrap().1, LinkState::Connected);
    // The same message may be retried. A late acknowledgement of the first attempt does no harm.
    rig.clear();
    admin.create("Q", "quiet.>");
    rig.relay.send(Command::Resume {
        connection: "default".into(),
        key: "k".to_owned(),
    });
    rig.publish([keyed(1, "quiet.a", "k")]);
    rig.wait_settled(1);
    assert!(matches!(rig.outcome(1), Outcome::Stored { .. }));
}

#[test]
fn an_ack_that_does_not_come_over_a_slow_link_is_a_failure_of_the_message_too() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let _listener = silent_listener(&admin);
    let (_runtime, proxy, url) = proxied(&server);
    let mut rig = Rig::connected(quick_acks(), spec(&url));
    // A round trip takes longer than the answer of a server that has not stopped.
    proxy.set(Mode::Delay(Duration::from_millis(200)));
    for round in 0..2 {
        rig.clear();
        let start = Instant::now();
        rig.publish([message(1, "quiet.a"), message(2, "s.a")]);
        rig.wait_settled(2);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(4), "round {round}: {took:?}");
        assert!(
            matches!(rig.outcome(1), Outcome::Failed(RelayError::AckTimeout { .. })),
            "{:?}",
            rig.outcome(1)
        );
        assert!(matches!(rig.outcome(2), Outcome::Stored { .. }));
    }
    assert_eq!(rig.links.last().unwrap().1, LinkState::Connected);
    assert_eq!(proxy.accepted(), 1);
}

#[test]
fn a_server_that_stops_for_a_moment_costs_no_attempt() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Rig::connected(quick_acks(), spec(&server.url()));
    server.pause().unwrap();
    rig.publish((1..=500).map(|id| message(id, "s.a")));
    // Longer than the acknowledgement timeout, but shorter than the time until the connection is given up.
    rig.listen(Duration::from_millis(1200));
    server.resume().unwrap();
    rig.wait_settled(500);
    all_stored_once(&rig, &admin, 500);
    assert_eq!(rig.links.len(), 2, "{:?}", rig.links);
}

#[test]
fn a_server_that_hangs_is_an_outage_and_what_it_had_is_stored_once() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut short = spec(&server.url());
    short.connect_timeout = Duration::from_millis(500);
    let mut rig = Rig::connected(quick_acks(), short);
    server.pause().unwrap();
    rig.publish((1..=3000).map(|id| match id % 2 {
        0 => message(id, "s.none"),
        _ => keyed(id, "s.key", "k"),
    }));
    rig.wait_state(LinkState::Disconnected);
    rig.wait_detail("timed out");
    assert!(rig.settled.is_empty());
    server.resume().unwrap();
    rig.wait_settled(3000);
    all_stored_once(&rig, &admin, 3000);
    assert!(numbers(&admin, ".key").is_sorted());
}

#[test]
fn an_idle_connection_to_a_server_that_hangs_is_noticed() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    let start = Instant::now();
    server.pause().unwrap();
    rig.wait_state(LinkState::Disconnected);
    assert!(start.elapsed() < Duration::from_secs(25));
    server.resume().unwrap();
    rig.publish([message(1, "s.a")]);
    rig.wait_settled(1);
    all_stored_once(&rig, &admin, 1);
}

#[test]
fn a_server_killed_again_and_again_in_the_middle_of_20000_messages_has_each_of_them_once() {
    let mut server = NatsServer::start().unwrap();
    Admin::new(&server.url()).create("S", "s.>");
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    let count = 20_000;
    rig.publish((1..=count).map(|id| match id % 20 {
        0 => keyed(id, "s.key", "k"),
        _ => message(id, "s.none"),
    }));
    for round in 1..=3 {
        rig.until("some messages are stored", |rig| rig.settled.len() >= round * 4000);
        server.kill9().unwrap();
        rig.wait_state(LinkState::Disconnected);
        server.restart().unwrap();
        rig.wait_state(LinkState::Connected);
    }
    let count = usize::try_from(count).unwrap();
    rig.wait_settled(count);
    let admin = Admin::new(&server.url());
    all_stored_once(&rig, &admin, count);
    assert!(numbers(&admin, ".key").is_sorted());
    assert!(
        numbers(&admin, ".none").is_sorted(),
        "newer messages were sent before the resent ones"
    );
}

#[test]
fn messages_wait_for_a_server_that_is_not_there_yet() {
    let port = free_port().unwrap();
    let mut rig = Rig::new(limits());
    rig.connect(spec(&format!("nats://127.0.0.1:{port}")));
    rig.publish((1..=100).map(|id| message(id, "s.a")));
    rig.wait_detail("refused");
    rig.listen(Duration::from_millis(500));
    assert!(rig.settled.is_empty());
    // The state is reported once, not once per attempt.
    assert_eq!(rig.links.len(), 2, "{:?}", rig.links);
    let server = NatsServer::builder().port(port).start().unwrap();
    let admin = Admin::new(&server.url());
    rig.wait_state(LinkState::Connected);
    admin.create("S", "s.>");
    rig.wait_settled(100);
}

#[test]
fn a_reconnect_on_command_loses_nothing() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    rig.publish((1..=10_000).map(|id| message(id, "s.a")));
    for round in 1..=5 {
        rig.until("some messages are stored", |rig| rig.settled.len() >= round * 1000);
        assert!(rig.relay.send(Command::Reconnect("default".into())));
    }
    rig.wait_settled(10_000);
    all_stored_once(&rig, &admin, 10_000);
    assert!(numbers(&admin, ".a").is_sorted());
    // The server no longer has the relay's and the admin's dropped clients either.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !server.monitor("/connz").unwrap().contains("\"num_connections\": 2") {
        assert!(Instant::now() < deadline, "{}", server.monitor("/connz").unwrap());
    }
}

#[test]
fn the_next_server_takes_over() {
    let mut first = NatsServer::start().unwrap();
    let mut second = NatsServer::start().unwrap();
    for server in [&first, &second] {
        Admin::new(&server.url()).create("S", "s.>");
    }
    let mut rig = Rig::connected(limits(), spec(&format!("{},{}", first.url(), second.url())));
    let stored_by = |rig: &mut Rig, id, server: &NatsServer| {
        rig.clear();
        rig.publish([message(id, "s.a")]);
        rig.wait_settled(1);
        assert!(
            Admin::new(&server.url()).message_ids("S").contains(&format!("m{id}")),
            "message {id}"
        );
    };
    stored_by(&mut rig, 1, &first);
    first.kill9().unwrap();
    stored_by(&mut rig, 2, &second);
    first.restart().unwrap();
    second.stop().unwrap();
    stored_by(&mut rig, 3, &first);
    // When a server announces its shutdown, the relay moves to the other one.
    second.restart().unwrap();
    kill(Pid::from_raw(i32::try_from(first.pid()).unwrap()), Signal::SIGUSR2).unwrap();
    rig.wait_detail(&second.port().to_string());
    stored_by(&mut rig, 4, &second);
}

#[test]
fn a_changed_or_removed_connection_releases_its_messages() {
    let port = free_port().unwrap();
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Rig::new(limits());
    rig.connect(spec(&format!("nats://127.0.0.1:{port}")));
    let keyed_too = || {
        (1..=50)
            .map(|id| keyed(id, "s.a", "k"))
            .chain((51..=100).map(|id| message(id, "s.a")))
    };
    rig.publish(keyed_too());
    rig.wait_state(LinkState::Disconnected);
    // Configuring the same connection again changes nothing.
    rig.connect(spec(&format!("nats://127.0.0.1:{port}")));
    rig.listen(Duration::from_millis(200));
    assert!(rig.settled.is_empty());
    rig.connect(spec(&server.url()));
    rig.wait_settled(100);
    assert!(rig.settled.iter().all(|one| matches!(one.outcome, Outcome::Released)));
    rig.wait_state(LinkState::Connected);
    rig.clear();
    rig.publish(keyed_too());
    rig.wait_settled(100);
    all_stored_once(&rig, &admin, 100);
    // In flight, but not acknowledged.
    server.pause().unwrap();
    rig.clear();
    rig.publish((201..=250).map(|id| Message {
        key: Some("k".into()),
        ..message(id, "s.a")
    }));
    assert!(rig.relay.send(Command::Connections(Vec::new())));
    rig.wait_settled(50);
    assert!(rig.settled.iter().all(|one| matches!(one.outcome, Outcome::Released)));
    rig.wait_state(LinkState::Disabled);
    server.resume().unwrap();
}

#[test]
fn a_shutdown_does_not_wait_for_a_dead_server() {
    let server = NatsServer::start().unwrap();
    Admin::new(&server.url()).create("S", "s.>");
    let rig = Rig::connected(limits(), spec(&server.url()));
    server.pause().unwrap();
    rig.publish((1..=2000).map(|id| message(id, "s.a")));
    let start = Instant::now();
    let settled = rig.shut_down(Duration::from_millis(500));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(settled.len(), 2000);
    assert!(settled.iter().all(|one| matches!(one.outcome, Outcome::Released)));
}

#[test]
fn a_dropped_handle_ends_the_thread() {
    let server = NatsServer::start().unwrap();
    let rig = Rig::connected(limits(), spec(&server.url()));
    let reports = rig.relay.reports().clone();
    drop(rig);
    let deadline = Instant::now() + Duration::from_secs(5);
    while reports.recv_deadline(deadline).is_ok() {}
    assert!(Instant::now() < deadline);
}

#[test]
fn a_shutdown_during_an_outage_releases_everything_at_once() {
    let mut server = NatsServer::start().unwrap();
    Admin::new(&server.url()).create("S", "s.>");
    let rig = Rig::connected(limits(), spec(&server.url()));
    server.pause().unwrap();
    rig.publish((1..=2000).map(|id| message(id, "s.a")));
    assert!(rig.relay.send(Command::Shutdown(Duration::from_secs(60))));
    server.kill9().unwrap();
    let start = Instant::now();
    let settled = rig.shut_down(Duration::ZERO);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(settled.len(), 2000);
    assert!(settled.iter().all(|one| matches!(one.outcome, Outcome::Released)));
}

#[test]
fn one_connection_that_is_down_does_not_hold_up_another() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let down = ConnectionSpec {
        name: "down".into(),
        ..spec(&format!("nats://127.0.0.1:{}", free_port().unwrap()))
    };
    let mut rig = Rig::new(limits());
    assert!(rig.relay.send(Command::Connections(vec![down, spec(&server.url())])));
    let of = |id| match id % 2 {
        0 => Message {
            connection: "down".into(),
            ..message(id, "s.a")
        },
        _ => message(id, "s.a"),
    };
    rig.publish((1..=1000).map(of));
    rig.wait_settled(500);
    all_stored_once(&rig, &admin, 500);
    let numbers = numbers(&admin, ".a");
    assert!(numbers.is_sorted() && numbers.iter().all(|id| id % 2 == 1));
}
