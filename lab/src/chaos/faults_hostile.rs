//! A hostile NATS server stands before the real one.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt;

use super::faults::Effect::{self, Happened, Not};
use super::world::World;
use crate::hostile::{Ack, Act, Hostile, draw};
use crate::process;

/// By how much the worker's memory may grow while a server does its worst, MB.
const GROWTH: u64 = 150;

/// How long a message of the other connection may wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// The default connection leads to a hostile server, which does one thing after another. The worker stays alive and small,
/// and another connection of the database publishes all the time.
pub(super) fn hostile(world: &mut World) -> Result<Effect> {
    other_connection(world)?;
    let Some(worker) = world.process("pg_jetstream worker%") else {
        return Ok(Not("there is no worker".to_owned()));
    };
    let memory = process::private_mb(worker).unwrap_or(0);
    let hostile = Hostile::start(world.lab.nats.port(), Act::Honest)?;
    world.lab.sql(&format!(
        "update jetstream.connections set url = '{}' where name = 'default'",
        hostile.url()
    ))?;
    let acts: Vec<Act> = (0..world.random.random_range(3..8))
        .map(|_| draw(&mut world.random))
        .collect();
    let mut most = memory;
    for act in &acts {
        hostile.set(act.clone());
        let time = world.some(300, 2000);
        let end = Instant::now() + time;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            most = most.max(process::private_mb(worker).unwrap_or(0));
        }
        let mut broken = |what: String| {
            world.log.say(format!("BROKEN by {}: {what}", brief(act)));
            world.broken = true;
        };
        if !process::alive(worker) {
            broken("the worker has ended".to_owned());
        }
        if most > memory + GROWTH {
            broken(format!("the worker has grown from {memory} to {most} MB"));
        }
    }
    if !other_publishes(world)? {
        world
            .log
            .say("BROKEN by a hostile server: another connection does not publish".to_owned());
        world.broken = true;
    }
    let (accepted, said) = (hostile.accepted(), hostile.said());
    world.configure()?;
    let acts: Vec<String> = acts.iter().map(brief).collect();
    Ok(Happened(format!(
        "{accepted} connections, {said} bytes, worker at most {most} MB: {}",
        acts.join(", ")
    )))
}

/// The act in a few words.
fn brief(act: &Act) -> String {
    let text = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
    match act {
        Act::Says(bytes) => format!("says {}", text(bytes)),
        Act::Endless(head, _) => format!("endless after {}", text(head)),
        Act::Inject(bytes) => format!("injects {}", text(bytes)),
        Act::Flood(head, _) => format!("floods after {}", text(head)),
        Act::Acks(Ack::Instead(bytes)) => format!("acknowledges by {}", text(bytes)),
        Act::Acks(Ack::Before(bytes)) => format!("acknowledges after {}", text(bytes)),
        other => format!("{other:?}"),
    }
}

/// A connection that leads to the real server.
fn other_connection(world: &World) -> Result<()> {
    world.lab.sql(&format!(
        "insert into jetstream.connections (name, url) values ('calm', '{}') on conflict (name) do nothing",
        world.lab.nats.url()
    ))?;
    world.lab.sql(
        "select jetstream.create_stream('CALM', array['calm.>'], connection => 'calm') \
         where not exists (select from jetstream.streams where name = 'CALM')",
    )?;
    Ok(())
}

fn other_publishes(world: &World) -> Result<bool> {
    world
        .lab
        .sql("select jetstream.publish('calm.a', '{}', connection => 'calm')")?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if world
            .lab
            .value("select not exists (select from jetstream.outbox where connection = 'calm')")?
            == "t"
        {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(false)
}
