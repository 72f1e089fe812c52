//! Processor time of processes and single threads, read from /proc. The kernel reports it in hundredths of a second, so
//! a measurement should last a second or more.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::process;

/// Name of the relay's thread, both in the worker and in the lab.
pub const RELAY_THREAD: &str = "jetstream relay";

/// All roles, in the order of the table columns.
pub const ROLES: [&str; 10] = [
    "worker",
    "relay",
    "nats-server",
    BACKENDS,
    "checkpointer",
    "walwriter",
    "background writer",
    "autovacuum",
    "feed",
    "writers",
];

/// The process or thread whose time is counted.
#[derive(Clone, Debug)]
enum Source {
    Process(u32),
    MainThread(u32),
    ThreadNamed(u32, &'static str),
}

/// Counts processor time from its start. Each source has a role, under which its time is reported.
#[derive(Debug)]
pub struct Meter {
    sources: Vec<(&'static str, Source)>,
    postmaster: Option<u32>,
    before: BTreeMap<&'static str, f64>,
    began: Instant,
}

/// Processor time used between start and stop of a [`Meter`].
#[derive(Clone, Debug)]
pub struct Used {
    /// Processor seconds by role.
    pub seconds: BTreeMap<&'static str, f64>,
    /// Elapsed time.
    pub wall: Duration,
}

impl Used {
    /// Microseconds of processor time per message, by role, for `count` messages.
    pub fn micros_each(&self, count: usize) -> BTreeMap<&'static str, f64> {
        let each = |seconds: &f64| seconds * 1e6 / count as f64;
        self.seconds.iter().map(|(role, s)| (*role, each(s))).collect()
    }

    /// Percentage of one core that a role used.
    pub fn core_percent(&self, role: &str) -> f64 {
        self.seconds.get(role).copied().unwrap_or(0.0) * 100.0 / self.wall.as_secs_f64()
    }
}

impl Meter {
    /// A meter without sources.
    pub fn new() -> Self {
        Self {
            sources: Vec::new(),
            postmaster: None,
            before: BTreeMap::new(),
            began: Instant::now(),
        }
    }

    /// Counts the worker's two threads, nats-server, and every other PostgreSQL process.
    ///
    /// Errors: no worker is running.
    pub fn of_lab(lab: &Lab) -> Result<Self> {
        let worker = worker_pid(lab)?;
        let mut meter = Self::new()
            .process("nats-server", lab.nats.pid())
            .main_thread("worker", worker)
            .relay("relay", worker);
        meter.postmaster = Some(lab.postgres.pid());
        Ok(meter)
    }

    /// Counts every PostgreSQL process. A worker counts as a backend.
    pub fn of_postgres(lab: &Lab) -> Self {
        Self {
            postmaster: Some(lab.postgres.pid()),
            ..Self::new()
        }
    }

    /// Counts a whole process.
    pub fn process(mut self, role: &'static str, pid: u32) -> Self {
        self.sources.push((role, Source::Process(pid)));
        self
    }

    /// Counts the main thread of a process.
    pub fn main_thread(mut self, role: &'static str, pid: u32) -> Self {
        self.sources.push((role, Source::MainThread(pid)));
        self
    }

    /// Counts the relay thread of a process.
    pub fn relay(mut self, role: &'static str, pid: u32) -> Self {
        self.sources.push((role, Source::ThreadNamed(pid, RELAY_THREAD)));
        self
    }

    /// Starts counting.
    pub fn start(mut self) -> Self {
        self.before = self.look();
        self.began = Instant::now();
        self
    }

    /// Processor time used since the start.
    pub fn stop(&self) -> Used {
        let wall = self.began.elapsed();
        let mut seconds = self.look();
        for (role, before) in &self.before {
            *seconds.entry(role).or_default() -= before;
        }
        Used { seconds, wall }
    }

