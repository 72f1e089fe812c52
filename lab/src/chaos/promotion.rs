//! The loss of a primary, and the promotion of its standby.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::faults::Effect::{self, Happened};
use super::world::World;
use crate::lab::DATABASE;
use crate::postgres::{Postgres, PostgresBuilder};
use crate::{process, wait_until};

/// Longest wait for a standby to start, catch up, or be promoted.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a standby of the server. From then on commits wait for it.
pub fn follow(primary: &mut Postgres, settings: PostgresBuilder) -> Result<Postgres> {
    let standby = settings.standby_of(primary.port()).start().context("standby")?;
    primary.set(&[("synchronous_standby_names", "standby")])?;
    let synchronous = "select count(*) from pg_stat_replication where sync_state = 'sync'";
    wait_until(PATIENCE, "a synchronous standby", || {
        Ok(primary.value(DATABASE, synchronous)? == "1" && primary.value(DATABASE, SHOW)? == "standby")
    })?;
    Ok(standby)
}

const SHOW: &str = "show synchronous_standby_names";

/// Kills every process of the primary and promotes the standby. The producers move to the new primary, which gets a
/// standby of its own.
pub(super) fn promotion(world: &mut World) -> Result<Effect> {
    let Some(mut standby) = world.standby.take() else {
        return Ok(Effect::Not("there is no standby".to_owned()));
    };
    let postmaster = world.lab.postgres.pid();
    // All processes die together, as when the machine is lost. A process that outlived the postmaster could see
    // transactions that still wait for the standby.
    for pid in process::children(postmaster) {
        process::signal(pid, Signal::SIGKILL)?;
    }
    world.lab.postgres.kill9()?;
    let waiting = standby.value(DATABASE, "select count(*) from jetstream.outbox")?;
    let pause = world.some(0, 2000);
    std::thread::sleep(pause);
    standby.sql(DATABASE, "select pg_promote()")?;
    std::mem::swap(&mut world.lab.postgres, &mut standby);
    drop(standby);
    if let Some(writers) = &world.writers {
        writers.redirect(&world.lab.postgres.conninfo(DATABASE));
    }
    world.wait_postgres()?;
    let workers = || Ok(!world.lab.postgres.backends("pg_jetstream worker%")?.is_empty());
    wait_until(PATIENCE, "a worker on the promoted server", workers)?;
    let time = world.some(1000, 4000);
    std::thread::sleep(time);
    world.standby = Some(follow(
        &mut world.lab.postgres,
        super::world::settings(Postgres::builder()),
    )?);
    Ok(Happened(format!(
        "promoted with {waiting} messages in its outbox; the new primary has a standby"
    )))
}
