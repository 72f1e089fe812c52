//! Messages as they go over the wire.

use std::borrow::Cow;
use std::str::FromStr;

use async_nats::header::{NATS_MESSAGE_ID, NATS_MESSAGE_TTL};
use async_nats::{HeaderMap, HeaderName, HeaderValue};

use crate::error::RelayError;
use crate::message::Message;

/// Bytes of `NATS/1.0\r\n` and of the empty line that ends the headers.
const HEADER_FRAME: usize = 12;

/// A message ready to be published.
pub(super) struct Wire {
    /// Subject with the prefix.
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
}

/// The subject on the wire: with the prefix in front, unless it is there already.
pub(super) fn subject<'a>(prefix: Option<&str>, subject: &'a str) -> Cow<'a, str> {
    match prefix {
        Some(prefix) if !prefix.is_empty() && !is_below(prefix, subject) => Cow::Owned(format!("{prefix}.{subject}")),
        _ => Cow::Borrowed(subject),
    }
}

fn is_below(prefix: &str, subject: &str) -> bool {
    subject
        .strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Subject and headers as they go on the wire.
///
/// Errors: a subject or header that would break the protocol; more than `max_payload` bytes.
pub(super) fn encode(message: &Message, prefix: Option<&str>, max_payload: usize) -> Result<Wire, RelayError> {
    let subject = subject(prefix, &message.subject).into_owned();
    if !publishable(&subject) {
        return Err(RelayError::Unsendable(format!("invalid subject {subject:?}")));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &message.headers {
        headers.append(header_name(name)?, header_value(name, value)?);
    }
    if let Some(seconds) = message.ttl_seconds {
        headers.insert(NATS_MESSAGE_TTL, header_value("Nats-TTL", &format!("{seconds}s"))?);
    }
    if !message.message_id.is_empty() {
        headers.insert(NATS_MESSAGE_ID, header_value("Nats-Msg-Id", &message.message_id)?);
    }
    let size = header_bytes(&headers) + message.payload.len();
    match size > max_payload {
        true => Err(RelayError::TooLargeForServer {
            size,
            limit: max_payload,
        }),
        false => Ok(Wire { subject, headers }),
    }
}

/// Bytes of headers and payload, as the server counts them.
pub(super) fn size(message: &Message) -> usize {
    encode(message, None, usize::MAX).map_or(0, |wire| header_bytes(&wire.headers)) + message.payload.len()
}

fn header_bytes(headers: &HeaderMap) -> usize {
    if headers.is_empty() {
        return 0;
    }
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| name.len() + value.as_str().len() + 4)
    });
    HEADER_FRAME + lines.sum::<usize>()
}

fn header_name(name: &str) -> Result<HeaderName, RelayError> {
    match HeaderName::from_str(name) {
        Ok(parsed) if !name.is_empty() => Ok(parsed),
        _ => Err(RelayError::Unsendable(format!("invalid header name {name:?}"))),
    }
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, RelayError> {
    match HeaderValue::from_str(value) {
        Ok(parsed) if !value.contains('\0') => Ok(parsed),
        _ => Err(RelayError::Unsendable(format!("invalid value of header {name:?}"))),
    }
}

/// Whether a message may be published to the subject: no empty token, no wildcard, nothing that breaks a line.
fn publishable(subject: &str) -> bool {
    !subject.bytes().any(|byte| byte <= b' ' || byte == 0x7f)
        && subject.split('.').all(|token| !matches!(token, "" | "*" | ">"))
}

/// The subject of a server's `Permissions Violation for <action> to "<subject>"`; the action is `Publish` or
/// `Subscription`.
pub(super) fn denied(error: &str, action: &str) -> Option<String> {
    let rest = error
        .strip_prefix("Permissions Violation for ")?
        .strip_prefix(action)?
        .strip_prefix(" to \"")?;
    let quoted = &rest[..rest.rfind('"')?];
    Some(quoted.replace("\\\"", "\"").replace("\\\\", "\\"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::relay::queue::tests::message;

    #[test]
    fn the_prefix_is_put_in_front_once() {
        assert_eq!(subject(Some("app"), "orders.new"), "app.orders.new");
        assert_eq!(subject(Some("app"), "app.orders"), "app.orders");
        assert_eq!(subject(Some("app"), "app"), "app");
        assert_eq!(subject(Some("app"), "apple.pie"), "app.apple.pie");
        assert_eq!(subject(None, "a"), "a");
        assert_eq!(subject(Some(""), "a"), "a");
    }

    #[test]
    fn what_would_break_the_protocol_is_unsendable() {
        for bad in ["", ".a", "a.", "a..b", "a b", "a\r\nPUB b", "a.*", "a.>", "a\tb"] {
            let mut message = (*message(1, None)).clone();
            message.subject = bad.to_owned();
            assert!(
                matches!(encode(&message, None, 1000), Err(RelayError::Unsendable(_))),
                "{bad:?}"
            );
        }
        for (name, value) in [
            ("", "v"),
            ("a b", "v"),
            ("a:b", "v"),
            ("ok", "a\r\nb"),
            ("ok", "a\0b"),
            ("ä", "v"),
        ] {
            let mut message = (*message(1, None)).clone();
            message.headers.push((name.to_owned(), value.to_owned()));
            assert!(
                matches!(encode(&message, None, 1000), Err(RelayError::Unsendable(_))),
                "{name:?} {value:?}"
            );
        }
        let mut message = (*message(1, None)).clone();
        message.message_id = "a\nb".to_owned();
        assert!(matches!(encode(&message, None, 1000), Err(RelayError::Unsendable(_))));
    }

    #[test]
    fn headers_and_payload_count_against_max_payload() {
        // "NATS/1.0\r\n" "Nats-Msg-Id: 1\r\n" "\r\n" and "{}".
        let message = message(1, None);
        assert!(encode(&message, None, 30).is_ok());
        assert_eq!(size(&message), 30);
        let error = encode(&message, None, 29).err();
        assert_eq!(error, Some(RelayError::TooLargeForServer { size: 30, limit: 29 }));
    }

    #[test]
    fn the_subject_of_a_denial() {
        let text = "Permissions Violation for Publish to \"a.b\"";
        assert_eq!(denied(text, "Publish").as_deref(), Some("a.b"));
        assert_eq!(denied(text, "Subscription"), None);
        assert_eq!(
            denied("Permissions Violation for Publish to \"a.\\\"b\"", "Publish").as_deref(),
            Some("a.\"b")
        );
        assert_eq!(denied("Stale Connection", "Publish"), None);
    }
}
