//! Measures how fast the relay alone is: messages go from memory through the relay into a stream on disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::cpu::{Meter, Used};
use crate::message::{Auth, ConnectionSpec, Message, Outcome, StreamSpec, Tls};
use crate::nats::NatsServer;
use crate::relay::{Command, Limits, Relay, Report};

/// Number of subjects that the messages are spread over.
const SUBJECTS: usize = 128;

/// Messages handed to the relay together, as the drain worker does.
const BATCH: usize = 1_000;

/// Limits on messages that are handed over and not yet settled, by number and by bytes. The bytes match the default of
/// `pg_jetstream.max_in_flight_bytes`.
const OUTSTANDING: usize = 8_000;
const OUTSTANDING_BYTES: usize = 32 << 20;

/// The measurement fails if the relay reports nothing for this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Interval between hand-overs at a given rate. It matches the longest pause between cycles of the worker.
const GATHERED: Duration = Duration::from_millis(4);

/// Result of a measurement.
#[derive(Debug, Clone)]
pub struct Rate {
    /// Messages delivered.
    pub messages: usize,
    /// Elapsed time from the first hand-over to the last outcome, and the processor time.
    pub used: Used,
}

impl Rate {
    /// Messages delivered per second.
    pub fn per_second(&self) -> f64 {
        self.messages as f64 / self.used.wall.as_secs_f64()
    }
}

/// Publishes `count` messages of `size` bytes with message ids, through a relay with a window of `max_in_flight`, to a
/// file stream on a server of its own. The messages are spread over `keys` ordering keys; zero means no keys.
///
/// Errors: a server does not start, or an outcome is other than stored.
pub fn relay_rate(count: usize, size: usize, max_in_flight: usize, keys: usize) -> io::Result<Rate> {
    let running = Running::start(max_in_flight)?;
    let payload = Bytes::from(vec![b'x'; size]);
    let mut ids = 0..count;
    let meter = running.meter();
    running.publish(count, size, meter, |wanted| {
        Ok(ids
            .by_ref()
            .take(wanted)
            .map(|id| Arc::new(numbered(id, &payload, keys)))
            .collect())
    })
}

/// Measures the time from the hand-over of a single message of `size` bytes to its outcome, `count` times. The shortest
/// comes first.
///
/// Errors: as [`relay_rate`].
pub fn relay_round_trips(count: usize, size: usize) -> io::Result<Vec<Duration>> {
    let running = Running::start(1_000)?;
    let payload = Bytes::from(vec![b'x'; size]);
    let mut times = Vec::with_capacity(count);
    for id in 0..count {
        let start = Instant::now();
        let one = Arc::new(numbered(id, &payload, 0));
        running.relay.send(Command::Publish(vec![one]));
        while running.settled()? == 0 {}
        times.push(start.elapsed());
    }
    running.end();
    times.sort_unstable();
    Ok(times)
}

/// A server with its stream, and a relay connected to it.
pub struct Running {
    server: NatsServer,
    relay: Relay,
}

impl Running {
    /// Starts the server, and a relay with a window of `max_in_flight`.
    pub fn start(max_in_flight: usize) -> io::Result<Self> {
        let server = NatsServer::start()?;
        let limits = Limits {
            max_in_flight,
            ack_timeout: Duration::from_secs(30),
        };
        let relay = Relay::start(limits, None)?;
        relay.send(Command::Streams(vec![stream()]));
        relay.send(Command::Connections(vec![connection(&server.url())]));
        wait_for_stream(&relay)?;
        Ok(Self { server, relay })
    }

    /// Counts the relay thread, the server, and the main thread of this process, which feeds the relay.
    pub fn meter(&self) -> Meter {
        let own = std::process::id();
        Meter::new()
            .relay("relay", own)
            .main_thread("feed", own)
            .process("nats-server", self.server.pid())
    }

