//! `lab soak`: publishes messages at a steady rate with failures and reconnects, and watches the worker's memory.

use std::fs;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::chaos::proxy::{Mode, Proxy};
use crate::lab::{DATABASE, Lab};

/// Number of connections that write.
const WRITERS: u64 = 5;

/// Messages per transaction. The last one goes to a subject that no stream takes.
const BATCH: u64 = 10;

/// Interval between measurements of the worker's memory.
const SAMPLE: Duration = Duration::from_secs(10);

/// Interval between disturbances of the connections. The kind of disturbance changes every time.
const CUT: Duration = Duration::from_secs(45);

/// The median of the last quarter may exceed the median of the second quarter by this much, in kB.
const TOLERANCE: u64 = 2048;

/// Longest wait at the end for the last message to be settled.
const PATIENCE: Duration = Duration::from_secs(120);

/// Options of the command line.
#[derive(Clone, Debug)]
pub struct Options {
    pub minutes: f64,
    /// Messages per second.
    pub rate: u64,
}

/// The worker's memory at one moment, in kB.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Resident memory, including the shared buffers that the worker has touched.
    rss: u64,
    /// Resident memory without shared memory.
    own: u64,
}

/// Runs the test. Returns true if memory stayed flat and every message was delivered or became a dead letter as
/// intended.
pub fn run(options: &Options) -> Result<bool> {
    let length = Duration::try_from_secs_f64(options.minutes * 60.0)?;
    println!("soak: {} minutes, {} messages/s", options.minutes, options.rate);
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut lab = Lab::builder()
        .durable()
        .set("shared_buffers", "32MB")
        .set("max_wal_size", "500MB")
        .set("pg_jetstream.max_attempts", "4")
        .set("pg_jetstream.retry_backoff_max", "5s")
        .start()?;
    let proxy = Proxy::start(runtime.handle(), &[lab.nats.port()])?;
    prepare(&lab, &proxy)?;
    let worker: u32 = lab.value("select pid from jetstream.status()")?.parse()?;
    let writers = Writers::start(&runtime, &lab.postgres.conninfo(DATABASE), options.rate);
    let watched = watch(&mut lab, &proxy, worker, length);
    let committed = writers.stop(&runtime);
    let samples = watched?;
    let settled = settled(&lab, committed?)?;
    Ok(verdict(&samples) && settled)
}

fn prepare(lab: &Lab, proxy: &Proxy) -> Result<()> {
    let url = proxy.urls().concat();
    lab.sql(&format!(
        "update jetstream.connections set url = '{url}', reconnect_delay_ms = 100 where name = 'default'"
    ))?;
    lab.sql(
        "select jetstream.create_stream('SOAK', array['soak.>'], max_messages => 100000, duplicate_window => '10 s')",
    )?;
    lab.wait_connected()?;
    lab.wait_for_streams()
}

/// Measures the worker until the time is over, and disturbs its connections at regular intervals.
fn watch(lab: &mut Lab, proxy: &Proxy, worker: u32, length: Duration) -> Result<Vec<Sample>> {
    let bar = bar(length);
    let started = Instant::now();
    let (mut samples, mut cuts) = (Vec::new(), 0);
    let mut next_cut = started + CUT;
    while started.elapsed() < length {
        std::thread::sleep(SAMPLE.min(length.saturating_sub(started.elapsed())));
        let sample = sample(worker).with_context(|| format!("worker {worker} has ended\n{}", lab.logs()))?;
        samples.push(sample);
        if Instant::now() >= next_cut {
            cuts += 1;
            disturb(lab, proxy, cuts)?;
            next_cut = Instant::now() + CUT;
        }
        if samples.len() % 6 == 0 {
            let state = lab.sql(
                "select stored, retried, dead, in_flight, extract(epoch from lag)::integer from jetstream.status()",
            )?;
            let line = format!(
                "  {:>5.0} s  {:>6} kB of its own, {:>6} kB resident; {cuts} cuts; stored, retried, dead, in flight, lag (s): {}",
                started.elapsed().as_secs_f64(),
                sample.own,
                sample.rss,
                state.concat().join(" ")
            );
            match &bar {
                Some(bar) => bar.println(line),
                None => println!("{line}"),
            }
        }
        if let Some(bar) = &bar {
            bar.set_position(started.elapsed().as_secs());
        }
    }
    proxy.set(Mode::Pass);
    Ok(samples)
}

