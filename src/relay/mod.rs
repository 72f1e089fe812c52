//! The relay: the I/O side of the drain worker. One thread owns a current-thread tokio runtime and the NATS
//! clients; plain values go in and out. Nothing here imports pgrx.

use std::sync::Arc;
use std::time::Duration;

use crate::message::{ConnectionSpec, LinkState, Message, Settled, StreamSpec};

/// Limits the relay works within. Changed by [`Command::Limits`] at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most unacknowledged messages on the wire for one connection, 1 to 9,999.
    pub max_in_flight: usize,
    /// How long an ack may take.
    pub ack_timeout: Duration,
}

/// What the main thread asks of the relay.
#[derive(Debug, Clone)]
pub enum Command {
    /// The complete set of enabled connections. Those no longer in it are closed and their messages released;
    /// a changed one is reconnected and its messages are released.
    Connections(Vec<ConnectionSpec>),
    /// Close and reconnect this one even though nothing changed.
    Reconnect(Arc<str>),
    /// The complete set of streams that should exist.
    Streams(Vec<StreamSpec>),
    /// New limits.
    Limits(Limits),
    /// Publish these, in order. Each is answered by exactly one [`Settled`].
    Publish(Vec<Arc<Message>>),
    /// Publish no more; wait at most so long for acks, release the rest, end the thread.
    Shutdown(Duration),
}

/// What the relay reports.
#[derive(Debug, Clone)]
pub enum Report {
    /// Outcomes, in the order in which they became known.
    Settled(Vec<Settled>),
    /// A connection changed its state.
    Link {
        /// `connections.name`.
        connection: Arc<str>,
        /// New state.
        state: LinkState,
        /// Server's name and version where connected, otherwise the reason; empty if there is none.
        detail: String,
    },
    /// A stream of [`Command::Streams`] was created, updated or found as asked (`error` none), or could not be.
    StreamSynced {
        /// `streams.id`.
        id: i64,
        /// Why not.
        error: Option<String>,
    },
}