    /// Publishes `count` messages of about `size` bytes. `next` returns the next messages, at most as many as its
    /// argument.
    pub fn publish(
        self,
        count: usize,
        size: usize,
        meter: Meter,
        mut next: impl FnMut(usize) -> io::Result<Vec<Arc<Message>>>,
    ) -> io::Result<Rate> {
        let most = OUTSTANDING.min(OUTSTANDING_BYTES / size.max(1));
        let at_once = BATCH.min(most);
        let (mut sent, mut stored) = (0, 0);
        let meter = meter.start();
        while stored < count {
            while sent < count && sent - stored + at_once <= most {
                let batch = next(at_once)?;
                if batch.is_empty() {
                    return Err(io::Error::other(format!(
                        "the source ended after {sent} of {count} messages"
                    )));
                }
                sent += batch.len();
                self.relay.send(Command::Publish(batch));
            }
            stored += self.settled()?;
        }
        let used = meter.stop();
        self.end();
        Ok(Rate { messages: count, used })
    }

    /// Publishes about `per_second` messages of `size` bytes until `stop`, handing over what is due every [`GATHERED`].
    /// Returns the number of messages delivered.
    pub fn publish_at(self, per_second: f64, size: usize, stop: &AtomicBool) -> io::Result<usize> {
        let payload = Bytes::from(vec![b'x'; size]);
        let (mut sent, mut stored) = (0, 0);
        let began = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(GATHERED);
            let due = (began.elapsed().as_secs_f64() * per_second) as usize;
            let batch = (sent..due).map(|id| Arc::new(numbered(id, &payload, 0))).collect();
            sent = sent.max(due);
            self.relay.send(Command::Publish(batch));
            while let Ok(report) = self.relay.reports().try_recv() {
                stored += stored_by(report)?;
            }
        }
        while stored < sent {
            stored += self.settled()?;
        }
        self.end();
        Ok(stored)
    }

    /// Waits for a report and returns the number of messages it reports as delivered.
    fn settled(&self) -> io::Result<usize> {
        stored_by(self.relay.reports().recv_timeout(PATIENCE).map_err(io::Error::other)?)
    }

    fn end(self) {
        self.relay.send(Command::Shutdown(Duration::from_secs(1)));
        self.relay.join();
    }
}

fn stored_by(report: Report) -> io::Result<usize> {
    let Report::Settled(settled) = report else {
        return Ok(0);
    };
    let bad = settled
        .iter()
        .find(|one| !matches!(one.outcome, Outcome::Stored { .. }));
    match bad {
        Some(bad) => Err(io::Error::other(format!("not delivered: {bad:?}"))),
        None => Ok(settled.len()),
    }
}

fn wait_for_stream(relay: &Relay) -> io::Result<()> {
    loop {
        if let Report::StreamSynced(synced) = relay.reports().recv_timeout(PATIENCE).map_err(io::Error::other)? {
            return synced.error.map_or(Ok(()), |error| Err(io::Error::other(error)));
        }
    }
}

fn numbered(id: usize, payload: &Bytes, keys: usize) -> Message {
    let key = id.checked_rem(keys).map(|key| format!("key-{key}"));
    // As long as a UUID, the default message id.
    let message_id = format!("{id:036}");
    let subject = format!("bench.{}", id % SUBJECTS);
    message(
        i64::try_from(id).unwrap_or(i64::MAX),
        subject,
        payload.clone(),
        message_id,
        key,
    )
}

/// A message for connection `default` without optional fields.
pub fn message(id: i64, subject: String, payload: Bytes, message_id: String, key: Option<String>) -> Message {
    Message {
        id,
        connection: "default".into(),
        subject,
        payload,
        headers: Vec::new(),
        message_id,
        key,
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
        domain: None,
        api_prefix: None,
        handshake_first: false,
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
        accept_other: false,
        origin: None,
        applied: None,
        mark: "1.0".to_owned(),
    }
}
