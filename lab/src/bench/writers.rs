//! Connections that write messages at a given rate, and the time until each message was delivered.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use postgres::fallible_iterator::FallibleIterator;

use super::report::percentile;
use crate::lab::{DATABASE, Lab, PATIENCE, wait_until};

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Messages per second of all connections together. `None` means as fast as possible.
    pub rate: Option<f64>,
    /// Messages per transaction. One uses `publish`, more use a single `publish_batch`.
    pub each: usize,
    pub connections: usize,
    /// How long to write.
    pub time: Duration,
}

/// What was written, and when the producers knew that their transactions were committed.
pub struct Written {
    /// Commit time by `outbox.id`.
    pub committed: HashMap<i64, SystemTime>,
    /// Time from the first to the last transaction.
    pub took: Duration,
    /// Duration of each transaction in milliseconds, sorted.
    pub transactions: Vec<f64>,
}

impl Written {
    /// Messages per second.
    pub fn rate(&self) -> f64 {
        self.committed.len() as f64 / self.took.as_secs_f64()
    }
}

/// Starts the producers in a thread of their own, which returns what was written.
pub fn start(lab: &Lab, load: Load) -> std::thread::JoinHandle<Result<Written>> {
    let conninfo = lab.postgres.conninfo(DATABASE);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(write_all(conninfo, load))
    })
}

/// Waits for the producers of [`start`].
pub fn join(writers: std::thread::JoinHandle<Result<Written>>) -> Result<Written> {
    writers.join().map_err(|_| anyhow!("a writer panicked"))?
}

async fn write_all(conninfo: String, load: Load) -> Result<Written> {
    let mut clients = Vec::new();
    for _ in 0..load.connections {
        let (client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        clients.push(client);
    }
    let begin = Instant::now();
    let tasks: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(n, client)| tokio::spawn(write(client, load, begin, n)))
        .collect();
    let (mut committed, mut transactions) = (HashMap::new(), Vec::new());
    for task in tasks {
        let (ids, millis) = task.await??;
        committed.extend(ids);
        transactions.extend(millis);
    }
    transactions.sort_by(f64::total_cmp);
    Ok(Written {
        committed,
        took: begin.elapsed(),
        transactions,
    })
}

/// Ids with their commit times, and the duration of each transaction in milliseconds.
type OfOne = (Vec<(i64, SystemTime)>, Vec<f64>);

/// Writes over one connection. Transactions are due at fixed times, however long the previous one took.
async fn write(client: tokio_postgres::Client, load: Load, begin: Instant, which: usize) -> Result<OfOne> {
    // About 256 bytes including the JSON syntax.
    const BODY: &str = "jsonb_build_object('n', n, 'body', repeat('x', 230))";
    let text = match load.each {
        1 => format!("select jetstream.publish('bench.s' || n % 128, {BODY}) from (select $1::integer) x (n)"),
        each => format!(
            "select jetstream.publish_batch('bench.s' || $1::integer % 128, \
             array(select {BODY} from generate_series(1, {each}) n))"
        ),
    };
    let insert = client.prepare(&text).await?;
    let step = load.rate.map(|rate| (load.connections * load.each) as f64 / rate);
    let (mut committed, mut millis) = (Vec::new(), Vec::new());
    for n in 0.. {
        if let Some(step) = step {
            // Spreads the connections over the interval, so that they do not all commit at the same moment.
            let due = step * (n as f64 + which as f64 / load.connections as f64);
            tokio::time::sleep_until((begin + Duration::from_secs_f64(due)).into()).await;
        }
        if begin.elapsed() >= load.time {
            break;
        }
        let sent = Instant::now();
        let rows = client.query(&insert, &[&n]).await?;
        let now = SystemTime::now();
        millis.push(sent.elapsed().as_secs_f64() * 1e3);
        committed.extend(rows.iter().map(|row| (row.get(0), now)));
    }
    Ok((committed, millis))
}

/// Milliseconds from commit to acknowledgement for each message written, sorted, according to the history. Waits until
/// the history is complete.
///
/// Errors: a message was not delivered.
pub fn recorded_millis(lab: &Lab, written: &Written) -> Result<Vec<f64>> {
    let mut found = Vec::new();
    // The worker counts a message before its settlement is committed and visible to others.
    wait_until(PATIENCE, "everything written to be in the history", || {
        found = millis(lab, written)?;
        Ok(found.len() == written.committed.len())
    })?;
    Ok(found)
}

fn millis(lab: &Lab, written: &Written) -> Result<Vec<f64>> {
    let mut client = lab.postgres.client(DATABASE)?;
    let (first, last) = written
        .committed
        .keys()
        .fold((i64::MAX, i64::MIN), |(a, b), id| (a.min(*id), b.max(*id)));
    let mut millis = Vec::with_capacity(written.committed.len());
    let query = "select outbox_id, published_at from jetstream.history where success and outbox_id between $1 and $2";
    let mut rows = client.query_raw(query, [first, last])?;
    while let Some(row) = rows.next()? {
        let (id, stored): (i64, SystemTime) = (row.get(0), row.get(1));
        let commit = written
            .committed
            .get(&id)
            .context("the history has a message that no producer wrote")?;
        // An acknowledgement may arrive before the producer knows that its own transaction is committed.
        millis.push(stored.duration_since(*commit).unwrap_or_default().as_secs_f64() * 1000.0);
    }
    millis.sort_by(f64::total_cmp);
    Ok(millis)
}

/// Percentiles shown in the tables, with their names.
pub fn percentiles(sorted: &[f64]) -> [(&'static str, f64); 4] {
    [("p50 ms", 0.5), ("p95 ms", 0.95), ("p99 ms", 0.99), ("p99.9 ms", 0.999)]
        .map(|(name, share)| (name, percentile(sorted, share)))
}
