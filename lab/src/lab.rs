//! PostgreSQL with the extension and a nats-server to publish to, the starting point of an end-to-end test.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use async_nats::jetstream::{self, consumer::pull::OrderedConfig};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::nats::{NatsBuilder, NatsServer};
use crate::paths::Paths;
use crate::postgres::{Postgres, PostgresBuilder};
use crate::{install, postgres, progress};

/// The database with the extension, which a worker serves.
pub const DATABASE: &str = "postgres";

/// Longest wait for something that should take a moment.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Both servers. Dropping this stops them.
///
/// ```no_run
/// use lab::Lab;
///
/// # fn main() -> anyhow::Result<()> {
/// let mut lab = Lab::builder().set("pg_jetstream.batch_size", "10").start()?;
/// lab.sql("select jetstream.create_stream('ORDERS', array['orders.>'])")?;
/// lab.sql("select jetstream.publish('orders.new', '{\"id\": 1}')")?;
/// lab.wait_for_messages("ORDERS", 1)?;
/// assert_eq!(lab.stream_messages("ORDERS")?[0].json()?["id"], 1);
///
/// lab.nats.kill9()?;
/// lab.nats.restart()?;
/// lab.postgres.kill9()?;
/// lab.postgres.start_again()?;
/// lab.wait_until("nothing is pending", || Ok(lab.value("select count(*) from jetstream.outbox")? == "0"))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Lab {
    pub postgres: Postgres,
    /// The NATS server of connection `default`.
    pub nats: NatsServer,
}

/// The configuration of both servers.
#[derive(Clone, Debug)]
pub struct LabBuilder {
    postgres: PostgresBuilder,
    nats: NatsBuilder,
    dir: Option<PathBuf>,
}

impl LabBuilder {
    /// Sets one line of postgresql.conf.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.postgres = self.postgres.set(name, value);
        self
    }

    /// Changes the configuration of PostgreSQL.
    pub fn configure(mut self, change: impl FnOnce(PostgresBuilder) -> PostgresBuilder) -> Self {
        self.postgres = change(self.postgres);
        self
    }

    /// Adds lines to the configuration of the NATS server, such as `max_payload: 1024`.
    pub fn nats_extra(mut self, lines: &str) -> Self {
        self.nats = self.nats.extra(lines);
        self
    }

    /// Configures PostgreSQL as in production, for measurements.
    pub fn durable(mut self) -> Self {
        self.postgres = self.postgres.durable();
        self
    }

    /// Sets a folder for the files of both servers, which are then kept. By default they are removed when the servers
    /// are dropped.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Sets a folder for PostgreSQL's files only.
    pub fn postgres_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.postgres = self.postgres.dir(dir);
        self
    }

    /// Starts both servers, creates the extension, and points its connection `default` at the NATS server.
    pub fn start(mut self) -> Result<Lab> {
        install::check(&Paths::ready()?)?;
        if let Some(dir) = self.dir {
            self.postgres = self.postgres.dir(dir.join("postgres"));
            self.nats = self.nats.dir(dir.join("nats"));
        }
        let nats = self.nats.start().context("cannot start nats-server")?;
        let lab = Lab {
            postgres: self.postgres.start()?,
            nats,
        };
        lab.sql("create extension pg_jetstream")?;
        let url = lab.nats.url();
        lab.sql(&format!(
            "update jetstream.connections set url = '{url}' where name = 'default'"
        ))?;
        Ok(lab)
    }
}

