//! What the faults act on: servers, proxy, producers and stream, and how to repair them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::jetstream;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::runtime::{Builder, Runtime};

use super::disk::SmallDisk;
use super::faults::{CLUSTER, Fault, SINGLE, strike};
use super::log::FaultLog;
use super::nodes;
use super::promotion;
use super::proxy::{Mode, Proxy};
use super::stream::{Observed, STREAM, is_missing};
use super::writers::{Pace, Writers, end_all_prepared};
use crate::lab::{DATABASE, Lab};
use crate::nats::NatsServer;
use crate::paths::Paths;
use crate::postgres::{Postgres, PostgresBuilder};

/// The ledger, and the function that producers call.
const LEDGER: &str = include_str!("ledger.sql");

/// Longest wait for PostgreSQL to accept connections.
const COMES_BACK: Duration = Duration::from_secs(60);

/// Size in megabytes of the disk that gets filled.
const DISK: u64 = 3000;

/// Longest time without progress once all faults are over. It is shorter than the worker's sweep for missed rows, which
/// runs once a minute, so that a missed row is noticed.
const STUCK: Duration = Duration::from_secs(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One PostgreSQL, one nats-server, and a proxy between them.
    Single,
    /// Three nats-servers, each behind a proxy. The stream has three replicas.
    Cluster,
    /// A primary with a synchronous standby.
    Standby,
}

/// The servers of a scenario and everything that runs on them. Fields are dropped from top to bottom.
pub struct World {
    /// The producers, while they run.
    pub writers: Option<Writers>,
    /// PostgreSQL, and the first NATS server.
    pub lab: Lab,
    /// The other NATS servers of the cluster.
    pub nodes: Vec<NatsServer>,
    /// The standby of the lab's PostgreSQL.
    pub standby: Option<Postgres>,
    /// The proxy between the worker and the NATS servers.
    pub proxy: Proxy,
    pub observed: Observed,
    pub log: FaultLog,
    /// The source of all random choices.
    pub random: StdRng,
    pub window: Duration,
    /// Names of the faults that may strike.
    pub allowed: Vec<&'static str>,
    /// Whether a fault is striking during another one. No third fault is drawn then.
    pub nested: bool,
    /// Whether something failed that no message can show.
    pub broken: bool,
    /// PostgreSQL's own disk, or why it does not have one.
    pub disk: Result<SmallDisk, String>,
    /// Runs producers and proxy.
    pub runtime: Runtime,
    seed: u64,
}

/// The parameters of a scenario.
#[derive(Clone, Debug)]
pub struct Plan {
    pub kind: Kind,
    /// The seed of all random choices.
    pub seed: u64,
    pub window: Duration,
    /// Names of the faults that may strike. With `disk-full`, PostgreSQL gets its own disk.
    pub faults: Vec<&'static str>,
}

impl World {
    /// Starts the servers and the proxy, and creates the extension, the stream and the ledger.
    pub fn start(plan: &Plan, log: FaultLog) -> Result<Self> {
        let paths = Paths::ready()?;
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let folder = paths.run().join(format!("pg-{}-chaos", std::process::id()));
        let disk = match plan.faults.contains(&"disk-full") {
            true => SmallDisk::make(&folder, DISK).map_err(|error| format!("{error:#}")),
            false => Err("not requested".to_owned()),
        };
        let mut builder = Lab::builder().configure(settings);
        if disk.is_ok() {
            builder = builder.postgres_dir(folder);
        }
        let (mut lab, nodes) = match plan.kind {
            Kind::Cluster => nodes::start(builder)?,
            _ => (builder.start()?, Vec::new()),
        };
        let standby = match plan.kind {
            Kind::Standby => Some(promotion::follow(&mut lab.postgres, settings(Postgres::builder()))?),
            _ => None,
        };
        let servers: Vec<u16> = std::iter::once(&lab.nats).chain(&nodes).map(NatsServer::port).collect();
        let proxy = Proxy::start(runtime.handle(), &servers)?;
        let world = Self {
            writers: None,
            lab,
            nodes,
            standby,
            proxy,
            observed: Observed::default(),
            log,
            random: StdRng::seed_from_u64(plan.seed),
            window: plan.window,
            allowed: plan.faults.clone(),
            nested: false,
            broken: false,
            disk,
            runtime,
            seed: plan.seed,
        };
        world.lab.sql(LEDGER)?;
        // Dropping the extension drops its history, which is needed at the end.
        world.lab.sql("create table chaos.history (like jetstream.history)")?;
        world.configure()?;
        world.lab.wait_connected()?;
        Ok(world)
    }

