//! Publishes through the relay to a real server: acknowledgements, refusals and order.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::DiscardPolicy;
use lab::error::{Class, RelayError};
use lab::message::{LinkState, Message, Outcome};
use lab::nats::NatsServer;
use lab::relay::{Command, Relay, Report};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relay_support::{Admin, PATIENCE, Rig, keyed, limits, message, spec};

fn error_of(outcome: Outcome) -> RelayError {
    match outcome {
        Outcome::Failed(error) => error,
        other => panic!("not failed: {other:?}"),
    }
}

fn ids(rig: &Rig) -> Vec<i64> {
    rig.settled.iter().map(|settled| settled.id).collect()
}

#[test]
fn stored_with_its_headers_and_flagged_when_it_comes_again() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create_with("S", "s.>", |config| config.allow_message_ttl = true);
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    let mut first = message(1, "s.a");
    first.headers = vec![
        ("X-One".into(), "1".into()),
        ("X-Two".into(), "2".into()),
        ("X-One".into(), "again".into()),
    ];
    first.ttl_seconds = Some(3600);
    rig.publish([first.clone(), message(2, "s.b")]);
    rig.wait_settled(2);
    match rig.outcome(1) {
        Outcome::Stored {
            stream,
            sequence,
            duplicate,
            ..
        } => {
            assert_eq!((&*stream, sequence, duplicate), ("S", 1, false));
        }
        other => panic!("{other:?}"),
    }
    let stored = admin.stored("S");
    assert_eq!(stored.len(), 2);
    assert_eq!(
        (stored[0].subject.as_str(), stored[0].payload.as_str()),
        ("s.a", "{\"id\":1}")
    );
    let header = |name: &str| {
        stored[0]
            .headers
            .get_all(name)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(header("X-One"), ["1", "again"]);
    assert_eq!(header("X-Two"), ["2"]);
    assert_eq!(header("Nats-Msg-Id"), ["m1"]);
    assert_eq!(header("Nats-TTL"), ["3600s"]);

    rig.clear();
    rig.publish([first]);
    rig.wait_settled(1);
    assert!(matches!(
        rig.outcome(1),
        Outcome::Stored {
            duplicate: true,
            sequence: 1,
            ..
        }
    ));
    assert_eq!(admin.count("S"), 2);
}

#[test]
fn the_prefix_is_put_in_front() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "app.>");
    let mut with_prefix = spec(&server.url());
    with_prefix.subject_prefix = Some("app".to_owned());
    let mut rig = Rig::connected(limits(), with_prefix);
    rig.publish([message(1, "orders"), message(2, "app.orders"), message(3, "apple")]);
    rig.wait_settled(3);
    let subjects: Vec<String> = admin.stored("S").into_iter().map(|stored| stored.subject).collect();
    assert_eq!(subjects, ["app.orders", "app.orders", "app.apple"]);
}

#[test]
fn a_subject_without_stream_is_transient_and_names_the_subject() {
    let server = NatsServer::start().unwrap();
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    rig.publish([message(1, "nobody.here")]);
    rig.wait_settled(1);
    let error = error_of(rig.outcome(1));
    assert_eq!(
        error,
        RelayError::NoStream {
            subject: "nobody.here".to_owned(),
            unmade: None,
        }
    );
    assert_eq!(error.class(), Class::Transient);
}

#[test]
fn a_full_stream_that_discards_new_is_transient() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create_with("S", "s.>", |config| {
        config.discard = DiscardPolicy::New;
        config.max_messages = 1;
    });
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    rig.publish([message(1, "s.a"), message(2, "s.a")]);
    rig.wait_settled(2);
    assert!(matches!(rig.outcome(1), Outcome::Stored { .. }));
    let error = error_of(rig.outcome(2));
    assert!(
        matches!(&error, RelayError::Refused { err_code, .. } if *err_code != 0),
        "{error}"
    );
    assert_eq!(error.class(), Class::Transient);
}

#[test]
fn too_large_for_the_stream_tells_both_sizes() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create_with("S", "s.>", |config| config.max_message_size = 200);
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    let large = |id| Message {
        payload: vec![b'x'; 500].into(),
        ..message(id, "s.a")
    };
    rig.publish([large(1), message(2, "s.a"), large(3)]);
    rig.wait_settled(3);
    assert!(matches!(rig.outcome(2), Outcome::Stored { .. }));
    for id in [1, 3] {
        let error = error_of(rig.outcome(id));
        // 12 bytes for the frame of the headers, 17 for "Nats-Msg-Id: m1\r\n".
        let expected = RelayError::TooLargeForStream {
            size: 500 + 12 + 17,
            limit: 200,
            stream: "S".to_owned(),
        };
        assert_eq!(error, expected);
        assert_eq!(error.class(), Class::PermanentForMessage);
    }
    // By now the relay knows the limit.
    rig.publish([large(4)]);
    rig.wait_settled(4);
    assert!(matches!(
        error_of(rig.outcome(4)),
        RelayError::TooLargeForStream { limit: 200, .. }
    ));
}

