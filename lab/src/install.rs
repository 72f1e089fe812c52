//! Builds the extension and installs it, by default into the copied PostgreSQL.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::{packages, progress, setup};

/// Builds the extension in release mode and installs it into the copied tree.
pub fn run(paths: &Paths) -> Result<()> {
    install(paths, paths.major, &paths.pg_config(), &[])
}

/// Builds the extension in release mode and installs it into the PostgreSQL of `pg_config`, which is a path or a name
/// to look up.
pub fn run_into(paths: &Paths, pg_config: &Path) -> Result<()> {
    let found = packages::on_path(&pg_config.to_string_lossy());
    let pg_config = std::path::absolute(found.as_deref().unwrap_or(pg_config));
    let pg_config = pg_config.context("cannot find pg_config; set PG_CONFIG=/path/to/pg_config")?;
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
    // `LAB_DEBUG` builds without optimization, which takes a fraction of the time. Figures measured with such a build
    // mean nothing.
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

/// Checks that the extension is where the servers look for it. Their own error would be less clear.
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
        .with_context(|| format!("{} --version prints {text:?}", pg_config.display()))
}