impl Lab {
    /// A builder with settings for tests.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            postgres: Postgres::builder(),
            nats: NatsServer::builder(),
            dir: None,
        }
    }

    /// Starts both servers with the builder's defaults.
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// Runs [`Postgres::sql`] in the database with the extension.
    pub fn sql(&self, text: &str) -> Result<Vec<Vec<String>>> {
        self.postgres.sql(DATABASE, text)
    }

    /// The first column of the first row.
    pub fn value(&self, text: &str) -> Result<String> {
        self.postgres.value(DATABASE, text)
    }

    /// The SQLSTATE that a statement fails with. An error if the statement succeeds.
    pub fn failure(&self, text: &str) -> Result<String> {
        match self.sql(text) {
            Ok(_) => bail!("succeeded, but should have failed: {text}"),
            Err(error) => match postgres::sqlstate(&error) {
                Some(code) => Ok(code.to_owned()),
                None => Err(error),
            },
        }
    }

    /// Runs [`wait_until`] with a limit of [`PATIENCE`]. An error includes the logs of both servers.
    pub fn wait_until(&self, what: &str, done: impl FnMut() -> Result<bool>) -> Result<()> {
        wait_until(PATIENCE, what, done).with_context(|| self.logs())
    }

    /// Waits until the stream holds at least `count` messages.
    pub fn wait_for_messages(&self, stream: &str, count: u64) -> Result<()> {
        self.wait_until(&format!("{count} messages in {stream}"), || {
            Ok(self.message_count(stream)? >= count)
        })
    }

    /// Waits until every managed stream has been created or updated in NATS.
    pub fn wait_for_streams(&self) -> Result<()> {
        self.wait_until("the streams are synchronized", || {
            Ok(self.value("select bool_and(synced_at is not null) from jetstream.streams")? == "t")
        })
    }

    /// Waits until the worker is connected to the NATS server.
    pub fn wait_connected(&self) -> Result<()> {
        let connected = || Ok(self.value("select jetstream.health() ->> 'connected'")? == "true");
        self.wait_until("the worker is connected", connected)
    }

    /// Waits until no message is pending.
    pub fn wait_drained(&self) -> Result<()> {
        let empty = || Ok(self.value("select not exists (select from jetstream.outbox)")? == "t");
        self.wait_until("the outbox is empty", empty)
    }

    /// Number of messages in the stream. Zero if the stream does not exist.
    pub fn message_count(&self, stream: &str) -> Result<u64> {
        let name = stream.to_owned();
        self.jetstream(async move |context| match context.get_stream(name).await {
            Ok(stream) => Ok(stream.cached_info().state.messages),
            Err(error) if is_missing(&error) => Ok(0),
            Err(error) => Err(error.into()),
        })
    }

    /// All messages of a stream, in order.
    pub fn stream_messages(&self, stream: &str) -> Result<Vec<StoredMessage>> {
        let name = stream.to_owned();
        self.jetstream(async move |context| read_stream(&context, &name).await)
    }

    /// Runs async code with the JetStream context of the NATS server. Blocks, and can be called from any thread.
    pub fn jetstream<T: Send>(&self, code: impl AsyncFnOnce(jetstream::Context) -> Result<T> + Send) -> Result<T> {
        let url = self.nats.url();
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { code(jetstream::new(async_nats::connect(url).await?)).await })
        };
        std::thread::scope(|scope| scope.spawn(run).join()).map_err(|_| anyhow!("the code for JetStream panicked"))?
    }

    /// The last lines of both servers' logs.
    pub fn logs(&self) -> String {
        let nats = progress::tail(&self.nats.log(), 10);
        format!("PostgreSQL:\n{}\nNATS:\n{nats}\n", self.postgres.log_tail())
    }
}

/// A message in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    pub sequence: u64,
    pub subject: String,
    /// The headers, with the last value of each.
    pub headers: BTreeMap<String, String>,
    pub payload: Bytes,
}

impl StoredMessage {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The message id, by which JetStream recognizes duplicates.
    pub fn id(&self) -> Option<&str> {
        self.header("Nats-Msg-Id")
    }

    /// The payload as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&self.payload)?)
    }
}

/// Polls `done` until it returns true or fails, or until `limit` has passed.
pub fn wait_until(limit: Duration, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !done()? {
        if Instant::now() > deadline {
            bail!("timed out after {} s: {what}", limit.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

async fn read_stream(context: &jetstream::Context, name: &str) -> Result<Vec<StoredMessage>> {
    let stream = context.get_stream(name).await?;
    let expected = usize::try_from(stream.cached_info().state.messages)?;
    if expected == 0 {
        return Ok(Vec::new());
    }
    let consumer = stream.create_consumer(OrderedConfig::default()).await?;
    let mut messages = consumer.messages().await?.take(expected);
    let mut found = Vec::with_capacity(expected);
    while let Some(message) = tokio::time::timeout(PATIENCE, messages.next()).await? {
        let message = message?;
        let sequence = message.info().map_err(|error| anyhow!(error))?.stream_sequence;
        let headers = message.headers.iter().flat_map(|headers| headers.iter());
        let headers = headers
            .filter_map(|(name, values)| Some((name.to_string(), values.last()?.to_string())))
            .collect();
        let subject = message.subject.to_string();
        found.push(StoredMessage {
            sequence,
            subject,
            headers,
            payload: message.payload.clone(),
        });
    }
    Ok(found)
}

fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    matches!(error.kind(), jetstream::context::GetStreamErrorKind::JetStream(error)
        if error.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND)
}