    /// Does what an operator does after `create extension`.
    pub fn configure(&self) -> Result<()> {
        let url = self.proxy.urls().join(",");
        self.lab.sql(&format!(
            "update jetstream.connections set url = '{url}', reconnect_delay_ms = 100, connection_timeout_ms = 1000 \
             where name = 'default'"
        ))?;
        self.ask_for_stream(-1)
    }

    /// Creates or updates the stream with this limit.
    pub fn ask_for_stream(&self, max_messages: i64) -> Result<()> {
        self.lab.sql(&format!(
            "select jetstream.create_stream('{STREAM}', array['chaos.>'], discard => 'new', \
             max_messages => {max_messages}, replicas => {}, duplicate_window => interval '{} ms')",
            self.nodes.len() + 1,
            self.window.as_millis()
        ))?;
        Ok(())
    }

    /// URLs of the NATS servers, bypassing the proxy.
    pub fn urls(&self) -> Vec<String> {
        std::iter::once(&self.lab.nats)
            .chain(&self.nodes)
            .map(NatsServer::url)
            .collect()
    }

    /// One node of the cluster. Number 0 is the lab's own.
    pub fn node(&mut self, number: usize) -> &mut NatsServer {
        match number.checked_sub(1).filter(|other| *other < self.nodes.len()) {
            Some(other) => &mut self.nodes[other],
            None => &mut self.lab.nats,
        }
    }

    pub fn start_writers(&mut self, pace: &Pace) {
        let conninfo = self.lab.postgres.conninfo(DATABASE);
        self.writers = Some(Writers::start(self.runtime.handle(), &conninfo, self.seed, pace));
    }

