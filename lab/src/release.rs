//! Versions of the extension: the current one, and the install scripts of released ones, which never change.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::paths::Paths;

/// The version in `Cargo.toml`.
pub fn version(paths: &Paths) -> Result<String> {
    version_in(&fs::read_to_string(paths.root.join("Cargo.toml"))?)
}

/// The version in the text of a `Cargo.toml` with a package.
pub fn version_in(manifest: &str) -> Result<String> {
    let package = manifest.split_once("[package]").map_or("", |(_, rest)| rest);
    let line = package.lines().find_map(|line| line.strip_prefix("version = "));
    Ok(line.context("Cargo.toml has no version")?.trim_matches('"').to_owned())
}

/// Folder of released install scripts.
pub fn folder(paths: &Paths) -> PathBuf {
    paths.root.join("migrations/released")
}

/// The install script of a version in the installed extension.
pub fn installed_script(paths: &Paths, version: &str) -> PathBuf {
    paths.pg_extension().join(script_name(version))
}

/// PostgreSQL's name for the install script of a version.
pub fn script_name(version: &str) -> String {
    format!("pg_jetstream--{version}.sql")
}

/// The released install scripts: version and file, oldest first.
pub fn frozen(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let file = entry?.path();
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let version = name
            .strip_prefix("pg_jetstream--")
            .and_then(|rest| rest.strip_suffix(".sql"));
        if let Some(version) = version {
            found.push((version.to_owned(), file.clone()));
        }
    }
    let numbers = |version: &str| -> Vec<u32> { version.split('.').map(|part| part.parse().unwrap_or(0)).collect() };
    found.sort_by_key(|(version, _)| numbers(version));
    Ok(found)
}

/// The parts of a script without the comments that name their source files. Two scripts with the same parts are equal,
/// because pgrx does not keep the order.
pub fn parts(script: &str) -> BTreeSet<String> {
    let code = |part: &str| -> String {
        let lines = part.lines().filter(|line| !line.starts_with("-- "));
        lines.collect::<Vec<_>>().join("\n").trim().to_owned()
    };
    script.split("/* <begin connected objects> */").map(code).collect()
}

/// Saves the installed script of a version in `folder`. If the folder already has a script of this version, users have
/// installed it, so a difference is an error.
pub fn freeze(installed: &Path, folder: &Path) -> Result<PathBuf> {
    let script = fs::read_to_string(installed)
        .with_context(|| format!("{} does not exist: install the extension first", installed.display()))?;
    let file = folder.join(installed.file_name().context("no file name")?);
    match fs::read_to_string(&file) {
        Ok(old) if parts(&old) == parts(&script) => {}
        Ok(_) => bail!(
            "{} differs from the installed script, but a released version must not change. Raise the version in Cargo.toml and \
             write an upgrade script",
            file.display()
        ),
        Err(_) => {
            fs::create_dir_all(folder)?;
            fs::write(&file, script)?;
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_version_of_the_package() {
        let manifest = "[workspace.dependencies]\nversion = \"9\"\n[package]\nname = \"x\"\nversion = \"0.1.0\"\n";
        assert_eq!(version_in(manifest).unwrap(), "0.1.0");
        assert!(version_in("[package]\nname = \"x\"\n").is_err());
    }

    #[test]
    fn only_places_in_the_sources_and_order_may_differ() {
        let script = |parts: [&str; 2]| {
            parts
                .map(|part| format!("/* <begin connected objects> */\n{part}"))
                .concat()
        };
        let (one, other) = (
            script(["-- src/a.rs:1\nselect 1;", "select 2;"]),
            script(["select 2;", "-- src/a.rs:9\nselect 1;"]),
        );
        assert_eq!(parts(&one), parts(&other));
        assert_ne!(parts(&one), parts(&script(["select 1;", "select 3;"])));
    }

    #[test]
    fn a_frozen_script_never_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (installed, folder) = (dir.path().join("pg_jetstream--0.10.0.sql"), dir.path().join("released"));
        assert!(freeze(&installed, &folder).is_err(), "the extension is not installed");
        fs::write(&installed, "select 1;").unwrap();
        let file = freeze(&installed, &folder).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "select 1;");
        freeze(&installed, &folder).unwrap();
        fs::write(&installed, "select 2;").unwrap();
        assert!(
            freeze(&installed, &folder)
                .unwrap_err()
                .to_string()
                .contains("Raise the version")
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), "select 1;");
        fs::write(folder.join("pg_jetstream--0.9.0.sql"), "").unwrap();
        fs::write(folder.join("README.md"), "").unwrap();
        let versions: Vec<String> = frozen(&folder)
            .unwrap()
            .into_iter()
            .map(|(version, _)| version)
            .collect();
        assert_eq!(versions, ["0.9.0", "0.10.0"]);
    }
}
