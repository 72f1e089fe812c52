//! What the stream has held. It is read at the end, and before an operator's action removes messages.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::{self, ErrorCode};
use futures_util::StreamExt;
use serde_json::Value;
use time::OffsetDateTime;

/// The stream that all producers publish to.
pub const STREAM: &str = "CHAOS";

/// Longest wait for the next message while reading.
const PATIENCE: Duration = Duration::from_secs(20);

/// One message as it was in the stream.
#[derive(Clone, Debug)]
pub struct Copy {
    pub id: String,
    /// The payload, which contains the message's number and tag.
    pub payload: Value,
    /// Number of times the stream had been created again before.
    pub life: usize,
    /// Sequence in the stream.
    pub sequence: u64,
    /// Time at which the stream stored the message.
    pub at: OffsetDateTime,
    /// Time at which an operator's action removed the message.
    pub gone: Option<OffsetDateTime>,
}

/// A deletion of the whole stream.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// Sequence up to which the stream had been read.
    pub read_to: u64,
    /// When the last read began.
    pub from: OffsetDateTime,
    /// Time by which the stream was deleted.
    pub to: OffsetDateTime,
}

/// Everything read so far.
#[derive(Debug, Default)]
pub struct Observed {
    /// In stream order, one life of the stream after another.
    pub copies: Vec<Copy>,
    pub deletions: Vec<Deletion>,
    next: u64,
    read: usize,
}

impl Observed {
    /// Reads what has been added to the stream. Returns the sequence of its last message.
    pub async fn read_on(&mut self, context: &jetstream::Context) -> Result<u64> {
        let stream = context.get_stream(STREAM).await?;
        let last = stream.cached_info().state.last_sequence;
        let first = stream.cached_info().state.first_sequence;
        let from = self.next.max(first).max(1);
        if stream.cached_info().state.messages == 0 || from > last {
            return Ok(last);
        }
        let policy = DeliverPolicy::ByStartSequence { start_sequence: from };
        let config = OrderedConfig {
            deliver_policy: policy,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let mut messages = consumer.messages().await?;
        while self.next <= last {
            let next = tokio::time::timeout(PATIENCE, messages.next()).await;
            let message = next
                .context("the stream does not answer")?
                .context("the stream ended")??;
            let info = message.info().map_err(|error| anyhow!(error))?;
            let header = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
            self.next = info.stream_sequence + 1;
            self.copies.push(Copy {
                id: header.map(ToString::to_string).unwrap_or_default(),
                payload: serde_json::from_slice(&message.payload).unwrap_or_default(),
                life: self.deletions.len(),
                sequence: info.stream_sequence,
                at: info.published,
                gone: None,
            });
        }
        Ok(last)
    }

    /// Reads until few messages are added during a read.
    async fn catch_up(&mut self, context: &jetstream::Context) -> Result<u64> {
        let mut before = 0;
        loop {
            let last = self.read_on(context).await?;
            if last < before + 200 {
                return Ok(last);
            }
            before = last;
        }
    }

    /// Purges the messages that have been read and no others. Returns their number.
    pub async fn purge(&mut self, context: &jetstream::Context) -> Result<u64> {
        let last = self.catch_up(context).await?;
        let now = OffsetDateTime::now_utc();
        let stream = context.get_stream(STREAM).await?;
        let purged = stream.purge().sequence(last + 1).await?.purged;
        self.take_away(now);
        Ok(purged)
    }

    /// Deletes the stream. Messages stored after the last read remain unknown.
    pub async fn delete(&mut self, context: &jetstream::Context) -> Result<u64> {
        self.catch_up(context).await?;
        let from = OffsetDateTime::now_utc();
        let read_to = self.read_on(context).await?;
        let now = OffsetDateTime::now_utc();
        context.delete_stream(STREAM).await?;
        self.take_away(now);
        self.deletions.push(Deletion {
            read_to,
            from,
            to: OffsetDateTime::now_utc(),
        });
        self.next = 0;
        Ok(read_to)
    }

    fn take_away(&mut self, now: OffsetDateTime) {
        for copy in &mut self.copies[self.read..] {
            copy.gone = Some(now);
        }
        self.read = self.copies.len();
    }

    /// The copies of each message, by message id.
    pub fn by_id(&self) -> BTreeMap<&str, Vec<&Copy>> {
        let mut all: BTreeMap<&str, Vec<&Copy>> = BTreeMap::new();
        for copy in &self.copies {
            all.entry(&copy.id).or_default().push(copy);
        }
        all
    }
}

/// Whether the error means that the stream does not exist.
pub fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}
