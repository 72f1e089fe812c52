//! Sessions that commit orders, whatever happens to the servers, and note how long each commit takes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use postgres::{Client, NoTls};

use crate::lab::DATABASE;
use crate::postgres::Postgres;

/// Transactions per second of all sessions.
pub const RATE: u32 = 400;

const SESSIONS: u32 = 4;

/// One transaction in so many is rolled back.
const ROLLED_BACK: u32 = 10;

/// The running sessions.
pub struct Producers {
    stop: Arc<AtomicBool>,
    commits: Arc<Mutex<Vec<Duration>>>,
    sessions: Vec<JoinHandle<BTreeSet<i64>>>,
}

/// How long the commits of a period took.
pub struct Sample {
    count: usize,
    p50: Duration,
    p99: Duration,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let Sample { count, p50, p99 } = self;
        write!(
            f,
            "{count} single-row commits, p50 {:.1} ms, p99 {:.1} ms",
            ms(*p50),
            ms(*p99)
        )
    }
}

impl Producers {
    /// Starts the sessions.
    pub fn start(server: &Postgres) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let commits = Arc::new(Mutex::new(Vec::new()));
        let mut sessions = Vec::new();
        for number in 0..SESSIONS {
            let (stop, commits) = (stop.clone(), commits.clone());
            let conninfo = server.conninfo(DATABASE);
            sessions.push(std::thread::spawn(move || session(number, &conninfo, &stop, &commits)));
        }
        Ok(Self {
            stop,
            commits,
            sessions,
        })
    }

    /// The commits since the last call.
    pub fn sample(&self) -> Sample {
        let mut took = self
            .commits
            .lock()
            .map(|mut all| std::mem::take(&mut *all))
            .unwrap_or_default();
        took.sort_unstable();
        let at = |share: f64| {
            took.get((took.len() as f64 * share) as usize)
                .copied()
                .unwrap_or_default()
        };
        Sample {
            count: took.len(),
            p50: at(0.5),
            p99: at(0.99),
        }
    }

    /// Ends the sessions; the orders that were rolled back.
    pub fn stop(self) -> Result<BTreeSet<i64>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut rolled_back = BTreeSet::new();
        for session in self.sessions {
            rolled_back.extend(session.join().map_err(|_| anyhow!("a session panicked"))?);
        }
        Ok(rolled_back)
    }
}

/// Commits at its share of the rate until it is stopped, and connects again when the server ends the session. Returns
/// the orders it rolled back.
fn session(number: u32, conninfo: &str, stop: &AtomicBool, commits: &Mutex<Vec<Duration>>) -> BTreeSet<i64> {
    let pause = Duration::from_secs(1) * SESSIONS / RATE;
    let mut rolled_back = BTreeSet::new();
    let mut client: Option<Client> = None;
    let mut next = Instant::now();
    let mut count = number;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next = (next + pause).max(Instant::now());
        count += 1;
        let Some(connected) = client.as_mut() else {
            client = Client::connect(conninfo, NoTls).ok();
            continue;
        };
        let commit = !count.is_multiple_of(ROLLED_BACK);
        match order(connected, number, commit) {
            Ok((_, took)) if commit => {
                if let Ok(mut all) = commits.lock() {
                    all.push(took);
                }
            }
            Ok((id, _)) => {
                rolled_back.insert(id);
            }
            // The server has ended the session.
            Err(_) => client = None,
        }
    }
    rolled_back
}

/// One transaction: its order, and how long the transaction took.
fn order(client: &mut Client, number: u32, commit: bool) -> Result<(i64, Duration), postgres::Error> {
    let started = Instant::now();
    let mut transaction = client.transaction()?;
    let customer = format!("customer {number}");
    let row = transaction.query_one(
        "insert into orders (customer, total) values ($1, 9.99) returning id",
        &[&customer],
    )?;
    if commit {
        transaction.commit()?;
    } else {
        transaction.rollback()?;
    }
    Ok((row.get(0), started.elapsed()))
}
