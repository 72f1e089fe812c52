//! Builds the extension and installs it, into the copied PostgreSQL unless told otherwise.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::{packages, progress, setup};

/// Builds the extension in release mode and installs it into the copied tree.
pub fn run(paths: &Paths) -> Result<()> {
    install(paths, paths.major, &paths.pg_config(), &[])
}

/// Builds the extension in release mode and installs it where `pg_config` (a path, or a name to look up) says.
pub fn run_into(paths: &Paths, pg_config: &Path) -> Result<()> {
    let found = packages::on_path(&pg_config.to_string_lossy());
    let pg_config = std::path::absolute(found.as_deref().unwrap_or(pg_config));
    let pg_config = pg_config.context("cannot find pg_config; say where it is with PG_CONFIG=/path/to/pg_config")?;
    install(
        paths,
        major(&pg_config)?,
        &pg_config,
        &[("PGRX_PG_CONFIG_PATH", &pg_config)],
    )
}

fn install(paths: &Paths, major: u32, pg_config: &Path, env: &[(&str, &Path)]) -> Result<()> {
    let _lock = setup::lock(paths)?;
    let mut command = setup::cargo(paths, paths.cargo_pgrx());
    command.args(["pgrx", "install"]);
    // Without optimisation a change is built in a fraction of the time; no figure measured with it is worth quoting.
    if std::env::var_os("LAB_DEBUG").is_none() {
        command.arg("--release");
    }
    command.args(["--no-default-features", "--features", &format!("pg{major}")]);
    command.arg("--pg-config").arg(pg_config).envs(env.iter().copied());
    progress::run(
        &format!("extension for PostgreSQL {major}"),
        command,
        &paths.logs().join("install.log"),
    )
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
