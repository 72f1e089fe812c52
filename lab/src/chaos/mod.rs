//! `lab chaos`: producers write while faults drawn from a seed strike. At the end the stream must hold exactly what was
//! committed, once and in order.

mod checker;
mod disk;
mod faults;
mod faults_hostile;
mod faults_nats;
mod faults_operator;
mod faults_postgres;
mod log;
mod nodes;
mod promotion;
pub mod proxy;
mod stream;
mod world;
mod writers;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use faults::{CLUSTER, Deck, Fault, SINGLE, STANDBY};
use log::FaultLog;
use world::{Kind, Plan, World};
use writers::Pace;

pub use disk::release;

/// Options of the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of the faults, their times and the producers' actions. Random by default.
    pub seed: Option<u64>,
    pub minutes: f64,
    /// Run only these faults.
    pub only: Vec<String>,
    /// The stream's duplicate window in seconds. Drawn from the seed by default.
    pub window: Option<f64>,
    /// Run three NATS servers, regardless of the other options.
    pub cluster: bool,
}

/// A run of at least this many minutes covers every kind of servers in turn.
const ALL_KINDS: f64 = 8.0;

/// Runs the test. Returns true if every promise was kept.
pub fn run(options: &Options) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let mut random = StdRng::seed_from_u64(seed);
    let drawn = [2.0, 3.0, 5.0, 10.0][random.random_range(0..4)];
    let window = Duration::try_from_secs_f64(options.window.unwrap_or(drawn))?;
    println!(
        "chaos: seed {seed}, {} minutes, duplicate window {window:?}",
        options.minutes
    );
    let mut kept = true;
    for (kind, faults, share) in acts(options)? {
        let length = Duration::try_from_secs_f64(options.minutes * 60.0 * share)?;
        let plan = Plan {
            kind,
            seed,
            window,
            faults: faults.iter().map(|fault| fault.name).collect(),
        };
        println!("\n{kind:?}, {:.0} s", length.as_secs_f64());
        let bar = bar(length);
        let result = scenario(&plan, faults, length, bar.clone());
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        kept &= result.with_context(|| format!("seed {seed}, {kind:?}"))?;
    }
    println!("chaos: seed {seed} {}", if kept { "passed" } else { "FAILED" });
    Ok(kept)
}

/// A kind of servers, the faults that strike there, and its share of the time.
type Act = (Kind, Vec<&'static Fault>, f64);

/// Short runs cover a single kind of servers.
fn acts(options: &Options) -> Result<Vec<Act>> {
    let all = [
        (Kind::Single, SINGLE, 0.7),
        (Kind::Cluster, CLUSTER, 0.2),
        (Kind::Standby, STANDBY, 0.1),
    ];
    let known = |name: &str| {
        all.iter()
            .any(|(_, faults, _)| faults.iter().any(|fault| fault.name == name))
    };
    if let Some(unknown) = options.only.iter().find(|name| !known(name)) {
        let names: BTreeSet<_> = all
            .iter()
            .flat_map(|(_, faults, _)| faults.iter().map(|fault| fault.name))
            .collect();
        let names: Vec<_> = names.into_iter().collect();
        bail!("no fault is called {unknown:?}; the faults are: {}", names.join(", "));
    }
    let wanted = |fault: &&Fault| options.only.is_empty() || options.only.iter().any(|name| name == fault.name);
    let chosen = all.map(|(kind, faults, share)| (kind, faults.iter().filter(wanted).collect::<Vec<_>>(), share));
    let one = |kind: Kind| {
        chosen
            .iter()
            .filter(|act| act.0 == kind)
            .map(|act| (kind, act.1.clone(), 1.0))
            .collect()
    };
    if options.cluster {
        return Ok(one(Kind::Cluster));
    }
    if !options.only.is_empty() {
        let most = chosen
            .iter()
            .rev()
            .max_by_key(|act| act.1.len())
            .map_or(Kind::Single, |act| act.0);
        return Ok(one(most));
    }
    if options.minutes < ALL_KINDS {
        return Ok(one(Kind::Single));
    }
    Ok(chosen.into())
}

fn scenario(plan: &Plan, faults: Vec<&'static Fault>, length: Duration, bar: Option<ProgressBar>) -> Result<bool> {
    let mut names = plan.faults.clone();
    let mut world = World::start(plan, FaultLog::new(bar.clone()))?;
    if let (Err(reason), true) = (&world.disk, plan.faults.contains(&"disk-full")) {
        let text = format!("PostgreSQL does not have its own disk: {reason}");
        world.log.say(text);
    }
    world.start_writers(&Pace {
        pause: Duration::from_millis(80),
        // A promoted standby lacks asynchronous commits, because they do not wait for it.
        asynchronous: plan.kind != Kind::Standby,
    });
    let mut deck = Deck::new(faults);
    let struck = strikes(&mut world, &mut deck, length, bar.as_ref());
    let logs = world.lab.postgres.data().with_file_name("postgres.log");
    struck.and_then(|()| world.finish()).or_else(|error| {
        // The logs may explain the failure.
        println!("{error:#}\n{}", world.lab.logs());
        world.log.say("the run could not be completed");
        world.broken = true;
        world.heal()
    })?;
    let verdict = checker::check(&world.lab, &world.observed)?;
    if world.log.count(faults_postgres::PREPARED) > 0 {
        names.push(faults_postgres::PREPARED);
    }
    println!("{}", world.log.table(&names));
    println!("  {}", verdict.summary());
    let kept = verdict.broken.is_empty() && !world.broken;
    if !kept {
        println!(
            "{}",
            checker::histories(&world.lab, &world.observed, &verdict, &world.log)
        );
        let saved = crate::paths::Paths::find()?
            .logs()
            .join(format!("chaos-{}-{:?}-postgres.log", plan.seed, plan.kind));
        std::fs::copy(logs, &saved)?;
        println!("PostgreSQL's log: {}", saved.display());
    }
    Ok(kept)
}

/// Causes faults until the time is over.
fn strikes(world: &mut World, deck: &mut Deck, length: Duration, bar: Option<&ProgressBar>) -> Result<()> {
    while world.log.elapsed() < length {
        let pause = world.some(200, 2500);
        std::thread::sleep(pause);
        deck.strike(world)?;
        if let Some(bar) = bar {
            bar.set_position(world.log.elapsed().as_secs());
        }
    }
    Ok(())
}

fn bar(length: Duration) -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new(length.as_secs());
        let style = ProgressStyle::with_template("{spinner} chaos [{bar:24}] {pos}/{len} s");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    })
}
