//! What operators do.

use anyhow::{Context, Result};

use super::faults::Effect::{self, Happened, Not};
use super::world::World;
use super::writers::end_all_prepared;
use crate::lab::DATABASE;

/// Publishing is paused and resumed.
pub(super) fn pause(world: &mut World) -> Result<Effect> {
    let time = world.some(1000, 4000);
    let paused = world.lab.value("select jetstream.pause()")?;
    world.during(time)?;
    world.wait_postgres()?;
    let owed = world.lab.value("select count(*) from jetstream.outbox")?;
    world.lab.sql("select jetstream.resume()")?;
    Ok(match paused.as_str() {
        "t" => Happened(format!("paused for {time:?}, {owed} messages owed by then")),
        _ => Not("it was paused already".to_owned()),
    })
}

/// The extension is dropped and created at a quiet moment, when nothing is owed: what is owed goes with the table.
pub(super) fn extension_recreate(world: &mut World) -> Result<Effect> {
    let quiet = world.writers.as_ref().map(|writers| writers.quiet());
    let conninfo = world.lab.postgres.conninfo(DATABASE);
    end_all_prepared(world.runtime.handle(), &conninfo, 0)?;
    world.wait_drained().context("before the extension is dropped")?;
    // The history goes too: what it says of deleted streams is needed at the end.
    world.lab.sql(
        "insert into chaos.history select * from jetstream.history;
         drop extension pg_jetstream; create extension pg_jetstream",
    )?;
    world.configure()?;
    world.lab.wait_connected()?;
    world.wait_stream()?;
    drop(quiet);
    Ok(Happened("dropped and created".to_owned()))
}
