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

/// User and password of the system account: the leader of all streams answers to nobody else.
const SYSTEM: &str = "system";

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
             routes: [{}] }}\naccounts {{ $SYS {{ users: [{{ user: {SYSTEM}, password: {SYSTEM} }}] }} }}\n",
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

/// The leader of the cluster, who decides about streams and consumers, steps down.
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

/// All nodes are killed and come back after the duplicate window is over.
pub(super) fn outage(world: &mut World) -> Result<Effect> {
    let time = world.window + world.some(500, 2000);
    for node in 0..NODES {
        world.node(node).kill9()?;
    }
    world.during(time)?;
    // None is healthy before two are.
    std::thread::scope(|scope| {
        let nodes = std::iter::once(&mut world.lab.nats).chain(&mut world.nodes);
        let starting: Vec<_> = nodes.map(|node| scope.spawn(|| node.restart())).collect();
        let started = starting
            .into_iter()
            .map(|node| node.join().map_err(|_| anyhow!("a node panicked"))?.context("a node"));
        started.collect::<Result<()>>()
    })?;
    Ok(Happened(format!("all nodes away for {time:?}")))
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
