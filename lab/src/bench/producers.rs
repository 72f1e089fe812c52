//! Measures what a message costs the transaction that inserts it: transactions per second with pgbench, compared with a
//! plain insert.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Size;
use super::cpu::{BACKENDS, Meter};
use super::ground::{Bench, back_and_forth, season};
use super::pgbench::{beside_a_relay, pgbench};
use super::report::{Goal, Limit, OF_BESIDE, Report, Row, Table};
use crate::lab::Lab;

/// Tables to compare with. `plain` has the columns and defaults of the outbox and a primary key, so its rows are the
/// same, but nothing checks them, wakes the worker or claims them. `plain_indexed` also has the indexes of the outbox.
/// `bare` has no defaults except its primary key.
const TABLES: &str = "
create table public.plain (like jetstream.outbox including defaults including identity, primary key (id));
create table public.plain_indexed (like jetstream.outbox including defaults including identity including indexes);
create table public.bare (id bigint generated always as identity primary key, subject text, payload jsonb);
create table public.orders (id bigint generated always as identity primary key, customer text, total numeric);
create table public.orders_plain (like public.orders including all);
create table public.orders_outbox (like public.orders including all);
create function public.to_plain() returns trigger language plpgsql as $$
begin
    insert into public.plain (subject, payload) values ('bench.orders', to_jsonb(new));
    return null;
end $$;
create function public.to_outbox() returns trigger language plpgsql as $$
begin
    perform jetstream.publish('bench.orders', to_jsonb(new));
    return null;
end $$;
create trigger publish after insert on public.orders_plain for each row execute function public.to_plain();
create trigger publish after insert on public.orders_outbox for each row execute function public.to_outbox();
";

/// One kind of transaction.
struct Variant {
    name: &'static str,
    sql: &'static str,
    /// Index of the variant it is compared with.
    reference: Option<usize>,
}

const fn variant(name: &'static str, sql: &'static str, reference: Option<usize>) -> Variant {
    Variant { name, sql, reference }
}

/// Each variant follows its reference.
const VARIANTS: [Variant; 9] = [
    variant(
        "insert into a plain table",
        "insert into public.plain (subject, payload) values ('bench.orders', :body)",
        None,
    ),
    variant(
        "insert into a plain table with the outbox's indexes",
        "insert into public.plain_indexed (subject, payload) values ('bench.orders', :body)",
        Some(0),
    ),
    variant(
        "insert into a bare table",
        "insert into public.bare (subject, payload) values ('bench.orders', :body)",
        Some(0),
    ),
    variant(
        "insert into the outbox",
        "insert into jetstream.outbox (subject, payload) values ('bench.orders', :body)",
        Some(0),
    ),
    variant(
        "jetstream.publish",
        "select jetstream.publish('bench.orders', :body)",
        Some(0),
    ),
    variant(
        "business insert alone",
        "insert into public.orders (customer, total) values ('ann', 12.5)",
        None,
    ),
    variant(
        "business insert, a trigger inserts into the plain table",
        "insert into public.orders_plain (customer, total) values ('ann', 12.5)",
        Some(5),
    ),
    variant(
        "business insert, a trigger publishes",
        "insert into public.orders_outbox (customer, total) values ('ann', 12.5)",
        Some(6),
    ),
    variant(
        "business insert and publish in one transaction",
        "begin; insert into public.orders (customer, total) values ('ann', 12.5); \
         select jetstream.publish('bench.orders', :body); commit",
        Some(5),
    ),
];
/// The variants that have goals.
const INSERT: usize = 3;
const PUBLISH: usize = 4;

/// A body of about 256 bytes.
const BODY: &str = "('{\"n\": 1, \"body\": \"' || repeat('x', 230) || '\"}')::jsonb";

/// Runs all variants in turn, first with the worker paused, which shows the cost of the transaction itself, then with
/// the worker publishing.
pub fn run(bench: &Bench) -> Result<Report> {
    let mut tables = Vec::new();
    let mut goals = Vec::new();
    let clients: &[usize] = bench.size.pick(&[1, 16], &[1, 16], &[2]);
    for &clients in clients {
        for paused in [true, false] {
            if bench.size == Size::Tiny && !paused {
                continue;
            }
            let table = compare(bench, clients, paused)?;
            for which in [INSERT, PUBLISH] {
                for (figure, name) in [
                    ("ratio", goal_name(clients, paused, which)),
                    (OF_BESIDE, beside_name(clients, which)),
                ] {
                    if let Some(ratio) = table.rows[which].get(figure) {
                        goals.push(Goal::new(name, Limit::AtLeast(0.9), ratio));
                    }
                }
            }
            tables.push(table);
        }
    }
    Ok(Report { tables, goals })
}

