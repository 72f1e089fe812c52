//! `make bench`: how fast the outbox drains against the relay alone, and how long a commit takes to be stored.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};

use crate::bench_relay::relay_rate;
use crate::lab::{DATABASE, Lab};

/// Messages of one drain.
const OWED: usize = 200_000;
/// Bytes of each.
const SIZE: usize = 256;
/// Runs of which the median counts.
const RUNS: usize = 3;
/// Transactions a second of the latency measurement.
const RATE: u32 = 500;
/// Connections that make them.
const WRITERS: u32 = 8;
/// How long it lasts.
const LATENCY_TIME: Duration = Duration::from_secs(20);
/// Messages owed in the memory measurement.
const MANY: usize = 1_000_000;

/// Runs all of it and prints a table.
///
/// Errors: a server that does not start, messages that do not arrive.
pub fn run() -> Result<()> {
    let (mut drains, mut relays) = (Vec::new(), Vec::new());
    for n in 1..=RUNS {
        let relay = relay_rate(OWED, SIZE, 1_000, 0)?.per_second();
        let drain = drain_rate()?;
        println!("run {n}: drain {drain:>8.0} messages/s   relay alone {relay:>8.0} messages/s");
        relays.push(relay);
        drains.push(drain);
    }
    let (drain, relay) = (median(drains), median(relays));
    let latency = latency()?;
    let memory = memory()?;
    println!();
    println!("{OWED} messages of {SIZE} bytes into a file stream, median of {RUNS}:");
    println!("  drain            {drain:>10.0} messages/s");
    println!("  relay alone      {relay:>10.0} messages/s");
    println!("  ratio            {:>10.2}", drain / relay);
    println!(
        "commit to stored, {RATE} single-row transactions/s for {} s:",
        LATENCY_TIME.as_secs()
    );
    println!("  reached          {:>10.0} transactions/s", latency.rate);
    println!(
        "  p50 / p95 / p99  {:>10.2} / {:.2} / {:.2} ms",
        latency.p50, latency.p95, latency.p99
    );
    println!("memory of the worker with {MANY} messages owed, draining:");
    println!("  most             {memory:>10.1} MB beyond shared memory");
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A lab as in production, with the stream the measurements publish to.
fn start() -> Result<Lab> {
    let lab = Lab::builder()
        .durable()
        .set("shared_buffers", "512MB")
        .set("max_wal_size", "8GB")
        .start()?;
    lab.sql("select jetstream.create_stream('BENCH', array['bench.>'])")?;
    lab.wait_until("the stream exists", || {
        Ok(lab.value("select synced_at is not null from jetstream.streams")? == "t")
    })?;
    Ok(lab)
}

fn owe(lab: &Lab, count: usize) -> Result<()> {
    lab.sql(&format!(
        "insert into jetstream.outbox (subject, raw) \
         select 'bench.s' || i % 128, convert_to(repeat('x', {SIZE}), 'UTF8') from generate_series(1, {count}) i"
    ))?;
    Ok(())
}

/// Messages a second from the first to the last acknowledgement.
fn drain_rate() -> Result<f64> {
    let lab = start()?;
    lab.sql("select jetstream.pause()")?;
    owe(&lab, OWED)?;
    let begin = Instant::now();
    lab.sql("select jetstream.resume()")?;
    // Not status(), which looks at the outbox for the lag and would take part in what is measured.
    while lab.value("select stored from jetstream.worker_status()")? != OWED.to_string() {
        ensure!(
            begin.elapsed() < Duration::from_secs(120),
            "the outbox does not drain\n{}",
            lab.logs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = begin.elapsed();
    let stored = lab.message_count("BENCH")?;
    ensure!(stored == OWED as u64, "{stored} messages in the stream, not {OWED}");
    Ok(OWED as f64 / took.as_secs_f64())
}

struct Latency {
    rate: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

/// Latency of single-row transactions at a fixed rate: from the moment the writer knows that its commit is done to the
/// arrival of the acknowledgement.
fn latency() -> Result<Latency> {
    let lab = start()?;
    let begin = Instant::now();
    let writers: Vec<_> = (0..WRITERS)
        .map(|n| {
            let client = lab.postgres.client(DATABASE)?;
            Ok(std::thread::spawn(move || {
                write(client, begin + Duration::from_secs(n.into()) / RATE)
            }))
        })
        .collect::<Result<_>>()?;
    let mut committed = std::collections::HashMap::new();
    for writer in writers {
        committed.extend(writer.join().map_err(|_| anyhow!("a writer panicked"))??);
    }
    let rate = committed.len() as f64 / begin.elapsed().as_secs_f64();
    lab.wait_drained()?;
    let mut millis = Vec::new();
    for row in lab
        .postgres
        .client(DATABASE)?
        .query("select outbox_id, published_at from jetstream.history", &[])?
    {
        let (id, stored): (i64, SystemTime) = (row.get(0), row.get(1));
        // An acknowledgement may be in before the writer is told of its own commit.
        let commit = committed.get(&id).context("a message nobody wrote")?;
        millis.push(stored.duration_since(*commit).unwrap_or_default().as_secs_f64() * 1000.0);
    }
    ensure!(
        millis.len() == committed.len(),
        "{} of {} messages are recorded",
        millis.len(),
        committed.len()
    );
    millis.sort_by(f64::total_cmp);
    let at = |share: f64| millis[((millis.len() - 1) as f64 * share) as usize];
    Ok(Latency {
        rate,
        p50: at(0.5),
        p95: at(0.95),
        p99: at(0.99),
    })
}

/// One writer of the latency measurement: outbox ids and when their commits were done.
fn write(mut client: postgres::Client, begin: Instant) -> Result<Vec<(i64, SystemTime)>> {
    let insert = client.prepare("select jetstream.publish('bench.latency', jsonb_build_object('n', $1::integer))")?;
    let step = Duration::from_secs(1) * WRITERS / RATE;
    let mut committed = Vec::new();
    while begin.elapsed() < LATENCY_TIME {
        let n = committed.len() as u32;
        std::thread::sleep((begin + step * n).saturating_duration_since(Instant::now()));
        let id = client.query_one(&insert, &[&(n as i32)])?.get(0);
        committed.push((id, SystemTime::now()));
    }
    Ok(committed)
}

/// Most memory of the worker beyond shared memory while it drains [`MANY`] messages, in megabytes.
fn memory() -> Result<f64> {
    let lab = start()?;
    lab.sql("select jetstream.pause()")?;
    owe(&lab, MANY)?;
    lab.sql("select jetstream.resume()")?;
    let pid = lab.value("select pid from jetstream.worker_status()")?;
    let mut most: f64 = 0.0;
    let begin = Instant::now();
    while lab.value("select stored from jetstream.worker_status()")? != MANY.to_string() {
        most = most.max(anonymous_megabytes(&pid)?);
        ensure!(
            begin.elapsed() < Duration::from_secs(300),
            "the outbox does not drain\n{}",
            lab.logs()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(most)
}

/// `RssAnon` of a process: its memory without files and shared memory.
fn anonymous_megabytes(pid: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .context("no RssAnon")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes / 1024.0)
}
