//! A stranger's walk: in a clean Debian, from the first command of README.md to a published message, in the two ways that
//! it offers. Run by hand, since it takes root, `debootstrap` and a quarter of an hour for each release:
//! `cargo test -p lab --test walk -- --ignored --nocapture --test-threads=1`. What is walked is what is committed.
//!
//! Rust comes from outside, as rustup would have installed it, and so do the sources of crates.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod documents_support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use documents_support::parse::{Step, steps};
use documents_support::root;
use lab::debian::Debian;
use lab::nats::NatsServer;
use lab::paths::Paths;
use lab::{package, second_major, wait_until};

/// Where the stranger has the checkout.
const CHECKOUT: &str = "/root/pg_jetstream";
/// The certificates a Debian trusts.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Longest wait for a message to be stored.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs root, debootstrap and a quarter of an hour"]
fn debian_12() {
    walk(15);
}

#[test]
#[ignore = "needs root, debootstrap and a quarter of an hour"]
fn debian_13() {
    walk(17);
}

#[test]
#[ignore = "needs root, debootstrap and a quarter of an hour"]
fn forky() {
    walk(18);
}

/// In the Debian that carries this PostgreSQL.
fn walk(major: u32) {
    let walker = Walker::arrive(major);
    walker.package();
    walker.two_commands();
}

struct Walker {
    debian: Debian,
    readme: Vec<Step>,
    major: u32,
    rust: PathBuf,
}

impl Walker {
    /// A bare machine with a checkout, and with what the README says a bare machine lacks.
    fn arrive(major: u32) -> Walker {
        let paths = Paths::find().unwrap();
        let rust = package::rust(&paths).unwrap();
        let outside = vec![rust.clone(), package::cargo_home().unwrap()];
        let debian = Debian::clean(&paths, second_major::release(major).unwrap(), outside).unwrap();
        let checkout = debian.outside(CHECKOUT);
        fs::create_dir_all(&checkout).unwrap();
        let mut archive = Command::new("sh");
        archive
            .args(["-c", "git archive HEAD | tar -x -C \"$1\"", "archive"])
            .arg(&checkout);
        assert!(archive.current_dir(root()).status().unwrap().success());
        let text = fs::read_to_string(checkout.join("README.md")).unwrap();
        let walker = Walker {
            debian,
            readme: steps(&text).unwrap(),
            major,
            rust,
        };
        // Nobody is there to answer, and the README's reader has sudo.
        let yes = "APT::Get::Assume-Yes \"true\";\n";
        fs::write(walker.debian.outside("/etc/apt/apt.conf.d/99yes"), yes).unwrap();
        walker.sh("apt-get update -q && apt-get install --no-install-recommends sudo");
        let bare = walker.block("apt-get install build-essential");
        let (packages, rustup) = bare.trim().split_once('\n').unwrap();
        assert!(rustup.contains("rustup"), "{rustup}");
        walker.sh(packages);
        fs::copy(CERTIFICATES, walker.debian.outside(CERTIFICATES)).unwrap();
        walker
    }

    /// The block of the README that begins so, for this major version.
    fn block(&self, begin: &str) -> String {
        let found = self
            .readme
            .iter()
            .find(|step| step.text.trim_start().starts_with(begin));
        let text = &found
            .unwrap_or_else(|| panic!("README.md has no block that begins with {begin:?}"))
            .text;
        text.replace("MAJORS=15", &format!("MAJORS={}", self.major))
            .replace("postgresql-15", &format!("postgresql-{}", self.major))
    }

    /// What a shell in the checkout prints.
    fn sh(&self, script: &str) -> String {
        println!("$ {script}");
        let mut command = self
            .debian
            .script(&format!("set -e; mkdir -p {CHECKOUT}; cd {CHECKOUT}; {script}"));
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.rust.join("bin").display());
        command
            .env("PATH", path)
            .env("CARGO_HOME", package::cargo_home().unwrap())
            .env("CARGO_HTTP_CAINFO", CERTIFICATES)
            .env("PIP_CERT", CERTIFICATES);
        let output = command.output().unwrap();
        let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{script}\n{printed}");
        printed
    }

    /// Makes and installs the package, configures, and publishes from a trigger.
    fn package(&self) {
        let nats = NatsServer::start().unwrap();
        let major = self.major;
        self.sh(&self.block("make package MAJORS=15"));
        let file = self
            .debian
            .outside(format!("/etc/postgresql/{major}/main/postgresql.conf"));
        let settings = self.block("shared_preload_libraries = 'pg_jetstream'");
        fs::write(&file, fs::read_to_string(&file).unwrap() + &settings).unwrap();
        self.sh(&format!("sudo pg_ctlcluster {major} main restart"));
        self.sh("cd /; sudo -u postgres createdb shop");
        for begin in ["create extension pg_jetstream;", "create table orders"] {
            let text = self.block(begin).replace("nats://localhost:4222", &nats.url());
            fs::write(self.debian.outside("/tmp/block.sql"), text).unwrap();
            self.sh("cd /; sudo -u postgres psql -v ON_ERROR_STOP=1 shop < /tmp/block.sql");
        }
        let stored = "select count(*) from jetstream.history where success and stream = 'ORDERS'";
        wait_until(PATIENCE, "a published message", || {
            Ok(self
                .sh(&format!("cd /; sudo -u postgres psql -XAt -c \"{stored}\" shop"))
                .trim()
                == "1")
        })
        .unwrap();
        self.sh(&format!("sudo pg_ctlcluster {major} main stop"));
    }

    /// The demonstration, and the servers to play with.
    fn two_commands(&self) {
        let printed = self.sh(&self.block("make demo"));
        assert!(printed.contains("A subscriber received 1001 messages"), "{printed}");
        let printed = self.sh(&self.block("make up"));
        assert!(printed.contains("orders.created | ORDERS |        1 | t"), "{printed}");
    }
}
