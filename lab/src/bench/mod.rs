//! `make bench`: measures how fast pg_jetstream is. Each figure is printed next to its reference from the same run,
//! together with the processor time per message, and written to `target/bench/<measurement>.json`.
//!
//! There is one file per measurement. `ground` is what they share, `cpu` counts processor time, `report` holds the
//! results.

mod capture;
pub mod cpu;
mod disk;
mod drain;
mod flat;
mod ground;
mod idle;
mod machine;
mod memory;
mod pgbench;
mod plot;
mod producers;
pub mod relay;
mod report;
mod select;
mod sustained;
mod writers;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::paths::Paths;
use crate::progress::Steps;
use ground::Bench;
use report::{Goal, Report};

/// What to measure, and how.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Run only these measurements
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Measurement>,
    /// Run shortened measurements, which show whether a change makes a difference
    #[arg(long)]
    pub quick: bool,
    /// Also draw docs/img/bench_*.svg
    #[arg(long)]
    pub plots: bool,
    /// Run for so short a time that the figures mean nothing, to test the bench itself
    #[arg(long, hide = true)]
    pub tiny: bool,
    /// Number of runs from which the median is taken (default: three, or what suits the measurement)
    #[arg(long)]
    pub runs: Option<usize>,
    /// Add a line to postgresql.conf on every server, as name=value
    #[arg(long, value_parser = setting)]
    pub set: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("not of the form name=value")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// The measurements, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Measurement {
    /// How fast pending messages leave the outbox
    Drain,
    /// Producers at a steady rate, and the time from their commit to the acknowledgement
    Sustained,
    /// What a message costs the transaction that inserts it
    Producers,
    /// What capture costs the statements that change a table
    Capture,
    /// Drain and latency under a backlog, a history, an old snapshot, an open transaction
    Flat,
    /// What an idle worker costs
    Idle,
    /// The worker's memory against the backlog
    Memory,
}

impl Measurement {
    fn run(self, bench: &Bench) -> Result<Report> {
        match self {
            Self::Drain => drain::run(bench),
            Self::Sustained => sustained::run(bench),
            Self::Producers => producers::run(bench),
            Self::Capture => capture::run(bench),
            Self::Flat => flat::run(bench),
            Self::Idle => idle::run(bench),
            Self::Memory => memory::run(bench),
        }
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Determines how long measurements take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// For figures that are published.
    Full,
    /// To see whether a change makes a difference.
    Quick,
    /// To test the bench itself.
    Tiny,
}

impl Size {
    /// The value for this size.
    pub fn pick<T>(self, full: T, quick: T, tiny: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
            Self::Tiny => tiny,
        }
    }
}

/// Runs the chosen measurements, prints tables and goals, and writes the JSON files. A missed goal is not an error.
///
/// Errors: a measurement fails.
pub fn run(options: &Options) -> Result<()> {
    let paths = Paths::ready()?;
    let size = match (options.quick, options.tiny) {
        (_, true) => Size::Tiny,
        (true, _) => Size::Quick,
        _ => Size::Full,
    };
    let bench = Bench {
        size,
        told_runs: options.runs,
        settings: options.set.clone(),
        steps: Steps::start(),
    };
    let machine = machine::look(&paths, size != Size::Full)?;
    let dir = paths.bench();
    let mut goals: Vec<Goal> = Vec::new();
    println!("{}\n", machine.line());
    for one in Measurement::value_variants() {
        if !options.only.is_empty() && !options.only.contains(one) {
            continue;
        }
        let name = one.name();
        let report = one.run(&bench).with_context(|| format!("measuring {name}"))?;
        for table in &report.tables {
            println!("{}", table.markdown());
        }
        if options.plots {
            let plotted = report.tables.iter().filter(|table| !table.plotted.is_empty());
            for (n, table) in plotted.enumerate() {
                let path = plot::draw(table, &paths.root.join("docs/img"), &format!("bench_{name}_{}", n + 1))?;
                bench.steps.note(&format!("drawn: {}", path.display()));
            }
        }
        // Results of shortened measurements get a file name of their own, so that they never replace full ones.
        let file = size.pick("", "quick-", "tiny-").to_owned() + &name;
        let path = report::write_json(&dir, &file, &machine, &report)?;
        bench.steps.note(&format!("written: {}", path.display()));
        goals.extend(report.goals);
    }
    println!("Goals:\n");
    for goal in &goals {
        println!("{}", goal.line());
    }
    Ok(())
}
