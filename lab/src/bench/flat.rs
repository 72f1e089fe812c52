//! Checks that speed and latency do not depend on a backlog, a history, an old snapshot or an open transaction.

use std::time::Duration;

use anyhow::Result;
use postgres::Client;

use super::ground::{Bench, OUTBOX, Watch, back_and_forth, owe, owe_in};
use super::report::{Goal, Limit, Report, Row, Table, median, number};
use super::writers::{self, Load};
use crate::lab::{DATABASE, Lab};

/// Messages inserted in one transaction.
const CHUNK: usize = 500_000;
/// Rows of the history inserted in one transaction.
const HISTORY_CHUNK: usize = 1_000_000;

/// A condition that could slow the worker down, or a reference to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Reference: no disturbance.
    Undisturbed,
    /// Reference: this many messages in a table with the same columns, which the worker never reads. After gigabytes
    /// have been written, everything on the machine is slower for a while, nats-server first, because new pages of
    /// memory and of files cost more.
    Aside(usize),
    /// Reference: this many rows in a table with the columns of the history.
    HistoryAside(usize),
    /// This many messages pending for a disabled connection.
    Elsewhere(usize),
    /// This many messages scheduled for the next day.
    Delayed(usize),
    /// This many pending messages at the head of the outbox. The drain of the first of them is measured.
    InFront(usize),
    /// This many rows of history.
    History(usize),
    /// A snapshot held from before the first drain until the end.
    Snapshot,
    /// A transaction with an id, held open for the same time.
    OpenTransaction,
}

use Case::{Aside, Delayed, Elsewhere, History, HistoryAside, InFront, OpenTransaction, Snapshot, Undisturbed};

impl Case {
    fn name(self) -> String {
        let count = |count: usize| number(count as f64);
        match self {
            Undisturbed => "undisturbed".to_owned(),
            Aside(n) => format!("{} in a plain table", count(n)),
            HistoryAside(n) => format!("history of {} in a plain table", count(n)),
            Elsewhere(n) => format!("{} pending for a disabled connection", count(n)),
            Delayed(n) => format!("{} scheduled for tomorrow", count(n)),
            InFront(n) => format!("{} pending, speed while they drain", count(n)),
            History(n) => format!("history of {}", count(n)),
            Snapshot => "a snapshot held".to_owned(),
            OpenTransaction => "a transaction id held".to_owned(),
        }
    }

    /// The reference that wrote as much without being disturbed, or `None` for a reference.
    fn reference(self) -> Option<Self> {
        match self {
            Undisturbed | Aside(_) | HistoryAside(_) => None,
            Elsewhere(n) | Delayed(n) | InFront(n) => Some(Aside(n)),
            History(n) => Some(HistoryAside(n)),
            Snapshot | OpenTransaction => Some(Undisturbed),
        }
    }
}

/// How much to measure.
struct Plan {
    /// Each case follows its reference in the first round.
    cases: Vec<Case>,
    /// Messages per drain.
    drain: usize,
    /// Consecutive drains. All but the first are measured, so that dead rows of earlier drains are present.
    drains: usize,
    /// How long latency is measured, at 500 transactions per second.
    latency: Duration,
}

fn plan(bench: &Bench) -> Plan {
    let (million, five, history) = bench.size.pick(
        (1_000_000, 5_000_000, 10_000_000),
        (200_000, 1_000_000, 1_000_000),
        (1_000, 2_000, 1_000),
    );
    let all = vec![
        Undisturbed,
        Snapshot,
        OpenTransaction,
        Aside(million),
        Elsewhere(million),
        InFront(million),
        Aside(five),
        Elsewhere(five),
        Delayed(five),
        InFront(five),
        HistoryAside(history),
        History(history),
    ];
    let few = vec![Undisturbed, Snapshot, Aside(five), Elsewhere(five), InFront(five)];
    Plan {
        cases: bench.size.pick(all.clone(), all, few),
        drain: bench.size.pick(200_000, 100_000, 2_000),
        drains: bench.size.pick(5, 4, 2),
        latency: Duration::from_secs(bench.size.pick(20, 5, 1)),
    }
}

