//! Runs transactions with pgbench.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, ensure};

use super::relay::Running;
use crate::lab::Lab;
use crate::paths::Paths;

/// Results of a pgbench run.
pub struct Done {
    /// Total number of transactions.
    pub transactions: usize,
    /// Transactions per second of all clients together.
    pub per_second: f64,
}

/// Runs a script for `seconds` with prepared statements.
///
/// Errors: a transaction fails, or pgbench prints something unexpected.
pub fn pgbench(lab: &Lab, script: &str, clients: usize, seconds: u32) -> Result<Done> {
    let file = tempfile::NamedTempFile::new()?;
    // pgbench needs each statement on a line of its own, otherwise it sends them as one. Without the last semicolon it
    // would read past the end.
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
            .with_context(|| format!("no {name:?} in the output of pgbench:\n{text}"))
    };
    Ok(Done {
        transactions: after("number of transactions actually processed: ")? as usize,
        per_second: after("tps = ")?,
    })
}

/// Does the same while a relay, fed from memory, publishes `per_second` messages of 256 bytes to a server of its own on
/// the same processors. This shows how much of the machine remains next to any program that publishes as much.
///
/// Errors: as [`pgbench`]; a server does not start; a message is not delivered.
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
        // A lower rate would not be the requested load.
        let wanted = per_second * f64::from(seconds);
        ensure!(
            stored as f64 >= wanted * 0.9,
            "only {stored} of {wanted:.0} messages were published"
        );
        done
    })
}
