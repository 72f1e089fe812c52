//! Reads the output of `cargo test` as it comes, and says of each file of tests what it did and how long it took.

use std::time::{Duration, Instant};

use crate::progress::seconds;

/// The file whose tests run now.
#[derive(Debug, Default)]
pub struct TestFiles {
    running: Option<(String, Instant)>,
}

impl TestFiles {
    /// Takes one line of the output; returns what to show when a file has ended.
    pub fn line(&mut self, line: &str) -> Option<String> {
        let line = line.trim_start_matches("\x1b[K").trim();
        if let Some(name) = file_of(line) {
            let ended = self.end();
            self.running = Some((name, Instant::now()));
            return ended;
        }
        let counts = line.strip_prefix("test result: ")?;
        let (name, started) = self.running.take()?;
        Some(describe(&name, counts, started.elapsed()))
    }

    /// The output is over. A file that still runs has crashed, for it has not said what its tests did.
    pub fn end(&mut self) -> Option<String> {
        let (name, started) = self.running.take()?;
        Some(format!("{name}: CRASHED, {}", seconds(started.elapsed())))
    }
}

/// `Running tests/e2e_publish.rs (target/debug/deps/e2e_publish-0123456789abcdef)` is `e2e_publish`.
fn file_of(line: &str) -> Option<String> {
    let (name, _) = line.strip_prefix("Running tests/")?.split_once(".rs ")?;
    Some(name.to_owned())
}

/// `counts` is `FAILED. 10 passed; 3 failed; …`.
fn describe(name: &str, counts: &str, took: Duration) -> String {
    let number = |word: &str| -> u32 {
        let words: Vec<&str> = counts.split([' ', ';']).collect();
        let number = words
            .windows(2)
            .find(|pair| pair[1] == word)
            .map(|pair| pair[0].parse());
        number.and_then(Result::ok).unwrap_or(0)
    };
    let failed = number("failed");
    let all = number("passed") + failed;
    let tests = if all == 1 { "test" } else { "tests" };
    let took = seconds(took);
    if failed == 0 && counts.starts_with("ok") {
        format!("{name}: {all} {tests}, {took}")
    } else {
        format!("{name}: {failed} of {all} {tests} FAILED, {took}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown for an output, without the times.
    fn shown(output: &str) -> Vec<String> {
        let mut files = TestFiles::default();
        let mut lines: Vec<String> = output.lines().filter_map(|line| files.line(line)).collect();
        lines.extend(files.end());
        lines
            .iter()
            .map(|line| line.rsplit_once(", ").unwrap().0.to_owned())
            .collect()
    }

    #[test]
    fn one_line_for_each_file() {
        let output = "   Compiling lab v0.0.0\n\x1b[K     Running unittests src/lib.rs (target/debug/deps/lab-1)\n\
                      test result: ok. 5 passed; 0 failed; 0 ignored\n\
                      \x1b[K     Running tests/e2e_publish.rs (target/debug/deps/e2e_publish-1)\n\nrunning 12 tests\n\
                      test a ... ok\ntest result: ok. 12 passed; 0 failed; 1 ignored; finished in 61.20s\n\
                      \x20    Running tests/relay.rs (target/debug/deps/relay-1)\n\
                      test result: FAILED. 10 passed; 3 failed; 0 ignored\n\
                      \x20    Running tests/chaos_peers.rs (target/debug/deps/chaos_peers-1)\n\
                      error: process didn't exit successfully (signal: 11, SIGSEGV)\n\
                      \x20    Running tests/pgxn.rs (target/debug/deps/pgxn-1)\ntest result: ok. 1 passed; 0 failed";
        assert_eq!(
            shown(output),
            [
                "e2e_publish: 12 tests",
                "relay: 3 of 13 tests FAILED",
                "chaos_peers: CRASHED",
                "pgxn: 1 test"
            ]
        );
    }

    #[test]
    fn a_file_that_ends_with_the_output_is_not_lost() {
        let output = "     Running tests/relay.rs (target/debug/deps/relay-1)\ntest a ... ok\n";
        assert_eq!(shown(output), ["relay: CRASHED"]);
    }
}
