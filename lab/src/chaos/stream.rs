//! What the stream has held: read at the end, and before an operator's act takes messages away.

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

/// The stream that all writers publish to.
pub const STREAM: &str = "CHAOS";

/// Longest wait for the next message of a read.
const PATIENCE: Duration = Duration::from_secs(20);

/// One message as it stood in the stream.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Message id.
    pub id: String,
    /// What the payload says of its number and tag.
    pub payload: Value,
    /// How often the stream had been made anew before.
    pub life: usize,
    /// Place in the stream.
    pub sequence: u64,
    /// When it was stored.
    pub at: OffsetDateTime,
    /// When an operator's act took it away.
    pub gone: Option<OffsetDateTime>,
}

/// A deletion of the whole stream.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// Up to here it had been read.
    pub read_to: u64,
    /// When reading began.
    pub from: OffsetDateTime,
    /// When the stream was gone.
    pub to: OffsetDateTime,
}

/// Everything read so far.
#[derive(Debug, Default)]
pub struct Observed {
    /// In the order of the stream, life after life.
    pub copies: Vec<Copy>,
    /// The stream's ends.
    pub deletions: Vec<Deletion>,
    next: u64,
    read: usize,
}

impl Observed {
    /// Reads what has been added to the stream; returns the sequence of its last message.
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

    /// Reads until little is added in the meantime.
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

    /// Removes all that has been read, and no more; returns how many.
    pub async fn purge(&mut self, context: &jetstream::Context) -> Result<u64> {
        let last = self.catch_up(context).await?;
        let now = OffsetDateTime::now_utc();
        let stream = context.get_stream(STREAM).await?;
        let purged = stream.purge().sequence(last + 1).await?.purged;
        self.take_away(now);
        Ok(purged)
    }

    /// Deletes the stream. What was stored after the last look is not known.
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

/// Whether the error says that there is no such stream.
pub fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}
