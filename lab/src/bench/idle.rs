//! Measures what a worker costs when it has nothing to do.

use std::time::Duration;

use anyhow::Result;

use super::cpu::Meter;
use super::ground::Bench;
use super::report::{Goal, Limit, Report, Row, Table};

/// Measures one idle worker several times.
pub fn run(bench: &Bench) -> Result<Report> {
    // `pg_stat_statements` counts every statement, including those inside the worker. Its own cost is part of the
    // result.
    let lab = bench.lab(&[
        ("shared_preload_libraries", "pg_stat_statements,pg_jetstream"),
        ("pg_stat_statements.track", "all"),
    ])?;
    lab.sql("create extension pg_stat_statements")?;
    lab.wait_connected()?;
    // By then, the work that follows a start, such as creating history partitions, is done.
    std::thread::sleep(Duration::from_secs(bench.size.pick(10, 5, 1)));
    let time = Duration::from_secs(bench.size.pick(120, 30, 2));
    let (mut worker, mut relay, mut queries, mut cycles) = (vec![], vec![], vec![], vec![]);
    for n in 1..=bench.runs(3, 1, 1) {
        bench
            .steps
            .say(&format!("an idle worker, run {n}, {} s", time.as_secs()));
        let cycles_now = || -> Result<f64> { Ok(lab.value("select cycles from jetstream.worker_status()")?.parse()?) };
        lab.sql("select pg_stat_statements_reset()")?;
        let (before, meter) = (cycles_now()?, Meter::of_lab(&lab)?.start());
        std::thread::sleep(time);
        let used = meter.stop();
        let calls = "select coalesce(sum(s.calls), 0)::float8 from pg_stat_statements s \
                     join pg_database d on d.oid = s.dbid \
                     where s.query not like '%pg_stat_statements%' and s.query not like '%worker_status%'";
        let minutes = used.wall.as_secs_f64() / 60.0;
        queries.push(lab.value(calls)?.parse::<f64>()? / minutes);
        cycles.push((cycles_now()? - before) / minutes);
        worker.push(used.core_percent("worker"));
        relay.push(used.core_percent("relay"));
    }
    let sum: Vec<f64> = worker.iter().zip(&relay).map(|(a, b)| a + b).collect();
    let row = Row::new("idle worker")
        .with("worker % of a core", worker)
        .with("relay % of a core", relay)
        .with(SUM, sum)
        .with("queries a minute", queries)
        .with("transactions a minute", cycles);
    let reached = row.get(SUM).unwrap_or(f64::NAN);
    let mut table = Table::new("An idle worker");
    table.rows.push(row);
    let goal = Goal::new("an idle worker, percentage of a core", Limit::Below(0.1), reached);
    Ok(Report {
        tables: vec![table],
        goals: vec![goal],
    })
}

const SUM: &str = "sum % of a core";
