//! A cluster of three NATS servers: the lab's own and two more.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rand::RngExt;

use super::faults::Effect::{self, Happened, Not};
use super::stream::STREAM;
use super::world::World;
use crate::lab::{Lab, LabBuilder};
use crate::nats::{NatsServer, free_port};

/// Number of NATS servers in the cluster.
pub const NODES: usize = 3;

/// User and password of the system account. The leader of the cluster answers to no other account.
const SYSTEM: &str = "system";

/// Starts a lab whose NATS server is the first node of the cluster. Also returns the other nodes.
pub fn start(builder: LabBuilder) -> Result<(Lab, Vec<NatsServer>)> {
    let ports = (0..NODES).map(|_| free_port()).collect::<Result<Vec<_>, _>>()?;
    let routes: Vec<_> = ports
        .iter()
        .map(|port| format!("\"nats://127.0.0.1:{port}\""))
        .collect();
    let config = |node: usize| {
        format!(
            "server_name: node{node}\ncluster {{ name: chaos, listen: \"127.0.0.1:{}\", no_advertise: true, \
             routes: [{}] }}\naccounts {{ $SYS {{ users: [{{ user: {SYSTEM}, password: {SYSTEM} }}] }} }}\n",
            ports[node],
            routes.join(", ")
        )
    };
    // The nodes start in parallel, because none is ready before a second one runs.
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

/// Makes the leader of the stream step down.
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

/// Makes the leader of the cluster step down, which decides about streams and consumers.
pub(super) fn meta_step_down(world: &mut World) -> Result<Effect> {
    let urls = world.urls();
    let answer = world.runtime.block_on(async {
        let options = async_nats::ConnectOptions::with_user_and_password(SYSTEM.to_owned(), SYSTEM.to_owned());
        let client = options.ignore_discovered_servers().connect(urls).await?;
        let answer = client.request("$JS.API.META.LEADER.STEPDOWN", "".into()).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer.payload).into_owned())
    });
    Ok(match answer {
        Ok(answer) if answer.contains("\"success\":true") => Happened("a new leader is elected".to_owned()),
        Ok(answer) => Not(answer),
        Err(error) => Not(format!("{error:#}")),
    })
}

/// Kills all nodes, and restarts them when the duplicate window has passed.
pub(super) fn outage(world: &mut World) -> Result<Effect> {
    let time = world.window + world.some(500, 2000);
    for node in 0..NODES {
        world.node(node).kill9()?;
    }
    world.during(time)?;
    // The nodes start in parallel, because none is healthy before a second one runs.
    std::thread::scope(|scope| {
        let nodes = std::iter::once(&mut world.lab.nats).chain(&mut world.nodes);
        let starting: Vec<_> = nodes.map(|node| scope.spawn(|| node.restart())).collect();
        let started = starting
            .into_iter()
            .map(|node| node.join().map_err(|_| anyhow!("a node panicked"))?.context("a node"));
        started.collect::<Result<()>>()
    })?;
    Ok(Happened(format!("all nodes stopped for {time:?}")))
}

/// Kills one node and restarts it.
pub(super) fn kill(world: &mut World) -> Result<Effect> {
    let (node, time) = (world.random.random_range(0..NODES), world.some(500, 5000));
    world.node(node).kill9()?;
    world.during(time)?;
    world.node(node).restart()?;
    Ok(Happened(format!("node {node} killed, healthy again {time:?} later")))
}

/// Freezes one node.
pub(super) fn stop_one(world: &mut World) -> Result<Effect> {
    let node = world.random.random_range(0..NODES);
    stop(world, &[node])
}

/// Freezes two nodes, so that no message can be stored.
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
    Ok(Happened(format!("nodes {nodes:?} frozen for {time:?}")))
}
