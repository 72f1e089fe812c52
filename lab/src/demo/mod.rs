//! `make demo`: the promises, kept in front of the reader. Orders are committed all the time while NATS and the worker are
//! killed; at the end a ledger compares what was committed with what the stream holds.

mod ledger;
mod producers;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::lab::{Lab, wait_until};
use crate::paths::Paths;
use crate::{install, process};
use producers::Producers;

/// A table, and a trigger that publishes in the transaction of the insert.
const SCHEMA: &str = "
create table orders (id bigint generated always as identity primary key, customer text not null, total numeric not null);
create function publish_order() returns trigger language plpgsql as $$
begin
    perform jetstream.publish('orders.created', to_jsonb(new), key => new.customer);
    return null;
end $$;
create trigger publish_order after insert on orders for each row execute function publish_order();
select jetstream.create_stream('ORDERS', array['orders.>']);
";

/// How long each of the first two acts takes.
const ACT: Duration = Duration::from_secs(4);
/// Longest wait for the outbox to drain.
const PATIENCE: Duration = Duration::from_secs(60);

/// Builds, starts both servers, shows the acts, and stops everything.
pub fn run(paths: &Paths) -> Result<()> {
    install::run(paths)?;
    let started = Instant::now();
    let mut lab = Lab::builder().durable().start()?;
    lab.sql(SCHEMA)?;
    lab.wait_connected()?;
    lab.wait_for_streams()?;
    println!(
        "\nPostgreSQL {} with pg_jetstream, and nats-server, run on free ports. A trigger on table orders calls\n  \
         jetstream.publish('orders.created', to_jsonb(new), key => new.customer)\n\
         Four sessions commit one order per transaction, {} a second in all; every tenth transaction rolls back.\n",
        lab.value("show server_version")?,
        producers::RATE
    );
    let producers = Producers::start(&lab.postgres)?;
    everything_works(&lab, &producers)?;
    nats_is_killed(&mut lab, &producers)?;
    the_worker_is_killed(&lab, &producers)?;
    let tried = producers.stop()?;
    ledger::compare(&lab, &tried)?;
    a_subject_without_a_stream(&lab)?;
    drop(lab);
    println!(
        "\nBoth servers are stopped ({:.0} s). `make up` leaves a pair running to play with; docs/guide.md is next.",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn everything_works(lab: &Lab, producers: &Producers) -> Result<()> {
    println!("1. Everything works");
    producers.sample();
    std::thread::sleep(ACT);
    println!("   commits                 {}", producers.sample());
    let delivery = lab.value(
        "select format('p50 %s ms, p99 %s ms', round(percentile_cont(0.5) within group (order by latency_ms)::numeric, 1), \
         round(percentile_cont(0.99) within group (order by latency_ms)::numeric, 1)) \
         from jetstream.history where success",
    )?;
    println!("   insert to stream        {delivery}");
    Ok(())
}

fn nats_is_killed(lab: &mut Lab, producers: &Producers) -> Result<()> {
    println!("\n2. kill -9 of nats-server");
    lab.nats.kill9()?;
    producers.sample();
    let died = Instant::now();
    while died.elapsed() < ACT {
        std::thread::sleep(Duration::from_secs(1));
        println!(
            "   after {} s  pending      {}",
            died.elapsed().as_secs(),
            pending(lab)?
        );
    }
    println!("   commits                 {}", producers.sample());
    let waiting = pending(lab)?;
    let back = Instant::now();
    lab.nats.restart()?;
    println!("   nats-server starts again, {waiting} messages are pending");
    wait_until(PATIENCE, "nothing older than the restart is pending", || {
        Ok(lab
            .value("select not exists (select from jetstream.outbox where created_at < now() - interval '500 ms')")?
            == "t")
    })?;
    println!("   caught up after         {} ms", back.elapsed().as_millis());
    Ok(())
}

fn the_worker_is_killed(lab: &Lab, producers: &Producers) -> Result<()> {
    println!("\n3. kill -9 of the background worker while it publishes (PostgreSQL restarts all sessions)");
    let worker: u32 = lab.value("select pid from jetstream.status()")?.parse()?;
    producers.sample();
    let killed = Instant::now();
    process::signal(worker, Signal::SIGKILL)?;
    wait_until(PATIENCE, "another worker", || {
        let pid = lab.value("select coalesce(pid, 0) from jetstream.status() where state <> 'not running'");
        Ok(pid.is_ok_and(|pid| pid.parse() != Ok(worker) && pid != "0"))
    })?;
    println!("   the next worker runs after {} ms", killed.elapsed().as_millis());
    std::thread::sleep(Duration::from_secs(1));
    println!("   commits                 {}", producers.sample());
    Ok(())
}

fn pending(lab: &Lab) -> Result<String> {
    lab.value("select count(*) from jetstream.outbox")
}

fn a_subject_without_a_stream(lab: &Lab) -> Result<()> {
    println!("\n5. A subject that no stream takes");
    let mut client = lab.postgres.client(crate::lab::DATABASE)?;
    let publish = "select jetstream.publish('invoices.created', '{\"id\": 1}')";
    println!("   {publish}");
    client.batch_execute(publish)?;
    let mut reason = String::new();
    wait_until(PATIENCE, "a reason", || {
        reason = lab.value(
            "select coalesce((select last_error from jetstream.outbox where subject = 'invoices.created'), '')",
        )?;
        Ok(!reason.is_empty())
    })?;
    println!("   last_error: {reason}");
    let create = "select jetstream.create_stream('INVOICES', array['invoices.>'])";
    println!("   {create}");
    client.batch_execute(create)?;
    let created = Instant::now();
    wait_until(PATIENCE, "the message is delivered", || {
        Ok(
            lab.value("select exists (select from jetstream.history where success and subject = 'invoices.created')")?
                == "t",
        )
    })
    .context("the message is still pending")?;
    println!("   delivered after         {} ms", created.elapsed().as_millis());
    Ok(())
}
