//! How fast the relay alone is: messages from memory, through the relay, into a stream on disk.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::message::{Auth, ConnectionSpec, Message, Outcome, StreamSpec, Tls};
use crate::nats::NatsServer;
use crate::relay::{Command, Limits, Relay, Report};

/// Names of subjects that the messages are spread over.
const SUBJECTS: usize = 128;

/// Messages handed to the relay at once, as the drain worker does.
const BATCH: usize = 1_000;

/// Messages handed over and not yet settled at any time.
const OUTSTANDING: usize = 8_000;

/// Longest silence of the relay before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Messages stored.
    pub messages: usize,
    /// From the first hand-over to the last outcome.
    pub time: Duration,
}

impl Rate {
    /// Messages stored in a second.
    pub fn per_second(&self) -> f64 {
        self.messages as f64 / self.time.as_secs_f64()
    }
}

/// Publishes `count` messages of `size` bytes each, with message ids, through a relay with a window of
/// `max_in_flight`, to a file stream of a server of its own; `keys` of them are spread over the messages as ordering
/// keys, none if zero.
///
/// Errors: no server, or an outcome other than stored.
pub fn relay_rate(count: usize, size: usize, max_in_flight: usize, keys: usize) -> io::Result<Rate> {
    let (_server, relay) = start(max_in_flight)?;
    let payload = Bytes::from(vec![b'x'; size]);
    let mut ids = 0..count;
    let mut outstanding = 0;
    let mut stored = 0;
    let start = Instant::now();
    while stored < count {
        while outstanding + BATCH <= OUTSTANDING && !ids.is_empty() {
            let batch: Vec<_> = ids
                .by_ref()
                .take(BATCH)
                .map(|id| Arc::new(message(id, &payload, keys)))
                .collect();
            outstanding += batch.len();
            relay.send(Command::Publish(batch));
        }
        let settled = settled(&relay)?;
        outstanding -= settled;
        stored += settled;
    }
    let time = start.elapsed();
    relay.send(Command::Shutdown(Duration::from_secs(1)));
    relay.join();
    Ok(Rate { messages: count, time })
}

/// Time from the hand-over of a single message of `size` bytes to its outcome, `count` times, shortest first.
///
/// Errors: as [`relay_rate`].
pub fn relay_round_trips(count: usize, size: usize) -> io::Result<Vec<Duration>> {
    let (_server, relay) = start(1_000)?;
    let payload = Bytes::from(vec![b'x'; size]);
    let mut times = Vec::with_capacity(count);
    for id in 0..count {
        let start = Instant::now();
        relay.send(Command::Publish(vec![Arc::new(message(id, &payload, 0))]));
        while settled(&relay)? == 0 {}
        times.push(start.elapsed());
    }
    relay.send(Command::Shutdown(Duration::from_secs(1)));
    relay.join();
    times.sort_unstable();
    Ok(times)
}

/// A server with its stream, and a relay connected to it.
fn start(max_in_flight: usize) -> io::Result<(NatsServer, Relay)> {
    let server = NatsServer::start()?;
    let relay = Relay::start(
        Limits {
            max_in_flight,
            ack_timeout: Duration::from_secs(30),
        },
        None,
    )?;
    relay.send(Command::Streams(vec![stream()]));
    relay.send(Command::Connections(vec![connection(&server.url())]));
    wait_for_stream(&relay)?;
    Ok((server, relay))
}

/// Waits for a report; the number of messages stored by it.
fn settled(relay: &Relay) -> io::Result<usize> {
    let Report::Settled(settled) = relay.reports().recv_timeout(PATIENCE).map_err(io::Error::other)? else {
        return Ok(0);
    };
    match settled
        .iter()
        .find(|one| !matches!(one.outcome, Outcome::Stored { .. }))
    {
        Some(bad) => Err(io::Error::other(format!("not stored: {bad:?}"))),
        None => Ok(settled.len()),
    }
}

fn wait_for_stream(relay: &Relay) -> io::Result<()> {
    loop {
        match relay.reports().recv_timeout(PATIENCE).map_err(io::Error::other)? {
            Report::StreamSynced { error: None, .. } => return Ok(()),
            Report::StreamSynced { error: Some(error), .. } => return Err(io::Error::other(error)),
            _ => {}
        }
    }
}

fn message(id: usize, payload: &Bytes, keys: usize) -> Message {
    Message {
        id: i64::try_from(id).unwrap_or(i64::MAX),
        connection: "default".into(),
        subject: format!("bench.{}", id % SUBJECTS),
        payload: payload.clone(),
        headers: Vec::new(),
        // As long as a UUID, which message ids are by default.
        message_id: format!("{id:036}"),
        key: id.checked_rem(keys).map(|key| format!("key-{key}")),
        ttl_seconds: None,
        attempts: 0,
        webhook: None,
        unsure_since: None,
    }
}

fn connection(url: &str) -> ConnectionSpec {
    ConnectionSpec {
        name: "default".into(),
        servers: vec![url.to_owned()],
        auth: Auth::None,
        tls: Tls::default(),
        connect_timeout: Duration::from_secs(5),
        reconnect_delay: Duration::from_secs(1),
        max_reconnects: None,
        subject_prefix: None,
        default_stream: None,
    }
}

fn stream() -> StreamSpec {
    StreamSpec {
        id: 1,
        connection: "default".into(),
        name: "BENCH".to_owned(),
        subjects: vec!["bench.>".to_owned()],
        storage: "file".to_owned(),
        retention: "limits".to_owned(),
        discard: "old".to_owned(),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_bytes: -1,
        max_age: Duration::ZERO,
        max_message_size: -1,
        replicas: 1,
        duplicate_window: Duration::from_secs(120),
        allow_message_ttl: false,
        allow_atomic: false,
        description: None,
    }
}
