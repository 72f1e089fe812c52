//! What must do no harm: panics, files of any kind, far times, and what servers say.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;
#[path = "relay_support/secrets.rs"]
#[allow(dead_code)]
mod secrets;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use lab::error::{Class, RelayError};
use lab::hostile::{Ack, Act, Hostile, greeting};
use lab::message::{Auth, ConnectionSpec, LinkState, Message, Outcome, Tls};
use lab::nats::NatsServer;
use lab::relay::Command;
use relay_support::{Admin, Rig, keyed, limits, message, spec};
use secrets::Certificates;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber};

/// Panics where the relay traces this of a message, so many times at most.
struct Bomb {
    text: &'static str,
    id: i64,
    left: AtomicUsize,
}

impl Bomb {
    fn rig(text: &'static str, id: i64, times: usize) -> Rig {
        let bomb = Bomb {
            text,
            id,
            left: AtomicUsize::new(times),
        };
        Rig::with_dispatch(limits(), Some(Dispatch::new(bomb)))
    }
}

#[derive(Default)]
struct Seen {
    text: String,
    id: i64,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.text = format!("{value:?}");
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name() == "id" {
            self.id = value;
        }
    }
}

impl Subscriber for Bomb {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "pg_jetstream"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut seen = Seen::default();
        event.record(&mut seen);
        if seen.text == self.text && seen.id == self.id {
            let left = self.left.load(Ordering::Relaxed);
            if left > 0 {
                self.left.store(left - 1, Ordering::Relaxed);
                panic!("injected");
            }
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[track_caller]
fn stored(rig: &Rig, id: i64) {
    let outcome = rig.outcome(id);
    assert!(matches!(outcome, Outcome::Stored { .. }), "{id}: {outcome:?}");
}

#[track_caller]
fn panicked(rig: &Rig, id: i64) {
    match rig.outcome(id) {
        Outcome::Failed(error) => {
            assert_eq!(error, RelayError::Panicked("injected".to_owned()));
            assert_eq!(error.class(), Class::PermanentForMessage);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_over_which_the_relay_panics_fails_alone() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Bomb::rig("message is sent", 2, usize::MAX);
    let other = ConnectionSpec {
        name: "other".into(),
        ..spec(&server.url())
    };
    rig.relay.send(Command::Connections(vec![spec(&server.url()), other]));
    let on_other = Message {
        connection: "other".into(),
        ..message(4, "s.a")
    };
    rig.publish_and_wait([message(1, "s.a"), keyed(2, "s.a", "k"), keyed(3, "s.a", "k"), on_other]);
    panicked(&rig, 2);
    stored(&rig, 1);
    stored(&rig, 4);
    assert!(matches!(rig.outcome(3), Outcome::HeldBack));
    assert!(
        rig.links.iter().all(|link| link.1 != LinkState::Disconnected),
        "{:?}",
        rig.links
    );
    rig.shut_down(Duration::from_secs(1));
}

#[test]
fn a_message_whose_look_up_panics_is_found_among_the_others() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let mut rig = Bomb::rig("message is looked up", 7, usize::MAX);
    rig.connect(spec(&server.url()));
    rig.publish_and_wait((1..=20).map(|id| Message {
        unsure_since: Some(SystemTime::now()),
        ..message(id, "s.a")
    }));
    panicked(&rig, 7);
    (1..=20).filter(|id| *id != 7).for_each(|id| stored(&rig, id));
    assert_eq!(admin.count("S"), 19);
    rig.shut_down(Duration::from_secs(1));
}

#[test]
fn a_panic_elsewhere_costs_the_connection_and_nothing_else() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let hostile = Hostile::start(server.port(), Act::Acks(Ack::Twice)).unwrap();
    let mut rig = Bomb::rig("late ack", 0, 1);
    rig.connect(spec(&hostile.url()));
    rig.publish_and_wait([message(50, "s.a")]);
    rig.publish_and_wait((1..50).map(|id| message(id, "s.a")));
    (1..=50).for_each(|id| stored(&rig, id));
    rig.until("the panic's text", |rig| {
        rig.links.iter().any(|link| link.2 == "internal error: injected")
    });
    rig.wait_state(LinkState::Connected);
    assert_eq!(admin.count("S"), 50);
    rig.shut_down(Duration::from_secs(1));
}

#[test]
fn times_at_which_nothing_was_sent_are_looked_up_from_the_beginning() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create_with("S", "s.>", |config| {
        config.duplicate_window = Duration::from_millis(100)
    });
    let mut rig = Rig::connected(limits(), spec(&server.url()));
    let year = Duration::from_secs(31_557_600);
    let epoch = SystemTime::UNIX_EPOCH;
    let far = [
        epoch - 290_000 * year,
        epoch - 5_000 * year,
        epoch + 8_100 * year,
        epoch + 290_000 * year,
    ];
    for (id, since) in (1..).zip(far) {
        rig.publish_and_wait([message(id, "s.a")]);
        std::thread::sleep(Duration::from_millis(200));
        rig.clear();
        rig.publish_and_wait([Message {
            unsure_since: Some(since),
            ..message(id, "s.a")
        }]);
        assert!(
            matches!(rig.outcome(id), Outcome::Stored { duplicate: true, .. }),
            "{since:?}"
        );
        rig.clear();
    }
    assert_eq!(admin.count("S"), far.len() as u64);
    rig.shut_down(Duration::from_secs(1));
}

/// Everything that a path may lead to, in each of the four places, has one text, at once, and costs no memory.
#[test]
fn a_path_that_is_no_small_file_is_refused_and_says_nothing_of_what_is_there() {
    let server = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("garbage"), "no PEM").unwrap();
    fs::write(path("large"), vec![b'x'; 1_048_577]).unwrap();
    fs::write(path("empty"), "").unwrap();
    nix::unistd::mkfifo(path("fifo").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", path("link")).unwrap();
    let pairs = [
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/environ",
        "/proc/kmsg",
        "/etc",
        "/nowhere/x",
        "/etc/passwd",
    ];
    let own = ["garbage", "large", "empty", "fifo", "link"].map(path);
    let plain = spec(&server.url());
    let mut rig = Rig::new(limits());
    for path in pairs.iter().map(|path| (*path).to_owned()).chain(own) {
        let tls = |tls: Tls| ConnectionSpec { tls, ..plain.clone() };
        let client = |cert: &str, key: &str| Tls {
            cert_file: Some(cert.to_owned()),
            key_file: Some(key.to_owned()),
            ..Tls::default()
        };
        let ca = Tls {
            ca_file: Some(path.clone()),
            ..Tls::default()
        };
        let credentials = ConnectionSpec {
            auth: Auth::CredentialsFile(path.clone()),
            ..plain.clone()
        };
        for (what, spec) in [
            ("CA", tls(ca)),
            ("certificate", tls(client(&path, "/nowhere/key"))),
            ("credentials", credentials),
        ] {
            rig.links.clear();
            rig.connect(spec);
            let detail = rig.wait_state(LinkState::Failed);
            let expected = format!(
                "connection cannot be made: {what} file {path} cannot be used: it must be a regular file of at most 1 MB that the \
                 server can read, in PEM or .creds format; see the server's log"
            );
            assert_eq!(detail, expected);
        }
    }
    // The key comes after a certificate that can be used.
    let certificates = Certificates::write(&dir.path().join("tls"));
    for path in ["/dev/zero", "/nowhere/x", "/etc/passwd"] {
        rig.links.clear();
        rig.connect(ConnectionSpec {
            tls: Tls {
                cert_file: Some(certificates.path("client.pem")),
                key_file: Some(path.to_owned()),
                ..Tls::default()
            },
            ..plain.clone()
        });
        let detail = rig.wait_state(LinkState::Failed);
        assert!(
            detail.contains(&format!("key file {path} cannot be used: it must be a regular file")),
            "{detail}"
        );
    }
    rig.connect(plain);
    rig.wait_state(LinkState::Connected);
    rig.shut_down(Duration::from_secs(1));
}

#[test]
fn what_a_server_says_is_short_and_without_control_characters() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.>");
    let hostile = Hostile::start(server.port(), Act::Honest).unwrap();
    let mut quick = spec(&hostile.url());
    quick.connect_timeout = Duration::from_millis(500);
    let mut rig = Rig::connected(limits(), quick);
    // The first words of whatever is at the address are nobody's business.
    for first in [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "-ERR wrong password for bob\r\n",
        "INFO {\"secret\": bob}\r\n",
        "+OK bob\r\n",
    ] {
        let accepted = hostile.accepted();
        hostile.set(Act::Says(first.as_bytes().to_vec()));
        while hostile.accepted() < accepted + 2 {
            rig.listen(Duration::from_millis(20));
        }
        let (_, _, detail) = rig.links.last().unwrap();
        assert!(
            detail.ends_with("what answers there does not speak the NATS protocol"),
            "{detail}"
        );
    }
    let harmless = |text: &str| text.chars().count() < 2_100 && !text.contains(char::is_control);
    let names = [
        "a\\u0000b".to_owned(),
        "\\u001b[2J\\r\\n".to_owned(),
        "x".repeat(200_000),
    ];
    for name in names {
        rig.links.clear();
        let head = greeting("").len() - 3;
        let info = String::from_utf8(greeting("")).unwrap()[..head]
            .replace("\"server_name\":\"h\"", &format!("\"server_name\":\"{name}\""));
        // Nothing else answers, so that it fails after the login: its name is in no report, or harmless.
        hostile.set(Act::Says(
            format!("{info}}}\r\nPONG\r\n-ERR '{}'\r\n", "e".repeat(100_000)).into_bytes(),
        ));
        rig.listen(Duration::from_millis(900));
        assert!(rig.links.iter().all(|link| harmless(&link.2)), "{:?}", rig.links);
    }
    hostile.set(Act::Honest);
    rig.wait_state(LinkState::Connected);
    for (id, description) in [(1, "a\\u0000b\\r\\n".to_owned()), (2, "e".repeat(200_000))] {
        let refusal = format!("{{\"error\":{{\"code\":503,\"err_code\":10077,\"description\":\"{description}\"}}}}");
        hostile.set(Act::Acks(Ack::Instead(refusal.into_bytes())));
        rig.publish_and_wait([message(id, "s.a")]);
        match rig.outcome(id) {
            Outcome::Failed(error @ RelayError::Refused { .. }) => assert!(harmless(&error.to_string())),
            other => panic!("{other:?}"),
        }
        rig.clear();
    }
    rig.shut_down(Duration::from_secs(1));
}
