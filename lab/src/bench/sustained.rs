//! Measures producers at a steady rate: whether the worker keeps up, and the time from commit to acknowledgement.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use postgres::Client;

use super::Size;
use super::cpu::Meter;
use super::ground::{Bench, Watch, recycle_wal};
use super::report::{Goal, Limit, Report, Row, Table, number, percentile};
use super::writers::{self, Load};
use crate::lab::{DATABASE, Lab};

/// Interval between readings of the lag. A drain is not affected by readings this rare.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Precision of the end of the producers. The delivery rate is what is delivered by then, divided by the time until
/// then.
const END_SEEN: Duration = Duration::from_millis(5);

/// A load and the stream's duplicate window. Remembering message ids costs nats-server memory and time. `None` means
/// the default window.
#[derive(Clone, Copy)]
struct Case {
    load: Load,
    window: Option<&'static str>,
}

const fn load(rate: Option<f64>, each: usize, connections: usize) -> Load {
    let time = Duration::ZERO;
    Load {
        rate,
        each,
        connections,
        time,
    }
}

/// The goals apply to the first two cases. A load has one message per transaction if the machine can commit that often.
fn cases(size: Size) -> Vec<Case> {
    let goals = [load(Some(500.0), 1, 8), load(Some(20_000.0), 10, 20)];
    let forgetful = Case {
        load: goals[1],
        window: Some("10 seconds"),
    };
    let more: Vec<Load> = match size {
        Size::Full => [1, 20, 100]
            .into_iter()
            .flat_map(|connections| {
                let steady = [(1_000.0, 1), (5_000.0, 1), (20_000.0, 1), (20_000.0, 10)];
                let steady = steady.map(|(rate, each)| load(Some(rate), each, connections));
                steady
                    .into_iter()
                    .chain([load(None, 1, connections), load(None, 10, connections)])
            })
            .filter(|one| (one.rate, one.each, one.connections) != (Some(20_000.0), 10, 20))
            .collect(),
        Size::Quick => vec![load(Some(5_000.0), 1, 20), load(None, 1, 20)],
        Size::Tiny => Vec::new(),
    };
    let usual = |load| Case { load, window: None };
    let mut all: Vec<Case> = goals.into_iter().chain(more).map(usual).collect();
    if size != Size::Tiny {
        all.insert(goals.len(), forgetful);
    }
    all
}

