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
    /// JetStream error numbers are those of nats-server's `server/errors.json`; see [`is_final`].
    pub fn class(&self) -> Class {
        match self {
            RelayError::AckTimeout { .. }
            | RelayError::NoStream { .. }
            | RelayError::Denied { .. }
            | RelayError::NotLookedUp(_) => Class::Transient,
            RelayError::Refused { err_code, .. } if is_final(*err_code) => Class::PermanentForMessage,
            RelayError::Refused { .. } => Class::Transient,
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
            RelayError::Refused { err_code, .. } => *err_code == DUPLICATE_IN_PROCESS,
            _ => false,
        }
    }
}

/// JetStream's error number for a message whose id another one has that is just being stored: ours, sent before, perhaps.
const DUPLICATE_IN_PROCESS: u64 = 10158;

/// Whether JetStream refuses the message for what it is, so that it would refuse it again. Any other number, also one that
/// is not known here, says something about the stream, the account or the cluster, which may change: full (10077),
/// sealed (10109), a broken counter (10172), out of resources (10002, 10023, 10047), too many requests (10167, 10210,
/// 10211), no leader (10009), offline (10118, 10194).
fn is_final(err_code: u64) -> bool {
    matches!(
        err_code,
        // Size of the message and of its headers.
        10054 | 10097
        // Nats-Expected-Stream, -Last-Msg-Id, -Last-Sequence, -Last-Subject-Sequence.
        | 10060 | 10070 | 10071 | 10164 | 10193
        // Nats-Rollup.
        | 10111
        // Nats-TTL.
        | 10165 | 10166
        // Nats-Incr: counters.
        | 10168..=10171
        // Nats-Batch-*: atomic batches, and fast ones.
        | 10174..=10177 | 10179 | 10199..=10201 | 10205..=10208
        // Nats-Schedule*.
        | 10188..=10192 | 10203 | 10212
        // Nats-Stream-Source.
        | 10227
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every error with which nats-server 2.10 to 2.15 answers a publish.
    #[test]
    fn each_refusal_is_final_passing_or_in_doubt() {
        let refused = |err_code| RelayError::Refused {
            code: 400,
            err_code,
            description: String::new(),
        };
        let last = [
            10054, 10060, 10070, 10071, 10097, 10111, 10164, 10165, 10166, 10168, 10169, 10170, 10171, 10174, 10175,
            10176, 10177, 10179, 10188, 10189, 10190, 10191, 10192, 10193, 10199, 10200, 10201, 10203, 10205, 10206,
            10207, 10208, 10212, 10227,
        ];
        let passing = [
            0, 10002, 10009, 10023, 10028, 10039, 10047, 10063, 10076, 10077, 10109, 10118, 10163, 10167, 10172, 10194,
            10210, 10211, 19999,
        ];
        for code in last {
            assert_eq!(
                (refused(code).class(), refused(code).is_unsure()),
                (Class::PermanentForMessage, false),
                "{code}"
            );
        }
        for code in passing {
            assert_eq!(
                (refused(code).class(), refused(code).is_unsure()),
                (Class::Transient, false),
                "{code}"
            );
        }
        assert_eq!(
            (refused(10158).class(), refused(10158).is_unsure()),
            (Class::Transient, true)
        );
    }
}
