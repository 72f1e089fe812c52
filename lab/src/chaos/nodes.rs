//! Three NATS servers that are one cluster: the lab's own and two more.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rand::RngExt;

use super::faults::Effect::{self, Happened, Not};
use super::stream::STREAM;
use super::world::World;
use crate::lab::{Lab, LabBuilder};
use crate::nats::{NatsServer, free_port};

/// How many there are.
pub const NODES: usize = 3;

/// Starts a lab whose NATS server is the first of the cluster; returns the others with it.
pub fn start(builder: LabBuilder) -> Result<(Lab, Vec<NatsServer>)> {
    let ports = (0..NODES).map(|_| free_port()).collect::<Result<Vec<_>, _>>()?;
    let routes: Vec<_> = ports
        .iter()
        .map(|port| format!("\"nats://127.0.0.1:{port}\""))
        .collect();
    let config = |node: usize| {
        format!(
            "server_name: node{node}\ncluster {{ name: chaos, listen: \"127.0.0.1:{}\", no_advertise: true, \
             routes: [{}] }}\n",
            ports[node],
            routes.join(", ")
        )
    };
    // None is ready before two are.
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..NODES)
            .map(|node| scope.spawn(move || NatsServer::builder().extra(config(node)).start()))
            .collect();
        let lab = builder.nats_extra(&config(0)).start()?;
        let others = others
            .into_iter()
            .map(|other| other.join().map_err(|_| anyhow!("a node panicked"))?.context("a node"));
        Ok((lab, others.collect::<Result<_>>()?))
    })
}

/// The stream's leader steps down.
pub(super) fn step_down(world: &mut World) -> Result<Effect> {
    let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}");
    let answer = world.on_stream(async |_, context| {
        let answer = context.client().request(subject, "".into()).await?;
        Ok(String::from_utf8_lossy(&answer.payload).into_owned())
    });
    Ok(match answer {
        Ok(answer) if answer.contains("\"success\":true") => Happened("a new leader is elected".to_owned()),
        Ok(answer) => Not(answer),
        Err(error) => Not(format!("{error:#}")),
    })
}

/// One node is killed and comes back.
pub(super) fn kill(world: &mut World) -> Result<Effect> {
    let (node, time) = (world.random.random_range(0..NODES), world.some(500, 5000));
    world.node(node).kill9()?;
    world.during(time)?;
    world.node(node).restart()?;
    Ok(Happened(format!("node {node} killed, back and healthy {time:?} later")))
}

/// One node stands still.
pub(super) fn stop_one(world: &mut World) -> Result<Effect> {
    let node = world.random.random_range(0..NODES);
    stop(world, &[node])
}

/// Two nodes stand still: no message can be stored.
pub(super) fn stop_two(world: &mut World) -> Result<Effect> {
    let node = world.random.random_range(0..NODES);
    stop(world, &[node, (node + 1) % NODES])
}

fn stop(world: &mut World, nodes: &[usize]) -> Result<Effect> {
    let time = world.some(1500, 6000);
    for &node in nodes {
        world.node(node).pause()?;
    }
    world.during(time)?;
    for &node in nodes {
        world.node(node).resume()?;
    }
    std::thread::sleep(Duration::from_secs(1));
    Ok(Happened(format!("nodes {nodes:?} stood still for {time:?}")))
}
