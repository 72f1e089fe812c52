//! `cargo run -p lab -- <command>`. The Makefile runs the same commands.

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
    /// Install what is missing on this machine, in target/ except for Debian packages
    Setup {
        /// Fetch a second PostgreSQL and build the extension for it, for tests across two major versions
        #[arg(long)]
        second_major: Option<u32>,
    },
    /// Build the extension and install it into the throwaway PostgreSQL or another one
    Install {
        /// The PostgreSQL to install into
        #[arg(long)]
        pg_config: Option<PathBuf>,
    },
    /// Show what the extension does, on throwaway servers
    Demo,
    /// Start PostgreSQL and nats-server and leave them running; `. target/lab/env` sets the variables to reach them
    Up,
    /// Stop the servers that `up` started
    Down,
    /// Stop all servers, and remove everything outside target/
    Clean,
    /// Print the environment of the servers that `up` started
    Env,
    /// Measure speed, latency, processor time and memory, each figure next to its reference
    Bench(bench::Options),
    /// Cause faults while transactions write, then compare the stream with what was committed
    Chaos {
        /// Seed of the faults (default: random)
        #[arg(long)]
        seed: Option<u64>,
        /// How long faults strike
        #[arg(long, default_value_t = 2.0)]
        minutes: f64,
        /// Run only these faults
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// The stream's duplicate window in seconds (default: drawn from the seed)
        #[arg(long)]
        window: Option<f64>,
        /// Run three NATS servers and a stream with three replicas
        #[arg(long)]
        cluster: bool,
    },
    /// Publish at a steady rate with failures and reconnects, and check that the worker's memory stays flat
    Soak {
        /// How long to run
        #[arg(long, default_value_t = 60.0)]
        minutes: f64,
        /// Messages per second
        #[arg(long, default_value_t = 500)]
        rate: u64,
    },
    /// Run all checks and tests
    Test,
    /// Run the checks that need no server: formatting, clippy, the rules of sql/, dependencies, spelling, shell scripts
    Lint,
    /// Build for and test with the major versions of PostgreSQL in Debian, and print a table
    Matrix {
        /// Run only these major versions
        #[arg(long, value_delimiter = ',')]
        majors: Vec<u32>,
        /// Run all end-to-end tests instead of those that show differences between versions
        #[arg(long)]
        everything: bool,
    },
    /// Create a Debian package for each major version, and the archive for PGXN, in target/package/
    Package {
        /// The major versions (default: the one of this machine)
        #[arg(long, value_delimiter = ',')]
        majors: Vec<u32>,
        /// Also install each package in a clean Debian, publish a message there, and remove the package
        #[arg(long = "try")]
        try_out: bool,
    },
    /// Write docs/reference.md from the comments in the catalog
    Reference,
    /// Write the script in sql/ that updates the last released version to this one
    UpgradeScript,
    /// Run pg_regress against a PostgreSQL of its own
    Regress,
    /// Save the install script of this version in migrations/released/, where it never changes
    Freeze,
    /// Run pg_regress against the server given by PGHOST, PGPORT and PGUSER
    Installcheck {
        /// The PostgreSQL that provides pg_regress and psql
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
            let state = if up::up(&paths)? { "started" } else { "already running" };
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
        Cmd::Lint => return Ok(verdict(checks::lint(&setup::run()?)?)),
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
                anyhow::bail!("without explanation:\n  {}", missing.join("\n  "));
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
                None => println!("no older version has been released"),
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
    // Trying a package also requires a NATS server.
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
        None => println!("no archive for PGXN: this requires git and a clone of the repository"),
    }
    Ok(())
}

/// Prints the last line of `make test`. A run without any test fails.
fn verdict(count: Count) -> ExitCode {
    println!("passed: {} passed, {} failed", count.passed, count.failed);
    if count.failed == 0 && count.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
