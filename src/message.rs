//! The message: one row to send, as plain values. Free of PostgreSQL, so that it is tested without a server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::error::RelayError;

/// The longest accepted `Nats-Msg-Id`, in bytes.
pub const MAX_MESSAGE_ID_BYTES: usize = 255;

/// Most bytes of a body: no NATS server takes more.
pub const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

/// One row of `jetstream.outbox` on its way to JetStream. Immutable: both threads hold it by `Arc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `outbox.id`: the identity under which the relay reports the outcome.
    pub id: i64,
    /// Name of the connection (`connections.name`) it goes to.
    pub connection: Arc<str>,
    /// Subject as stored in the row; the relay puts the connection's prefix in front.
    pub subject: String,
    /// The bytes on the wire.
    pub payload: Bytes,
    /// Header pairs in order; a name may repeat.
    pub headers: Vec<(String, String)>,
    /// The `Nats-Msg-Id`.
    pub message_id: String,
    /// Ordering key: at most one message of a key is in flight.
    pub key: Option<String>,
    /// Per-message time to live (`Nats-TTL`), whole seconds.
    pub ttl_seconds: Option<u32>,
    /// Attempts that failed before this one.
    pub attempts: i32,
    /// Webhook it belongs to.
    pub webhook: Option<i32>,
    /// An earlier attempt may have been stored, though not before this time.
    pub unsure_since: Option<SystemTime>,
}

impl Message {
    /// Bytes this message counts for against `max_in_flight_bytes`: its texts, payload and a flat 256 for
    /// the structures around them.
    pub fn cost(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(k, v)| k.len() + v.len() + 48).sum();
        self.payload.len() + self.subject.len() + self.message_id.len() + headers + 256
    }
}

/// What became of one message, as the relay reports it.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// JetStream acknowledged it, or recovery found it in the stream.
    Stored {
        /// Stream that stored it.
        stream: Arc<str>,
        /// Its sequence in that stream.
        sequence: u64,
        /// The server knew the message id already.
        duplicate: bool,
        /// When the ack arrived.
        acked_at: SystemTime,
    },
    /// Failed; `error.class()` decides between a later attempt and a dead letter.
    Failed(RelayError),
    /// Not sent: it stood behind a failed message of the same key. No attempt is counted.
    HeldBack,
    /// Not settled: its connection was disabled, changed or removed while it waited. No attempt is counted;
    /// it is owed as before and may have been stored.
    Released,
}

/// One reported outcome.
#[derive(Debug, Clone)]
pub struct Settled {
    /// `outbox.id`.
    pub id: i64,
    /// What became of it.
    pub outcome: Outcome,
}

/// How to log in to a NATS server.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// No credentials.
    None,
    /// A token.
    Token(String),
    /// User and password.
    Password {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// Path of a `.creds` file readable by the server process.
    CredentialsFile(String),
    /// An nkey seed (`SU…`).
    Nkey(String),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Auth::None => "none",
            Auth::Token(_) => "token",
            Auth::Password { .. } => "password",
            Auth::CredentialsFile(_) => "credentials",
            Auth::Nkey(_) => "nkey",
        })
    }
}

/// TLS settings of a connection. Paths are read by the server process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// Refuse a server without TLS.
    pub required: bool,
    /// PEM file with the certificate authority; replaces the system's roots.
    pub ca_file: Option<String>,
    /// PEM file with the client certificate.
    pub cert_file: Option<String>,
    /// PEM file with the client certificate's key.
    pub key_file: Option<String>,
}

/// One row of `jetstream.connections`: one NATS cluster and how to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSpec {
    /// `connections.name`.
    pub name: Arc<str>,
    /// Server URLs in order of preference, already split at commas; may carry `user:password@` or `token@`.
    pub servers: Vec<String>,
    /// Credentials; take precedence over any found in a URL.
    pub auth: Auth,
    /// TLS settings.
    pub tls: Tls,
    /// Time limit for one connection attempt.
    pub connect_timeout: Duration,
    /// First delay between attempts; doubles up to 1.4 s, a longer one stays as it is.
    pub reconnect_delay: Duration,
    /// Attempts in a row before the connection is marked failed; `None` for no limit.
    pub max_reconnects: Option<u32>,
    /// Put in front of subjects that do not already begin with it, joined by a dot.
    pub subject_prefix: Option<String>,
    /// Stream that must exist: its absence is reported with the state.
    pub default_stream: Option<String>,
    /// JetStream domain whose API is asked; the server's own if there is none.
    pub domain: Option<String>,
    /// What begins the subjects of API requests, where an account imports the API of another under its own name.
    pub api_prefix: Option<String>,
    /// Begin TLS before the server has said anything.
    pub handshake_first: bool,
}

