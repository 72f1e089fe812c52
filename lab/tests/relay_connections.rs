//! Logging in: credentials, TLS, addresses, and error messages.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;
#[path = "relay_support/secrets.rs"]
mod secrets;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::time::Duration;

use async_nats::ConnectOptions;
use lab::message::{Auth, ConnectionSpec, LinkState, Outcome, Tls};
use lab::nats::{NatsServer, free_port};
use lab::relay::Command;
use relay_support::{Admin, Rig, limits, message, spec};
use secrets::{Certificates, Operator};

/// Checks that a message reaches a stream that `admin` has created.
#[track_caller]
fn accepted(spec: ConnectionSpec) {
    let mut rig = Rig::connected(limits(), spec);
    rig.publish([message(1, "s.a")]);
    rig.wait_settled(1);
    assert!(matches!(rig.outcome(1), Outcome::Stored { .. }), "{:?}", rig.outcome(1));
}

/// Checks that the connection fails with a reason that contains `words` and none of the `secrets`, and that its message
/// waits.
#[track_caller]
fn refused(spec: ConnectionSpec, words: &str, secrets: &[&str]) {
    let mut rig = Rig::new(limits());
    rig.connect(spec);
    rig.publish([message(1, "s.a")]);
    let detail = rig.wait_state(LinkState::Failed);
    assert!(detail.to_lowercase().contains(words), "{detail}");
    for (_, _, detail) in &rig.links {
        assert!(secrets.iter().all(|secret| !detail.contains(secret)), "{detail}");
    }
    assert!(rig.settled.is_empty());
}

fn with_auth(url: &str, auth: Auth) -> ConnectionSpec {
    ConnectionSpec { auth, ..spec(url) }
}

fn password(user: &str, password: &str) -> Auth {
    Auth::Password {
        user: user.to_owned(),
        password: password.to_owned(),
    }
}

#[test]
fn a_token() {
    let server = NatsServer::builder()
        .extra("authorization { token: \"open sesame/@\" }")
        .start()
        .unwrap();
    let url = server.url();
    Admin::with(ConnectOptions::with_token("open sesame/@".into()), &url).create("S", "s.>");
    accepted(with_auth(&url, Auth::Token("open sesame/@".into())));
    accepted(spec(&url.replace("nats://", "nats://open%20sesame%2f%40@")));
    refused(
        with_auth(&url, Auth::Token("wrong-token".into())),
        "authorization violation",
        &["wrong-token"],
    );
    refused(spec(&url), "authorization violation", &[]);
    refused(
        spec(&url.replace("nats://", "nats://wrong-token@")),
        "authorization violation",
        &["wrong-token"],
    );
}

#[test]
fn user_and_password() {
    let server = NatsServer::builder()
        .extra("authorization { user: u, password: \"p@:/s\" }")
        .start()
        .unwrap();
    let url = server.url();
    Admin::with(ConnectOptions::with_user_and_password("u".into(), "p@:/s".into()), &url).create("S", "s.>");
    accepted(with_auth(&url, password("u", "p@:/s")));
    accepted(spec(&url.replace("nats://", "nats://u:p@:/s@")));
    // The connection's own credentials take precedence over those in the address.
    accepted(with_auth(
        &url.replace("nats://", "nats://u:wrong@"),
        password("u", "p@:/s"),
    ));
    refused(
        with_auth(&url, password("u", "sesame")),
        "authorization violation",
        &["sesame"],
    );
    refused(
        spec(&url.replace("nats://", "nats://u:sesame@")),
        "authorization violation",
        &["sesame"],
    );
}

#[test]
fn an_nkey() {
    let user = nkeys::KeyPair::new_user();
    let block = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", user.public_key());
    let server = NatsServer::builder().extra(block).start().unwrap();
    let url = server.url();
    let seed = user.seed().unwrap();
    Admin::with(ConnectOptions::with_nkey(seed.clone()), &url).create("S", "s.>");
    accepted(with_auth(&url, Auth::Nkey(seed)));
    let stranger = nkeys::KeyPair::new_user().seed().unwrap();
    refused(
        with_auth(&url, Auth::Nkey(stranger.clone())),
        "authorization violation",
        &[&stranger],
    );
    refused(
        with_auth(&url, Auth::Nkey("SUnonsense".into())),
        "cannot sign",
        &["SUnonsense"],
    );
}