#[test]
fn too_large_for_the_server_tells_both_sizes_and_does_not_cost_the_connection() {
    let server = NatsServer::builder().extra("max_payload: 1024").start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    let sized = |id, size| Message {
        payload: vec![b'x'; size].into(),
        ..message(id, "s.a")
    };
    rig.publish([sized(1, 1024 - 29), sized(2, 1024 - 28), sized(3, 10)]);
    rig.wait_settled(3);
    assert!(matches!(rig.outcome(1), Outcome::Stored { .. }));
    assert_eq!(
        error_of(rig.outcome(2)),
        RelayError::TooLargeForServer {
            size: 1025,
            limit: 1024
        }
    );
    assert!(matches!(rig.outcome(3), Outcome::Stored { .. }));
    assert_eq!(rig.links.len(), 2, "{:?}", rig.links);
}

#[test]
fn what_would_break_the_protocol_fails_alone() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    let mut bad_header = message(1, "s.a");
    bad_header
        .headers
        .push(("X".into(), "1\r\nNats-Expected-Stream: T".into()));
    let mut bad_name = message(2, "s.a");
    bad_name.headers.push(("X: 1\r\nY".into(), "1".into()));
    let bad_id = Message {
        message_id: "a\nb".into(),
        ..message(3, "s.a")
    };
    rig.publish([
        bad_header,
        bad_name,
        bad_id,
        message(4, "s.a\r\nPUB x 0"),
        message(5, "s.a"),
    ]);
    rig.wait_settled(5);
    for id in 1..=4 {
        assert!(matches!(error_of(rig.outcome(id)), RelayError::Unsendable(_)));
    }
    assert!(matches!(rig.outcome(5), Outcome::Stored { .. }));
    assert_eq!(admin.count("S"), 1);
}

#[test]
fn a_keys_messages_arrive_in_order_and_those_without_a_key_do_not_wait() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    rig.publish((1..=3000).map(|id| match id % 3 {
        0 => message(id, "s.none"),
        rest => keyed(id, &format!("s.k{rest}"), &format!("k{rest}")),
    }));
    rig.wait_settled(3000);
    let all = admin.message_ids("S");
    assert_eq!(all.len(), 3000);
    let numbers: Vec<i64> = all.iter().map(|id| id[1..].parse().unwrap()).collect();
    for rest in 0..3 {
        let of_key: Vec<i64> = numbers.iter().copied().filter(|number| number % 3 == rest).collect();
        assert!(of_key.is_sorted(), "key {rest} is out of order");
    }
    // The 1,000 messages without a key do not need a round trip each, so they are stored long before the last message
    // of a key.
    let last_unkeyed = numbers.iter().rposition(|number| number % 3 == 0).unwrap();
    assert!(last_unkeyed < 2900, "{last_unkeyed}");
}

#[test]
fn a_failed_message_holds_back_its_key_alone() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    rig.publish([
        keyed(1, "s.a", "a"),
        keyed(2, "nobody.here", "a"),
        keyed(3, "s.a", "a"),
        keyed(4, "s.b", "b"),
        keyed(5, "s.a", "a"),
        message(6, "s.c"),
    ]);
    rig.wait_settled(6);
    assert!(matches!(error_of(rig.outcome(2)), RelayError::NoStream { .. }));
    assert!(matches!(
        (rig.outcome(3), rig.outcome(5)),
        (Outcome::HeldBack, Outcome::HeldBack)
    ));
    for id in [1, 4, 6] {
        assert!(matches!(rig.outcome(id), Outcome::Stored { .. }), "{id}");
    }
    let order: Vec<i64> = ids(&rig).into_iter().filter(|id| [2, 3, 5].contains(id)).collect();
    assert_eq!(order, [2, 3, 5]);
    assert_eq!(admin.count("S"), 3);
    // Messages claimed before the failure was known must not overtake the failed message.
    rig.clear();
    rig.publish([keyed(7, "s.a", "a"), keyed(8, "s.b", "b")]);
    rig.wait_settled(2);
    assert!(matches!(rig.outcome(7), Outcome::HeldBack));
    assert_eq!(admin.count("S"), 4);
    rig.clear();
    rig.relay.send(Command::Resume {
        connection: "default".into(),
        key: "a".to_owned(),
    });
    rig.publish([keyed(3, "s.a", "a"), keyed(5, "s.a", "a")]);
    rig.wait_settled(2);
    assert_eq!(admin.message_ids("S")[4..], ["m3", "m5"]);
}