impl ConnectionSpec {
    /// What begins the subjects of requests to the JetStream API.
    pub fn api_prefix(&self) -> String {
        match (&self.api_prefix, &self.domain) {
            (Some(prefix), _) => prefix.trim_end_matches('.').to_owned(),
            (None, Some(domain)) => format!("$JS.{domain}.API"),
            (None, None) => "$JS.API".to_owned(),
        }
    }
}

/// State of a connection as `status()` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkState {
    /// Trying to connect.
    Connecting = 0,
    /// Connected and publishing.
    Connected = 1,
    /// Lost or refused for a passing reason; trying again.
    Disconnected = 2,
    /// Cannot work as configured (credentials, TLS, address); retried slowly and after a change of the row.
    Failed = 3,
    /// `connections.enabled` is false.
    Disabled = 4,
}

/// Who made a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The worker, on behalf of the row of `jetstream.streams`.
    Created,
    /// It existed already: it is used as it is.
    Found,
}

/// One row of `jetstream.streams`: a stream that should exist, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    /// `streams.id`.
    pub id: i64,
    /// Connection it lives on.
    pub connection: Arc<str>,
    /// Name of the stream.
    pub name: String,
    /// Subjects it takes.
    pub subjects: Vec<String>,
    /// `file` or `memory`.
    pub storage: String,
    /// `limits`, `interest` or `workqueue`.
    pub retention: String,
    /// `old` or `new`.
    pub discard: String,
    /// Most messages, -1 for no limit.
    pub max_messages: i64,
    /// Most messages for one subject, -1 for no limit.
    pub max_messages_per_subject: i64,
    /// Most bytes, -1 for no limit.
    pub max_bytes: i64,
    /// Oldest age; zero for no limit.
    pub max_age: Duration,
    /// Largest message in bytes, -1 for no limit.
    pub max_message_size: i32,
    /// Number of copies in a cluster, 1 to 5.
    pub replicas: usize,
    /// How long the server remembers message ids.
    pub duplicate_window: Duration,
    /// Accept `Nats-TTL` (server 2.11).
    pub allow_message_ttl: bool,
    /// Accept atomic batches (server 2.12).
    pub allow_atomic: bool,
    /// Free text.
    pub description: Option<String>,
    /// A stream of another name that takes the subjects will do.
    pub accept_other: bool,
    /// Who made it, as far as is known.
    pub origin: Option<Origin>,
    /// What the server was given last, in its own names.
    pub applied: Option<serde_json::Value>,
    /// Tells this row from all others: written into the stream that is made for it.
    pub mark: String,
}

/// What the relay found out about a row of `jetstream.streams`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamSynced {
    /// `streams.id`.
    pub id: i64,
    /// Why the server does not have it as asked; none if it does.
    pub error: Option<String>,
    /// Who made it, if that is known now.
    pub origin: Option<Origin>,
    /// What the server was given, if it was.
    pub applied: Option<serde_json::Value>,
}

/// Why headers or a message id are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not a JSON object.
    #[error("headers are not a JSON object but {0}")]
    NotAnObject(String),
    /// A name that NATS cannot carry.
    #[error("header name {0:?} is not valid")]
    Name(String),
    /// A value that NATS cannot carry.
    #[error("value of header \"{0}\" contains a line break or NUL")]
    Value(String),
    /// A value that is not a string, number, boolean, or an array of these.
    #[error("value of header \"{0}\" is {1}")]
    Kind(String, String),
    /// A header that belongs to the outbox.
    #[error("header \"{0}\" cannot be given among the headers")]
    Reserved(String),
    /// Empty message id.
    #[error("message id is empty")]
    MessageIdEmpty,
    /// Message id too long.
    #[error("message id of {0} bytes is too long: \"{1}…\"")]
    MessageIdLength(usize, String),
    /// Message id with a line break or NUL.
    #[error("message id {0:?} contains a control character")]
    MessageIdCharacter(String),
    /// Message id that begins or ends with white space.
    #[error("message id \"{0}\" begins or ends with white space")]
    MessageIdSpace(String),
}

