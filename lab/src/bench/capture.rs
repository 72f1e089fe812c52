//! Measures what capture costs the session that changes the table: single-row transactions and large statements, each
//! compared with an identical table that is not captured.

use std::time::Instant;

use anyhow::{Context, Result};
use postgres::Client;

use super::Size;
use super::cpu::{BACKENDS, Meter};
use super::ground::{Bench, season};
use super::pgbench::{beside_a_relay, pgbench};
use super::report::{Goal, Limit, OF_BESIDE, Report, Row, Table, median};
use crate::lab::{DATABASE, Lab};

/// Two identical tables. Only `captured` is captured, in the default format.
const TABLES: &str = "
create table public.plain (id bigint generated always as identity primary key, v integer,
    t text default 'some text', at timestamptz default now());
create table public.captured (like public.plain including all);
select jetstream.capture('public.captured');
";
const PAIR: [&str; 2] = ["public.plain", "public.captured"];

/// Rows in each table before updates and deletes.
const ROWS: usize = 100_000;

/// Single-row transactions by name. The last kind consumes the rows, so the table is refilled before each run.
const SINGLE: [(&str, &str); 3] = [
    ("insert", "insert into TABLE (v) values (1)"),
    (
        "update",
        "\\set id random(1, 100000)\nupdate TABLE set v = v + 1 where id = :id",
    ),
    (
        "delete and insert",
        "\\set id random(1, 100000)\nbegin; delete from TABLE where id = :id; \
         insert into TABLE (id, v) overriding system value values (:id, 1) on conflict do nothing; commit",
    ),
];

/// Rows changed by one large statement.
const LARGE: usize = 10_000;

const MORE: &str = "more µs";

/// The first kinds of [`SINGLE`] publish exactly one message in each transaction.
const ONE_MESSAGE: usize = 2;

/// Measures single rows without a worker, which shows the cost of the transaction itself, and with a worker that
/// publishes on the same processors. Large statements run without a worker.
pub fn run(bench: &Bench) -> Result<Report> {
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    let clients: &[usize] = bench.size.pick(&[1, 16], &[1, 16], &[2]);
    for &clients in clients {
        for publishing in [false, true] {
            if bench.size == Size::Tiny && publishing {
                continue;
            }
            let table = single_rows(bench, clients, publishing)?;
            let what = format!(
                "captured inserts, {clients} clients, {}, as a share of",
                beside(publishing)
            );
            let references = [
                ("ratio", "the transactions/s without capture"),
                (OF_BESIDE, "the transactions/s without capture next to a relay alone"),
            ];
            for (figure, reference) in references {
                if let Some(ratio) = table.rows[0].get(figure) {
                    goals.push(Goal::new(format!("{what} {reference}"), Limit::AtLeast(0.8), ratio));
                }
            }
            tables.push(table);
        }
    }
    let table = large(bench)?;
    for row in &table.rows {
        let what = format!("capture cost per row, {} of {LARGE} rows, µs", row.case);
        goals.push(Goal::new(what, Limit::Below(3.0), row.get(MORE).unwrap_or(f64::NAN)));
    }
    tables.push(table);
    Ok(Report { tables, goals })
}

fn beside(publishing: bool) -> &'static str {
    if publishing { "worker publishing" } else { "no worker" }
}

/// Starts the servers and creates the two tables.
fn lab(bench: &Bench, worker: bool) -> Result<Lab> {
    let mut lab = bench.lab(&[])?;
    season(&lab, bench.size)?;
    lab.sql(TABLES)?;
    if !worker {
        lab.postgres.set(&[("pg_jetstream.databases", "")])?;
        lab.wait_until("no worker", || {
            Ok(lab.postgres.backends("pg_jetstream worker%")?.is_empty())
        })?;
    }
    Ok(lab)
}

/// Refills both tables with `rows` rows and discards what that captured.
fn refill(lab: &Lab, rows: usize) -> Result<()> {
    let fill = |table: &str| format!("truncate {table} restart identity; {}", inserts(table, rows));
    // One transaction, so that a worker sees none of these rows.
    let [plain, captured] = PAIR.map(fill);
    lab.sql(&format!(
        "begin; {plain}; {captured}; truncate jetstream.capture_queue, jetstream.outbox; commit"
    ))?;
    lab.sql(&format!("vacuum analyze {}", PAIR.join(", "))).map(|_| ())
}

fn inserts(table: &str, rows: usize) -> String {
    format!("insert into {table} (v) select n from generate_series(1, {rows}) n")
}

