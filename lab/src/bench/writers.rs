//! Connections that write messages at a given rate, and how long each message then took to be stored.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use postgres::fallible_iterator::FallibleIterator;

use super::report::percentile;
use crate::lab::{DATABASE, Lab, PATIENCE, wait_until};

/// What is written.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Messages a second of all connections together; none for as fast as they go.
    pub rate: Option<f64>,
    /// Messages of one transaction: of one `publish`, or of one `publish_batch` if more than one.
    pub each: usize,
    /// Connections.
    pub connections: usize,
    /// For how long.
    pub time: Duration,
}

/// What was written: outbox ids, and when the writer knew that their commit was done.
pub struct Written {
    /// Commit time by `outbox.id`.
    pub committed: HashMap<i64, SystemTime>,
    /// From the first to the last transaction.
    pub took: Duration,
    /// What each transaction took, milliseconds, sorted.
    pub transactions: Vec<f64>,
}

impl Written {
    /// Messages a second.
    pub fn rate(&self) -> f64 {
        self.committed.len() as f64 / self.took.as_secs_f64()
    }
}

/// Starts writing in a thread of its own, which ends with what was written.
pub fn start(lab: &Lab, load: Load) -> std::thread::JoinHandle<Result<Written>> {
    let conninfo = lab.postgres.conninfo(DATABASE);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(write_all(conninfo, load))
    })
}

/// Waits for the end of [`start`].
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

/// Ids with the time of their commit, and the milliseconds of each transaction.
type OfOne = (Vec<(i64, SystemTime)>, Vec<f64>);

/// One connection. Its transactions are due at fixed times, whatever the last one took.
async fn write(client: tokio_postgres::Client, load: Load, begin: Instant, which: usize) -> Result<OfOne> {
    // About 256 bytes with what JSON adds.
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
            // Spread, so that not all connections commit at once.
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

/// Milliseconds from commit to stored, sorted: each message written, as the history has it. Waits until all are there.
///
/// Errors: one of them was not stored.
pub fn recorded_millis(lab: &Lab, written: &Written) -> Result<Vec<f64>> {
    let mut found = Vec::new();
    // The worker counts a message before others see what it has committed of it.
    wait_until(PATIENCE, "all that was written in the history", || {
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
        let commit = written.committed.get(&id).context("a message nobody wrote")?;
        // An acknowledgement may be in before the writer is told of its own commit.
        millis.push(stored.duration_since(*commit).unwrap_or_default().as_secs_f64() * 1000.0);
    }
    millis.sort_by(f64::total_cmp);
    Ok(millis)
}

/// The percentiles of the tables, with their names.
pub fn percentiles(sorted: &[f64]) -> [(&'static str, f64); 4] {
    [("p50 ms", 0.5), ("p95 ms", 0.95), ("p99 ms", 0.99), ("p99.9 ms", 0.999)]
        .map(|(name, share)| (name, percentile(sorted, share)))
}
