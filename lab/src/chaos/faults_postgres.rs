//! Faults of PostgreSQL and its processes.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use rand::RngExt;

use super::faults::Effect::{self, Happened, Not};
use super::world::World;
use crate::lab::DATABASE;
use crate::postgres::Stop;
use crate::process;

const WORKER: &str = "pg_jetstream worker%";
const LAUNCHER: &str = "pg_jetstream launcher";

/// Kills the drain worker, which makes the postmaster restart all processes.
pub(super) fn worker_kill(world: &mut World) -> Result<Effect> {
    kill(world, WORKER)
}

/// Kills the launcher.
pub(super) fn launcher_kill(world: &mut World) -> Result<Effect> {
    kill(world, LAUNCHER)
}

/// Kills the backend of a producer.
pub(super) fn backend_kill(world: &mut World) -> Result<Effect> {
    kill(world, "client backend")
}

fn kill(world: &mut World, pattern: &str) -> Result<Effect> {
    let Some(pid) = world.process(pattern) else {
        return Ok(Not(format!("no process matches {pattern:?}")));
    };
    let prepared = world.prepared();
    process::signal(pid, Signal::SIGKILL)?;
    if !process::wait_gone(&[pid], Duration::from_secs(10)) {
        return Ok(Not(format!("process {pid} does not end")));
    }
    world.wait_postgres()?;
    survived(world, prepared);
    Ok(Happened(format!("killed process {pid}")))
}

/// Kills the postmaster, and starts it again a moment later.
pub(super) fn postmaster_kill(world: &mut World) -> Result<Effect> {
    let prepared = world.prepared();
    let pid = world.lab.postgres.pid();
    world.lab.postgres.kill9()?;
    start_again(world, prepared)?;
    Ok(Happened(format!("killed postmaster {pid}")))
}

/// Immediate shutdown, followed by a start.
pub(super) fn immediate_shutdown(world: &mut World) -> Result<Effect> {
    stop(world, Stop::Immediate)
}

/// Clean restart.
pub(super) fn restart(world: &mut World) -> Result<Effect> {
    stop(world, Stop::Fast)
}

fn stop(world: &mut World, mode: Stop) -> Result<Effect> {
    let prepared = world.prepared();
    world.lab.postgres.stop(mode)?;
    start_again(world, prepared)?;
    Ok(Happened(format!("{mode:?} stop and start")))
}

fn start_again(world: &mut World, prepared: u64) -> Result<()> {
    let pause = world.some(0, 1000);
    std::thread::sleep(pause);
    world.lab.postgres.start_again()?;
    survived(world, prepared);
    Ok(())
}

/// Logs how many prepared transactions survived a restart.
fn survived(world: &mut World, before: u64) {
    let now = world.prepared();
    if before > 0 && now > 0 {
        world
            .log
            .happened(PREPARED, &format!("{now} prepared transactions survived"));
    }
}

/// Name under which survived restarts of prepared transactions are counted.
pub(super) const PREPARED: &str = "prepared-over-restart";

/// Terminates the worker with `pg_terminate_backend`.
pub(super) fn worker_terminate(world: &mut World) -> Result<Effect> {
    signal_worker(world, "pg_terminate_backend")
}

/// Cancels the worker with `pg_cancel_backend`.
pub(super) fn worker_cancel(world: &mut World) -> Result<Effect> {
    signal_worker(world, "pg_cancel_backend")
}

fn signal_worker(world: &mut World, function: &str) -> Result<Effect> {
    let Some(pid) = world.process(WORKER) else {
        return Ok(Not("no worker is running".to_owned()));
    };
    Ok(match world.lab.value(&format!("select {function}({pid})"))?.as_str() {
        "t" => Happened(format!("{function}({pid})")),
        _ => Not(format!("worker {pid} was gone")),
    })
}

/// Freezes the worker for longer than the acknowledgement timeout, while its connections stay open.
pub(super) fn worker_stop(world: &mut World) -> Result<Effect> {
    let Some(pid) = world.process(WORKER) else {
        return Ok(Not("no worker is running".to_owned()));
    };
    let time = world.some(1500, 5000);
    process::signal(pid, Signal::SIGSTOP)?;
    // No other fault may strike now, because PostgreSQL would wait for the frozen worker.
    std::thread::sleep(time);
    process::signal(pid, Signal::SIGCONT)?;
    Ok(Happened(format!("worker {pid} frozen for {time:?}")))
}

