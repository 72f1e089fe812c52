//! Measures how much private memory the worker uses, depending on the number of pending messages.

use anyhow::Result;

use super::Size;
use super::cpu::{anonymous_megabytes, worker_pid};
use super::ground::{Bench, Watch, owe};
use super::report::{Goal, Limit, Report, Row, Table, number};

/// After this many messages, memory has reached its maximum.
const ENOUGH: usize = 500_000;
/// Messages inserted in one transaction.
const CHUNK: usize = 500_000;

/// Number of pending messages, and bytes of each.
fn cases(size: Size) -> Vec<(usize, usize)> {
    match size {
        Size::Full => vec![
            (0, 256),
            (100_000, 256),
            (1_000_000, 256),
            (5_000_000, 256),
            (3_000, 64 << 10),
            (100, 1 << 20),
        ],
        Size::Quick => vec![(0, 256), (100_000, 256), (500_000, 256), (1_000, 64 << 10)],
        Size::Tiny => vec![(0, 256), (2_000, 256)],
    }
}

/// Runs one drain for each backlog.
pub fn run(bench: &Bench) -> Result<Report> {
    let mut table = Table::new("Private memory of the worker, MB").plot(&[MOST]);
    for (owed, bytes) in cases(bench.size) {
        let name = format!("{} × {} B pending", number(owed as f64), number(bytes as f64));
        let (mut most, mut after) = (vec![], vec![]);
        for n in 1..=bench.runs(3, 1, 1) {
            bench.steps.say(&format!("memory with {name}, run {n}"));
            let (peak, end) = one(bench, owed, bytes)?;
            most.push(peak);
            after.push(end);
        }
        table.rows.push(Row::new(name).with(MOST, most).with("after", after));
    }
    let most = table
        .rows
        .iter()
        .filter_map(|row| row.get(MOST))
        .fold(f64::NAN, f64::max);
    let goal = Goal::new("memory of the worker at any backlog, MB", Limit::Below(64.0), most);
    Ok(Report {
        tables: vec![table],
        goals: vec![goal],
    })
}

const MOST: &str = "most";

fn one(bench: &Bench, owed: usize, bytes: usize) -> Result<(f64, f64)> {
    // Speed does not matter here, but disk space does.
    let lab = bench.lab(&[("max_wal_size", "1GB")])?;
    lab.sql("select jetstream.pause()")?;
    for begin in (0..owed).step_by(CHUNK) {
        owe(&lab, CHUNK.min(owed - begin), bytes, "", "")?;
    }
    let pid = worker_pid(&lab)?;
    let mut most = anonymous_megabytes(pid)?;
    lab.sql("select jetstream.resume()")?;
    Watch::open(&lab)?.until(&lab, owed.min(ENOUGH), || {
        most = most.max(anonymous_megabytes(pid)?);
        Ok(())
    })?;
    let end = anonymous_megabytes(pid)?;
    Ok((most.max(end), end))
}
