//! Measures how fast pending messages leave the outbox, compared with the relay alone and with the relay fed by a plain
//! `select`.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Size;
use super::cpu::{Meter, Used};
use super::ground::{Bench, Watch, check_stream, owe};
use super::relay::{Rate, relay_rate};
use super::report::{Goal, Limit, Report, Row, Table, number};
use super::select::select_rate;

/// The pending messages of one drain.
#[derive(Clone, Copy, Debug)]
struct Case {
    count: usize,
    bytes: usize,
    history: &'static str,
}

const fn case(count: usize, bytes: usize, history: &'static str) -> Case {
    Case { count, bytes, history }
}

/// The goals apply to the first case. The number of large messages is limited to stay at about 200 MB.
const CASES: [Case; 7] = [
    case(200_000, 256, "all"),
    case(200_000, 256, "failures"),
    case(200_000, 256, "none"),
    case(200_000, 64, "all"),
    case(50_000, 4 << 10, "all"),
    case(3_000, 64 << 10, "all"),
    case(2_000_000, 256, "all"),
];

impl Case {
    fn name(self) -> String {
        let size = match self.bytes {
            bytes if bytes >= 1024 => format!("{} KB", bytes / 1024),
            bytes => format!("{bytes} B"),
        };
        format!("{} × {size}, history {}", number(self.count as f64), self.history)
    }
}

/// Processor time of one run, by role.
type Micros = BTreeMap<&'static str, f64>;

/// Runs each case `bench.runs` times, alternating with its references.
pub fn run(bench: &Bench) -> Result<Report> {
    let mut speed = Table::new("Drain, messages/s, with the references from the same run").plot(&[
        "drain",
        "relay alone",
        "fed by select",
    ]);
    let mut cpu = Table::new("Processor time per message in a drain");
    let cases = match bench.size {
        Size::Full => CASES.to_vec(),
        Size::Quick => vec![CASES[0]],
        Size::Tiny => vec![case(5_000, 256, "all")],
    };
    for case in cases {
        let (mut rates, mut micros) = (<[Vec<f64>; 3]>::default(), <[Vec<Micros>; 3]>::default());
        let count = bench.runs(3, 3, 1);
        for n in 1..=count {
            bench
                .steps
                .say(&format!("drain of {}, run {n} of {count}", case.name()));
            let runs = [drain(bench, case)?, relay_alone(case)?, selected(bench, case)?];
            bench.steps.note(&format!(
                "{}: drain {:>8.0}, relay alone {:>8.0}, fed by select {:>8.0} messages/s",
                case.name(),
                runs[0].0,
                runs[1].0,
                runs[2].0
            ));
            for (which, (rate, used)) in runs.into_iter().enumerate() {
                rates[which].push(rate);
                micros[which].push(used.micros_each(case.count));
            }
        }
        let ratio = |to: usize| rates[0].iter().zip(&rates[to]).map(|(a, b)| a / b).collect::<Vec<_>>();
        let row = Row::new(case.name())
            .with("drain", rates[0].clone())
            .with("relay alone", rates[1].clone())
            .with(TO_RELAY, ratio(1))
            .with("fed by select", rates[2].clone())
            .with("ratio to it", ratio(2));
        speed.rows.push(row);
        for (what, micros) in ["drain", "relay alone", "fed by select"].into_iter().zip(&micros) {
            cpu.rows
                .push(Row::new(format!("{what}, {}", case.name())).with_cpu(micros));
        }
    }
    let goals = goals(&speed);
    Ok(Report {
        tables: vec![speed, cpu],
        goals,
    })
}

const TO_RELAY: &str = "ratio";

fn goals(speed: &Table) -> Vec<Goal> {
    let of_first = |name| speed.rows.first().and_then(|row| row.get(name)).unwrap_or(f64::NAN);
    vec![
        Goal::new(
            "drain of 256 B with history, as a share of the relay alone",
            Limit::AtLeast(0.8),
            of_first(TO_RELAY),
        ),
        Goal::new(
            "drain of 256 B in messages/s, four times the best of the closest peer",
            Limit::AtLeast(96_000.0),
            of_first("drain"),
        ),
    ]
}

/// Messages per second, from `resume()` to the last acknowledgement.
fn drain(bench: &Bench, case: Case) -> Result<(f64, Used)> {
    let lab = bench.lab(&[("pg_jetstream.history", case.history)])?;
    lab.sql("select jetstream.pause()")?;
    owe(&lab, case.count, case.bytes, "", "")?;
    let mut watch = Watch::open(&lab)?;
    let meter = Meter::of_lab(&lab)?.start();
    lab.sql("select jetstream.resume()")?;
    watch.until(&lab, case.count, || Ok(()))?;
    let used = meter.stop();
    check_stream(&lab, case.count)?;
    Ok((case.count as f64 / used.wall.as_secs_f64(), used))
}

fn relay_alone(case: Case) -> Result<(f64, Used)> {
    Ok(of(relay_rate(case.count, case.bytes, 1_000, 0)?))
}

fn selected(bench: &Bench, case: Case) -> Result<(f64, Used)> {
    let lab = bench.lab(&[])?;
    lab.sql("select jetstream.pause()")?;
    owe(&lab, case.count, case.bytes, "", "")?;
    Ok(of(select_rate(&lab, case.count, case.bytes)?))
}

fn of(rate: Rate) -> (f64, Used) {
    (rate.per_second(), rate.used)
}
