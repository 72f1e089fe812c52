//! The log of faults: when each one happened, and its effect.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use time::OffsetDateTime;

#[derive(Clone, Debug)]
pub struct Entry {
    /// Wall-clock time, to compare with the servers' logs.
    pub at: OffsetDateTime,
    /// Time since the start.
    pub after: Duration,
    pub text: String,
}

/// The log. Lines are printed as they are added.
pub struct FaultLog {
    started: Instant,
    bar: Option<ProgressBar>,
    pub entries: Vec<Entry>,
    happened: BTreeMap<&'static str, u32>,
    failed: BTreeMap<&'static str, (u32, String)>,
}

impl FaultLog {
    /// An empty log. Lines are printed above the progress bar, if there is one.
    pub fn new(bar: Option<ProgressBar>) -> Self {
        Self {
            started: Instant::now(),
            bar,
            entries: Vec::new(),
            happened: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Adds a line that is not about a fault.
    pub fn say(&mut self, text: impl Into<String>) {
        let entry = Entry {
            at: OffsetDateTime::now_utc(),
            after: self.started.elapsed(),
            text: text.into(),
        };
        let line = entry.line();
        match &self.bar {
            Some(bar) => bar.println(line),
            None => println!("{line}"),
        }
        self.entries.push(entry);
    }

    /// Records that a fault happened.
    pub fn happened(&mut self, fault: &'static str, effect: &str) {
        *self.happened.entry(fault).or_default() += 1;
        self.say(format!("{fault}: {effect}"));
    }

    /// Records that a fault could not happen.
    pub fn missed(&mut self, fault: &'static str, reason: &str) {
        let entry = self.failed.entry(fault).or_default();
        entry.0 += 1;
        entry.1 = reason.to_owned();
        self.say(format!("{fault}: did not happen: {reason}"));
    }

    /// Number of times a fault happened.
    pub fn count(&self, fault: &str) -> u32 {
        self.happened.get(fault).copied().unwrap_or(0)
    }

    /// A table with the number of times each fault happened, including faults that never did.
    pub fn table(&self, faults: &[&'static str]) -> String {
        let mut text = String::from("  fault                  happened  could not\n");
        for fault in faults {
            let (missed, reason) = self.failed.get(fault).cloned().unwrap_or_default();
            let reason = if missed > 0 {
                format!("{missed:>9}  {reason}")
            } else {
                String::new()
            };
            let _ = writeln!(text, "  {fault:<22} {:>8}  {reason}", self.count(fault));
        }
        let never: Vec<_> = faults.iter().filter(|fault| self.count(fault) == 0).copied().collect();
        if !never.is_empty() {
            let _ = writeln!(text, "  never happened in this run: {}", never.join(", "));
        }
        text
    }

    /// Lines logged within `span` of a moment.
    pub fn around(&self, at: OffsetDateTime, span: Duration) -> Vec<String> {
        let near = |entry: &&Entry| (entry.at - at).unsigned_abs() <= span;
        self.entries.iter().filter(near).map(Entry::line).collect()
    }
}

impl Entry {
    fn line(&self) -> String {
        let clock = self.at.time();
        format!(
            "  {:02}:{:02}:{:02}.{:03} {:>6.1} s  {}",
            clock.hour(),
            clock.minute(),
            clock.second(),
            clock.millisecond(),
            self.after.as_secs_f64(),
            self.text
        )
    }
}
