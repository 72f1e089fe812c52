//! What can go wrong on the way to JetStream, and the class that decides what happens then. Free of PostgreSQL.

use thiserror::Error;

/// What a failure means for the message or its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Try again with backoff; the attempt counts.
    Transient,
    /// Trying again cannot help: a dead letter at once.
    PermanentForMessage,
    /// The connection cannot work as configured: its messages wait, no attempt counts.
    PermanentForConnection,
}

/// A stream of `jetstream.streams` that could not be made or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmade {
    /// Name of the stream.
    pub stream: String,
    /// Why, as in `jetstream.streams.sync_error`.
    pub reason: String,
}

fn why(unmade: Option<&Unmade>) -> String {
    match unmade {
        Some(Unmade { stream, reason }) => format!("; stream \"{stream}\" could not be made or changed: {reason}"),
        None => String::new(),
    }
}

/// A failure reported by the relay.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum RelayError {
    /// No ack within `pg_jetstream.ack_timeout` from a server that answers otherwise.
    #[error("no acknowledgement for subject \"{subject}\" within {millis} ms")]
    AckTimeout {
        /// Subject on the wire.
        subject: String,
        /// The limit, milliseconds.
        millis: u64,
    },
    /// No stream takes the subject.
    #[error("no stream takes subject \"{subject}\" (no responders){}", why(.unmade.as_ref()))]
    NoStream {
        /// Subject on the wire.
        subject: String,
        /// The stream of `jetstream.streams` that would take it, if it could not be made or changed.
        unmade: Option<Unmade>,
    },
    /// The account may not publish to the subject.
    #[error("publishing to subject \"{subject}\" is not permitted: {detail}")]
    Denied {
        /// Subject on the wire.
        subject: String,
        /// The server's words.
        detail: String,
        /// The right may have been taken away after the message was stored.
        maybe_stored: bool,
    },
    /// JetStream answered with an error.
    #[error("JetStream refused the message: {description} (code {code}, error {err_code})")]
    Refused {
        /// HTTP-like status.
        code: u16,
        /// JetStream's own error number.
        err_code: u64,
        /// The server's words.
        description: String,
    },
    /// The message is larger than the server's `max_payload`.
    #[error("message of {size} bytes exceeds the server's max_payload of {limit} bytes")]
    TooLargeForServer {
        /// Headers and payload, bytes.
        size: usize,
        /// `max_payload`, bytes.
        limit: usize,
    },
    /// The message is larger than the stream's `max_msg_size`.
    #[error("message of {size} bytes exceeds max_msg_size of {limit} bytes of stream \"{stream}\"")]
    TooLargeForStream {
        /// Headers and payload, bytes.
        size: usize,
        /// `max_msg_size`, bytes.
        limit: i64,
        /// Stream that refused it.
        stream: String,
    },
    /// An earlier attempt may have been stored, and the stream could not be asked.
    #[error("an earlier attempt may have been stored, which could not be looked up: {0}")]
    NotLookedUp(String),
    /// A header or the subject cannot be put on the wire.
    #[error("message cannot be put on the wire: {0}")]
    Unsendable(String),
    /// The relay panicked over the message.
    #[error("the message caused an internal error: {0}")]
    Panicked(String),
    /// Credentials, TLS or address do not work.
    #[error("connection cannot be made: {0}")]
    Connection(String),
}

impl RelayError {
    /// The class that decides what happens.
    ///
    /// JetStream error numbers are those of nats-server's `server/errors.json`: 10054 message too large,
    /// 10097 headers too large, 10060 expected stream does not match, 10070 wrong last message id, 10071 wrong
    /// last sequence, 10164 wrong last sequence for the subject, 10165 and 10166 bad or disabled message TTL.
    pub fn class(&self) -> Class {
        match self {
            RelayError::AckTimeout { .. }
            | RelayError::NoStream { .. }
            | RelayError::Denied { .. }
            | RelayError::NotLookedUp(_) => Class::Transient,
            RelayError::Refused { err_code, .. } => match err_code {
                10054 | 10060 | 10070 | 10071 | 10097 | 10164 | 10165 | 10166 => Class::PermanentForMessage,
                _ => Class::Transient,
            },
            RelayError::TooLargeForServer { .. }
            | RelayError::TooLargeForStream { .. }
            | RelayError::Unsendable(_)
            | RelayError::Panicked(_) => Class::PermanentForMessage,
            RelayError::Connection(_) => Class::PermanentForConnection,
        }
    }

    /// Whether the message may have been stored all the same.
    pub fn is_unsure(&self) -> bool {
        match self {
            RelayError::AckTimeout { .. } | RelayError::NotLookedUp(_) => true,
            RelayError::Denied { maybe_stored, .. } => *maybe_stored,
            _ => false,
        }
    }
}
