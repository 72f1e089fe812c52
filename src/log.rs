//! From tracing events of the relay's thread to PostgreSQL's log, which only the main thread may write.

use std::fmt::Write;
use std::sync::atomic::{AtomicU8, Ordering};

use crossbeam_channel::{Receiver, Sender};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::guc::LogLevel;

/// Most lines that wait; further ones are dropped rather than held in memory.
const WAITING: usize = 1_000;

static LEVEL: AtomicU8 = AtomicU8::new(2);

/// Sets the least severe level that passes; also for the relay's thread.
pub fn set_level(level: LogLevel) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Where the main thread takes the lines from.
pub struct Log(Receiver<(Level, String)>);

impl Log {
    /// A dispatcher for the relay's thread and the end at which its lines come out.
    pub fn start() -> (tracing::Dispatch, Log) {
        let (sender, receiver) = crossbeam_channel::bounded(WAITING);
        let subscriber = tracing_subscriber::registry().with(ChannelLayer { sender });
        (tracing::Dispatch::new(subscriber), Log(receiver))
    }

    /// Writes what has come in to PostgreSQL's log.
    pub fn write(&self) {
        for (level, line) in self.0.try_iter() {
            match level {
                Level::ERROR | Level::WARN => pgrx::warning!("pg_jetstream: {line}"),
                _ => pgrx::log!("pg_jetstream: {line}"),
            }
        }
    }
}

struct ChannelLayer {
    sender: Sender<(Level, String)>,
}

impl<S: Subscriber> Layer<S> for ChannelLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let limit = match LEVEL.load(Ordering::Relaxed) {
            0 => Level::ERROR,
            1 => Level::WARN,
            2 => Level::INFO,
            3 => Level::DEBUG,
            _ => Level::TRACE,
        };
        // The NATS client's own messages repeat what the relay reports.
        *metadata.level() <= limit && (metadata.target().starts_with("pg_jetstream") || limit == Level::TRACE)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = if line.fields.is_empty() {
            line.message
        } else {
            format!("{} ({})", line.message, line.fields)
        };
        // What a server says may be in it. A full channel drops the line: the relay must not wait for the log.
        let _ = self
            .sender
            .try_send((*event.metadata().level(), crate::relay::clean(text)));
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            let comma = if self.fields.is_empty() { "" } else { ", " };
            // Writing to a String does not fail.
            let _ = write!(self.fields, "{comma}{}={value:?}", field.name());
        }
    }
}
