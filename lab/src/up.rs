//! Long-running servers: `make up`, `make down`, and servers left behind by a killed test run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::lab::{DATABASE, Lab};
use crate::nats::nats_binary;
use crate::paths::Paths;
use crate::{chaos, install, process};

/// Time a server may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts both servers unless they are running, and writes the env file. Returns whether it started them.
pub fn up(paths: &Paths) -> Result<bool> {
    if postmaster(paths).is_some() && nats(paths).is_some() && paths.env_file().exists() {
        return Ok(false);
    }
    down(paths)?;
    install::run(paths)?;
    let lab = Lab::builder().durable().dir(paths.up()).start()?;
    lab.wait_connected()?;
    let values = [
        ("PGHOST", "127.0.0.1".to_owned()),
        ("PGPORT", lab.postgres.port().to_string()),
        ("PGUSER", "postgres".to_owned()),
        ("PGDATABASE", DATABASE.to_owned()),
        ("NATS_URL", lab.nats.url()),
        ("NATS_MONITOR_URL", lab.nats.monitor_url()),
        ("LAB_DIR", text(&paths.up())),
        ("PG_BIN", text(&paths.pg_bin())),
        ("PG_DATA", text(&lab.postgres.data())),
        ("NATS_BIN", text(&fs::canonicalize(nats_binary())?)),
        ("NATS_PID", lab.nats.pid().to_string()),
        ("NATS_CONF", text(&nats_conf(paths))),
        ("POSTMASTER_PID", lab.postgres.pid().to_string()),
    ];
    let lines: Vec<String> = values
        .iter()
        .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', r"'\''")))
        .collect();
    fs::write(paths.env_file(), lines.concat())?;
    lab.postgres.detach();
    lab.nats.detach();
    Ok(true)
}

/// The content of the env file. An error if no servers are running.
pub fn env(paths: &Paths) -> Result<String> {
    if postmaster(paths).is_none() {
        bail!("no servers are running: run `make up` first");
    }
    fs::read_to_string(paths.env_file()).context("no env file: run `make up` first")
}

/// Stops the servers that `up` started, if they are running, and removes their files. Returns whether any was running.
pub fn down(paths: &Paths) -> Result<bool> {
    let servers = [(postmaster(paths), Signal::SIGINT), (nats(paths), Signal::SIGTERM)];
    for (pid, signal) in servers {
        if let Some(pid) = pid {
            end(pid, signal)?;
        }
    }
    for leftover in [paths.env_file(), paths.up()] {
        remove(&leftover)?;
    }
    Ok(servers.iter().any(|(pid, _)| pid.is_some()))
}

/// Stops all servers and removes everything outside `target/`, which `cargo clean` removes.
pub fn clean(paths: &Paths) -> Result<()> {
    down(paths)?;
    sweep(paths)?;
    if paths.base == paths.lab {
        Ok(())
    } else {
        remove(&paths.base)
    }
}

/// Stops the servers of lab processes that have ended, and removes their files, including those of failed tests.
pub fn sweep(paths: &Paths) -> Result<()> {
    sweep_folder(&paths.run(), "pg-")?;
    sweep_folder(&std::env::temp_dir(), "lab-nats-")
}

/// [`sweep`] for one folder: handles entries named `<prefix><process id>-…`.
pub fn sweep_folder(folder: &Path, prefix: &str) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let owner = owner(&entry.file_name().to_string_lossy(), prefix);
        if owner.is_none_or(process::alive) {
            continue;
        }
        for pid in [
            process::find("postgres", &entry.path().join("data")),
            find_nats(&entry.path()),
        ]
        .concat()
        {
            end(pid, Signal::SIGQUIT)?;
        }
        chaos::release(&entry.path());
        remove(&entry.path())?;
    }
    Ok(())
}

/// Process id in a name such as `pg-1234-abc`.
fn owner(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split('-').next()?.parse().ok()
}

fn postmaster(paths: &Paths) -> Option<u32> {
    process::find("postgres", &paths.up().join("postgres/data"))
        .first()
        .copied()
}

fn nats(paths: &Paths) -> Option<u32> {
    find_nats(&paths.up().join("nats")).first().copied()
}

fn nats_conf(paths: &Paths) -> PathBuf {
    paths.up().join("nats/nats.conf")
}

fn find_nats(dir: &Path) -> Vec<u32> {
    process::find("nats-server", &dir.join("nats.conf"))
}

fn end(pid: u32, signal: Signal) -> Result<()> {
    let children = process::children(pid);
    process::signal(pid, Signal::SIGCONT)?;
    process::signal(pid, signal)?;
    if !process::wait_gone(&[pid], PATIENCE) {
        process::signal(pid, Signal::SIGKILL)?;
    }
    if !process::wait_gone(&[children, vec![pid]].concat(), PATIENCE) {
        bail!("process {pid} or one of its children does not end");
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_owner_from_a_name() {
        assert_eq!(owner("pg-123-Ab", "pg-"), Some(123));
        assert_eq!(owner("lab-nats-7-0-ffee", "lab-nats-"), Some(7));
        assert_eq!(owner("other", "pg-"), None);
    }
}