impl HeaderError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            HeaderError::NotAnObject(_) => "Write an object such as {\"trace-id\": \"42\"}.",
            HeaderError::Name(_) => "Names consist of printable ASCII without space and colon.",
            HeaderError::Value(_) => {
                "Header values hold no CR, LF and NUL; encode them, or put the text into the payload."
            }
            HeaderError::Kind(..) => "Values are strings, numbers, booleans, or arrays of these.",
            HeaderError::Reserved(_) => "Use the column message_id for the Nats-Msg-Id.",
            HeaderError::MessageIdEmpty => "Leave message_id out to get a random one.",
            HeaderError::MessageIdLength(..) => "A message id has at most 255 bytes.",
            HeaderError::MessageIdCharacter(_) => "A message id holds no control characters.",
            HeaderError::MessageIdSpace(_) => {
                "NATS removes white space around a header's value, so that two ids would become one. Use trim(), or to_char() with FM."
            }
        }
    }
}

/// Reads headers as `outbox.headers` holds them, from their JSON text: an object of names to a string, number or boolean,
/// or an array of these. `null` has no headers. Numbers keep every digit they are written with.
pub fn headers(json: &str) -> Result<Vec<(String, String)>, HeaderError> {
    let json = json.trim();
    if json == "null" {
        return Ok(Vec::new());
    }
    // Values stay text, so that neither their size nor how deep they are nested matters.
    let object: BTreeMap<String, &RawValue> =
        serde_json::from_str(json).map_err(|_| HeaderError::NotAnObject(brief(json)))?;
    let mut pairs = Vec::with_capacity(object.len());
    for (name, value) in object {
        if name.is_empty() || !name.bytes().all(|b| matches!(b, b'!'..=b'~') && b != b':') {
            return Err(HeaderError::Name(name));
        }
        if name.eq_ignore_ascii_case("Nats-Msg-Id") {
            return Err(HeaderError::Reserved(name));
        }
        let value = value.get();
        let values: Option<Vec<&RawValue>> = value
            .starts_with('[')
            .then(|| serde_json::from_str(value).ok())
            .flatten();
        match values {
            Some(values) => {
                for value in values {
                    pairs.push((name.clone(), scalar(&name, value.get())?));
                }
            }
            None => {
                let value = scalar(&name, value)?;
                pairs.push((name, value));
            }
        }
    }
    Ok(pairs)
}

fn scalar(name: &str, json: &str) -> Result<String, HeaderError> {
    let text = match json.as_bytes().first() {
        Some(b'"') => serde_json::from_str(json).ok(),
        Some(b'-' | b'0'..=b'9' | b't' | b'f') => Some(json.to_owned()),
        _ => None,
    };
    let text = text.ok_or_else(|| HeaderError::Kind(name.into(), brief(json)))?;
    if text.contains(['\r', '\n', '\0']) {
        return Err(HeaderError::Value(name.into()));
    }
    Ok(text)
}

fn brief(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Adds a trace context as the header `traceparent`, unless there is one. A value that is none is left out, as its
/// specification demands (W3C Trace Context, level 1).
pub fn add_traceparent(headers: &mut Vec<(String, String)>, traceparent: Option<String>) {
    const NAME: &str = "traceparent";
    if let Some(value) = traceparent.filter(|value| is_traceparent(value))
        && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(NAME))
    {
        headers.push((NAME.to_owned(), value));
    }
}

/// Version, trace id, parent id and flags in lower-case hexadecimal; neither id all zeros.
fn is_traceparent(value: &str) -> bool {
    let parts: Vec<&str> = value.split('-').collect();
    let hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    parts.iter().map(|part| part.len()).eq([2, 32, 16, 2])
        && parts.iter().all(|part| hex(part))
        && parts[0] != "ff"
        && !parts[1..3].iter().any(|id| id.bytes().all(|b| b == b'0'))
}

