//! pg_regress: runs SQL and compares the output with expected text.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::postgres::Postgres;

/// cargo-pgrx uses the same database name.
const DATABASE: &str = "pg_jetstream_regress";

/// The pg_regress command for a server of its own, which lives as long as the returned value.
pub fn own_server(paths: &Paths) -> Result<(Command, Postgres)> {
    let server = Postgres::builder().of(paths.clone()).start()?;
    let mut command = command(paths, &program(paths.pg_lib().as_path()))?;
    command.arg(format!("--bindir={}", paths.pg_bin().display()));
    command
        .args(["--host=127.0.0.1", "--user=postgres"])
        .arg(format!("--port={}", server.port()));
    Ok((command, server))
}

/// The pg_regress command of an installed PostgreSQL, for the server given by PGHOST, PGPORT and PGUSER.
pub fn running_server(paths: &Paths, pg_config: &Path) -> Result<Command> {
    let ask = |what: &str| -> Result<PathBuf> {
        let output = Command::new(pg_config).arg(what).output();
        let output = output.with_context(|| format!("cannot run {}", pg_config.display()))?;
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    };
    let mut command = command(paths, &program(&ask("--pkglibdir")?))?;
    command.arg(format!("--bindir={}", ask("--bindir")?.display()));
    for (option, name) in [("host", "PGHOST"), ("port", "PGPORT"), ("user", "PGUSER")] {
        if let Ok(value) = std::env::var(name) {
            command.arg(format!("--{option}={value}"));
        }
    }
    Ok(command)
}

/// The differences between expected and actual output in the last run.
pub fn differences(paths: &Paths) -> String {
    fs::read_to_string(output_dir(paths).join("regression.diffs")).unwrap_or_default()
}

fn program(pkglibdir: &Path) -> PathBuf {
    pkglibdir.join("pgxs/src/test/regress/pg_regress")
}

fn output_dir(paths: &Paths) -> PathBuf {
    paths.lab.join("regress")
}

fn command(paths: &Paths, program: &Path) -> Result<Command> {
    let input = paths.root.join("pg_regress");
    let tests = tests(&input)?;
    let output = output_dir(paths);
    if output.exists() {
        fs::remove_dir_all(&output)?;
    }
    fs::create_dir_all(&output)?;
    let mut command = Command::new(program);
    command
        .current_dir(&paths.root)
        .arg(format!("--inputdir={}", input.display()));
    command
        .arg(format!("--outputdir={}", output.display()))
        .arg(format!("--dbname={DATABASE}"))
        .args(tests);
    Ok(command)
}

/// The tests in the order they run: `setup` first, then by name. Fails if a test has no expected output, because it
/// could pass unnoticed.
fn tests(input: &Path) -> Result<Vec<String>> {
    let sql = input.join("sql");
    let entries = fs::read_dir(&sql).with_context(|| format!("no tests in {}", sql.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".sql")?.to_owned()))
        .collect();
    names.sort_by_key(|name| (name != "setup", name.clone()));
    if names.is_empty() {
        bail!("no tests in {}", sql.display());
    }
    let expected = |name: &&String| input.join("expected").join(format!("{name}.out")).exists();
    let missing: Vec<&str> = names
        .iter()
        .filter(|name| !expected(name))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        bail!("no expected output for: {}", missing.join(", "));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setup_comes_first_and_every_test_needs_an_expected_file() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["sql", "expected"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        assert!(tests(dir.path()).is_err(), "no expected output");
        for name in ["setup", "publish", "zebra"] {
            fs::write(dir.path().join(format!("sql/{name}.sql")), "").unwrap();
            fs::write(dir.path().join(format!("expected/{name}.out")), "").unwrap();
        }
        assert_eq!(tests(dir.path()).unwrap(), ["setup", "publish", "zebra"]);
        fs::write(dir.path().join("sql/new.sql"), "").unwrap();
        assert!(tests(dir.path()).unwrap_err().to_string().contains("new"));
    }
}
