//! Errors as the code words them: why an insert is refused, and why a message was not delivered.

use serde_json::json;

use crate::error::{Class, RelayError, Unmade};
use crate::{message, subject};

/// Reasons for refusing an insert into the outbox: the error and its hint.
pub(super) fn refusals() -> Vec<(String, &'static str)> {
    let long = "x".repeat(300);
    let subjects = ["", "orders..new", "orders.*", "orders new", "$JS.API", &long];
    let subjects = subjects.map(|bad| subject::check(bad).err().map(|error| (error.to_string(), error.hint())));
    let headers = [
        json!("x"),
        json!({"a b": "x"}),
        json!({"a": "x\ny"}),
        json!({"a": {"b": 1}}),
        json!({"Nats-Msg-Id": "x"}),
    ];
    let headers = headers.map(|bad| message::headers(&bad.to_string()).err());
    let ids = ["", &long, "a\nb", " 42"].map(|bad| message::check_message_id(bad).err());
    let others = headers.into_iter().chain(ids).flatten();
    let others = others.map(|error| (error.to_string(), error.hint()));
    subjects.into_iter().flatten().chain(others).collect()
}

/// Reasons for not delivering a message: the text in `last_error` and `dead_letters.reason`, what happens next, and what
/// to do.
pub(super) fn reasons() -> Vec<(String, &'static str, &'static str)> {
    let subject = || "orders.new".to_owned();
    let examples = [
        RelayError::AckTimeout {
            subject: subject(),
            millis: 5000,
        },
        RelayError::NoStream {
            subject: subject(),
            unmade: None,
        },
        RelayError::NoStream {
            subject: subject(),
            unmade: Some(Unmade {
                stream: "ORDERS".into(),
                reason: "insufficient storage resources available (error 10047)".into(),
            }),
        },
        RelayError::Denied {
            subject: subject(),
            detail: "Permissions Violation".into(),
            maybe_stored: false,
        },
        RelayError::Refused {
            code: 503,
            err_code: 10077,
            description: "maximum messages exceeded".into(),
        },
        RelayError::Refused {
            code: 400,
            err_code: 10166,
            description: "per-message TTL is disabled".into(),
        },
        RelayError::TooLargeForServer {
            size: 2_000_000,
            limit: 1_048_576,
        },
        RelayError::TooLargeForStream {
            size: 2000,
            limit: 1024,
            stream: "ORDERS".into(),
        },
        RelayError::NotLookedUp("permissions violation".into()),
        RelayError::Unsendable("invalid subject \"…\"".into()),
        RelayError::Panicked("index out of bounds".into()),
        RelayError::Connection("authorization violation".into()),
    ];
    let row = |error: RelayError| (error.to_string(), then(error.class()), advice(&error));
    examples.into_iter().map(row).collect()
}

fn then(class: Class) -> &'static str {
    match class {
        Class::Transient => "tried again with backoff",
        Class::PermanentForMessage => "a dead letter at once",
        Class::PermanentForConnection => "the connection is `failed`, its messages wait",
    }
}

/// The match is exhaustive, so a new kind of failure does not compile without advice.
fn advice(error: &RelayError) -> &'static str {
    match error {
        RelayError::AckTimeout { .. } => {
            "The server is slow, or the account may not publish or not receive acknowledgements: look at its log"
        }
        RelayError::NoStream { unmade: Some(_), .. } => {
            "Change what is asked of the stream in `jetstream.streams`, or the server's limits"
        }
        RelayError::NoStream { unmade: None, .. } => {
            "Ask for a stream that takes the subject: `jetstream.create_stream`"
        }
        RelayError::Denied { .. } => "Permit the account to publish to the subject",
        RelayError::Refused { .. } if error.class() == Class::PermanentForMessage => {
            "Change the message or the stream, then `redrive`"
        }
        RelayError::Refused { .. } => {
            "A full stream (`discard => 'new'`), or JetStream is not available: the server says which"
        }
        RelayError::TooLargeForServer { .. } => {
            "Make the message smaller, or raise `max_payload` of the server, then `redrive`"
        }
        RelayError::TooLargeForStream { .. } => {
            "Make the message smaller, or raise `streams.max_message_size`, then `redrive`"
        }
        RelayError::NotLookedUp(_) => {
            "Permit the account to read the stream, see [guarantees](guarantees.md#3-once-in-the-stream)"
        }
        RelayError::Unsendable(_) => {
            "With the connection's `subject_prefix` in front, the subject is not one that can be published to"
        }
        RelayError::Panicked(_) => {
            "A defect of the extension: report it with this text; other messages are not affected"
        }
        RelayError::Connection(_) => "Mend address, credentials or TLS in `jetstream.connections`",
    }
}

/// The SQLSTATE of a condition name. Only conditions that are raised have an entry. Errors of pg_jetstream have no
/// condition name.
pub(super) fn sqlstate(condition: &str) -> Option<&str> {
    if condition.starts_with("PJ") {
        return Some(condition);
    }
    let known = [
        ("check_violation", "23514"),
        ("dependent_objects_still_exist", "2BP01"),
        ("duplicate_object", "42710"),
        ("feature_not_supported", "0A000"),
        ("foreign_key_violation", "23503"),
        ("insufficient_privilege", "42501"),
        ("invalid_parameter_value", "22023"),
        ("invalid_schema_name", "3F000"),
        ("lock_not_available", "55P03"),
        ("no_data_found", "02000"),
        ("not_null_violation", "23502"),
        ("null_value_not_allowed", "22004"),
        ("object_in_use", "55006"),
        ("object_not_in_prerequisite_state", "55000"),
        ("raise_exception", "P0001"),
        ("undefined_column", "42703"),
        ("undefined_object", "42704"),
        ("unique_violation", "23505"),
        ("wrong_object_type", "42809"),
    ];
    known.iter().find(|(name, _)| *name == condition).map(|(_, code)| *code)
}

#[test]
fn every_kind_of_failure_has_a_row() {
    assert_eq!(refusals().len(), 15);
    let classes: Vec<_> = reasons().into_iter().map(|(_, then, _)| then).collect();
    assert_eq!(classes.len(), 12);
    assert!(classes.contains(&"a dead letter at once"));
}
