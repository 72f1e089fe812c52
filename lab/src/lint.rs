//! `make lint`: every check that runs nothing of what it checks. A new one is a line in `run`.

use std::process::Command;

use anyhow::{Result, bail};

use crate::checks::Checks;
use crate::paths::Paths;
use crate::{dependencies, setup, sql_check, tools};

/// Runs all of them, reported as they end.
pub(crate) fn run(checks: &mut Checks, paths: &Paths) -> Result<()> {
    let feature = paths.feature();
    let cargo = |args: &[&str]| {
        let mut command = setup::cargo(paths, std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(args).env("PG_MAJOR", paths.major.to_string());
        command
    };
    checks.command("formatting", Ok(cargo(&["fmt", "--all", "--check"])))?;
    let features = ["--no-default-features", "--features", &feature];
    let clippy = [
        &["clippy", "--workspace", "--all-targets"],
        &features[..],
        &["--", "-D", "warnings"],
    ]
    .concat();
    checks.command("clippy", Ok(cargo(&clippy)))?;
    checks.result("rules of sql/", sql(paths));
    checks.result("dependencies", dependencies::check(paths).map(drop));
    checks.command("spelling", tools::typos(paths))?;
    checks.command("shell scripts", shellcheck(paths))?;
    Ok(())
}

fn sql(paths: &Paths) -> Result<()> {
    let found = sql_check::run(paths)?;
    if !found.is_empty() {
        bail!("{}", found.join("\n"));
    }
    Ok(())
}

/// The checker of shell scripts, for every file that names a shell in its first line.
fn shellcheck(paths: &Paths) -> Result<Command> {
    let mut command = tools::shellcheck(paths)?;
    command.args(scripts(paths)?).current_dir(&paths.root);
    Ok(command)
}

fn scripts(paths: &Paths) -> Result<Vec<String>> {
    const SHELLS: [&str; 3] = ["#!/bin/sh", "#!/bin/bash", "#!/usr/bin/env bash"];
    let mut found = Vec::new();
    let mut folders = vec![paths.root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let kind = entry?;
            if kind.is_dir() && !["target", ".git", "node_modules"].contains(&name.as_str()) {
                folders.push(path);
            } else if kind.is_file() {
                let head = std::fs::read(&path)?;
                if SHELLS.iter().any(|shell| head.starts_with(shell.as_bytes())) {
                    found.push(path.display().to_string());
                }
            }
        }
    }
    found.sort();
    Ok(found)
}
