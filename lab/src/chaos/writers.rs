//! The producers. They run transactions of every kind, and each transaction records in the ledger what it enqueued.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Handle;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

/// Number of connections.
pub const WRITERS: u64 = 20;

/// Number of keys they share.
const KEYS: i32 = 12;

/// Longest wait for a server that hangs.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

/// Ways to enqueue that `chaos.put` knows. A way that appears more often is chosen more often.
const WAYS: [&str; 10] = [
    "insert", "insert", "insert", "publish", "publish", "publish", "raw", "batch", "bulk", "delayed",
];

/// How fast the producers write, and what they may do.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Longest pause of one producer between two transactions.
    pub pause: Duration,
    /// Whether some transactions commit with `synchronous_commit = off`.
    pub asynchronous: bool,
}

/// What the producers have done so far, from their own point of view.
#[derive(Debug, Default)]
pub struct Tally {
    /// Transactions whose commit was confirmed.
    pub committed: AtomicU64,
    /// Transactions rolled back on purpose.
    pub rolled_back: AtomicU64,
    /// Transactions that ended with an error or a lost connection.
    pub failed: AtomicU64,
    /// Prepared transactions that a producer left for the cleanup task.
    pub prepared: AtomicU64,
}

/// The running producers.
pub struct Writers {
    stop: Arc<AtomicBool>,
    gate: Arc<RwLock<()>>,
    tasks: Vec<JoinHandle<()>>,
    runtime: Handle,
    conninfo: Arc<Mutex<String>>,
    pub tally: Arc<Tally>,
}

/// While this value exists, no producer has an open transaction, except prepared ones.
pub struct Quiet {
    _held: tokio::sync::OwnedRwLockWriteGuard<()>,
}

impl Writers {
    /// Starts the producers, and the task that ends prepared transactions.
    pub fn start(runtime: &Handle, conninfo: &str, seed: u64, pace: &Pace) -> Self {
        let conninfo = Arc::new(Mutex::new(conninfo.to_owned()));
        let (stop, gate, tally) = (Arc::default(), Arc::default(), Arc::<Tally>::default());
        let writer = |number: u64| Writer {
            number,
            conninfo: Arc::clone(&conninfo),
            random: StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(number)),
            pace: pace.clone(),
            stop: Arc::clone(&stop),
            gate: Arc::clone(&gate),
            tally: Arc::clone(&tally),
            operation: 0,
        };
        let mut tasks: Vec<_> = (0..WRITERS).map(|n| runtime.spawn(writer(n).write())).collect();
        tasks.push(runtime.spawn(writer(WRITERS).take_care()));
        Self {
            stop,
            gate,
            tasks,
            runtime: runtime.clone(),
            conninfo,
            tally,
        }
    }

    /// Makes the producers connect here in the future.
    pub fn redirect(&self, conninfo: &str) {
        if let Ok(mut current) = self.conninfo.lock() {
            conninfo.clone_into(&mut current);
        }
    }

    /// Waits until every transaction has ended, and prevents new ones.
    pub fn quiet(&self) -> Quiet {
        Quiet {
            _held: self.runtime.block_on(Arc::clone(&self.gate).write_owned()),
        }
    }

    /// Stops every producer after its current transaction.
    pub fn stop(self) -> Arc<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let _ = self.runtime.block_on(task);
        }
        self.tally
    }
}

struct Writer {
    number: u64,
    conninfo: Arc<Mutex<String>>,
    random: StdRng,
    pace: Pace,
    stop: Arc<AtomicBool>,
    gate: Arc<RwLock<()>>,
    tally: Arc<Tally>,
    operation: u64,
}

/// How a transaction ends.
enum Ending {
    Committed,
    RolledBack,
    /// Prepared, then left to the cleanup task.
    Left,
    /// The connection is closed on purpose in the middle of the transaction.
    Abandoned,
}

