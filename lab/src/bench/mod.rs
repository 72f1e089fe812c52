//! `make bench`: how fast it is. Each figure is printed beside its reference from the same run, with the processor time
//! of a message, and written to `target/bench/<measurement>.json`.
//!
//! One file a measurement; `ground` is what they stand on, `cpu` counts processor time, `report` is what they find.

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
    /// Only these measurements
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Measurement>,
    /// Shortened forms, to see whether a change moves anything
    #[arg(long)]
    pub quick: bool,
    /// Draw docs/img/bench_*.svg as well
    #[arg(long)]
    pub plots: bool,
    /// So short that the figures mean nothing: whether the bench itself works
    #[arg(long, hide = true)]
    pub tiny: bool,
    /// Runs of which the median counts, otherwise three or what suits the measurement
    #[arg(long)]
    pub runs: Option<usize>,
    /// A line of postgresql.conf for every server, name=value
    #[arg(long, value_parser = setting)]
    pub set: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("not of the form name=value")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// The measurements, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Measurement {
    /// How fast what is owed leaves the outbox
    Drain,
    /// Writers at a steady rate, and the time from their commit to the stream
    Sustained,
    /// What a message costs the transaction that inserts it
    Producers,
    /// What a capture costs the statements that change a table
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

/// How long measurements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// For the record.
    Full,
    /// To see whether a change moves anything.
    Quick,
    /// To see whether the bench works.
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

/// Runs what was asked for, prints tables and goals, writes the JSON. A goal that is not met is no error.
///
/// Errors: a measurement that could not be made.
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
        // What is shortened does not stand in for what is not.
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
