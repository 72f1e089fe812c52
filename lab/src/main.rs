//! `cargo run -p lab -- <command>`; the Makefile names the same commands.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::paths::Paths;
use lab::{install, setup};

/// Throwaway PostgreSQL and NATS servers for pg_jetstream.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Install what is missing on this machine, below target/ but for Debian packages
    Setup,
    /// Build the extension and install it into the throwaway PostgreSQL, or into another
    Install {
        /// The PostgreSQL to install into
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
        Cmd::Setup => {
            let paths = setup::run()?;
            println!("ready: PostgreSQL {} in {}", paths.major, paths.pg_tree().display());
        }
        Cmd::Install { pg_config } => install::run(&Paths::ready()?, pg_config.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}
