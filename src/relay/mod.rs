//! The relay: the I/O side of the drain worker. One thread owns a current-thread tokio runtime and the NATS
//! clients; plain values go in and out. Nothing here knows PostgreSQL.
//!
//! `hub` hands each connection its share of the commands; `link` is one connection's life, `connect` its login,
//! `publish`, `acks` and `doubt` what it does while connected, `streams` the streams it keeps as asked. `queue`, `window`,
//! `wire`, `address` and `backoff` are pure.

mod acks;
mod address;
mod answer;
mod backoff;
mod barrier;
mod connect;
mod doubt;
mod files;
#[cfg(test)]
mod fuzz;
mod hub;
mod jsapi;
mod link;
mod panics;
mod positions;
mod publish;
mod queue;
mod recover;
mod said;
mod streams;
mod unknown;
mod unsure;
mod wake;
mod window;
mod wire;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Receiver;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tracing::{Dispatch, dispatcher, error};

pub use positions::{Plan, Position};
pub use said::clean;

use crate::message::{ConnectionSpec, LinkState, Message, Settled, StreamSpec, StreamSynced};
use wake::{Reporter, Wake};

/// Threads for what has no asynchronous form: name lookups and file reads.
const BLOCKING_THREADS: usize = 4;

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
    /// What the connection may have sent before: read the tails of its streams when it is connected, and settle what is
    /// there. To be sent before the [`Command::Connections`] that opens it.
    Recover(Arc<str>, Plan),
    /// Nothing up to [`Plan::up_to`] is owed any more that this connection may have sent before: what was found for it is
    /// forgotten.
    Recovered(Arc<str>),
    /// The failure of a message of this key has been taken in: what is published from now on knows of it. What came
    /// between the failure and this is held back.
    Resume {
        /// `connections.name`.
        connection: Arc<str>,
        /// `outbox.key`.
        key: String,
    },
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
    /// What became of a stream of [`Command::Streams`].
    StreamSynced(StreamSynced),
}

/// Handle of the relay thread, held by the main thread.
#[derive(Debug)]
pub struct Relay {
    commands: mpsc::UnboundedSender<Command>,
    reports: Receiver<Report>,
    wake: Wake,
    thread: JoinHandle<()>,
}

impl Relay {
    /// Starts the thread. Its tracing events, and those of the NATS client, go to `dispatch` if one is given.
    /// The caller blocks all signals around this call: the thread, and those it makes, inherit the mask.
    ///
    /// Errors: no file descriptor, memory or thread to be had.
    pub fn start(limits: Limits, dispatch: Option<Dispatch>) -> io::Result<Relay> {
        let (commands, orders) = mpsc::unbounded_channel();
        let (reporter, reports, wake) = wake::channel()?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("jetstream relay io")
            .build()?;
        let thread = std::thread::Builder::new()
            .name("jetstream relay".to_owned())
            .spawn(move || run(runtime, orders, limits, reporter, dispatch))?;
        Ok(Relay {
            commands,
            reports,
            wake,
            thread,
        })
    }

    /// Hands over a command. False if the thread has ended: nothing will come of the command.
    pub fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// What the relay reports. Disconnected (and empty) once the thread has ended, for whatever reason.
    pub fn reports(&self) -> &Receiver<Report> {
        &self.reports
    }

    /// A descriptor that is readable while reports wait that [`Relay::clear_wake`] has not seen, and for ever once
    /// the thread has ended. Owned by this value: not to be closed or read by others.
    pub fn wake_fd(&self) -> RawFd {
        self.wake.as_fd().as_raw_fd()
    }

    /// Makes the wake descriptor unreadable again. Call it first, then take reports until there are none.
    pub fn clear_wake(&self) {
        self.wake.clear();
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread to end; send [`Command::Shutdown`] first, or everything held is released at once.
    /// False if it panicked.
    pub fn join(self) -> bool {
        drop(self.commands);
        self.thread.join().is_ok()
    }
}

/// The wake descriptor.
impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Body of the thread. A panic is logged and passed on, so that `join` tells of it; the reports channel and the wake
/// descriptor close either way.
fn run(
    runtime: Runtime,
    orders: mpsc::UnboundedReceiver<Command>,
    limits: Limits,
    reporter: Reporter,
    dispatch: Option<Dispatch>,
) {
    let _dispatch = dispatch.as_ref().map(dispatcher::set_default);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(hub::run(orders, limits, reporter))
    }));
    // A name lookup cannot be cancelled: it is left to end by itself rather than waited for.
    runtime.shutdown_background();
    if let Err(panic) = result {
        error!(target: "pg_jetstream", "the relay thread panicked");
        std::panic::resume_unwind(panic);
    }
}
