//! The relay against a server that says what no server should, and against programs that answer in JetStream's place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod relay_support;

use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use lab::error::RelayError;
use lab::hostile::{Ack, Act, Hostile, NO_ACKS, endless_list, greeting};
use lab::message::{LinkState, Message, Outcome};
use lab::nats::NatsServer;
use lab::relay::Limits;
use relay_support::{Admin, Rig, limits, message, spec};

/// Shorter than an ack takes to be given up.
const WINDOW: Duration = Duration::from_millis(300);

fn quick_acks() -> Limits {
    Limits {
        ack_timeout: Duration::from_millis(700),
        ..limits()
    }
}

fn forgetful(admin: &Admin) {
    admin.create_with("S", "s.>", |config| config.duplicate_window = WINDOW);
}

/// The message as a worker publishes it again after its failure.
fn again(id: i64, subject: &str, outcome: &Outcome) -> Message {
    let since = SystemTime::now() - Duration::from_secs(10);
    let unsure = matches!(outcome, Outcome::Failed(error) if error.is_unsure());
    Message {
        unsure_since: unsure.then_some(since),
        ..message(id, subject)
    }
}

/// A program that answers each message of a subject, before JetStream can; it runs as long as the test.
fn answers(url: &str, subject: &'static str, text: &'static str) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let url = url.to_owned();
    std::thread::spawn(move || {
        let other = Admin::new(&url);
        other.runtime.block_on(async {
            let mut messages = other.client.subscribe(subject).await.unwrap();
            other.client.flush().await.unwrap();
            ready.send(()).unwrap();
            while let Some(message) = messages.next().await {
                if let Some(reply) = message.reply {
                    other.client.publish(reply, text.into()).await.unwrap();
                }
            }
        });
    });
    is_ready.recv().unwrap();
}

#[test]
fn what_is_no_acknowledgement_says_nothing_and_the_real_one_is_waited_for() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    forgetful(&admin);
    let hostile = Hostile::start(server.port(), Act::Honest).unwrap();
    let mut rig = Rig::connected(limits(), spec(&hostile.url()));
    for (id, text) in (1..).zip(NO_ACKS) {
        hostile.set(Act::Acks(Ack::Before(text.as_bytes().to_vec())));
        rig.publish_and_wait([message(id, "s.a")]);
        let outcome = rig.outcome(id);
        assert!(matches!(outcome, Outcome::Stored { .. }), "{text:?}: {outcome:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(admin.count("S"), NO_ACKS.len() as u64);
}

#[test]
fn a_message_that_only_others_answer_is_in_doubt_and_stored_once() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    forgetful(&admin);
    let instead = |text: &str| Act::Acks(Ack::Instead(text.as_bytes().to_vec()));
    let hostile = Hostile::start(server.port(), Act::Honest).unwrap();
    let mut rig = Rig::connected(quick_acks(), spec(&hostile.url()));
    let chosen = [
        "+OK thanks",
        "{\"error\":\"no\"}",
        "{\"stream\":\"S\",\"seq\":18446744073709551615}",
    ];
    for (id, text) in (1..).zip(chosen) {
        hostile.set(instead(text));
        rig.wait_state(LinkState::Connected);
        rig.publish_and_wait([message(id, "s.a")]);
        let outcome = rig.outcome(id);
        match &outcome {
            // The connection may have been closed with the message on the wire; then it was found.
            Outcome::Stored { duplicate: true, .. } => continue,
            Outcome::Failed(RelayError::AckTimeout { .. }) => {}
            other => panic!("{text}: {other:?}"),
        }
        // What others say is no reason.
        let Outcome::Failed(error) = &outcome else { continue };
        assert!(!error.to_string().contains("thanks"), "{error}");
        std::thread::sleep(WINDOW);
        rig.clear();
        rig.publish_and_wait([again(id, "s.a", &outcome)]);
        assert!(
            matches!(rig.outcome(id), Outcome::Stored { duplicate: true, .. }),
            "{:?}",
            rig.outcome(id)
        );
    }
    assert_eq!(admin.count("S"), chosen.len() as u64);
}

