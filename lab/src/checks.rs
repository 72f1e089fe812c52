//! `make test`: every check there is, one line each, and a count.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::paths::Paths;
use crate::progress::{self, Done, seconds};
use crate::{install, lint, matrix, regress, setup, tools, up};

/// What the two minutes of chaos draw from.
const CHAOS_SEED: &str = "5";

/// What the checks have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Tests that passed; formatting and clippy are one each.
    pub passed: u32,
    /// Tests that failed; a part that could not run at all is one.
    pub failed: u32,
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Count>>(counts: I) -> Count {
        counts.fold(Count::default(), |one, other| Count {
            passed: one.passed + other.passed,
            failed: one.failed + other.failed,
        })
    }
}

/// A second major version that `make test` builds for and tries.
const SECOND_MAJOR: u32 = 18;

/// Runs everything, going on after a failure.
pub fn run(paths: &Paths) -> Result<Count> {
    up::sweep(paths)?;
    let feature = paths.feature();
    let features = ["--no-default-features", "--features", &feature];
    let mut checks = Checks::new(paths);
    lint::run(&mut checks, paths)?;
    let unit = [&["test", "-p", "pg_jetstream", "--lib"], &features[..]].concat();
    checks.cargo("unit tests", &unit, count_cargo)?;
    let programs = ["test", "-p", "webhook-worker", "-p", "console"];
    checks.cargo("example programs", &programs, count_cargo)?;
    checks.worker("Go worker", tools::go_tests(paths), count_go)?;
    checks.worker("Node.js worker", tools::node_tests(paths), count_node)?;
    let started = Instant::now();
    match install::run(paths) {
        Ok(()) => {
            checks.pg_regress()?;
            checks.tests(&["test", "-p", "lab", "--no-fail-fast"])?;
            checks.chaos()?;
            if paths.major != SECOND_MAJOR {
                let other = matrix::run(paths, &[SECOND_MAJOR], false)?;
                checks.total = [checks.total, other].into_iter().sum();
            }
        }
        Err(error) => checks.report(
            "extension",
            Count { passed: 0, failed: 1 },
            started.elapsed(),
            &format!("{error:#}"),
        ),
    }
    Ok(checks.total)
}

/// Runs what needs no server and no extension: formatting, clippy, dependencies, spelling, shell scripts.
pub fn lint(paths: &Paths) -> Result<Count> {
    let mut checks = Checks::new(paths);
    lint::run(&mut checks, paths)?;
    Ok(checks.total)
}

/// Runs pg_regress against a server of its own, with the extension that is installed.
pub fn regress(paths: &Paths) -> Result<Count> {
    let mut checks = Checks::new(paths);
    checks.pg_regress()?;
    Ok(checks.total)
}

/// Runs pg_regress against the server that the environment names.
pub fn installcheck(paths: &Paths, pg_config: &std::path::Path) -> Result<Count> {
    let mut checks = Checks::new(paths);
    let command = regress::running_server(paths, pg_config)?;
    checks.run_regress(command)?;
    Ok(checks.total)
}

/// Checks in one PostgreSQL, reported as they end.
pub(crate) struct Checks<'a> {
    paths: &'a Paths,
    total: Count,
}

impl<'a> Checks<'a> {
    pub(crate) fn new(paths: &'a Paths) -> Self {
        Self {
            paths,
            total: Count::default(),
        }
    }

    /// End-to-end tests, by the arguments of cargo.
    pub(crate) fn tests(&mut self, args: &[&str]) -> Result<Count> {
        self.cargo("end-to-end tests", args, count_cargo)
    }

