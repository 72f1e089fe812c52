//! What comes back for a published message. Only JetStream's own words count: a core subscriber on the subject may answer
//! too, and before JetStream does.

use std::borrow::Cow;

use async_nats::StatusCode;
use serde::Deserialize;

/// Most bytes of a stream's name.
const MAX_STREAM_NAME: usize = 255;

/// JetStream's error numbers.
const ERROR_NUMBERS: std::ops::RangeInclusive<u64> = 10_000..=99_999;

/// What an answer says about a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// It is in the stream.
    Stored {
        stream: Cow<'a, str>,
        sequence: u64,
        duplicate: bool,
        /// JetStream domain of the stream; none if it has no name.
        domain: Option<Cow<'a, str>>,
    },
    /// JetStream refused it.
    Refused {
        code: u16,
        err_code: u64,
        description: String,
        stream: String,
    },
    /// No stream listens to the subject.
    NoStream,
    /// Not from JetStream: it says nothing about the message.
    Foreign,
}

#[derive(Deserialize)]
struct PubAck<'a> {
    #[serde(borrow, default)]
    stream: Cow<'a, str>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    #[serde(borrow, default)]
    domain: Cow<'a, str>,
    error: Option<PubError>,
}

#[derive(Deserialize)]
struct PubError {
    code: u16,
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Reads an answer in the ack inbox.
pub(super) fn answer(reply: &async_nats::Message) -> Answer<'_> {
    if let Some(status) = reply.status {
        let mut headers = reply.headers.iter().flat_map(async_nats::HeaderMap::iter);
        // The server names the subject since 2.12.
        let bare = reply.payload.is_empty() && headers.all(|(name, _)| *name == async_nats::header::NATS_SUBJECT);
        return match status == StatusCode::NO_RESPONDERS && bare {
            true => Answer::NoStream,
            false => Answer::Foreign,
        };
    }
    read(&reply.payload)
}

fn read(payload: &[u8]) -> Answer<'_> {
    // An array would be read as an object without names.
    if payload.first() != Some(&b'{') {
        return Answer::Foreign;
    }
    match serde_json::from_slice::<PubAck<'_>>(payload) {
        Ok(PubAck {
            error: Some(error),
            stream,
            ..
        }) if (400..600).contains(&error.code) && ERROR_NUMBERS.contains(&error.err_code) => Answer::Refused {
            code: error.code,
            err_code: error.err_code,
            description: error.description,
            stream: match is_name(&stream) {
                true => stream.into_owned(),
                false => String::new(),
            },
        },
        Ok(PubAck { error: Some(_), .. }) => Answer::Foreign,
        Ok(ack)
            if is_name(&ack.stream)
                && (ack.domain.is_empty() || is_name(&ack.domain))
                && i64::try_from(ack.seq).is_ok_and(|sequence| sequence > 0) =>
        {
            Answer::Stored {
                stream: ack.stream,
                sequence: ack.seq,
                duplicate: ack.duplicate,
                domain: Some(ack.domain).filter(|domain| !domain.is_empty()),
            }
        }
        _ => Answer::Foreign,
    }
}

/// Whether a stream, or a domain, may be called this.
pub(super) fn is_name(name: &str) -> bool {
    (1..=MAX_STREAM_NAME).contains(&name.len())
        && !name.contains(|c: char| c.is_control() || c.is_whitespace() || ".*>/\\".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_read() {
        let stored = |stream: &'static str, sequence, domain: Option<&'static str>| Answer::Stored {
            stream: stream.into(),
            sequence,
            duplicate: domain.is_some(),
            domain: domain.map(Into::into),
        };
        assert_eq!(read(br#"{"stream":"S","seq":7}"#), stored("S", 7, None));
        assert_eq!(
            read(br#"{"stream":"S","domain":"hub","seq":7,"duplicate":true,"batch":"x","count":3}"#),
            stored("S", 7, Some("hub"))
        );
        assert_eq!(
            read(br#"{"stream":"S","seq":9223372036854775807}"#),
            stored("S", u64::MAX / 2, None)
        );
    }

    #[test]
    fn a_refusal_is_read_and_names_no_stream_that_cannot_be() {
        let text = r#"{"error":{"code":400,"err_code":10054,"description":"d"},"stream":"NAME","seq":0}"#;
        for (name, kept) in [("S", "S"), ("a.b", ""), ("a\\u0000", "")] {
            let text = text.replace("NAME", name);
            let Answer::Refused { stream, err_code, .. } = read(text.as_bytes()) else {
                panic!("{text}");
            };
            assert_eq!((stream.as_str(), err_code), (kept, 10054), "{text}");
        }
    }

    #[test]
    fn anything_else_says_nothing() {
        let long = format!(r#"{{"stream":"{}","seq":1}}"#, "S".repeat(256));
        for text in [
            long.as_str(),
            "+OK thanks",
            "",
            "{}",
            "[\"S\",1,false,\"\",null]",
            "{\"stream\":\"S\",\"seq\":0}",
            "{\"stream\":\"S\",\"seq\":-5}",
            "{\"stream\":\"S\",\"seq\":9223372036854775808}",
            "{\"stream\":\"a.b\",\"seq\":1}",
            "{\"stream\":\"S\",\"seq\":1,\"duplicate\":\"yes\"}",
            "{\"stream\":\"S\",\"seq\":1,\"domain\":\"a b\"}",
            "{\"error\":{}}",
            "{\"error\":{\"code\":400,\"err_code\":7}}",
            "{\"error\":{\"code\":200,\"err_code\":10054}}",
            "{\"stream\":\"S\",\"seq\":1}{}",
        ] {
            assert_eq!(read(text.as_bytes()), Answer::Foreign, "{text:?}");
        }
    }
}