#[test]
fn a_denied_subject_fails_at_once_and_alone() {
    let permissions = "authorization { users: [
        { user: admin, password: a }
        { user: relay, password: r, permissions: { publish: { allow: [\"s.ok\", \"$JS.API.>\"] } } }
    ] }";
    let server = NatsServer::builder().extra(permissions).start().unwrap();
    let admin = Admin::with(
        async_nats::ConnectOptions::with_user_and_password("admin".into(), "a".into()),
        &server.url(),
    );
    admin.create("S", "s.>");
    let url = server.url().replace("nats://", "nats://relay:r@");
    let mut rig = Rig::connected(limits(), spec(&url));
    rig.publish([
        message(1, "s.ok"),
        keyed(2, "s.no", "k"),
        keyed(3, "s.ok", "k"),
        message(4, "s.ok"),
    ]);
    rig.wait_settled(4);
    match error_of(rig.outcome(2)) {
        RelayError::Denied {
            subject,
            detail,
            maybe_stored,
        } => {
            assert!(
                !maybe_stored,
                "the only message with its subject, so there is nothing to look up"
            );
            assert_eq!(subject, "s.no");
            assert!(detail.contains("Permissions Violation"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(rig.outcome(3), Outcome::HeldBack));
    assert_eq!(admin.count("S"), 2);
}

#[test]
fn unknown_connections_are_released_and_a_shutdown_waits_for_acks() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    let elsewhere = Message {
        connection: "elsewhere".into(),
        ..message(1, "s.a")
    };
    rig.publish([elsewhere, message(2, "s.a")]);
    rig.wait_settled(2);
    assert!(matches!(rig.outcome(1), Outcome::Released));
    assert!(matches!(rig.outcome(2), Outcome::Stored { .. }));
    rig.clear();
    rig.publish((10..5010).map(|id| message(id, "s.b")));
    rig.until("some acks", |rig| rig.settled.len() > 100);
    let settled = rig.shut_down(Duration::from_secs(10));
    assert_eq!(settled.len(), 5000);
    let stored = settled
        .iter()
        .filter(|settled| matches!(settled.outcome, Outcome::Stored { .. }))
        .count();
    let released = settled
        .iter()
        .filter(|settled| matches!(settled.outcome, Outcome::Released))
        .count();
    assert_eq!(stored + released, 5000);
    // A message that was not reported as stored was not sent.
    assert_eq!(admin.count("S"), 1 + stored as u64);
}

#[test]
fn limits_may_change_while_it_runs() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    for (round, max_in_flight) in [1, 9_999, 50_000].into_iter().enumerate() {
        let mut changed = limits();
        changed.max_in_flight = max_in_flight;
        assert!(rig.relay.send(Command::Limits(changed)));
        rig.clear();
        let first = 1 + 1000 * round as i64;
        rig.publish((first..first + 1000).map(|id| message(id, "s.a")));
        rig.wait_settled(1000);
        assert!(ids(&rig).is_sorted());
    }
    assert_eq!(admin.count("S"), 3000);
}

#[test]
fn the_wake_descriptor_is_readable_while_there_is_something_to_take_and_when_the_thread_has_ended() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let relay = Relay::start(limits(), None).unwrap();
    let readable = |limit: Duration| {
        let mut fds = [PollFd::new(relay.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(limit).unwrap()).unwrap() == 1
    };
    let take_all = || {
        relay.clear_wake();
        relay.reports().try_iter().collect::<Vec<_>>()
    };
    assert_eq!(relay.wake_fd(), relay.as_fd().as_raw_fd());
    assert!(relay.send(Command::Connections(vec![spec(&server.url())])));
    let mut reports = Vec::new();
    while !reports.iter().any(|report| {
        matches!(
            report,
            Report::Link {
                state: LinkState::Connected,
                ..
            }
        )
    }) {
        assert!(readable(PATIENCE));
        reports.extend(take_all());
    }
    assert!(!readable(Duration::from_millis(200)));
    assert!(relay.send(Command::Publish(vec![Arc::new(message(1, "s.a"))])));
    assert!(readable(PATIENCE));
    assert!(matches!(&take_all()[..], [Report::Settled(settled)] if settled.len() == 1));
    assert!(relay.send(Command::Shutdown(Duration::ZERO)));
    while !relay.is_finished() {
        assert!(readable(PATIENCE));
        take_all();
    }
    // A relay that has ended stays readable, so that no caller waits for it.
    assert!(readable(PATIENCE) && readable(PATIENCE));
    assert!(!relay.send(Command::Publish(Vec::new())));
    assert!(relay.join());
}
