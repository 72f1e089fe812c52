//! `cargo run -p lab -- <command>`; the Makefile names the same commands.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::checks::{self, Count};
use lab::paths::Paths;
use lab::{
    bench, chaos, demo, install, matrix, package, package_try, reference, release, second_major, setup, soak, up,
    upgrade_script,
};

/// Throwaway PostgreSQL and NATS servers for pg_jetstream.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Install what is missing on this machine, below target/ but for Debian packages
    Setup {
        /// Fetch a second PostgreSQL and build the extension for it, for the tests between two major versions
        #[arg(long)]
        second_major: Option<u32>,
    },
    /// Build the extension and install it into the throwaway PostgreSQL, or into another
    Install {
        /// The PostgreSQL to install into
        #[arg(long)]
        pg_config: Option<PathBuf>,
    },
    /// Show on throwaway servers what the extension does
    Demo,
    /// Start PostgreSQL and nats-server and leave them running; `. target/lab/env` tells the shell where they are
    Up,
    /// Stop what `up` started
    Down,
    /// Stop what is left running, and remove what is not below target/
    Clean,
    /// Print the environment of what `up` started
    Env,
    /// Measure speed, latency, processor time and memory, each figure beside its reference
    Bench(bench::Options),
    /// Let faults strike while transactions are written, then compare the stream with what was committed
    Chaos {
        /// Draws the faults; a random one if not given
        #[arg(long)]
        seed: Option<u64>,
        /// How long faults strike
        #[arg(long, default_value_t = 2.0)]
        minutes: f64,
        /// Only these faults, by name
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// The stream's duplicate window in seconds, otherwise drawn
        #[arg(long)]
        window: Option<f64>,
        /// Three NATS servers and a stream of three replicas
        #[arg(long)]
        cluster: bool,
    },
    /// Let messages go at a steady rate, with failures and reconnects, and see that the worker's memory stays flat
    Soak {
        /// How long
        #[arg(long, default_value_t = 60.0)]
        minutes: f64,
        /// Messages in a second
        #[arg(long, default_value_t = 500)]
        rate: u64,
    },
    /// Run all checks and tests
    Test,
    /// Build for and test in the major versions of PostgreSQL that Debian carries, and print a table
    Matrix {
        /// Only these
        #[arg(long, value_delimiter = ',')]
        majors: Vec<u32>,
        /// All end-to-end tests instead of those that show differences
        #[arg(long)]
        everything: bool,
    },
    /// Make a Debian package for each major version given, and the archive for PGXN, in target/package/
    Package {
        /// The major versions; this machine's if none is given
        #[arg(long, value_delimiter = ',')]
        majors: Vec<u32>,
        /// Also install each in a clean Debian, publish a message from there, and remove it
        #[arg(long = "try")]
        try_out: bool,
    },
    /// Write docs/reference.md from the comments in the catalog
    Reference,
    /// Write the script in sql/ that updates the last released version to this one
    UpgradeScript,
    /// Run pg_regress against a PostgreSQL of its own
    Regress,
    /// Keep the installed script of this version in migrations/released/, where it stays as it is
    Freeze,
    /// Run pg_regress against the server that PGHOST, PGPORT and PGUSER name
    Installcheck {
        /// The PostgreSQL that pg_regress and psql are taken from
        #[arg(long)]
        pg_config: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Cmd) -> Result<ExitCode> {
    match command {
        Cmd::Setup { second_major } => {
            let paths = setup::run()?;
            println!("ready: PostgreSQL {} in {}", paths.major, paths.pg_tree().display());
            if let Some(major) = second_major {
                let other = second_major::make(&paths, major)?;
                println!("ready: PostgreSQL {major} in {}", other.pg_tree().display());
            }
        }
        Cmd::Install { pg_config: None } => install::run(&setup::run()?)?,
        Cmd::Install {
            pg_config: Some(pg_config),
        } => install::run_into(&setup::run_for_build()?, &pg_config)?,
        Cmd::Demo => demo::run(&setup::run()?)?,
        Cmd::Up => {
            let paths = setup::run()?;
            let state = if up::up(&paths)? {
                "running now"
            } else {
                "already running"
            };
            println!("{state}; try:\n  . {}\n  $PG_BIN/psql", paths.env_file().display());
        }
        Cmd::Down => println!(
            "{}",
            if up::down(&Paths::find()?)? {
                "stopped"
            } else {
                "nothing was running"
            }
        ),
        Cmd::Clean => up::clean(&Paths::find()?)?,
        Cmd::Env => print!("{}", up::env(&Paths::find()?)?),
        Cmd::Bench(options) => bench::run(&options)?,
        Cmd::Chaos {
            seed,
            minutes,
            only,
            window,
            cluster,
        } => {
            let options = chaos::Options {
                seed,
                minutes,
                only,
                window,
                cluster,
            };
            return Ok(if chaos::run(&options)? {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Cmd::Soak { minutes, rate } => {
            return Ok(if soak::run(&soak::Options { minutes, rate })? {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Cmd::Test => return Ok(verdict(checks::run(&setup::run()?)?)),
        Cmd::Matrix { majors, everything } => {
            let majors = if majors.is_empty() { matrix::majors() } else { majors };
            return Ok(verdict(matrix::run(&setup::run()?, &majors, everything)?));
        }
        Cmd::Package { majors, try_out } => make_packages(&majors, try_out)?,
        Cmd::Reference => {
            let paths = setup::run()?;
            install::run(&paths)?;
            let missing = reference::write(&paths)?;
            println!("{}", reference::FILE);
            if !missing.is_empty() {
                anyhow::bail!("not explained:\n  {}", missing.join("\n  "));
            }
        }
        Cmd::Freeze => {
            let paths = setup::run()?;
            install::run(&paths)?;
            let installed = release::installed_script(&paths, &release::version(&paths)?);
            println!("{}", release::freeze(&installed, &release::folder(&paths))?.display());
        }
        Cmd::UpgradeScript => {
            let paths = setup::run()?;
            install::run(&paths)?;
            match upgrade_script::write(&paths)? {
                Some(file) => println!("{}", file.display()),
                None => println!("no older version is released"),
            }
        }
        Cmd::Regress => return Ok(verdict(checks::regress(&Paths::ready()?)?)),
        Cmd::Installcheck { pg_config } => {
            let paths = Paths::find()?;
            let pg_config = pg_config.unwrap_or_else(|| paths.pg_config());
            return Ok(verdict(checks::installcheck(&paths, &pg_config)?));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn make_packages(majors: &[u32], try_out: bool) -> Result<()> {
    // Trying a package takes a NATS server too.
    let paths = if try_out {
        setup::run()?
    } else {
        setup::run_for_packages()?
    };
    let majors = if majors.is_empty() { &[paths.major] } else { majors };
    for &major in majors {
        let deb = package::debian(&paths, major)?;
        println!("{}", deb.display());
        if try_out {
            package_try::run(&paths, major, &deb)?;
        }
    }
    match package::pgxn(&paths)? {
        Some(file) => println!("{}", file.display()),
        None => println!("no archive for PGXN: that takes git, and its repository"),
    }
    Ok(())
}

/// The last line of `make test`. That nothing ran is no success.
fn verdict(count: Count) -> ExitCode {
    println!("passed: {} passed, {} failed", count.passed, count.failed);
    if count.failed == 0 && count.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
