//! The faults by name.

use anyhow::Result;
use rand::seq::SliceRandom;

use super::world::World;
use super::{faults_hostile, faults_nats, faults_operator, faults_postgres, nodes, promotion};

/// The outcome of a fault.
pub enum Effect {
    /// It happened. The text describes how.
    Happened(String),
    /// It could not happen. The text gives the reason.
    Not(String),
}

pub struct Fault {
    /// Name in the log and on the command line.
    pub name: &'static str,
    /// Whether the fault is short enough to strike during another one.
    pub quick: bool,
    /// Causes the fault and undoes it.
    pub run: fn(&mut World) -> Result<Effect>,
}

const fn quick(name: &'static str, run: fn(&mut World) -> Result<Effect>) -> Fault {
    Fault { name, quick: true, run }
}

const fn long(name: &'static str, run: fn(&mut World) -> Result<Effect>) -> Fault {
    Fault {
        name,
        quick: false,
        run,
    }
}

/// Faults of one PostgreSQL server and one NATS server.
pub const SINGLE: &[Fault] = &[
    quick("worker-kill", faults_postgres::worker_kill),
    quick("worker-terminate", faults_postgres::worker_terminate),
    quick("worker-cancel", faults_postgres::worker_cancel),
    quick("launcher-kill", faults_postgres::launcher_kill),
    quick("backend-kill", faults_postgres::backend_kill),
    quick("postmaster-kill", faults_postgres::postmaster_kill),
    quick("immediate-shutdown", faults_postgres::immediate_shutdown),
    quick("postgres-restart", faults_postgres::restart),
    quick("reload-storm", faults_postgres::reload_storm),
    long("worker-stop", faults_postgres::worker_stop),
    quick("walwriter-lost", faults_postgres::walwriter_lost),
    long("old-snapshot", faults_postgres::old_snapshot),
    long("held-xid", faults_postgres::held_xid),
    long("held-rows", faults_postgres::held_rows),
    long("disk-full", faults_postgres::disk_full),
    long("nats-kill", faults_nats::kill),
    long("nats-stop", faults_nats::stop),
    long("nats-restart", faults_nats::restart),
    long("nats-outage", faults_nats::outage),
    long("drop-acks", faults_nats::drop_acks),
    long("delay", faults_nats::delay),
    long("stall", faults_nats::stall),
    long("half-close", faults_nats::half_close),
    quick("cut", faults_nats::cut),
    long("hostile", faults_hostile::hostile),
    long("stream-full", faults_nats::stream_full),
    long("stream-purge", faults_nats::stream_purge),
    long("stream-delete", faults_nats::stream_delete),
    long("pause", faults_operator::pause),
    long("extension-recreate", faults_operator::extension_recreate),
];

/// Faults of a cluster of NATS servers. Network faults affect the connections to all three servers.
pub const CLUSTER: &[Fault] = &[
    quick("step-down", nodes::step_down),
    quick("meta-step-down", nodes::meta_step_down),
    long("node-kill", nodes::kill),
    long("node-stop", nodes::stop_one),
    long("two-nodes-stop", nodes::stop_two),
    long("cluster-outage", nodes::outage),
    long("drop-acks", faults_nats::drop_acks),
    long("delay", faults_nats::delay),
    long("stall", faults_nats::stall),
    long("half-close", faults_nats::half_close),
    quick("cut", faults_nats::cut),
    quick("worker-kill", faults_postgres::worker_kill),
    quick("worker-terminate", faults_postgres::worker_terminate),
    quick("postmaster-kill", faults_postgres::postmaster_kill),
];

/// Faults of a primary with a standby.
pub const STANDBY: &[Fault] = &[
    long("promotion", promotion::promotion),
    long("drop-acks", faults_nats::drop_acks),
    quick("worker-terminate", faults_postgres::worker_terminate),
    long("nats-kill", faults_nats::kill),
    long("stall", faults_nats::stall),
];

/// Draws faults from a deck, which is reshuffled when it is empty, so that every fault gets its turn.
pub struct Deck {
    faults: Vec<&'static Fault>,
    left: Vec<&'static Fault>,
}

impl Deck {
    pub fn new(faults: Vec<&'static Fault>) -> Self {
        Self {
            faults,
            left: Vec::new(),
        }
    }

    /// Causes the next fault. Returns true if it was the last of the deck.
    pub fn strike(&mut self, world: &mut World) -> Result<bool> {
        if self.left.is_empty() {
            self.left.clone_from(&self.faults);
            self.left.shuffle(&mut world.random);
        }
        if let Some(fault) = self.left.pop() {
            strike(fault, world)?;
        }
        Ok(self.left.is_empty())
    }
}

/// Causes a fault and logs its outcome.
pub fn strike(fault: &Fault, world: &mut World) -> Result<()> {
    match (fault.run)(world)? {
        Effect::Happened(effect) => world.log.happened(fault.name, &effect),
        Effect::Not(reason) => world.log.missed(fault.name, &reason),
    }
    Ok(())
}
