//! What a capture costs the writers of a table: single-row transactions with and without it, and large statements.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::lab::{DATABASE, Lab};

/// Connections that write at once.
const WRITERS: usize = 4;
/// How long single-row transactions are made in one round, with and without a capture in turn.
const ROUND: Duration = Duration::from_secs(3);
/// Rounds of each, of which the median counts.
const ROUNDS: usize = 5;
/// Rows of a large statement.
const ROWS: usize = 10_000;
/// Large statements of each kind, of which the median counts.
const STATEMENTS: usize = 15;

/// Runs all of it and prints a table.
///
/// Errors: a server that does not start, a statement that fails.
pub fn run() -> Result<()> {
    let mut lab = Lab::builder()
        .durable()
        .set("shared_buffers", "256MB")
        .set("max_wal_size", "8GB")
        .start()?;
    lab.wait_connected()?;
    lab.sql("create table plain (id bigint generated always as identity primary key, v integer, t text default 'some text', at timestamptz default now());
             create table captured (like plain including all); select jetstream.capture('captured')")?;
    compare(&lab, "the worker publishing beside them, on the same processors")?;
    lab.postgres.set(&[("pg_jetstream.databases", "")])?;
    lab.wait_until("no worker", || {
        Ok(lab.postgres.backends("pg_jetstream worker%")?.is_empty())
    })?;
    compare(&lab, "without a worker")?;
    println!("statements of {ROWS} rows, microseconds of a row, elapsed / on the processor:");
    for (name, statement) in [
        (
            "insert",
            format!("insert into TABLE (v) select i from generate_series(1, {ROWS}) i"),
        ),
        ("update", "update TABLE set v = v + 1".to_owned()),
        ("delete", "delete from TABLE".to_owned()),
    ] {
        let without = large(&lab, "plain", name, &statement)?;
        let with = large(&lab, "captured", name, &statement)?;
        println!(
            "  {name}  without {:>6.2} / {:<6.2} with {:>6.2} / {:<6.2} more {:>6.2} / {:.2}",
            without.0,
            without.1,
            with.0,
            with.1,
            with.0 - without.0,
            with.1 - without.1
        );
    }
    Ok(())
}

/// Single-row transactions with and without a capture, in turn.
fn compare(lab: &Lab, how: &str) -> Result<()> {
    let (mut plain, mut captured) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(single_rows(lab, "plain")?);
        captured.push(single_rows(lab, "captured")?);
    }
    let (plain, captured) = (median(plain), median(captured));
    println!("single-row inserts, {WRITERS} connections, commits flushed, {how}:");
    println!("  without capture  {plain:>10.0} transactions/s");
    println!("  with             {captured:>10.0} transactions/s");
    println!("  ratio            {:>10.2}", captured / plain);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Transactions a second of several connections that insert one row each time.
fn single_rows(lab: &Lab, table: &str) -> Result<f64> {
    let begin = Instant::now();
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (mut client, table) = (lab.postgres.client(DATABASE)?, table.to_owned());
            Ok(std::thread::spawn(move || -> Result<u64> {
                let insert = client.prepare(&format!("insert into {table} (v) values ($1)"))?;
                let mut done = 0;
                while begin.elapsed() < ROUND {
                    client.execute(&insert, &[&(done as i32)])?;
                    done += 1;
                }
                Ok(done)
            }))
        })
        .collect::<Result<_>>()?;
    let mut done = 0;
    for writer in writers {
        done += writer.join().map_err(|_| anyhow!("a writer panicked"))??;
    }
    Ok(done as f64 / begin.elapsed().as_secs_f64())
}

/// Median microseconds of a row: elapsed, and on the processor of the writer's backend.
fn large(lab: &Lab, table: &str, kind: &str, statement: &str) -> Result<(f64, f64)> {
    let mut client = lab.postgres.client(DATABASE)?;
    let pid: i32 = client.query_one("select pg_backend_pid()", &[])?.get(0);
    let statement = statement.replace("TABLE", table);
    let fill = format!("insert into {table} (v) select i from generate_series(1, {ROWS}) i");
    let (mut elapsed, mut processor) = (Vec::new(), Vec::new());
    client.batch_execute(&format!("truncate {table}"))?;
    for _ in 0..STATEMENTS {
        if kind == "insert" {
            client.batch_execute(&format!("truncate {table}"))?;
        } else {
            client.batch_execute(&format!("truncate {table}; {fill}"))?;
        }
        let (before, begin) = (on_processor(pid)?, Instant::now());
        client.batch_execute(&statement)?;
        elapsed.push(begin.elapsed().as_secs_f64() * 1e6 / ROWS as f64);
        processor.push((on_processor(pid)? - before) / 1e3 / ROWS as f64);
    }
    Ok((median(elapsed), median(processor)))
}

/// Nanoseconds a process has run so far.
fn on_processor(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split_whitespace().next().context("no schedstat")?.parse()?)
}
