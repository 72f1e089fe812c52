//! Faults of nats-server, of the network in between, and of the stream.

use std::time::Duration;

use anyhow::Result;
use rand::RngExt;

use super::faults::Effect::{self, Happened, Not};
use super::proxy::Mode;
use super::stream::STREAM;
use super::world::World;

/// nats-server is killed and comes back.
pub(super) fn kill(world: &mut World) -> Result<Effect> {
    let time = world.some(0, 1500);
    world.lab.nats.kill9()?;
    world.during(time)?;
    world.lab.nats.restart()?;
    Ok(Happened(format!("killed, back after {time:?}")))
}

/// nats-server stands still for longer than an acknowledgement may take.
pub(super) fn stop(world: &mut World) -> Result<Effect> {
    let time = world.some(1500, 5000);
    world.lab.nats.pause()?;
    world.during(time)?;
    world.lab.nats.resume()?;
    Ok(Happened(format!("stood still for {time:?}")))
}

/// nats-server ends in an orderly way and comes back.
pub(super) fn restart(world: &mut World) -> Result<Effect> {
    let time = world.some(0, 1500);
    world.lab.nats.stop()?;
    world.during(time)?;
    world.lab.nats.restart()?;
    Ok(Happened(format!("stopped, back after {time:?}")))
}

/// nats-server is away for longer than the duplicate window, and so is what it acknowledged last.
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
        "away for {time:?}, {lost} bytes of answers lost before"
    )))
}

/// Answers are swallowed, then the connection is cut.
pub(super) fn drop_acks(world: &mut World) -> Result<Effect> {
    let before = world.proxy.swallowed();
    let time = world.some(300, 4000);
    world.proxy.set(Mode::DropAcks);
    world.during(time)?;
    world.proxy.renew();
    let lost = world.proxy.swallowed() - before;
    Ok(match lost {
        0 => Not("there was no answer to swallow".to_owned()),
        _ => Happened(format!("{lost} bytes of answers swallowed in {time:?}")),
    })
}

/// Everything arrives later, some of it later than an acknowledgement may take.
pub(super) fn delay(world: &mut World) -> Result<Effect> {
    let (late, time) = (world.some(20, 1300), world.some(2000, 5000));
    world.proxy.set(Mode::Delay(late));
    world.during(time)?;
    world.proxy.set(Mode::Pass);
    Ok(Happened(format!("each piece {late:?} later, for {time:?}")))
}

/// Connections stay open and nothing goes through.
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

/// The server's half of each connection ends.
pub(super) fn half_close(world: &mut World) -> Result<Effect> {
    let time = world.some(500, 3000);
    world.proxy.set(Mode::HalfClose);
    world.during(time)?;
    world.proxy.renew();
    Ok(Happened(format!("closed towards the worker for {time:?}")))
}

/// All connections are cut, several times.
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
    // The worker comes back after a moment, unless it is away itself.
    std::thread::sleep(Duration::from_millis(500));
    let made = world.proxy.accepted() - before;
    Ok(match made {
        0 => Not(format!("cut {times} times, and no connection was made again")),
        _ => Happened(format!("cut {times} times, {made} connections made since")),
    })
}

/// The stream takes but a few messages more, then refuses, until it may grow again.
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
        _ => Happened(format!("full for {time:?}, {refused} messages refused and owed")),
    })
}

/// All that was read is purged.
pub(super) fn stream_purge(world: &mut World) -> Result<Effect> {
    let purged = world.on_stream(async |observed, context| observed.purge(&context).await)?;
    Ok(match purged {
        0 => Not("there was nothing to purge".to_owned()),
        _ => Happened(format!("{purged} messages purged")),
    })
}

/// The stream is deleted, and made anew a moment later.
pub(super) fn stream_delete(world: &mut World) -> Result<Effect> {
    let last = world.on_stream(async |observed, context| observed.delete(&context).await)?;
    let time = world.some(0, 2000);
    world.during(time)?;
    world.wait_postgres()?;
    // As an operator does who notices.
    world
        .lab
        .sql("update jetstream.streams set description = clock_timestamp()::text")?;
    world.wait_stream()?;
    Ok(Happened(format!(
        "deleted after sequence {last}, made anew after {time:?}"
    )))
}
