//! Builds the extension and installs it, into the copied PostgreSQL unless told otherwise.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::{progress, setup};

/// Builds the extension in release mode and installs it where `pg_config` says (default: the copied tree).
pub fn run(paths: &Paths, pg_config: Option<&Path>) -> Result<()> {
    let _lock = setup::lock(paths)?;
    let own = paths.pg_config();
    let target = pg_config.unwrap_or(&own);
    let feature = format!("pg{}", major(target)?);
    let mut command = setup::cargo(paths, paths.cargo_pgrx());
    command.args([
        "pgrx",
        "install",
        "--release",
        "--no-default-features",
        "--features",
        &feature,
        "--pg-config",
    ]);
    command.arg(target);
    if pg_config.is_some() {
        command.env("PGRX_PG_CONFIG_PATH", target);
    }
    progress::run("extension pg_jetstream", command, &paths.logs().join("install.log"))
}

/// That the extension is where the servers look for it; they would say so less clearly.
pub fn check(paths: &Paths) -> Result<()> {
    if !paths.pg_lib().join("pg_jetstream.so").exists() {
        bail!(
            "the extension is not installed in {}: run `cargo run -p lab -- install`",
            paths.pg_tree().display()
        );
    }
    Ok(())
}

fn major(pg_config: &Path) -> Result<u32> {
    let output = Command::new(pg_config).arg("--version").output();
    let output = output.with_context(|| format!("cannot run {}", pg_config.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digits = text
        .trim_start_matches("PostgreSQL ")
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or("");
    digits
        .parse()
        .with_context(|| format!("{} --version says {text:?}", pg_config.display()))
}
