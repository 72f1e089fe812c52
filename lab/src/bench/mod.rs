//! `make bench`: how fast it is. Each figure is printed beside its reference from the same run, with the processor time
//! of a message, and written to `target/bench/<measurement>.json`.
//!
//! One file a measurement; `ground` is what they stand on, `cpu` counts processor time, `report` is what they find.

mod cpu;
mod drain;
mod ground;
mod machine;
pub mod relay;
mod report;
mod select;

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
    /// So short that the figures mean nothing: whether the bench itself works
    #[arg(long, hide = true)]
    pub tiny: bool,
    /// Runs of which the median counts [default: 3]
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
}

impl Measurement {
    fn run(self, bench: &Bench) -> Result<Report> {
        match self {
            Self::Drain => drain::run(bench),
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
        runs: options.runs.unwrap_or(size.pick(3, 3, 1)).max(1),
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
        let path = report::write_json(&dir, &name, &machine, &report)?;
        bench.steps.note(&format!("written: {}", path.display()));
        goals.extend(report.goals);
    }
    println!("Goals:\n");
    for goal in &goals {
        println!("{}", goal.line());
    }
    Ok(())
}