    /// A random duration between two numbers of milliseconds.
    pub fn some(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.random_range(least..=most))
    }

    /// Lets time pass in the middle of a fault. Sometimes another fault strikes meanwhile.
    pub fn during(&mut self, time: Duration) -> Result<()> {
        let started = Instant::now();
        if !self.nested && self.random.random_bool(0.3) {
            std::thread::sleep(time / 3);
            let quick: Vec<&Fault> = SINGLE
                .iter()
                .chain(
                    CLUSTER
                        .iter()
                        .filter(|fault| !SINGLE.iter().any(|known| known.name == fault.name)),
                )
                .filter(|fault| fault.quick && self.allowed.contains(&fault.name))
                .collect();
            if let Some(fault) = quick.choose(&mut self.random) {
                self.nested = true;
                strike(fault, self)?;
                self.nested = false;
            }
        }
        std::thread::sleep(time.saturating_sub(started.elapsed()));
        Ok(())
    }

    /// Waits until PostgreSQL accepts connections, and starts it if it is not running.
    pub fn wait_postgres(&mut self) -> Result<()> {
        let deadline = Instant::now() + COMES_BACK;
        loop {
            match self.lab.value("select 1") {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("PostgreSQL does not come back\n{}", self.lab.logs()));
                }
                Err(_) if !crate::process::alive(self.lab.postgres.pid()) => {
                    self.lab.postgres.kill9()?;
                    self.lab.postgres.start_again()?;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// The first process whose title matches. Waits a few seconds for it.
    pub fn process(&self, pattern: &str) -> Option<u32> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let found = self
                .lab
                .postgres
                .backends(pattern)
                .ok()
                .and_then(|pids| pids.first().copied());
            if found.is_some() || Instant::now() > deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Number of prepared transactions at this moment.
    pub fn prepared(&self) -> u64 {
        let count = self.lab.value("select count(*) from pg_prepared_xacts");
        count.ok().and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Waits until the stream exists in NATS.
    pub fn wait_stream(&mut self) -> Result<()> {
        let exists = || {
            let answer = self.on_stream(async |_, context| match context.get_stream(STREAM).await {
                Ok(_) => Ok(true),
                Err(error) if is_missing(&error) => Ok(false),
                Err(error) => Err(error.into()),
            });
            // A cluster may not have a leader yet.
            Ok(answer.unwrap_or(false))
        };
        crate::wait_until(Duration::from_secs(30), "the stream exists", exists)
    }

    /// Runs code that reads, purges or deletes the stream, and records what it finds.
    pub fn on_stream<T: Send>(
        &mut self,
        code: impl AsyncFnOnce(&mut Observed, jetstream::Context) -> Result<T> + Send,
    ) -> Result<T> {
        let urls = self.urls();
        let observed = &mut self.observed;
        let run = || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let options = async_nats::ConnectOptions::new().ignore_discovered_servers();
                code(observed, jetstream::new(options.connect(urls).await?)).await
            })
        };
        run()
    }

    /// Undoes whatever faults may have left behind, and waits until both servers answer.
    pub fn heal(&mut self) -> Result<()> {
        self.proxy.set(Mode::Pass);
        for number in 0..=self.nodes.len() {
            let node = self.node(number);
            let _ = node.resume();
            if !crate::process::alive(node.pid()) {
                node.restart()?;
            }
        }
        if let Ok(disk) = &self.disk {
            disk.empty()?;
        }
        self.wait_postgres()?;
        self.lab.sql("select jetstream.resume()")?;
        self.ask_for_stream(-1)?;
        self.wait_stream()
    }

    /// Stops the producers, ends prepared transactions, repairs the servers, and waits until nothing is pending.
    pub fn finish(&mut self) -> Result<()> {
        self.log.say("no more faults; waiting until nothing is pending");
        if let Some(writers) = self.writers.take() {
            let tally = writers.stop();
            let text = format!("producers: {tally:?}");
            self.log.say(text);
        }
        self.heal()?;
        let conninfo = self.lab.postgres.conninfo(DATABASE);
        end_all_prepared(self.runtime.handle(), &conninfo, self.seed)?;
        let drained = self.wait_drained();
        self.on_stream(async |observed, context| observed.read_on(&context).await)?;
        self.log.say("the stream has been read");
        drained
    }

    /// Waits until nothing is pending, as long as the number of pending messages falls.
    pub fn wait_drained(&mut self) -> Result<()> {
        self.lab.postgres.set(&USUAL)?;
        let started = Instant::now();
        let (mut least, mut since) = (u64::MAX, started);
        loop {
            let owed: u64 = self.lab.value("select count(*) from jetstream.outbox")?.parse()?;
            if owed == 0 {
                let text = format!("nothing is pending after {:.1} s", started.elapsed().as_secs_f64());
                self.log.say(text);
                return Ok(());
            }
            if owed < least {
                (least, since) = (owed, Instant::now());
            }
            if since.elapsed() > STUCK {
                let status = self.lab.sql("select row_to_json(s) from jetstream.status() s")?;
                let rows = self
                    .lab
                    .sql("select row_to_json(o) from jetstream.outbox o order by id limit 3")?;
                bail!(
                    "{owed} messages are pending, without progress for {STUCK:?}; status {status:?}; the first rows {rows:?}"
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Default values of the settings that reloads change.
const USUAL: [(&str, &str); 2] = [
    ("pg_jetstream.batch_size", "1000"),
    ("pg_jetstream.max_in_flight", "1000"),
];

/// Settings as in production, but with short timeouts.
pub fn settings(mut builder: PostgresBuilder) -> PostgresBuilder {
    for (name, value) in SETTINGS {
        builder = builder.set(name, value);
    }
    builder.durable()
}

/// Short timeouts, so that much happens in a short run.
const SETTINGS: [(&str, &str); 12] = [
    ("pg_jetstream.ack_timeout", "1s"),
    ("pg_jetstream.retry_backoff_base", "200ms"),
    ("pg_jetstream.retry_backoff_max", "2s"),
    ("pg_jetstream.poll_interval", "200ms"),
    ("pg_jetstream.max_attempts", "1000000"),
    ("max_prepared_transactions", "60"),
    ("max_connections", "60"),
    ("max_wal_size", "200MB"),
    ("min_wal_size", "80MB"),
    ("checkpoint_timeout", "30s"),
    ("log_min_duration_statement", "5s"),
    ("restart_after_crash", "on"),
];
