//! Describes the machine on which the figures were measured.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::nats::nats_binary;
use crate::paths::Paths;

/// The machine, the versions and the commit.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processors available to this process.
    pub cores: usize,
    pub processor: String,
    /// Version of the Linux kernel.
    pub kernel: String,
    /// Output of `postgres --version`.
    pub postgresql: String,
    /// Output of `nats-server --version`.
    pub nats_server: String,
    /// The measured commit, followed by `+` if files differ from it. Empty outside a repository.
    pub commit: String,
    /// Load average over one minute when the bench started.
    pub load: f64,
    /// Whether the measurements were shortened, which makes the figures less reliable.
    pub shortened: bool,
}

impl Machine {
    /// One line for the terminal.
    pub fn line(&self) -> String {
        format!(
            "{} cores ({}), Linux {}, {}, {}, commit {}, load before {:.2}{}",
            self.cores,
            self.processor,
            self.kernel,
            self.postgresql,
            self.nats_server,
            self.commit,
            self.load,
            if self.shortened { ", shortened" } else { "" }
        )
    }
}

/// Collects the facts about this machine.
///
/// Errors: PostgreSQL or nats-server does not report its version.
pub fn look(paths: &Paths, shortened: bool) -> Result<Machine> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Ok(Machine {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        processor: processor.map_or("unknown processor", |(_, name)| name).to_owned(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        postgresql: said(&paths.pg_bin().join("postgres"), &["--version"])?,
        nats_server: said(&nats_binary(), &["--version"])?,
        commit: commit(),
        load: load
            .split(' ')
            .next()
            .and_then(|first| first.parse().ok())
            .unwrap_or(f64::NAN),
        shortened,
    })
}

fn commit() -> String {
    let git = |arguments: &[&str]| said(Path::new("git"), arguments);
    let Ok(hash) = git(&["rev-parse", "--short", "HEAD"]) else {
        return String::new();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    hash + if changed.is_ok_and(|files| !files.is_empty()) {
        "+"
    } else {
        ""
    }
}

fn said(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    anyhow::ensure!(output.status.success(), "{} failed", program.display());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
