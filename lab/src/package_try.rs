//! Installs a Debian package in a clean Debian in `target/`, publishes a message there, and removes the package.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::debian::Debian;
use crate::nats::{NatsServer, free_port};
use crate::paths::Paths;
use crate::{package, second_major, wait_until};

/// Longest wait for the message to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tries the package for `major` in the Debian release that has this PostgreSQL.
pub fn run(paths: &Paths, major: u32, deb: &Path) -> Result<()> {
    let release = second_major::release(major)?;
    let debian = Debian::clean(paths, release)?;
    let name = package::name(major);
    fs::copy(deb, debian.outside("/tmp/package.deb"))?;
    let log = paths.logs().join(format!("package-{major}.log"));
    debian.install(&name, &["/tmp/package.deb"], &log)?;
    let files = debian.run(&format!("dpkg -L {name}"))?;
    let published = publish(&debian, major);
    let stopped = debian.run(&format!("pg_ctlcluster {major} main stop -m fast"));
    published?;
    stopped?;
    debian.run(&format!("apt-get remove -y {name}"))?;
    let left: Vec<&str> = files.lines().filter(|file| debian.outside(file).is_file()).collect();
    if !files.contains("pg_jetstream.so") || !left.is_empty() {
        bail!("{name} installed the files\n{files}\nand left behind: {left:?}");
    }
    debian.run(&format!("test -x /usr/lib/postgresql/{major}/bin/postgres"))?;
    println!("{name}: installed in {release}, published a message, removed");
    Ok(())
}

/// Creates the extension in the cluster that the package created, and checks that a message arrives at a NATS server
/// outside.
fn publish(debian: &Debian, major: u32) -> Result<()> {
    let nats = NatsServer::start()?;
    let port = free_port()?;
    for (name, value) in [
        ("port", port.to_string()),
        ("shared_preload_libraries", "pg_jetstream".into()),
        ("pg_jetstream.databases", "postgres".into()),
    ] {
        debian.run(&format!("pg_conftool {major} main set {name} {value}"))?;
    }
    debian.run(&format!("pg_ctlcluster {major} main start"))?;
    sql(debian, "create extension pg_jetstream")?;
    sql(
        debian,
        &format!(
            "update jetstream.connections set url = '{}' where name = 'default'",
            nats.url()
        ),
    )?;
    sql(debian, "select jetstream.create_stream('ORDERS', array['orders.>'])")?;
    sql(debian, "select jetstream.publish('orders.new', '{\"id\": 1}')")?;
    let stored = "select count(*) from jetstream.history where success and stream = 'ORDERS'";
    wait_until(PATIENCE, "a published message", || Ok(sql(debian, stored)? == "1")).with_context(|| {
        debian
            .run(&format!("tail -n 20 /var/log/postgresql/postgresql-{major}-main.log"))
            .unwrap_or_default()
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stored = runtime.block_on(async {
        let context = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
        Ok::<_, anyhow::Error>(context.get_stream("ORDERS").await?.cached_info().state.messages)
    })?;
    if stored != 1 {
        bail!("the stream holds {stored} messages instead of 1");
    }
    sql(debian, "drop extension pg_jetstream").map(|_| ())
}

/// The first column of the first row, as superuser over the socket.
fn sql(debian: &Debian, text: &str) -> Result<String> {
    let quoted = text.replace('\'', r"'\''");
    debian.run(&format!(
        "setpriv --reuid postgres --regid postgres --clear-groups psql -XqAt -v ON_ERROR_STOP=1 -c '{quoted}'"
    ))
}