    fn cargo(&mut self, name: &str, args: &[&str], count: fn(&Done) -> Count) -> Result<Count> {
        let mut command = setup::cargo(self.paths, std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(args).env("PG_MAJOR", self.paths.major.to_string());
        let log = self.paths.logs().join(format!("{}.log", name.replace(' ', "-")));
        let done = progress::capture(name, command, &log)?;
        let count = count(&done);
        self.report(name, count, done.took, &done.output);
        Ok(count)
    }

    /// A command that is one check.
    pub(crate) fn command(&mut self, name: &str, command: Result<Command>) -> Result<()> {
        self.worker(name, command, one)
    }

    /// A check that runs in this process.
    pub(crate) fn result(&mut self, name: &str, result: Result<()>) {
        let started = Instant::now();
        let (passed, failed) = if result.is_ok() { (1, 0) } else { (0, 1) };
        let output = result.map_or_else(|error| format!("{error:#}"), |()| String::new());
        self.report(name, Count { passed, failed }, started.elapsed(), &output);
    }

    /// Tests of a program, or another command, that cargo does not run.
    fn worker(&mut self, name: &str, command: Result<Command>, count: fn(&Done) -> Count) -> Result<()> {
        let started = Instant::now();
        match command {
            Ok(command) => {
                let log = self.paths.logs().join(format!("{}.log", name.replace(' ', "-")));
                let done = progress::capture(name, command, &log)?;
                self.report(name, count(&done), done.took, &done.output);
            }
            Err(error) => {
                let count = Count { passed: 0, failed: 1 };
                self.report(name, count, started.elapsed(), &format!("{error:#}"));
            }
        }
        Ok(())
    }

    /// By cargo: the tests before may have built this program anew, in the place of the one that runs.
    fn chaos(&mut self) -> Result<()> {
        let args = [
            "run",
            "-q",
            "-p",
            "lab",
            "--",
            "chaos",
            "--seed",
            CHAOS_SEED,
            "--minutes",
            "2",
        ];
        self.cargo("chaos", &args, one).map(|_| ())
    }

    pub(crate) fn pg_regress(&mut self) -> Result<Count> {
        let started = Instant::now();
        match regress::own_server(self.paths) {
            Ok((command, _server)) => self.run_regress(command),
            Err(error) => {
                let count = Count { passed: 0, failed: 1 };
                self.report("pg_regress", count, started.elapsed(), &format!("{error:#}"));
                Ok(count)
            }
        }
    }

    fn run_regress(&mut self, command: Command) -> Result<Count> {
        let done = progress::capture("pg_regress", command, &self.paths.logs().join("pg_regress.log"))?;
        let shown = format!("{}\n{}", done.output, regress::differences(self.paths));
        let count = count_regress(&done);
        self.report("pg_regress", count, done.took, &shown);
        Ok(count)
    }

    fn report(&mut self, name: &str, count: Count, took: Duration, output: &str) {
        self.total.passed += count.passed;
        self.total.failed += count.failed;
        let verdict = if count.failed > 0 { "FAILED" } else { "ok" };
        if count.failed > 0 {
            println!("{}", without_noise(output));
        }
        println!(
            "{verdict:<6} {name:<17} {:>4} passed {:>3} failed {:>9}",
            count.passed,
            count.failed,
            seconds(took)
        );
    }
}

/// What is worth reading of a failed command's output: not the crates it built, not the tests that passed.
fn without_noise(output: &str) -> String {
    let starts = [
        "Compiling ",
        "Checking ",
        "Finished ",
        "Running ",
        "running ",
        "Doc-tests ",
        "test result: ok",
    ];
    let noise = |line: &str| line.ends_with("... ok") || starts.iter().any(|start| line.trim().starts_with(start));
    let mut lines: Vec<&str> = output.lines().filter(|line| !noise(line)).collect();
    lines.dedup_by(|one, other| one.trim().is_empty() && other.trim().is_empty());
    lines.join("\n").trim().to_owned()
}

/// The whole command is one test.
fn one(done: &Done) -> Count {
    if done.success {
        Count { passed: 1, failed: 0 }
    } else {
        Count { passed: 0, failed: 1 }
    }
}

/// The sum of cargo's `test result: ok. 5 passed; 0 failed; …` lines.
fn count_cargo(done: &Done) -> Count {
    let mut count = Count::default();
    for line in done.output.lines().filter(|line| line.starts_with("test result:")) {
        count.passed += number_before(line, " passed");
        count.failed += number_before(line, " failed");
    }
    no_less_than_one_failure(count, done)
}

/// `test name ... ok 12 ms` and, from PostgreSQL 16 on, `ok 1 - name 12 ms`.
fn count_regress(done: &Done) -> Count {
    let mut count = Count::default();
    for line in done.output.lines() {
        let old = line
            .starts_with("test ")
            .then(|| line.split_once(" ... ").map_or("", |(_, verdict)| verdict));
        if old.is_some_and(|verdict| verdict.starts_with("ok")) || line.starts_with("ok ") {
            count.passed += 1;
        } else if old.is_some() || line.starts_with("not ok ") {
            count.failed += 1;
        }
    }
    no_less_than_one_failure(count, done)
}

/// `--- PASS: TestName (0.00s)`; tests within tests are indented and do not count.
fn count_go(done: &Done) -> Count {
    let lines = |start: &str| done.output.lines().filter(|line| line.starts_with(start)).count() as u32;
    let count = Count {
        passed: lines("--- PASS:"),
        failed: lines("--- FAIL:"),
    };
    no_less_than_one_failure(count, done)
}

/// `# pass 12` and `# fail 0`.
fn count_node(done: &Done) -> Count {
    let number = |start: &str| {
        let mut lines = done.output.lines();
        lines.find_map(|line| line.strip_prefix(start)?.trim().parse().ok())
    };
    let count = Count {
        passed: number("# pass ").unwrap_or(0),
        failed: number("# fail ").unwrap_or(0),
    };
    no_less_than_one_failure(count, done)
}

/// A command that fails without naming a test has failed all the same.
fn no_less_than_one_failure(count: Count, done: &Done) -> Count {
    let failed = if done.success {
        count.failed
    } else {
        count.failed.max(1)
    };
    Count { failed, ..count }
}

fn number_before(line: &str, word: &str) -> u32 {
    let before = line.split_once(word).map_or("", |(before, _)| before);
    before
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(success: bool, output: &str) -> Done {
        Done {
            success,
            output: output.to_owned(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn shows_what_failed_and_not_what_passed() {
        let output = "   Compiling a v1\n\n     Running tests/a.rs\n\nrunning 2 tests\ntest a ... ok\ntest b ... FAILED\n\n\nwhy\n";
        assert_eq!(without_noise(output), "test b ... FAILED\n\nwhy");
    }

    #[test]
    fn counts_the_tests_of_cargo() {
        let output = "running 3 tests\ntest a ... ok\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured\n\
                      test result: FAILED. 10 passed; 3 failed; 0 ignored";
        assert_eq!(count_cargo(&done(false, output)), Count { passed: 12, failed: 3 });
        assert_eq!(
            count_cargo(&done(false, "error: could not compile")),
            Count { passed: 0, failed: 1 }
        );
        assert_eq!(count_cargo(&done(true, "")), Count::default());
    }

    #[test]
    fn counts_the_tests_of_go_and_node() {
        let go =
            "=== RUN   TestA\n--- PASS: TestA (0.00s)\n    --- PASS: TestA/x (0.00s)\n--- FAIL: TestB (0.00s)\nFAIL";
        assert_eq!(count_go(&done(false, go)), Count { passed: 1, failed: 1 });
        assert_eq!(count_go(&done(false, "build failed")), Count { passed: 0, failed: 1 });
        let node = "TAP version 13\nok 1 - a\n1..13\n# tests 13\n# pass 12\n# fail 1\n";
        assert_eq!(count_node(&done(false, node)), Count { passed: 12, failed: 1 });
        assert_eq!(count_node(&done(true, "")), Count::default());
    }

    #[test]
    fn counts_the_tests_of_pg_regress_old_and_new() {
        let old = "test setup    ... ok           12 ms\ntest publish  ... FAILED       20 ms\n 1 of 2 tests failed.";
        assert_eq!(count_regress(&done(false, old)), Count { passed: 1, failed: 1 });
        let new = "# using postmaster on 127.0.0.1\nok 1         - setup   12 ms\nnot ok 2     - publish 20 ms\n1..2";
        assert_eq!(count_regress(&done(false, new)), Count { passed: 1, failed: 1 });
        assert_eq!(
            count_regress(&done(false, "could not connect")),
            Count { passed: 0, failed: 1 }
        );
    }
}
