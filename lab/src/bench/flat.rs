//! Whether speed and latency stay what they are under a backlog, a history, an old snapshot, an open transaction.

use std::time::Duration;

use anyhow::Result;
use postgres::Client;

use super::ground::{Bench, Watch, owe};
use super::report::{Goal, Limit, Report, Row, Table, median, number};
use super::writers::{self, Load};
use crate::lab::{DATABASE, Lab};

/// Messages inserted in one transaction.
const CHUNK: usize = 500_000;
/// Rows of the history inserted in one transaction.
const HISTORY_CHUNK: usize = 1_000_000;

/// What is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    /// Nothing.
    None,
    /// So many messages owed to a connection that is disabled.
    Elsewhere(usize),
    /// So many that are due in a day.
    Delayed(usize),
    /// So many in front: the drain of these is what is measured.
    InFront(usize),
    /// So many rows of history.
    History(usize),
    /// A snapshot held from before the first of several drains to the end.
    Snapshot,
    /// A transaction with an id, open as long.
    OpenTransaction,
}

use Disturbance::{Delayed, Elsewhere, History, InFront, OpenTransaction, Snapshot};

impl Disturbance {
    fn name(self) -> String {
        let count = |count: usize| number(count as f64);
        match self {
            Self::None => "undisturbed".to_owned(),
            Elsewhere(n) => format!("{} owed to a disabled connection", count(n)),
            Delayed(n) => format!("{} due in a day", count(n)),
            InFront(n) => format!("{} owed, speed while they drain", count(n)),
            History(n) => format!("history of {}", count(n)),
            Snapshot => "a snapshot held".to_owned(),
            OpenTransaction => "a transaction id held".to_owned(),
        }
    }
}

/// How much is measured.
struct Plan {
    cases: Vec<Disturbance>,
    /// Messages of one drain.
    drain: usize,
    /// Drains made one after the other; the last is measured, when the dead rows of the others lie about.
    drains: usize,
    /// How long latency is measured, at 500 transactions a second.
    latency: Duration,
}

fn plan(bench: &Bench) -> Plan {
    let (million, five, history) = bench.size.pick(
        (1_000_000, 5_000_000, 10_000_000),
        (200_000, 1_000_000, 1_000_000),
        (1_000, 2_000, 1_000),
    );
    let all = vec![
        Elsewhere(million),
        Elsewhere(five),
        Delayed(five),
        InFront(million),
        InFront(five),
        History(history),
        Snapshot,
        OpenTransaction,
    ];
    Plan {
        cases: bench
            .size
            .pick(all.clone(), all, vec![Elsewhere(million), InFront(five), Snapshot]),
        drain: bench.size.pick(200_000, 100_000, 2_000),
        drains: bench.size.pick(3, 3, 2),
        latency: Duration::from_secs(bench.size.pick(20, 5, 1)),
    }
}

/// What one run found.
struct Found {
    rate: f64,
    p50: f64,
    p99: f64,
    table_during: f64,
    indexes_during: f64,
    table_after: f64,
    indexes_after: f64,
}

/// In each round the undisturbed run, then each disturbance; its ratios are to the undisturbed run of its round.
pub fn run(bench: &Bench) -> Result<Report> {
    let plan = plan(bench);
    let (mut quiet, mut disturbed) = (Vec::new(), plan.cases.iter().map(|_| Vec::new()).collect::<Vec<_>>());
    for n in 1..=bench.runs(3, 1, 1) {
        bench.steps.say(&format!("undisturbed, run {n}"));
        quiet.push(one(bench, &plan, Disturbance::None)?);
        for (case, found) in plan.cases.iter().zip(&mut disturbed) {
            bench.steps.say(&format!("{}, run {n}", case.name()));
            found.push(one(bench, &plan, *case)?);
        }
    }
    let mut table =
        Table::new("Drain and commit to stored at 500/s while something is in the way; sizes in MB").plot(&["drain/s"]);
    table.rows.push(row(&Disturbance::None.name(), &quiet, &quiet));
    let cases = plan.cases.iter().zip(&disturbed);
    table
        .rows
        .extend(cases.map(|(case, found)| row(&case.name(), found, &quiet)));
    let goals = goals(&table);
    Ok(Report {
        tables: vec![table],
        goals,
    })
}

const SPEED: &str = "ratio";
const LATENCY: &str = "p50 ratio";

fn row(name: &str, found: &[Found], quiet: &[Found]) -> Row {
    let all = |figure: fn(&Found) -> f64| found.iter().map(figure);
    let ratio = |figure: fn(&Found) -> f64| {
        found
            .iter()
            .zip(quiet)
            .map(move |(own, other)| figure(own) / figure(other))
    };
    Row::new(name)
        .with("drain/s", all(|one| one.rate))
        .with(SPEED, ratio(|one| one.rate))
        .with("p50 ms", all(|one| one.p50))
        .with(LATENCY, ratio(|one| one.p50))
        .with("p99 ms", all(|one| one.p99))
        .with("table most", all(|one| one.table_during))
        .with("indexes most", all(|one| one.indexes_during))
        .with("table after", all(|one| one.table_after))
        .with("indexes after", all(|one| one.indexes_after))
}