/// Breaks the connections in one of several ways. The worker reconnects.
fn disturb(lab: &mut Lab, proxy: &Proxy, number: u32) -> Result<()> {
    match number % 4 {
        0 => {
            lab.nats.kill9()?;
            lab.nats.restart()?;
        }
        1 => proxy.renew(),
        2 => {
            proxy.set(Mode::DropAcks);
            std::thread::sleep(Duration::from_millis(500));
            proxy.renew();
        }
        _ => {
            proxy.set(Mode::Refuse);
            std::thread::sleep(Duration::from_secs(2));
            proxy.renew();
        }
    }
    Ok(())
}

fn sample(pid: u32) -> Result<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = |name: &str| -> Result<u64> {
        let rest = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .context("no memory")?;
        Ok(rest.trim().trim_end_matches(" kB").parse()?)
    };
    let rss = line("VmRSS:")?;
    Ok(Sample {
        rss,
        own: rss.saturating_sub(line("RssShmem:")?),
    })
}

/// Waits until nothing is pending. Returns whether every message had the intended outcome.
fn settled(lab: &Lab, committed: u64) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    while lab.value("select exists (select from jetstream.outbox)")? == "t" {
        if Instant::now() > deadline {
            let owed = lab.value("select count(*) from jetstream.outbox")?;
            bail!(
                "{owed} messages are pending {PATIENCE:?} after the last one was written\n{}",
                lab.logs()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let count = |query: &str| -> Result<u64> { Ok(lab.value(query)?.parse()?) };
    let stored = count("select count(distinct message_id) from jetstream.history where success")?;
    let dead = count("select count(*) from jetstream.dead_letters")?;
    println!("  {committed} committed, {stored} delivered, {dead} dead letters (one message in {BATCH} has no stream)");
    Ok(stored == committed / BATCH * (BATCH - 1) && dead == committed / BATCH)
}

/// Compares the second quarter with the last one.
fn verdict(samples: &[Sample]) -> bool {
    let quarter = samples.len() / 4;
    let median = |from: usize, what: fn(&Sample) -> u64| {
        let mut sizes: Vec<u64> = samples[from..from + quarter].iter().map(what).collect();
        sizes.sort_unstable();
        sizes.get(sizes.len() / 2).copied().unwrap_or(0)
    };
    let tell = |name: &str, what: fn(&Sample) -> u64| {
        let (second, last) = (median(quarter, what), median(samples.len() - quarter, what));
        let most = samples.iter().map(what).max().unwrap_or(0);
        println!("  {name}: median of the second quarter {second} kB, of the last {last} kB; maximum {most} kB");
        last <= second + TOLERANCE
    };
    // A shared buffer counts only after it has been touched for the first time, which takes a while, so this figure is
    // only printed.
    tell("resident with shared buffers", |sample| sample.rss);
    let flat = tell("resident without shared buffers", |sample| sample.own) && quarter > 0;
    println!(
        "soak: {} (allowed increase: {TOLERANCE} kB)",
        if flat { "flat" } else { "NOT FLAT" }
    );
    flat
}

/// Connections that write at a steady rate.
struct Writers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Writers {
    fn start(runtime: &Runtime, conninfo: &str, rate: u64) -> Self {
        let (stop, committed) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let interval = Duration::from_secs(1) * u32::try_from(WRITERS * BATCH).unwrap_or(1)
            / u32::try_from(rate.max(1)).unwrap_or(1);
        let tasks = (0..WRITERS)
            .map(|_| runtime.spawn(write(conninfo.to_owned(), interval, stop.clone(), committed.clone())))
            .collect();
        Self { stop, committed, tasks }
    }

    /// Stops the producers. Returns the number of messages they committed.
    fn stop(self, runtime: &Runtime) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            runtime.block_on(task)??;
        }
        Ok(self.committed.load(Ordering::Relaxed))
    }
}

/// Writes with many different keys, so that state kept per key would show.
async fn write(conninfo: String, interval: Duration, stop: Arc<AtomicBool>, committed: Arc<AtomicU64>) -> Result<()> {
    let (client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let insert = format!(
        "insert into jetstream.outbox (subject, payload, key) \
         select case when n = {BATCH} then 'nowhere.x' else 'soak.' || n end, jsonb_build_object('n', n, 'text', repeat('x', 200)), \
             case when n % 2 = 0 then gen_random_uuid()::text end \
         from generate_series(1, {BATCH}) n"
    );
    let statement = client.prepare(&insert).await?;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        committed.fetch_add(client.execute(&statement, &[]).await?, Ordering::Relaxed);
    }
    Ok(())
}

fn bar(length: Duration) -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new(length.as_secs());
        let style = ProgressStyle::with_template("{spinner} soak [{bar:24}] {pos}/{len} s");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    })
}