/// Results of one run, by name of the figure.
type Figures = Vec<(&'static str, f64)>;

/// Runs each load on servers of its own. The disk is measured before each run, because its stalls stop producers and
/// nats-server alike.
pub fn run(bench: &Bench) -> Result<Report> {
    let mut speed = Table::new(
        "Producers at a steady rate; commit to acknowledgement, starting when the producer knows of its commit",
    )
    .plot(&["p50 ms", "p99 ms"]);
    let mut cpu = Table::new("Processor time per message at a steady rate");
    let mut disk = Table::new(
        "The disk alone before these runs, once calm or after ten attempts: pages of 8 kB, each with an fdatasync",
    );
    let time = bench.size.pick(60, 15, 1);
    for mut case in cases(bench.size) {
        case.load.time = Duration::from_secs(time);
        let (mut figures, mut micros): (Vec<Figures>, Vec<BTreeMap<&'static str, f64>>) = Default::default();
        let mut disks: Vec<Figures> = Vec::new();
        for n in 1..=bench.runs(3, 1, 1) {
            bench.steps.say(&format!("{}, run {n}", name(&case)));
            let (found, used, alone) = one(bench, case)?;
            let text: Vec<String> = found
                .iter()
                .map(|(name, value)| format!("{name} {}", number(*value)))
                .collect();
            bench.steps.note(&format!("{}: {}", name(&case), text.join(", ")));
            figures.push(found);
            micros.push(used);
            disks.push(alone);
        }
        speed.rows.push(row(&case, &figures));
        disk.rows.push(row(&case, &disks));
        cpu.rows.push(Row::new(name(&case)).with_cpu(&micros));
    }
    let goals = goals(&speed);
    Ok(Report {
        tables: vec![speed, cpu, disk],
        goals,
    })
}

fn row(case: &Case, runs: &[Figures]) -> Row {
    let figures = (0..runs[0].len()).map(|column| (runs[0][column].0, runs.iter().map(move |run| run[column].1)));
    figures.fold(Row::new(name(case)), |row, (name, values)| row.with(name, values))
}

fn name(case: &Case) -> String {
    let load = &case.load;
    let rate = load
        .rate
        .map_or("as fast as possible".to_owned(), |rate| format!("{}/s", number(rate)));
    let window = case
        .window
        .map_or(String::new(), |window| format!(", duplicate window {window}"));
    format!(
        "{rate}, {} a transaction, {} connections{window}",
        load.each, load.connections
    )
}

fn goals(speed: &Table) -> Vec<Goal> {
    let at = |row: usize, figure| speed.rows.get(row).and_then(|row| row.get(figure)).unwrap_or(f64::NAN);
    vec![
        Goal::new(
            "commit to acknowledgement at 500/s, p50 in ms",
            Limit::Below(1.0),
            at(0, "p50 ms"),
        ),
        Goal::new(
            "commit to acknowledgement at 500/s, p99 in ms",
            Limit::Below(5.0),
            at(0, "p99 ms"),
        ),
        Goal::new(
            "delivered of 20,000 messages/s",
            Limit::AtLeast(19_800.0),
            at(1, DELIVERED),
        ),
        Goal::new(
            "commit to acknowledgement at 20,000/s, p99 in ms",
            Limit::Below(10.0),
            at(1, "p99 ms"),
        ),
    ]
}

const DELIVERED: &str = "delivered/s";

/// Results of one run, processor time per message, and the measurement of the disk before it.
fn one(bench: &Bench, case: Case) -> Result<(Figures, BTreeMap<&'static str, f64>, Figures)> {
    let (lab, disk) = bench.lab_and_disk(&[])?;
    if let Some(window) = case.window {
        remember(&lab, window)?;
    }
    recycle_wal(&lab, bench.size.pick(100, 30, 1))?;
    let mut watch = Watch::open(&lab)?;
    let mut client = lab.postgres.client(DATABASE)?;
    let meter = Meter::of_lab(&lab)?.process("writers", std::process::id()).start();
    let writers = writers::start(&lab, case.load);
    let mut lag: f64 = 0.0;
    let mut look = Instant::now();
    while !writers.is_finished() {
        std::thread::sleep(END_SEEN);
        if look.elapsed() >= LOOK_EVERY {
            look = Instant::now();
            lag = lag.max(lag_seconds(&mut client)?);
        }
    }
    lag = lag.max(lag_seconds(&mut client)?);
    let behind = watch.stored()?;
    let used = meter.stop();
    let written = writers::join(writers)?;
    let count = written.committed.len();
    let delivered = behind.min(count) as f64 / used.wall.as_secs_f64().max(written.took.as_secs_f64());
    watch.until(&lab, count, || Ok(()))?;
    let millis = writers::recorded_millis(&lab, &written)?;
    let mut figures = vec![
        ("written/s", written.rate()),
        (DELIVERED, delivered),
        ("pending at the end", count.saturating_sub(behind) as f64),
        ("maximum lag s", lag),
        ("transaction p99 ms", percentile(&written.transactions, 0.99)),
    ];
    figures.extend(writers::percentiles(&millis));
    Ok((figures, used.micros_each(count), disk))
}

/// Sets the stream's duplicate window.
fn remember(lab: &Lab, window: &str) -> Result<()> {
    lab.sql(&format!(
        "update jetstream.streams set synced_at = null, duplicate_window = '{window}'"
    ))?;
    lab.wait_for_streams()
}

fn lag_seconds(client: &mut Client) -> Result<f64> {
    let query = "select coalesce(extract(epoch from jetstream.outbox_lag()), 0)::float8";
    Ok(client.query_one(query, &[])?.get(0))
}