impl Writer {
    async fn write(mut self) {
        while !self.stopped() {
            let Some(client) = self.connect().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            while !self.stopped() && !client.is_closed() {
                let pause = self.random.random_range(Duration::ZERO..=self.pace.pause);
                tokio::time::sleep(pause).await;
                let gate = Arc::clone(&self.gate);
                let _open = gate.read().await;
                match tokio::time::timeout(STATEMENT_TIMEOUT, self.transaction(&client)).await {
                    Ok(Ok(Ending::Committed)) => self.tally.committed.fetch_add(1, Ordering::Relaxed),
                    Ok(Ok(Ending::RolledBack)) => self.tally.rolled_back.fetch_add(1, Ordering::Relaxed),
                    Ok(Ok(Ending::Left)) => self.tally.prepared.fetch_add(1, Ordering::Relaxed),
                    Ok(Ok(Ending::Abandoned)) => {
                        self.tally.rolled_back.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Ok(Err(_)) => {
                        self.tally.failed.fetch_add(1, Ordering::Relaxed);
                        if !matches!(
                            tokio::time::timeout(STATEMENT_TIMEOUT, client.batch_execute("rollback")).await,
                            Ok(Ok(()))
                        ) {
                            break;
                        }
                        1
                    }
                    Err(_) => {
                        self.tally.failed.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                };
            }
        }
    }

    /// Commits or rolls back prepared transactions that were left.
    async fn take_care(mut self) {
        while !self.stopped() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Some(client) = self.connect().await {
                let older = self.random.random_range(0..20);
                let _ = end_prepared(&client, older, &mut self.random).await;
            }
        }
    }

    async fn connect(&self) -> Option<Client> {
        let conninfo = self.conninfo.lock().map(|conninfo| conninfo.clone()).ok()?;
        connect(&conninfo).await.ok()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// SQL for one call of `chaos.put`. The tag names the producer and what should happen to the message.
    fn put(&mut self, intent: &str) -> String {
        let way = *WAYS.choose(&mut self.random).unwrap_or(&"insert");
        let key = match self.random.random_range(0..4) {
            0 => "null".to_owned(),
            // One key is used more often than the others.
            1 => "0".to_owned(),
            _ => self.random.random_range(0..KEYS).to_string(),
        };
        let count = match way {
            "bulk" => self.random.random_range(2..150),
            _ => self.random.random_range(2..10),
        };
        let tag = format!("writer{}/{}/{intent}", self.number, self.operation);
        format!("select chaos.put('{way}', {key}, '{tag}/{way}', {count});")
    }

    async fn transaction(&mut self, client: &Client) -> Result<Ending> {
        self.operation += 1;
        let asynchronous = self.pace.asynchronous && self.random.random_bool(0.2);
        let begin = match asynchronous {
            true => "begin; set local synchronous_commit = off;",
            false => "begin;",
        };
        match self.random.random_range(0..100) {
            0..40 => {
                let sql = self.put("alone");
                client.batch_execute(&sql).await?;
                Ok(Ending::Committed)
            }
            40..60 => {
                client.batch_execute(begin).await?;
                for _ in 0..self.random.random_range(1..6) {
                    let sql = self.put("several");
                    client.batch_execute(&sql).await?;
                    self.linger().await;
                }
                client.batch_execute("commit").await?;
                Ok(Ending::Committed)
            }
            60..72 => {
                let sql = format!("{begin}{}{}", self.put("rollback"), self.put("rollback"));
                client.batch_execute(&sql).await?;
                self.linger().await;
                client.batch_execute("rollback").await?;
                Ok(Ending::RolledBack)
            }
            72..88 => {
                let sql = self.savepoints(begin);
                client.batch_execute(&sql).await?;
                self.linger().await;
                client.batch_execute("commit").await?;
                Ok(Ending::Committed)
            }
            88..97 => self.two_phases(client).await,
            _ => {
                let sql = format!("{begin}{}", self.put("abandoned"));
                client.batch_execute(&sql).await?;
                Ok(Ending::Abandoned)
            }
        }
    }

    /// A transaction that is partly rolled back.
    fn savepoints(&mut self, begin: &str) -> String {
        let mut sql = format!("{begin}{}", self.put("kept"));
        sql += "savepoint a;";
        sql += &self.put("undone");
        sql += "savepoint b;";
        sql += &self.put("undone");
        sql += if self.random.random_bool(0.5) {
            "release b;"
        } else {
            "rollback to b;"
        };
        sql += "rollback to a;";
        sql += &self.put("kept");
        sql += "savepoint c;";
        sql += &self.put("kept");
        sql += "release c;";
        sql
    }

    async fn two_phases(&mut self, client: &Client) -> Result<Ending> {
        let name = format!("chaos {} {}", self.number, self.operation);
        let (fate, ending) = match self.random.random_range(0..4) {
            0 => ("rollback prepared", Ending::RolledBack),
            1 => ("", Ending::Left),
            _ => ("commit prepared", Ending::Committed),
        };
        let intent = if fate.is_empty() { "left prepared" } else { fate };
        let sql = format!(
            "begin;{}{}prepare transaction '{name}'",
            self.put(intent),
            self.put(intent)
        );
        client.batch_execute(&sql).await?;
        if !fate.is_empty() {
            self.linger().await;
            client.batch_execute(&format!("{fate} '{name}'")).await?;
        }
        Ok(ending)
    }

    async fn linger(&mut self) {
        if self.random.random_bool(0.3) {
            tokio::time::sleep(Duration::from_millis(self.random.random_range(0..300))).await;
        }
    }
}

/// A connection that closes when its client is dropped.
async fn connect(conninfo: &str) -> Result<Client> {
    let limit = Duration::from_secs(5);
    let (client, connection) = tokio::time::timeout(limit, tokio_postgres::connect(conninfo, NoTls)).await??;
    tokio::spawn(connection);
    Ok(client)
}

/// Commits or rolls back prepared transactions older than `older` seconds.
async fn end_prepared(client: &Client, older: i32, random: &mut StdRng) -> Result<u64> {
    let query = "select gid from pg_prepared_xacts where prepared < now() - make_interval(secs => $1::integer)";
    let mut ended = 0;
    for row in client.query(query, &[&older]).await? {
        let name: String = row.get(0);
        let fate = if random.random_bool(0.5) { "commit" } else { "rollback" };
        // The producer that prepared the transaction may already have ended it.
        if client.batch_execute(&format!("{fate} prepared '{name}'")).await.is_ok() {
            ended += 1;
        }
    }
    Ok(ended)
}

/// Ends all prepared transactions. Returns their number.
pub fn end_all_prepared(runtime: &Handle, conninfo: &str, seed: u64) -> Result<u64> {
    runtime.block_on(async {
        let client = connect(conninfo).await?;
        end_prepared(&client, -1, &mut StdRng::seed_from_u64(seed)).await
    })
}