#[test]
fn a_subscriber_on_the_subject_is_not_the_stream() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    forgetful(&admin);
    answers(&server.url(), "*.thanks", "+OK thanks");
    // A stream there is, that does not take the subject, and one there is not.
    admin.create("OTHER", "o.>");
    answers(&server.url(), "*.other", "{\"stream\":\"OTHER\",\"seq\":7}");
    answers(&server.url(), "*.none", "{\"stream\":\"NONE\",\"seq\":7}");
    let mut rig = Rig::connected(quick_acks(), spec(&server.url()));
    rig.publish_and_wait([message(1, "s.thanks"), message(2, "s.other"), message(3, "s.none")]);
    for id in 1..=3 {
        match rig.outcome(id) {
            Outcome::Stored { stream, sequence, .. } => {
                assert!(&*stream == "S" && sequence <= 3, "{stream} {sequence}")
            }
            other => panic!("{id}: {other:?}"),
        }
    }
    // Where no stream takes the subject, that is the reason.
    rig.clear();
    rig.publish_and_wait([message(4, "t.thanks"), message(5, "t.other")]);
    for id in [4, 5] {
        let outcome = rig.outcome(id);
        assert!(
            matches!(&outcome, Outcome::Failed(RelayError::NoStream { .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(admin.count("S"), 3);
}

/// An account may map subjects: the stream that has the message does not take the one it was published to.
#[test]
fn a_mapped_subject_is_acknowledged_by_the_stream_that_has_the_message() {
    let server = NatsServer::builder()
        .extra("mappings = { \"s.from\": \"s.to\" }")
        .start()
        .unwrap();
    let admin = Admin::new(&server.url());
    admin.create("S", "s.to");
    let mut rig = Rig::connected(quick_acks(), spec(&server.url()));
    rig.publish_and_wait((1..=20).map(|id| message(id, "s.from")));
    (1..=20).for_each(|id| {
        assert!(
            matches!(rig.outcome(id), Outcome::Stored { .. }),
            "{:?}",
            rig.outcome(id)
        )
    });
    assert_eq!(admin.count("S"), 20);
}

#[test]
fn a_list_without_end_is_given_up_and_the_message_looked_up_again_later() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    forgetful(&admin);
    let hostile = Hostile::start(server.port(), Act::List(endless_list())).unwrap();
    let mut rig = Rig::connected(limits(), spec(&hostile.url()));
    let unsure = || Message {
        unsure_since: Some(SystemTime::now()),
        ..message(1, "s.a")
    };
    rig.publish_and_wait([unsure()]);
    match rig.outcome(1) {
        Outcome::Failed(RelayError::NotLookedUp(reason)) => assert!(reason.contains("no end"), "{reason}"),
        other => panic!("{other:?}"),
    }
    hostile.set(Act::Honest);
    rig.clear();
    rig.publish_and_wait([unsure()]);
    assert!(matches!(rig.outcome(1), Outcome::Stored { .. }));
    assert_eq!(admin.count("S"), 1);
}

/// Memory of this process, MB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn what_a_server_sends_without_end_is_not_read_without_end() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    forgetful(&admin);
    let hostile = Hostile::start(server.port(), Act::Honest).unwrap();
    let mut rig = Rig::connected(quick_acks(), spec(&hostile.url()));
    let before = resident();
    let line = |text: &str| text.as_bytes().to_vec();
    for (id, act) in (1..).zip([
        Act::Endless(line("INFO {\"server_name\":\""), line("x")),
        Act::Endless(line("x"), line("x")),
        Act::Endless(greeting(""), line("x")),
        Act::Flood(line("MSG _INBOX.x 1 3221225472\r\n"), line("x")),
        Act::Flood(line("HMSG _INBOX.x 1 12 3221225472\r\n"), line("x")),
        Act::Flood(line("MSG _INBOX.x 1 18446744073709551615\r\n"), line("x")),
        Act::Flood(line("MSG "), line("x")),
        Act::Flood(line("-ERR '"), line("x")),
        Act::Flood(line("INFO {\"a\":\""), line("x")),
    ]) {
        let said = hostile.said();
        hostile.set(act.clone());
        rig.publish([message(id, "s.a")]);
        rig.listen(Duration::from_millis(1500));
        let said = (hostile.said() - said) >> 20;
        let grown = resident().saturating_sub(before);
        assert!(grown < 60, "{act:?}: {said} MB were said, {grown} MB are held");
        hostile.set(Act::Honest);
        rig.wait_settled(1);
        assert!(
            matches!(rig.outcome(id), Outcome::Stored { .. }),
            "{act:?}: {:?}",
            rig.outcome(id)
        );
        rig.clear();
    }
}

#[test]
fn a_server_cut_off_at_any_byte_neither_ends_the_relay_nor_loses_a_message() {
    let server = NatsServer::start().unwrap();
    let admin = Admin::new(&server.url());
    forgetful(&admin);
    let hostile = Hostile::start(server.port(), Act::Honest).unwrap();
    let mut quick = spec(&hostile.url());
    quick.reconnect_delay = Duration::from_millis(1);
    let mut rig = Rig::connected(quick_acks(), quick);
    let whole = greeting("");
    let odd = [
        "-ERR\r\n",
        "-ERR '\r\n",
        "INFO \r\n",
        "INFO {}\r\n",
        "MSG \r\n",
        "+OK\r\n",
        "PING\r\n",
        "\r\n",
    ];
    let cut = (0..whole.len()).step_by(7).map(|at| whole[..at].to_vec());
    for bytes in cut.chain(odd.map(|text| text.as_bytes().to_vec())) {
        let accepted = hostile.accepted();
        hostile.set(Act::Says(bytes));
        while hostile.accepted() == accepted {
            rig.listen(Duration::from_millis(2));
        }
    }
    for (id, bytes) in (1..).zip((0..2500).step_by(120)) {
        hostile.set(Act::Cut(bytes));
        rig.publish([message(id, "s.a")]);
        rig.listen(Duration::from_millis(60));
    }
    hostile.set(Act::Honest);
    rig.until("all outcomes", |rig| rig.settled.len() == 21);
    assert!(
        rig.settled
            .iter()
            .all(|one| matches!(one.outcome, Outcome::Stored { .. }))
    );
    assert_eq!(admin.count("S"), 21);
    rig.shut_down(Duration::from_secs(1));
}