/// Results of one run.
struct Found {
    rate: f64,
    p50: f64,
    p99: f64,
    table_during: f64,
    indexes_during: f64,
    table_after: f64,
    indexes_after: f64,
}

/// Every round runs all cases, in alternating direction, because what one case has written may slow the machine down
/// for the next. Ratios compare with the reference's run in the same round.
pub fn run(bench: &Bench) -> Result<Report> {
    let plan = plan(bench);
    let mut found = plan.cases.iter().map(|_| Vec::new()).collect::<Vec<_>>();
    for n in 1..=bench.runs(3, 1, 1) {
        for (place, case) in back_and_forth(&plan.cases, n) {
            bench.steps.say(&format!("{}, run {n}", case.name()));
            found[place].push(one(bench, &plan, *case)?);
        }
    }
    let of = |case: Case| {
        let place = plan.cases.iter().position(|other| *other == case);
        place.map_or(&[][..], |place| &found[place])
    };
    let mut table =
        Table::new("Drain, and commit to acknowledgement at 500/s, under disturbances; sizes in MB").plot(&["drain/s"]);
    table.rows.extend(
        plan.cases
            .iter()
            .map(|case| row(*case, of(*case), case.reference().map(|other| (other, of(other))))),
    );
    let goals = goals(&table);
    Ok(Report {
        tables: vec![table],
        goals,
    })
}

const SPEED: &str = "ratio";
const LATENCY: &str = "p50 ratio";

/// `reference` is the case that the ratios compare with, and its results.
fn row(case: Case, found: &[Found], reference: Option<(Case, &[Found])>) -> Row {
    let all = |figure: fn(&Found) -> f64| found.iter().map(figure);
    let row = Row::new(case.name())
        .with("drain/s", all(|one| one.rate))
        .with("p50 ms", all(|one| one.p50))
        .with("p99 ms", all(|one| one.p99))
        .with("table most", all(|one| one.table_during))
        .with("indexes most", all(|one| one.indexes_during))
        .with("table after", all(|one| one.table_after))
        .with("indexes after", all(|one| one.indexes_after));
    let Some((other, reference)) = reference else {
        return row;
    };
    let ratio = |figure: fn(&Found) -> f64| {
        let pairs = found.iter().zip(reference);
        pairs.map(move |(own, other)| figure(own) / figure(other))
    };
    row.with(SPEED, ratio(|one| one.rate))
        .with(LATENCY, ratio(|one| one.p50))
        .to(other.name())
}

fn goals(table: &Table) -> Vec<Goal> {
    let goal = |row: &Row, name: &str, what: &str, limit| {
        let reached = row.get(name).filter(|value| value.is_finite())?;
        Some(Goal::new(
            format!(
                "{what} with {}, as a share of that with {}",
                row.case,
                row.reference.as_deref()?
            ),
            limit,
            reached,
        ))
    };
    let rows = table.rows.iter();
    rows.flat_map(|row| {
        let speed = goal(row, SPEED, "drain", Limit::AtLeast(0.9));
        let latency = goal(row, LATENCY, "commit to acknowledgement", Limit::Below(1.1));
        speed.into_iter().chain(latency)
    })
    .collect()
}