#[test]
fn a_credentials_file() {
    let operator = Operator::new();
    let server = NatsServer::builder().extra(&operator.config).start().unwrap();
    let url = server.url();
    let write = |name: &str, text: &str| {
        let path = server.dir().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = operator.credentials(true);
    Admin::with(ConnectOptions::with_credentials(&good).unwrap(), &url).create("S", "s.>");
    accepted(with_auth(&url, Auth::CredentialsFile(write("good.creds", &good))));
    let stranger = write("stranger.creds", &operator.credentials(false));
    refused(
        with_auth(&url, Auth::CredentialsFile(stranger)),
        "authorization violation",
        &[],
    );
    let broken = write("broken.creds", "SUsecretnonsense");
    refused(
        with_auth(&url, Auth::CredentialsFile(broken)),
        "broken.creds",
        &["SUsecretnonsense"],
    );
    refused(
        with_auth(&url, Auth::CredentialsFile("/nowhere/x.creds".into())),
        "/nowhere/x.creds",
        &[],
    );
}

#[test]
fn tls_with_a_ca_of_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::write(dir.path());
    let others = Certificates::write(&dir.path().join("others"));
    let server = NatsServer::builder()
        .extra(certificates.server_block(""))
        .start()
        .unwrap();
    let url = server.url();
    let admin = ConnectOptions::new().add_root_certificates(certificates.path("ca.pem").into());
    Admin::with(admin, &url).create("S", "s.>");
    let with_ca = |ca: String| ConnectionSpec {
        tls: Tls {
            ca_file: Some(ca),
            ..Tls::default()
        },
        ..spec(&url)
    };
    accepted(with_ca(certificates.path("ca.pem")));
    accepted(ConnectionSpec {
        servers: vec![url.replace("nats://", "tls://")],
        tls: Tls {
            required: true,
            ca_file: Some(certificates.path("ca.pem")),
            ..Tls::default()
        },
        ..spec(&url)
    });
    refused(with_ca(others.path("ca.pem")), "tls error", &[]);
    refused(spec(&url), "tls error", &[]);
    refused(with_ca("/nowhere/ca.pem".into()), "/nowhere/ca.pem", &[]);
    refused(with_ca(certificates.path("server.key")), "ca file", &[]);
}

/// A server with `handshake_first` says nothing before TLS: the reason says what to set, and that works.
#[test]
fn tls_before_the_server_has_said_anything() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::write(dir.path());
    let tls = Tls {
        ca_file: Some(certificates.path("ca.pem")),
        ..Tls::default()
    };
    let in_order = NatsServer::builder()
        .extra(certificates.server_block(""))
        .start()
        .unwrap();
    let silent = NatsServer::builder()
        .silent()
        .extra(certificates.server_block("handshake_first: true"))
        .start()
        .unwrap();
    let with = |server: &NatsServer, handshake_first| ConnectionSpec {
        handshake_first,
        tls: tls.clone(),
        connect_timeout: Duration::from_secs(1),
        ..spec(&server.url())
    };
    let mut rig = Rig::new(limits());
    rig.connect(with(&silent, false));
    rig.wait_detail("set connections.tls_handshake_first");
    rig.connect(with(&silent, true));
    rig.wait_state(LinkState::Connected);
    rig.connect(with(&in_order, true));
    assert!(
        rig.wait_state(LinkState::Failed)
            .contains("reset connections.tls_handshake_first"),
        "{:?}",
        rig.links
    );
}

#[test]
fn tls_with_a_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::write(dir.path());
    let others = Certificates::write(&dir.path().join("others"));
    let server = NatsServer::builder()
        .extra(certificates.server_block("verify: true"))
        .start()
        .unwrap();
    let url = server.url();
    let with_client = |of: Option<&Certificates>| ConnectionSpec {
        tls: Tls {
            required: true,
            ca_file: Some(certificates.path("ca.pem")),
            cert_file: of.map(|of| of.path("client.pem")),
            key_file: of.map(|of| of.path("client.key")),
        },
        ..spec(&url)
    };
    let admin = ConnectOptions::new()
        .add_root_certificates(certificates.path("ca.pem").into())
        .add_client_certificate(
            certificates.path("client.pem").into(),
            certificates.path("client.key").into(),
        );
    Admin::with(admin, &url).create("S", "s.>");
    accepted(with_client(Some(&certificates)));
    refused(with_client(Some(&others)), "tls", &[]);
    refused(with_client(None), "tls", &[]);
    let mut half = with_client(Some(&certificates));
    half.tls.key_file = None;
    refused(half, "client certificate", &[]);
}

#[test]
fn tls_required_of_a_server_without() {
    let server = NatsServer::start().unwrap();
    let tls = Tls {
        required: true,
        ..Tls::default()
    };
    refused(
        ConnectionSpec {
            tls,
            ..spec(&server.url())
        },
        "tls",
        &[],
    );
    refused(spec(&server.url().replace("nats://", "tls://")), "tls", &[]);
}