fn single_rows(bench: &Bench, clients: usize, publishing: bool) -> Result<Table> {
    let lab = lab(bench, publishing)?;
    let title = format!("Single-row transactions, {clients} clients, {}", beside(publishing));
    let mut table = Table::new(title).plot(&["transactions/s", "without capture/s"]);
    let mut runs: Vec<[Vec<(f64, f64)>; 2]> = SINGLE.iter().map(|_| Default::default()).collect();
    let mut beside: Vec<Vec<f64>> = SINGLE.iter().map(|_| Vec::new()).collect();
    let seconds = bench.size.pick(10, 3, 1);
    for n in 1..=bench.runs(5, 3, 1) {
        for (which, kind) in SINGLE.iter().enumerate() {
            refill(&lab, ROWS)?;
            for (name, runs) in PAIR.iter().zip(&mut runs[which]) {
                bench
                    .steps
                    .say(&format!("{} {name}, {clients} clients, run {n}", kind.0));
                let meter = match publishing {
                    true => Meter::of_lab(&lab)?,
                    false => Meter::of_postgres(&lab),
                };
                let meter = meter.start();
                let done = pgbench(&lab, &kind.1.replace("TABLE", name), clients, seconds)?;
                let micros = meter.stop().micros_each(done.transactions);
                runs.push((done.per_second, micros.get(BACKENDS).copied().unwrap_or(f64::NAN)));
            }
            if let (true, Some((captured, _))) = (publishing && which < ONE_MESSAGE, runs[which][1].last()) {
                lab.sql("select jetstream.pause()")?;
                let done = beside_a_relay(&lab, &kind.1.replace("TABLE", PAIR[0]), clients, seconds, *captured)?;
                beside[which].push(done.per_second);
                lab.sql("select jetstream.resume()")?;
            }
        }
    }
    for ((kind, [plain, captured]), beside) in SINGLE.iter().zip(&runs).zip(&beside) {
        let pairs = || captured.iter().zip(plain);
        let row = Row::new(kind.0)
            .with("transactions/s", captured.iter().map(|run| run.0))
            .with("without capture/s", plain.iter().map(|run| run.0))
            .with("ratio", pairs().map(|(own, other)| own.0 / other.0))
            .with("backend µs", captured.iter().map(|run| run.1))
            .with(MORE, pairs().map(|(own, other)| own.1 - other.1))
            .with_beside_a_relay(
                "without capture next to a relay/s",
                captured.iter().map(|run| run.0),
                beside,
            );
        table.rows.push(row);
    }
    Ok(table)
}

/// Microseconds for one row: elapsed time, and processor time of the backend.
type Micros = (f64, f64);

fn large(bench: &Bench) -> Result<Table> {
    let lab = lab(bench, false)?;
    let mut client = lab.postgres.client(DATABASE)?;
    let pid: i32 = client.query_one("select pg_backend_pid()", &[])?.get(0);
    let mut table = Table::new(format!("Statements of {LARGE} rows, microseconds per row, no worker")).plot(&[MORE]);
    for kind in ["insert", "update", "delete"] {
        let mut runs: [Vec<Micros>; 2] = Default::default();
        for n in 1..=bench.runs(15, 7, 1) {
            bench.steps.say(&format!("{kind} of {LARGE} rows, run {n}"));
            refill(&lab, if kind == "insert" { 0 } else { LARGE })?;
            for (name, runs) in PAIR.iter().zip(&mut runs) {
                let statement = match kind {
                    "insert" => inserts(name, LARGE),
                    "update" => format!("update {name} set v = v + 1"),
                    _ => format!("delete from {name}"),
                };
                runs.push(one(&mut client, pid, &statement)?);
            }
        }
        let [plain, captured] = &runs;
        let more: Vec<Micros> = captured
            .iter()
            .zip(plain)
            .map(|(own, other)| (own.0 - other.0, own.1 - other.1))
            .collect();
        let row = Row::new(kind)
            .with("µs", captured.iter().map(|run| run.0))
            .with("without capture µs", plain.iter().map(|run| run.0))
            .with(MORE, more.iter().map(|run| run.0))
            .with("ratio", [median_of(captured) / median_of(plain)])
            .with("backend µs", captured.iter().map(|run| run.1))
            .with("more backend µs", more.iter().map(|run| run.1));
        table.rows.push(row);
    }
    Ok(table)
}

fn median_of(runs: &[Micros]) -> f64 {
    median(&runs.iter().map(|run| run.0).collect::<Vec<_>>())
}

fn one(client: &mut Client, pid: i32, statement: &str) -> Result<Micros> {
    let (before, begin) = (on_processor(pid)?, Instant::now());
    client.batch_execute(statement)?;
    let elapsed = begin.elapsed().as_secs_f64() * 1e6;
    let processor = (on_processor(pid)? - before) / 1e3;
    Ok((elapsed / LARGE as f64, processor / LARGE as f64))
}

/// Nanoseconds of processor time a process has used so far. Finer than what [`Meter`] reads, so it can measure
/// statements that take a few milliseconds.
fn on_processor(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split_whitespace().next().context("no schedstat")?.parse()?)
}
