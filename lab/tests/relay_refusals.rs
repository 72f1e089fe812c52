//! What JetStream refuses for good is a dead letter immediately; what it may take later is tried again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;

use lab::error::{Class, RelayError};
use lab::message::{Message, Outcome};
use lab::nats::NatsServer;
use relay_support::{Admin, Rig, limits, message, spec};

/// A subject, headers, and the number of JetStream's error.
type Refused = (&'static str, &'static [(&'static str, &'static str)], u64);

#[test]
fn headers_that_the_stream_does_not_take_are_refused_for_good() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    admin.create_with("COUNTER", "counter.>", |config| config.allow_message_counter = true);
    admin.create_with("BATCH", "batch.>", |config| config.allow_atomic_publish = true);
    admin.create_with("FULL", "full.>", |config| {
        config.max_messages = 1;
        config.discard = async_nats::jetstream::stream::DiscardPolicy::New;
    });
    const SCHEDULE: &[(&str, &str)] = &[
        ("Nats-Schedule", "@at 2100-01-01T00:00:00Z"),
        ("Nats-Schedule-Target", "s.b"),
    ];
    let cases: &[Refused] = &[
        ("s.a", &[("Nats-Rollup", "sub")], 10111),
        ("s.a", &[("Nats-Incr", "+1")], 10168),
        ("counter.a", &[], 10169),
        ("counter.a", &[("Nats-Incr", "one")], 10171),
        (
            "s.a",
            &[
                ("Nats-Batch-Id", "b"),
                ("Nats-Batch-Sequence", "1"),
                ("Nats-Batch-Commit", "1"),
            ],
            10174,
        ),
        (
            "batch.a",
            &[
                ("Nats-Batch-Id", "b"),
                ("Nats-Batch-Sequence", "2"),
                ("Nats-Batch-Commit", "1"),
            ],
            10176,
        ),
        ("s.a", SCHEDULE, 10188),
        ("s.a", &[("Nats-TTL", "1h")], 10166),
        ("s.a", &[("Nats-Expected-Stream", "T")], 10060),
        ("s.a", &[("Nats-Expected-Last-Sequence", "9")], 10071),
        ("s.a", &[("Nats-Expected-Last-Msg-Id", "x")], 10070),
    ];
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    rig.publish((1..).zip(cases).map(|(id, (subject, headers, _))| {
        Message {
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..message(id, subject)
        }
    }));
    rig.wait_settled(cases.len());
    for (id, (_, _, code)) in (1..).zip(cases) {
        let Outcome::Failed(error) = rig.outcome(id) else {
            panic!("{code}: {:?}", rig.outcome(id));
        };
        assert!(
            matches!(error, RelayError::Refused { err_code, .. } if err_code == *code),
            "{code}: {error}"
        );
        assert_eq!(error.class(), Class::PermanentForMessage, "{error}");
    }
    rig.publish_and_wait([message(101, "full.a"), message(102, "full.a")]);
    let Outcome::Failed(error) = rig.outcome(102) else {
        panic!("{:?}", rig.outcome(102));
    };
    assert_eq!(error.class(), Class::Transient, "{error}");
}