#[test]
fn addresses_that_cannot_be() {
    refused(spec("ws://u:secret@127.0.0.1:80"), "websocket", &["secret"]);
    refused(spec("http://secret@127.0.0.1:80"), "scheme", &["secret"]);
    refused(spec("nats://u:secret@127.0.0.1:port"), "invalid address", &["secret"]);
    refused(
        ConnectionSpec {
            servers: Vec::new(),
            ..spec("")
        },
        "no server address",
        &[],
    );
}

#[test]
fn a_failed_connection_comes_back_when_it_is_told_to() {
    let port = free_port().unwrap();
    let mut server = NatsServer::builder()
        .port(port)
        .extra("authorization { token: new }")
        .start()
        .unwrap();
    let mut rig = Rig::new(limits());
    rig.connect(with_auth(&server.url(), Auth::Token("old".into())));
    rig.wait_state(LinkState::Failed);
    server.rewrite("authorization { token: old }").unwrap();
    server.restart().unwrap();
    // Configuring the same connections again is enough.
    rig.connect(with_auth(&server.url(), Auth::Token("old".into())));
    rig.wait_state(LinkState::Connected);
    server.rewrite("authorization { token: new }").unwrap();
    server.restart().unwrap();
    rig.wait_state(LinkState::Failed);
    server.rewrite("authorization { token: old }").unwrap();
    server.restart().unwrap();
    assert!(rig.relay.send(Command::Reconnect("default".into())));
    rig.wait_state(LinkState::Connected);
    // So is a change.
    server.rewrite("authorization { token: other }").unwrap();
    server.restart().unwrap();
    rig.wait_state(LinkState::Failed);
    rig.connect(with_auth(&server.url(), Auth::Token("other".into())));
    rig.wait_state(LinkState::Connected);
}

#[test]
fn it_gives_up_after_so_many_attempts_until_it_is_told_to_reconnect() {
    let port = free_port().unwrap();
    let url = format!("nats://127.0.0.1:{port}");
    let mut patient = spec(&url);
    patient.max_reconnects = Some(3);
    patient.reconnect_delay = Duration::from_millis(20);
    let mut rig = Rig::new(limits());
    rig.connect(patient.clone());
    rig.publish([message(1, "s.a")]);
    let detail = rig.wait_state(LinkState::Failed);
    assert!(detail.contains("gave up after 3 attempts"), "{detail}");
    let server = NatsServer::builder().port(port).start().unwrap();
    Admin::new(&server.url()).create("S", "s.>");
    rig.connect(patient);
    rig.listen(Duration::from_millis(500));
    assert_eq!(rig.links.last().unwrap().1, LinkState::Failed);
    assert!(rig.settled.is_empty());
    assert!(rig.relay.send(Command::Reconnect("default".into())));
    rig.wait_settled(1);
    assert!(matches!(rig.outcome(1), Outcome::Stored { .. }));
}

#[test]
fn a_server_without_jetstream() {
    let server = NatsServer::builder().without_jetstream().start().unwrap();
    refused(spec(&server.url()), "jetstream is not enabled", &[]);
}

#[test]
fn an_account_that_may_not_ask_about_jetstream_may_still_publish() {
    let users = "authorization { users: [
        { user: admin, password: a }
        { user: u, password: p, permissions: { publish: \"s.>\", subscribe: \"_INBOX.>\" } }
        { user: deaf, password: p, permissions: { publish: \">\", subscribe: \"x\" } }
    ] }";
    let server = NatsServer::builder().extra(users).start().unwrap();
    let admin = ConnectOptions::with_user_and_password("admin".into(), "a".into());
    Admin::with(admin, &server.url()).create("S", "s.>");
    accepted(with_auth(&server.url(), password("u", "p")));
    refused(
        with_auth(&server.url(), password("deaf", "p")),
        "acks cannot be received",
        &[],
    );
}

/// A server that speaks just enough of the protocol to look like nats-server of this version.
fn pretend_server(version: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let info = format!(
        "INFO {{\"server_id\":\"X\",\"server_name\":\"X\",\"version\":\"{version}\",\"max_payload\":1048576,\"headers\":true}}\r\n"
    );
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(info.as_bytes());
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for _ in lines.map_while(Result::ok).filter(|line| line == "PING") {
                let _ = stream.write_all(b"PONG\r\n");
            }
        }
    });
    url
}

#[test]
fn a_server_that_is_too_old() {
    refused(spec(&pretend_server("2.9.25")), "nats-server 2.9.25 is too old", &[]);
}

#[test]
fn the_detail_names_the_server() {
    let server = NatsServer::builder().extra("server_name: berta").start().unwrap();
    let mut rig = Rig::new(limits());
    rig.connect(spec(&server.url()));
    let detail = rig.wait_state(LinkState::Connected);
    assert!(detail.starts_with("berta (nats-server 2."), "{detail}");
    assert!(detail.ends_with(&format!("at 127.0.0.1:{}", server.port())), "{detail}");
}