    fn look(&self) -> BTreeMap<&'static str, f64> {
        let mut seconds = BTreeMap::new();
        for (role, source) in &self.sources {
            *seconds.entry(*role).or_default() += match source {
                Source::Process(pid) => ticks(&format!("/proc/{pid}/stat"), OWN),
                Source::MainThread(pid) => ticks(&format!("/proc/{pid}/task/{pid}/stat"), OWN),
                Source::ThreadNamed(pid, name) => thread_named(*pid, name),
            };
        }
        if let Some(postmaster) = self.postmaster {
            let known = |pid: &u32| self.sources.iter().any(|(_, source)| source.pid() == *pid);
            for pid in process::children(postmaster).into_iter().filter(|pid| !known(pid)) {
                *seconds.entry(postgres_role(pid)).or_default() += ticks(&format!("/proc/{pid}/stat"), OWN);
            }
            // The time of processes that have ended is in their parent's total.
            *seconds.entry(BACKENDS).or_default() += ticks(&format!("/proc/{postmaster}/stat"), OF_ENDED_CHILDREN);
        }
        seconds
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Source {
    fn pid(&self) -> u32 {
        match self {
            Source::Process(pid) | Source::MainThread(pid) | Source::ThreadNamed(pid, _) => *pid,
        }
    }
}

pub fn worker_pid(lab: &Lab) -> Result<u32> {
    Ok(lab.value("select pid from jetstream.worker_status()")?.parse()?)
}

/// `RssAnon` of a process in megabytes: its memory without mapped files and shared memory.
pub fn anonymous_megabytes(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes: f64 = line
        .context("no RssAnon")?
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()?;
    Ok(kilobytes / 1024.0)
}

/// Role of client connections, of processes that have ended, and of processes without a role of their own.
pub const BACKENDS: &str = "backends";

fn postgres_role(pid: u32) -> &'static str {
    let title = process::arguments(pid).concat();
    let roles = ["checkpointer", "walwriter", "background writer", "autovacuum"];
    roles.into_iter().find(|role| title.contains(role)).unwrap_or(BACKENDS)
}

/// Fields utime and stime of a stat file, counted after the program name.
const OWN: std::ops::Range<usize> = 11..13;
/// Fields cutime and cstime, counted the same way.
const OF_ENDED_CHILDREN: std::ops::Range<usize> = 13..15;

/// Seconds in two fields of a stat file. Zero if the process no longer exists.
fn ticks(stat: &str, fields: std::ops::Range<usize>) -> f64 {
    // Linux reports times in units of USER_HZ, which is 100 on every architecture PostgreSQL supports.
    let text = fs::read_to_string(stat).unwrap_or_default();
    let Some((_, rest)) = text.rsplit_once(')') else {
        return 0.0;
    };
    let all: Vec<&str> = rest.split_whitespace().collect();
    let ticks = all.get(fields).unwrap_or_default().iter();
    ticks.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn thread_named(pid: u32, name: &str) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let named = tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name));
    named
        .map(|task| ticks(&task.path().join("stat").to_string_lossy(), OWN))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_busy_thread_from_an_idle_one() {
        let own = std::process::id();
        let all = Meter::new().process("worker", own).main_thread("feed", own).start();
        let thread = std::thread::Builder::new()
            .name(RELAY_THREAD.to_owned())
            .spawn(move || {
                let meter = Meter::new().relay("relay", own).start();
                // Measured by the thread's own clock, because a busy machine may give it little time.
                while meter.stop().seconds["relay"] < 0.2 && meter.began.elapsed() < Duration::from_secs(20) {
                    for n in 0..1_000_000 {
                        std::hint::black_box(n);
                    }
                }
                meter.stop()
            });
        let busy = thread.unwrap().join().unwrap();
        let used = all.stop();
        assert!(busy.seconds["relay"] >= 0.2, "{busy:?}");
        assert!(
            used.seconds["worker"] >= 0.19,
            "a process includes all of its threads: {used:?}"
        );
        assert!(used.seconds["feed"] < 0.1, "the main thread only waits: {used:?}");
        assert_eq!(busy.micros_each(1000)["relay"], busy.seconds["relay"] * 1e6 / 1000.0);
        assert!(busy.core_percent("relay") > 0.0 && busy.core_percent("feed") == 0.0);
    }
}
