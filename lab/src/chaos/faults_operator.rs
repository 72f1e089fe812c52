//! Actions of operators.

use anyhow::{Context, Result};

use super::faults::Effect::{self, Happened, Not};
use super::world::World;
use super::writers::end_all_prepared;
use crate::lab::DATABASE;

/// Pauses publishing and resumes it.
pub(super) fn pause(world: &mut World) -> Result<Effect> {
    let time = world.some(1000, 4000);
    let paused = world.lab.value("select jetstream.pause()")?;
    world.during(time)?;
    world.wait_postgres()?;
    let owed = world.lab.value("select count(*) from jetstream.outbox")?;
    world.lab.sql("select jetstream.resume()")?;
    Ok(match paused.as_str() {
        "t" => Happened(format!("paused for {time:?}, {owed} messages pending at the end")),
        _ => Not("publishing was already paused".to_owned()),
    })
}

/// Drops the extension and creates it again. This happens at a quiet moment when nothing is pending, because pending
/// messages are dropped with the table.
pub(super) fn extension_recreate(world: &mut World) -> Result<Effect> {
    let quiet = world.writers.as_ref().map(|writers| writers.quiet());
    let conninfo = world.lab.postgres.conninfo(DATABASE);
    end_all_prepared(world.runtime.handle(), &conninfo, 0)?;
    world.wait_drained().context("before the extension is dropped")?;
    // Saves the history, which is needed at the end to know what deleted streams had acknowledged.
    world.lab.sql(
        "insert into chaos.history select * from jetstream.history;
         drop extension pg_jetstream; create extension pg_jetstream",
    )?;
    world.configure()?;
    world.lab.wait_connected()?;
    world.wait_stream()?;
    drop(quiet);
    Ok(Happened("dropped and created again".to_owned()))
}