fn one(bench: &Bench, plan: &Plan, case: Case) -> Result<Found> {
    // The disturbances write gigabytes, although the drains are short.
    let lab = bench.lab(&[("max_wal_size", "4GB")])?;
    lab.sql("select jetstream.pause()")?;
    let _holder = disturb(&lab, case)?;
    let mut watch = Watch::open(&lab)?;
    let (mut stored, mut most) = (0, (0.0, 0.0));
    let (mut measured, mut time) = (0, Duration::ZERO);
    let drains = match case {
        InFront(owed) => vec![(owed / 5).min(plan.drain * 5)],
        _ => vec![plan.drain; plan.drains],
    };
    for (n, count) in drains.iter().enumerate() {
        lab.sql("select jetstream.pause()")?;
        if !matches!(case, InFront(_)) {
            owe(&lab, *count, 256, "", "")?;
        }
        most = sizes(&lab)?;
        stored += count;
        let begin = std::time::Instant::now();
        lab.sql("select jetstream.resume()")?;
        watch.until(&lab, stored, || Ok(()))?;
        if n > 0 || drains.len() == 1 {
            measured += count;
            time += begin.elapsed();
        }
    }
    let (mut p50, mut p99) = (f64::NAN, f64::NAN);
    // Messages at the head are delivered first, so the latency of messages behind them means nothing.
    if !matches!(case, InFront(_)) {
        let millis = latency(&lab, plan.latency, stored, &mut watch)?;
        (p50, p99) = (millis[0].1, millis[2].1);
    }
    let after = sizes(&lab)?;
    Ok(Found {
        rate: measured as f64 / time.as_secs_f64(),
        p50,
        p99,
        table_during: most.0.max(after.0),
        indexes_during: most.1.max(after.1),
        table_after: after.0,
        indexes_after: after.1,
    })
}

/// Percentiles of the time from commit to acknowledgement. The median of three short periods counts, because a single
/// checkpoint would distort one long period.
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

/// Creates the disturbance. It lasts as long as the returned client.
fn disturb(lab: &Lab, case: Case) -> Result<Option<Client>> {
    let owe_all = |table: &str, count: usize, columns: &str, values: &str| {
        (0..count)
            .step_by(CHUNK)
            .try_for_each(|begin| owe_in(lab, table, CHUNK.min(count - begin), 256, columns, values))
    };
    match case {
        Undisturbed => {}
        Aside(count) => {
            lab.sql("create table public.aside (like jetstream.outbox including all)")?;
            owe_all("public.aside", count, "", "")?;
        }
        HistoryAside(count) => {
            lab.sql("create table public.aside (like jetstream.history including all)")?;
            fill_history(lab, "public.aside", count)?;
        }
        Elsewhere(count) => {
            lab.sql(
                "insert into jetstream.connections (name, url, enabled) values ('off', 'nats://127.0.0.1:1', false)",
            )?;
            owe_all(OUTBOX, count, ", connection", ", 'off'")?;
        }
        Delayed(count) => owe_all(OUTBOX, count, ", deliver_at", ", now() + interval '1 day'")?,
        InFront(count) => owe_all(OUTBOX, count, "", "")?,
        History(count) => fill_history(lab, "jetstream.history", count)?,
        Snapshot => {
            return hold(
                lab,
                "begin isolation level repeatable read; select 1 from pg_class limit 1",
            );
        }
        OpenTransaction => return hold(lab, "begin; select pg_current_xact_id()"),
    }
    // Writes out what the disturbance left behind, so that this does not happen during the drains.
    lab.sql("checkpoint")?;
    Ok(None)
}

fn hold(lab: &Lab, statements: &str) -> Result<Option<Client>> {
    let mut holder = lab.postgres.client(DATABASE)?;
    holder.batch_execute(statements)?;
    Ok(Some(holder))
}

fn fill_history(lab: &Lab, table: &str, count: usize) -> Result<()> {
    for begin in (0..count).step_by(HISTORY_CHUNK) {
        lab.sql(&format!(
            "insert into {table} (published_at, outbox_id, sequence, attempts, latency_ms, success, \
             connection, subject, message_id, stream) \
             select now(), -i, i, 1, 1, true, 'default', 'bench.s' || i % 128, gen_random_uuid()::text, 'BENCH' \
             from generate_series({begin} + 1, {begin} + {}) i",
            HISTORY_CHUNK.min(count - begin)
        ))?;
    }
    Ok(())
}

/// Megabytes of the outbox table and of its indexes.
fn sizes(lab: &Lab) -> Result<(f64, f64)> {
    let text = "select pg_table_size(o) / 1048576.0, pg_indexes_size(o) / 1048576.0 \
                from (select 'jetstream.outbox'::regclass) x (o)";
    let rows = lab.sql(text)?;
    Ok((rows[0][0].parse()?, rows[0][1].parse()?))
}
