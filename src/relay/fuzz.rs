//! Random messages for the wire, and random answers of a server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use async_nats::StatusCode;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::answer::{Answer, answer as read_answer};
use super::wire;
use crate::message::{self, Message, check_message_id};
use crate::subject;

/// The lab compiles this file too; its turn is a short one.
fn cases(cases: u32) -> ProptestConfig {
    let share = if env!("CARGO_PKG_NAME") == "lab" { 50 } else { 1 };
    ProptestConfig {
        cases: cases / share,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Text that may hold anything that breaks a line, a header or a subject.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z]{1,5}", 2 => "[a-z.]{0,6}", 2 => "[a:. \r\n\t\u{0}é*>]{0,4}", 1 => any::<String>()]
}

/// A message as no check has seen it.
fn messages() -> impl Strategy<Value = Message> {
    let headers = prop::collection::vec((text(), text()), 0..3);
    let payload = prop::collection::vec(any::<u8>(), 0..20);
    (text(), headers, text(), payload, proptest::option::of(any::<u32>())).prop_map(
        |(subject, headers, message_id, payload, ttl_seconds)| Message {
            id: 1,
            connection: Arc::from("default"),
            subject,
            payload: payload.into(),
            headers,
            message_id,
            key: None,
            ttl_seconds,
            attempts: 0,
            webhook: None,
            unsure_since: None,
        },
    )
}

/// The frame that the headers become, written by the rules of the protocol.
fn frame(headers: &async_nats::HeaderMap) -> String {
    let mut frame = "NATS/1.0\r\n".to_owned();
    for (name, values) in headers.iter() {
        for value in values {
            frame += &format!("{name}: {}\r\n", value.as_str());
        }
    }
    frame + "\r\n"
}

fn reply(payload: Vec<u8>, status: Option<u16>) -> async_nats::Message {
    async_nats::Message {
        subject: "_INBOX.x.1".into(),
        reply: None,
        length: payload.len(),
        payload: Bytes::from(payload),
        headers: None,
        status: status.map(|status| StatusCode::from_u16(status).unwrap()),
        description: None,
    }
}

/// JSON that looks like an answer, with fields left out, of other kinds, or unknown.
fn answers() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "[a-z\"\\\\é]{0,5}".prop_map(Value::from),
        Just(Value::Null),
        Just(json!({"code": 400, "err_code": 10077, "description": "maximum messages exceeded"})),
        Just(json!({"code": -1})),
        Just(json!([1, {}])),
    ];
    let name = prop_oneof![
        Just("stream".to_owned()),
        Just("seq".to_owned()),
        Just("duplicate".to_owned()),
        Just("error".to_owned()),
        "[a-z]{1,4}",
    ];
    prop::collection::vec((name, scalar), 0..5).prop_map(|pairs| Value::Object(pairs.into_iter().collect()))
}

proptest! {
    #![proptest_config(cases(30_000))]

    #[test]
    fn what_is_encoded_is_one_message_and_no_more(message in messages(), prefix in proptest::option::of(text())) {
        let Ok(wire) = wire::encode(&message, prefix.as_deref(), usize::MAX) else { return Ok(()) };
        prop_assert!(!wire.subject.contains([' ', '\r', '\n', '\t']), "{:?}", wire.subject);
        prop_assert!(wire.subject.split('.').all(|token| !["", "*", ">"].contains(&token)));
        let frame = frame(&wire.headers);
        let lines: Vec<&str> = frame.strip_suffix("\r\n\r\n").unwrap_or("").split("\r\n").skip(1).collect();
        let expected = message.headers.len() + usize::from(message.ttl_seconds.is_some());
        prop_assert!(lines.len() <= expected + 1, "{:?}", frame);
        prop_assert!(lines.iter().all(|line| line.contains(": ") && !line.contains(['\r', '\n', '\0'])), "{:?}", frame);
        let size = if wire.headers.is_empty() { 0 } else { frame.len() } + message.payload.len();
        prop_assert!(wire::encode(&message, prefix.as_deref(), size).is_ok(), "{} bytes are too many", size);
        prop_assert!(size == 0 || wire::encode(&message, prefix.as_deref(), size - 1).is_err());
    }

    /// The checks of the SQL surface let nothing through that the wire refuses.
    #[test]
    fn what_may_be_inserted_can_be_sent(
        message in messages(),
        subject in "[a-z$~]{1,3}(\\.[!-~]{1,3}){0,3}",
        message_id in "[^\\x00-\\x1f\\x7f]{1,60}",
        headers in prop::collection::vec((text(), text()), 0..3),
    ) {
        let object: serde_json::Map<String, Value> = headers.into_iter().map(|(name, value)| (name, value.into())).collect();
        let Ok(headers) = message::headers(&Value::Object(object).to_string()) else { return Ok(()) };
        if subject::check(&subject).is_ok() && check_message_id(&message_id).is_ok() {
            let message = Message { headers, subject, message_id, ..message };
            prop_assert!(wire::encode(&message, None, usize::MAX).is_ok());
        }
    }

    #[test]
    fn an_answer_says_stored_only_with_a_sequence_and_without_an_error(answer in answers(), status in proptest::option::of(200..600u16)) {
        let reply = reply(answer.to_string().into_bytes(), status);
        match read_answer(&reply) {
            Answer::Stored { sequence, duplicate, stream, .. } => {
                prop_assert_ne!(status, Some(503));
                prop_assert!(answer.get("error").is_none_or(Value::is_null));
                prop_assert_eq!(answer["seq"].as_u64(), Some(sequence));
                prop_assert!(sequence > 0);
                prop_assert_eq!(answer["duplicate"].as_bool().unwrap_or(false), duplicate);
                prop_assert_eq!(answer["stream"].as_str().unwrap_or(""), &*stream);
            }
            Answer::Refused { .. } => prop_assert!(answer["error"].is_object()),
            Answer::NoStream => prop_assert_eq!(status, Some(503)),
            Answer::Foreign => {}
        }
    }

    #[test]
    fn bytes_of_any_kind_are_no_acknowledgement(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let reply = reply(bytes, None);
        let stored = matches!(read_answer(&reply), Answer::Stored { .. });
        prop_assert!(!stored);
    }

    #[test]
    fn a_torn_acknowledgement_is_none(cut in 0..46usize, seq in 1..u64::MAX) {
        let whole = format!("{{\"stream\":\"ORDERS\",\"seq\":{seq},\"duplicate\":true}}");
        let cut = cut.min(whole.len() - 1);
        let torn = reply(whole.into_bytes()[..cut].to_vec(), None);
        prop_assert_eq!(read_answer(&torn), Answer::Foreign);
    }

    #[test]
    fn the_subject_of_a_denial_is_read_as_the_server_quotes_it(subject in "[a-z.\"\\\\]{1,8}", other in any::<String>()) {
        let quoted = subject.replace('\\', "\\\\").replace('"', "\\\"");
        let said = format!("Permissions Violation for Publish to \"{quoted}\"");
        prop_assert_eq!(wire::denied(&said, "Publish"), Some(subject));
        let _ = wire::denied(&other, "Publish");
        let _ = wire::denied(&format!("Permissions Violation for Publish to \"{other}"), "Publish");
    }
}
