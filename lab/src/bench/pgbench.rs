//! Transactions of pgbench.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, ensure};

use super::relay::Running;
use crate::lab::Lab;
use crate::paths::Paths;

/// What pgbench has done.
pub struct Done {
    /// Transactions in all.
    pub transactions: usize,
    /// Transactions a second of all clients together.
    pub per_second: f64,
}

/// Runs a script for so many seconds, with prepared statements.
///
/// Errors: a transaction failed, or pgbench says something unexpected.
pub fn pgbench(lab: &Lab, script: &str, clients: usize, seconds: u32) -> Result<Done> {
    let file = tempfile::NamedTempFile::new()?;
    // One statement a line, or pgbench would take them for one; without the last semicolon it reads on behind the end.
    fs::write(file.path(), script.replace("; ", ";\n") + ";\n")?;
    let output = Command::new(Paths::ready()?.pg_bin().join("pgbench"))
        .args(["-n", "-M", "prepared", "-h", "127.0.0.1", "-U", "postgres", "postgres"])
        .args(["-p", &lab.postgres.port().to_string(), "-T", &seconds.to_string()])
        .args(["-c", &clients.to_string(), "-j", &clients.min(2).to_string()])
        .arg("-f")
        .arg(file.path())
        .output()
        .context("cannot run pgbench")?;
    let (text, problems) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success() && !problems.contains("ERROR"),
        "pgbench failed: {problems}\n{text}"
    );
    let after = |name: &str| -> Result<f64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name));
        let number = rest.and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
        let number = number.split('/').next().unwrap_or_default();
        number
            .parse()
            .with_context(|| format!("no {name:?} in what pgbench says:\n{text}"))
    };
    Ok(Done {
        transactions: after("number of transactions actually processed: ")? as usize,
        per_second: after("tps = ")?,
    })
}

/// The same while a relay alone, fed from memory, publishes so many messages of 256 bytes a second to a server of its
/// own on the same processors: what is left of the machine beside any program that publishes as much.
///
/// Errors: as [`pgbench`]; no server; a message that was not stored.
pub fn beside_a_relay(lab: &Lab, script: &str, clients: usize, seconds: u32, per_second: f64) -> Result<Done> {
    const WINDOW: usize = 1_000;
    const BODY: usize = 256;
    let running = Running::start(WINDOW)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let relay = scope.spawn(|| running.publish_at(per_second, BODY, &stop));
        let done = pgbench(lab, script, clients, seconds);
        stop.store(true, Ordering::Relaxed);
        let stored = relay.join().map_err(|_| anyhow!("the relay's feed panicked"))??;
        // Less would be another load than asked for.
        let wanted = per_second * f64::from(seconds);
        ensure!(
            stored as f64 >= wanted * 0.9,
            "only {stored} of {wanted:.0} messages were published"
        );
        done
    })
}