fn goal_name(clients: usize, paused: bool, which: usize) -> String {
    let worker = if paused { "paused" } else { "publishing" };
    format!(
        "{}, {clients} clients, worker {worker}, as a share of a plain insert's transactions/s",
        VARIANTS[which].name
    )
}

fn beside_name(clients: usize, which: usize) -> String {
    format!(
        "{}, {clients} clients, worker publishing, as a share of a plain insert's transactions/s next to a relay alone",
        VARIANTS[which].name
    )
}

/// Transactions per second, and the processor time of the backends for each transaction.
#[derive(Clone, Copy)]
struct Speed {
    per_second: f64,
    micros: f64,
}

fn compare(bench: &Bench, clients: usize, paused: bool) -> Result<Table> {
    let lab = bench.lab(&[])?;
    season(&lab, bench.size)?;
    lab.sql(TABLES)?;
    let variants = &VARIANTS[..bench.size.pick(VARIANTS.len(), VARIANTS.len(), PUBLISH + 1)];
    let mut speeds: Vec<Vec<Speed>> = variants.iter().map(|_| Vec::new()).collect();
    let mut beside: Vec<Vec<f64>> = variants.iter().map(|_| Vec::new()).collect();
    // A machine may be faster in one minute than in the next, so short runs close together are easier to compare. With
    // a publishing worker, runs are longer because the worker takes a moment to reach a steady state.
    let (runs, seconds) = if paused {
        (bench.runs(40, 20, 1), 1)
    } else {
        (bench.runs(7, 3, 1), bench.size.pick(6, 3, 1))
    };
    for n in 1..=runs {
        for (which, variant) in back_and_forth(variants, n) {
            bench
                .steps
                .say(&format!("{}, {clients} clients, run {n}", variant.name));
            let speed = one(&lab, variant, clients, paused, seconds)?;
            speeds[which].push(speed);
            if let (INSERT | PUBLISH, false, Some(reference)) = (which, paused, variant.reference) {
                lab.sql("select jetstream.pause()")?;
                let script = VARIANTS[reference].sql.replace(":body", BODY);
                let done = beside_a_relay(&lab, &script, clients, seconds, speed.per_second)?;
                beside[which].push(done.per_second);
            }
        }
    }
    let worker = if paused { "paused" } else { "publishing" };
    let mut table = Table::new(format!("Producers, {clients} clients, worker {worker}")).plot(&["transactions/s"]);
    for ((variant, own), beside) in variants.iter().zip(&speeds).zip(&beside) {
        let mut row = Row::new(variant.name)
            .with("transactions/s", own.iter().map(|speed| speed.per_second))
            .with("backend µs", own.iter().map(|speed| speed.micros));
        if let Some(reference) = variant.reference {
            let pairs = || own.iter().zip(&speeds[reference]);
            row = row
                .with("ratio", pairs().map(|(own, other)| own.per_second / other.per_second))
                .with("more µs", pairs().map(|(own, other)| own.micros - other.micros))
                .to(VARIANTS[reference].name);
        }
        let speeds = own.iter().map(|own| own.per_second);
        table
            .rows
            .push(row.with_beside_a_relay("reference next to a relay/s", speeds, beside));
    }
    Ok(table)
}

fn one(lab: &Lab, variant: &Variant, clients: usize, paused: bool, seconds: u32) -> Result<Speed> {
    lab.sql("select jetstream.pause()")?;
    lab.sql(
        "truncate jetstream.outbox, public.plain, public.plain_indexed, public.bare, public.orders, \
             public.orders_plain, public.orders_outbox",
    )?;
    if !paused {
        lab.sql("select jetstream.resume()")?;
    }
    let meter = Meter::of_lab(lab)?.start();
    let done = pgbench(lab, &variant.sql.replace(":body", BODY), clients, seconds)?;
    let used = meter.stop();
    let backends: BTreeMap<_, _> = used.micros_each(done.transactions);
    Ok(Speed {
        per_second: done.per_second,
        micros: backends.get(BACKENDS).copied().unwrap_or(f64::NAN),
    })
}