/// Checks a `Nats-Msg-Id`: 1 to [`MAX_MESSAGE_ID_BYTES`] bytes without control characters, and without white space at
/// its ends, which servers and clients remove each in its own way: such an id is not what comes back from the stream.
pub fn check_message_id(id: &str) -> Result<(), HeaderError> {
    if id.is_empty() {
        return Err(HeaderError::MessageIdEmpty);
    }
    if id.len() > MAX_MESSAGE_ID_BYTES {
        return Err(HeaderError::MessageIdLength(id.len(), id.chars().take(40).collect()));
    }
    if id.bytes().any(|b| b.is_ascii_control()) {
        return Err(HeaderError::MessageIdCharacter(id.into()));
    }
    if id.trim() != id {
        return Err(HeaderError::MessageIdSpace(id.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_headers_of_every_kind() {
        let read = headers(r#"{"a": "x", "b": 5, "c": true, "d": ["1", 2]}"#).unwrap();
        let expected = [("a", "x"), ("b", "5"), ("c", "true"), ("d", "1"), ("d", "2")];
        assert_eq!(read, expected.map(|(k, v)| (k.to_string(), v.to_string())));
        assert_eq!(headers("null"), Ok(vec![]));
        assert_eq!(headers("{}"), Ok(vec![]));
    }

    #[test]
    fn numbers_keep_every_digit() {
        let huge = format!("1{}", "0".repeat(400));
        for number in [
            "12345678901234567890123",
            "0.1234567890123456789",
            "18446744073709551616",
            "-9223372036854775809",
            "1.10",
            "-0.0",
            "100000000000000000000",
            &huge,
        ] {
            for json in [format!("{{\"a\": {number}}}"), format!("{{\"a\": [{number}]}}")] {
                assert_eq!(headers(&json), Ok(vec![("a".into(), number.into())]), "{json}");
            }
        }
    }

    #[test]
    fn refuses_headers_with_the_reason() {
        assert!(matches!(headers("[1]"), Err(HeaderError::NotAnObject(_))));
        let long = format!("{:?}", "x".repeat(100));
        assert!(matches!(headers(&long), Err(HeaderError::NotAnObject(text)) if text.len() < 60));
        assert!(matches!(headers(r#"{"": "x"}"#), Err(HeaderError::Name(_))));
        assert!(matches!(headers(r#"{"a b": "x"}"#), Err(HeaderError::Name(_))));
        assert!(matches!(headers(r#"{"a:b": "x"}"#), Err(HeaderError::Name(_))));
        assert!(matches!(headers(r#"{"a": "x\r\ny"}"#), Err(HeaderError::Value(_))));
        assert!(matches!(
            headers(r#"{"a": ["x", "\u0000"]}"#),
            Err(HeaderError::Value(_))
        ));
        assert!(matches!(headers(r#"{"a": {"b": 1}}"#), Err(HeaderError::Kind(..))));
        assert!(matches!(headers(r#"{"a": [[1]]}"#), Err(HeaderError::Kind(..))));
        assert!(matches!(headers(r#"{"a": null}"#), Err(HeaderError::Kind(..))));
        assert!(matches!(
            headers(r#"{"nats-msg-id": "x"}"#),
            Err(HeaderError::Reserved(_))
        ));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let is_kind = |json: &str| matches!(headers(json), Err(HeaderError::Kind(_, text)) if text.len() < 60);
        assert!(is_kind(&format!("{{\"a\": {deep}}}")));
        assert!(matches!(headers(&deep), Err(HeaderError::NotAnObject(_))));
    }

    #[test]
    fn adds_a_trace_context_once_and_only_a_valid_one() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let added = |headers: &[(&str, &str)], value: Option<&str>| {
            let mut headers = headers.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            add_traceparent(&mut headers, value.map(str::to_owned));
            headers
        };
        let pair = |k: &str, v: &str| (k.to_string(), v.to_string());
        assert_eq!(
            added(&[("a", "b")], Some(valid)),
            [pair("a", "b"), pair("traceparent", valid)]
        );
        assert_eq!(added(&[("Traceparent", "x")], Some(valid)), [pair("Traceparent", "x")]);
        assert_eq!(added(&[], None), []);
        for bad in [
            "",
            "x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0\n",
        ] {
            assert_eq!(added(&[], Some(bad)), [], "{bad:?}");
        }
    }

    #[test]
    fn checks_message_ids() {
        assert_eq!(check_message_id("order-1"), Ok(()));
        assert_eq!(check_message_id(""), Err(HeaderError::MessageIdEmpty));
        assert!(matches!(
            check_message_id(&"é".repeat(128)),
            Err(HeaderError::MessageIdLength(256, _))
        ));
        assert!(matches!(
            check_message_id("a\nb"),
            Err(HeaderError::MessageIdCharacter(_))
        ));
        for id in [" a", "a ", " ", "\u{a0}a", "a\u{2003}", "\u{85}a", "a\u{3000}"] {
            assert_eq!(
                check_message_id(id),
                Err(HeaderError::MessageIdSpace(id.into())),
                "{id:?}"
            );
        }
        for id in [
            "a b",
            "a\u{a0}b",
            "a: b",
            ":",
            "\"a\"",
            "\u{200b}a",
            "Nats-Msg-Id: a",
            "%20a",
        ] {
            assert_eq!(check_message_id(id), Ok(()), "{id:?}");
        }
    }
}
