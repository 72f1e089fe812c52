//! Faults of nats-server, of the network between it and the worker, and of the stream.

use std::time::Duration;

use anyhow::Result;
use rand::RngExt;

use super::faults::Effect::{self, Happened, Not};
use super::proxy::Mode;
use super::stream::STREAM;
use super::world::World;

/// Kills nats-server and restarts it.
pub(super) fn kill(world: &mut World) -> Result<Effect> {
    let time = world.some(0, 1500);
    world.lab.nats.kill9()?;
    world.during(time)?;
    world.lab.nats.restart()?;
    Ok(Happened(format!("killed, back after {time:?}")))
}

/// Freezes nats-server for longer than the acknowledgement timeout.
pub(super) fn stop(world: &mut World) -> Result<Effect> {
    let time = world.some(1500, 5000);
    world.lab.nats.pause()?;
    world.during(time)?;
    world.lab.nats.resume()?;
    Ok(Happened(format!("frozen for {time:?}")))
}

/// Shuts nats-server down cleanly and restarts it.
pub(super) fn restart(world: &mut World) -> Result<Effect> {
    let time = world.some(0, 1500);
    world.lab.nats.stop()?;
    world.during(time)?;
    world.lab.nats.restart()?;
    Ok(Happened(format!("stopped, back after {time:?}")))
}

/// Stops nats-server for longer than the duplicate window. Its last acknowledgements may be lost as well.
pub(super) fn outage(world: &mut World) -> Result<Effect> {
    let longest = Duration::from_secs(30);
    if world.window > longest {
        return Ok(Not(format!("a window of {:?} is too long to wait for", world.window)));
    }
    let time = world.window + world.some(500, 2000);
    let acks = world.random.random_bool(0.5);
    let swallowed = world.proxy.swallowed();
    if acks {
        world.proxy.set(Mode::DropAcks);
        let pause = world.some(100, 800);
        std::thread::sleep(pause);
    }
    world.lab.nats.kill9()?;
    world.proxy.renew();
    world.during(time)?;
    world.lab.nats.restart()?;
    let lost = world.proxy.swallowed() - swallowed;
    Ok(Happened(format!(
        "stopped for {time:?}, {lost} bytes of answers lost before"
    )))
}

/// Drops the server's answers, then closes the connections.
pub(super) fn drop_acks(world: &mut World) -> Result<Effect> {
    let before = world.proxy.swallowed();
    let time = world.some(300, 4000);
    world.proxy.set(Mode::DropAcks);
    world.during(time)?;
    world.proxy.renew();
    let lost = world.proxy.swallowed() - before;
    Ok(match lost {
        0 => Not("there was no answer to drop".to_owned()),
        _ => Happened(format!("{lost} bytes of answers dropped in {time:?}")),
    })
}

/// Delays all data, sometimes for longer than the acknowledgement timeout.
pub(super) fn delay(world: &mut World) -> Result<Effect> {
    let (late, time) = (world.some(20, 1300), world.some(2000, 5000));
    world.proxy.set(Mode::Delay(late));
    world.during(time)?;
    world.proxy.set(Mode::Pass);
    Ok(Happened(format!("each piece {late:?} later, for {time:?}")))
}

/// Keeps connections open but forwards nothing.
pub(super) fn stall(world: &mut World) -> Result<Effect> {
    let time = world.some(1500, 5000);
    world.proxy.set(Mode::Stall);
    world.during(time)?;
    if world.random.random_bool(0.5) {
        world.proxy.renew();
    } else {
        world.proxy.set(Mode::Pass);
    }
    Ok(Happened(format!("nothing went through for {time:?}")))
}

/// Closes the server's half of each connection.
pub(super) fn half_close(world: &mut World) -> Result<Effect> {
    let time = world.some(500, 3000);
    world.proxy.set(Mode::HalfClose);
    world.during(time)?;
    world.proxy.renew();
    Ok(Happened(format!("closed towards the worker for {time:?}")))
}

/// Closes all connections several times.
pub(super) fn cut(world: &mut World) -> Result<Effect> {
    let before = world.proxy.accepted();
    let times = world.random.random_range(1..6);
    for _ in 0..times {
        if world.random.random_bool(0.3) {
            world.proxy.set(Mode::Refuse);
        }
        let pause = world.some(50, 400);
        std::thread::sleep(pause);
        world.proxy.renew();
    }
    // The worker reconnects after a moment, unless it is not running.
    std::thread::sleep(Duration::from_millis(500));
    let made = world.proxy.accepted() - before;
    Ok(match made {
        0 => Not(format!("cut {times} times, but no client reconnected")),
        _ => Happened(format!("cut {times} times, {made} new connections since")),
    })
}

/// Leaves the stream room for a few more messages. It then refuses messages until the limit is removed.
pub(super) fn stream_full(world: &mut World) -> Result<Effect> {
    let (room, time) = (world.random.random_range(0..200), world.some(2000, 5000));
    let count = world.lab.message_count(STREAM)?;
    world.ask_for_stream(i64::try_from(count)? + room)?;
    world.during(time)?;
    world.wait_postgres()?;
    let refused = "select count(*) from jetstream.outbox where last_error ilike '%maximum messages%'";
    let refused = world.lab.value(refused)?;
    world.ask_for_stream(-1)?;
    Ok(match refused.as_str() {
        "0" => Not(format!("it did not fill up in {time:?}")),
        _ => Happened(format!("full for {time:?}, {refused} refused messages pending")),
    })
}

/// Purges every message that has been read.
pub(super) fn stream_purge(world: &mut World) -> Result<Effect> {
    let purged = world.on_stream(async |observed, context| observed.purge(&context).await)?;
    Ok(match purged {
        0 => Not("there was nothing to purge".to_owned()),
        _ => Happened(format!("{purged} messages purged")),
    })
}

/// Deletes the stream. It is created again a moment later.
pub(super) fn stream_delete(world: &mut World) -> Result<Effect> {
    let last = world.on_stream(async |observed, context| observed.delete(&context).await)?;
    let time = world.some(0, 2000);
    world.during(time)?;
    world.wait_postgres()?;
    // What an operator does who notices the deletion.
    world
        .lab
        .sql("update jetstream.streams set description = clock_timestamp()::text")?;
    world.wait_stream()?;
    Ok(Happened(format!(
        "deleted after sequence {last}, created again after {time:?}"
    )))
}