fn goals(table: &Table) -> Vec<Goal> {
    let goal = |row: &Row, name: &str, what: &str, limit| {
        let reached = row.get(name).filter(|value| value.is_finite())?;
        Some(Goal::new(
            format!("{what} with {}, as a share of undisturbed", row.case),
            limit,
            reached,
        ))
    };
    let disturbed = table.rows.iter().skip(1);
    disturbed
        .flat_map(|row| {
            let speed = goal(row, SPEED, "drain", Limit::AtLeast(0.9));
            let latency = goal(row, LATENCY, "commit to stored", Limit::Below(1.1));
            speed.into_iter().chain(latency)
        })
        .collect()
}

fn one(bench: &Bench, plan: &Plan, disturbance: Disturbance) -> Result<Found> {
    // All of it is gigabytes; the drains themselves are short.
    let lab = bench.lab(&[("max_wal_size", "4GB")])?;
    lab.sql("select jetstream.pause()")?;
    let _holder = disturb(&lab, disturbance)?;
    let mut watch = Watch::open(&lab)?;
    let (mut stored, mut rate, mut most) = (0, f64::NAN, (0.0, 0.0));
    let (drains, count) = match disturbance {
        InFront(_) => (1, 0),
        _ => (plan.drains, plan.drain),
    };
    for _ in 0..drains {
        lab.sql("select jetstream.pause()")?;
        owe(&lab, count, 256, "", "")?;
        most = sizes(&lab)?;
        let measured = match disturbance {
            InFront(owed) => owed.min(plan.drain * 5),
            _ => count,
        };
        stored += measured;
        let begin = std::time::Instant::now();
        lab.sql("select jetstream.resume()")?;
        watch.until(&lab, stored, || Ok(()))?;
        rate = measured as f64 / begin.elapsed().as_secs_f64();
    }
    let (mut p50, mut p99) = (f64::NAN, f64::NAN);
    // What is in front is delivered first: the time of a message behind it is not of interest.
    if !matches!(disturbance, InFront(_)) {
        let millis = latency(&lab, plan.latency, stored, &mut watch)?;
        (p50, p99) = (millis[0].1, millis[2].1);
    }
    let after = sizes(&lab)?;
    Ok(Found {
        rate,
        p50,
        p99,
        table_during: most.0.max(after.0),
        indexes_during: most.1.max(after.1),
        table_after: after.0,
        indexes_after: after.1,
    })
}

/// Percentiles of commit to stored. Three short times of which the median counts, as one checkpoint more or less would
/// decide otherwise.
fn latency(lab: &Lab, time: Duration, stored: usize, watch: &mut Watch) -> Result<[(&'static str, f64); 4]> {
    let mut stored = stored;
    let mut all = Vec::new();
    for _ in 0..3 {
        let load = Load {
            rate: Some(500.0),
            each: 1,
            connections: 8,
            time: time / 3,
        };
        let written = writers::join(writers::start(lab, load))?;
        stored += written.committed.len();
        watch.until(lab, stored, || Ok(()))?;
        all.push(writers::percentiles(&writers::recorded_millis(lab, &written)?));
    }
    Ok(std::array::from_fn(|n| {
        let values: Vec<f64> = all.iter().map(|run| run[n].1).collect();
        (all[0][n].0, median(&values))
    }))
}

/// Puts it in the way; what is returned keeps it there.
fn disturb(lab: &Lab, disturbance: Disturbance) -> Result<Option<Client>> {
    let owe_all = |count: usize, columns: &str, values: &str| {
        (0..count)
            .step_by(CHUNK)
            .try_for_each(|begin| owe(lab, CHUNK.min(count - begin), 256, columns, values))
    };
    let mut holder = lab.postgres.client(DATABASE)?;
    match disturbance {
        Disturbance::None => return Ok(None),
        Elsewhere(count) => {
            lab.sql(
                "insert into jetstream.connections (name, url, enabled) values ('off', 'nats://127.0.0.1:1', false)",
            )?;
            owe_all(count, ", connection", ", 'off'")?;
        }
        Delayed(count) => owe_all(count, ", deliver_at", ", now() + interval '1 day'")?,
        InFront(count) => owe_all(count, "", "")?,
        History(count) => {
            for begin in (0..count).step_by(HISTORY_CHUNK) {
                lab.sql(&format!(
                    "insert into jetstream.history (published_at, outbox_id, sequence, attempts, latency_ms, success, \
                     connection, subject, message_id, stream) \
                     select now(), -i, i, 1, 1, true, 'default', 'bench.s' || i % 128, gen_random_uuid()::text, 'BENCH' \
                     from generate_series({begin} + 1, {begin} + {}) i",
                    HISTORY_CHUNK.min(count - begin)
                ))?;
            }
        }
        Snapshot => holder.batch_execute("begin isolation level repeatable read; select 1 from pg_class limit 1")?,
        OpenTransaction => holder.batch_execute("begin; select pg_current_xact_id()")?,
    }
    Ok(Some(holder))
}

/// Megabytes of the outbox's table, and of its indexes.
fn sizes(lab: &Lab) -> Result<(f64, f64)> {
    let text = "select pg_table_size(o) / 1048576.0, pg_indexes_size(o) / 1048576.0 \
                from (select 'jetstream.outbox'::regclass) x (o)";
    let rows = lab.sql(text)?;
    Ok((rows[0][0].parse()?, rows[0][1].parse()?))
}