/// Freezes the walwriter, so that asynchronous commits stay unflushed for longer, then kills all PostgreSQL processes
/// together. A message published before its commit was flushed is a phantom.
pub(super) fn walwriter_lost(world: &mut World) -> Result<Effect> {
    let Some(walwriter) = world.process("walwriter") else {
        return Ok(Not("no walwriter is running".to_owned()));
    };
    let (prepared, time) = (world.prepared(), world.some(300, 1500));
    process::signal(walwriter, Signal::SIGSTOP)?;
    std::thread::sleep(time);
    for pid in process::children(world.lab.postgres.pid()) {
        process::signal(pid, Signal::SIGKILL)?;
    }
    world.lab.postgres.kill9()?;
    start_again(world, prepared)?;
    Ok(Happened(format!(
        "walwriter frozen for {time:?}, then all processes killed"
    )))
}

/// Reloads the configuration many times with different settings.
pub(super) fn reload_storm(world: &mut World) -> Result<Effect> {
    let reloads = world.random.random_range(20..60);
    for _ in 0..reloads {
        let (batch, window) = (world.random.random_range(1..2000), world.random.random_range(1..5000));
        world.lab.postgres.set(&[
            ("pg_jetstream.batch_size", &batch.to_string()),
            ("pg_jetstream.max_in_flight", &window.to_string()),
        ])?;
        let pause = world.some(0, 30);
        std::thread::sleep(pause);
    }
    let batch = [1, 10, 100, 1000][world.random.random_range(0..4)].to_string();
    let usual = [
        ("pg_jetstream.batch_size", batch.as_str()),
        ("pg_jetstream.max_in_flight", "1000"),
    ];
    world.lab.postgres.set(&usual)?;
    Ok(Happened(format!("{reloads} reloads, the last with batch_size {batch}")))
}

/// Holds an old snapshot in another session.
pub(super) fn old_snapshot(world: &mut World) -> Result<Effect> {
    hold(
        world,
        "begin isolation level repeatable read; select count(*) from chaos.ledger",
        "held a snapshot",
    )
}

/// Holds a transaction that has a transaction id and a message, which commits late.
pub(super) fn held_xid(world: &mut World) -> Result<Effect> {
    let sql = "begin; select pg_current_xact_id(); select chaos.put('insert', null, 'held xid', 1)";
    hold(world, sql, "held a transaction id and a message")
}

/// Locks rows of the outbox. The rows have no key, because messages may overtake a locked row with the same key.
pub(super) fn held_rows(world: &mut World) -> Result<Effect> {
    let sql = "begin; select id from jetstream.outbox where key is null limit 50 for update skip locked";
    hold(world, sql, "locked rows of the outbox")
}

fn hold(world: &mut World, sql: &str, what: &str) -> Result<Effect> {
    let mut client = world.lab.postgres.client(DATABASE)?;
    client.simple_query(sql)?;
    let time = world.some(2000, 8000);
    world.during(time)?;
    let end = match client.simple_query("commit") {
        Ok(_) => "then committed",
        Err(_) => "until its session was lost",
    };
    Ok(Happened(format!("{what} for {time:?}, {end}")))
}

/// Fills PostgreSQL's disk to the last byte, then frees it.
pub(super) fn disk_full(world: &mut World) -> Result<Effect> {
    let time = world.some(1500, 6000);
    let disk = match &world.disk {
        Ok(disk) => disk,
        Err(reason) => return Ok(Not(reason.clone())),
    };
    let before = errors(world);
    let taken = disk.fill()?;
    std::thread::sleep(time / 2);
    disk.fill()?;
    std::thread::sleep(time / 2);
    let errors = errors(world).saturating_sub(before);
    disk.empty()?;
    world.wait_postgres()?;
    Ok(match errors {
        0 => Not(format!("{taken} kB taken, but PostgreSQL did not notice")),
        _ => Happened(format!(
            "{taken} kB taken for {time:?}, {errors} errors because the disk was full"
        )),
    })
}

fn errors(world: &World) -> usize {
    world.lab.postgres.log().matches("No space left on device").count()
}
