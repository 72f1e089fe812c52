//! Transactions of pgbench.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

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
