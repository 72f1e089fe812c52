//! `make matrix`: builds and tests the extension for each major version of PostgreSQL in Debian.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::checks::{Checks, Count};
use crate::paths::Paths;
use crate::progress::seconds;
use crate::{install, second_major};

/// The end-to-end tests that show differences between versions: raw PostgreSQL calls, snapshots, statements, triggers,
/// and a crash.
const SMOKE: [&str; 8] = [
    "e2e_publish",
    "e2e_settle",
    "e2e_recovery",
    "e2e_visibility",
    "e2e_capture_statements",
    "e2e_capture_nesting",
    "e2e_late",
    "e2e_catalog",
];

/// The major versions in Debian.
pub fn majors() -> Vec<u32> {
    second_major::RELEASES.iter().map(|(major, _)| *major).collect()
}

/// Builds and tests all `majors` and prints a table. A failure does not stop the others. `everything` runs all
/// end-to-end tests, which takes minutes per version.
pub fn run(paths: &Paths, majors: &[u32], everything: bool) -> Result<Count> {
    let mut rows = Vec::new();
    for &major in majors {
        rows.push(row(paths, major, everything)?);
    }
    println!(
        "\n{:<12}{:<12}{:<18}{:<26}end-to-end",
        "PostgreSQL", "release", "build", "pg_regress"
    );
    rows.iter().for_each(|row| println!("{row}"));
    Ok(rows.iter().map(|row| row.count()).sum())
}

struct Row {
    version: String,
    release: &'static str,
    build: (Count, Duration),
    /// Results of pg_regress and of the end-to-end tests. `None` if the build failed.
    tests: Option<[Count; 2]>,
}

impl Row {
    fn count(&self) -> Count {
        std::iter::once(self.build.0)
            .chain(self.tests.into_iter().flatten())
            .sum()
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.build.0.failed == 0 { "ok" } else { "FAILED" };
        let build = format!("{verdict} {}", seconds(self.build.1));
        let [regress, tests] = match self.tests {
            Some(tests) => tests.map(|count| format!("{} passed, {} failed", count.passed, count.failed)),
            None => ["not run", "not run"].map(str::to_owned),
        };
        write!(
            f,
            "{:<12}{:<12}{build:<18}{regress:<26}{tests}",
            self.version, self.release
        )
    }
}

fn row(paths: &Paths, major: u32, everything: bool) -> Result<Row> {
    println!("PostgreSQL {major}");
    let started = Instant::now();
    let built = if major == paths.major {
        install::run(paths).map(|()| paths.clone())
    } else {
        second_major::make(paths, major)
    };
    let took = started.elapsed();
    let row = |version, build, tests| Row {
        version,
        release: if major == paths.major {
            "(this one)"
        } else {
            second_major::release(major).unwrap_or_default()
        },
        build: (build, took),
        tests,
    };
    let places = match built {
        Ok(places) => places,
        Err(error) => {
            println!("{error:#}");
            return Ok(row(major.to_string(), Count { passed: 0, failed: 1 }, None));
        }
    };
    let mut checks = Checks::new(&places);
    let regress = checks.pg_regress()?;
    let mut args = vec!["test", "-p", "lab", "--no-fail-fast"];
    if !everything {
        args.extend(SMOKE.iter().flat_map(|name| ["--test", name]));
    }
    let tests = checks.tests(&args)?;
    Ok(row(
        version(&places),
        Count { passed: 1, failed: 0 },
        Some([regress, tests]),
    ))
}

/// Extracts `18.6` from `PostgreSQL 18.6 (Debian …)`.
fn version(paths: &Paths) -> String {
    let output = Command::new(paths.pg_config()).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    text.split(' ')
        .nth(1)
        .map_or(paths.major.to_string(), |word| word.trim().to_owned())
}
