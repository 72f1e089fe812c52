//! Installs a Debian package into a clean Debian below `target/`, publishes a message from there, and removes it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::nats::{NatsServer, free_port};
use crate::package::{self, output};
use crate::paths::Paths;
use crate::{packages, progress, second_major, wait_until};

/// What runs a program as the user who owns the cluster.
const AS_POSTGRES: &str = "setpriv --reuid postgres --regid postgres --clear-groups";

/// Longest wait for the message to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why packages cannot be tried out here, if they cannot.
pub fn obstacle() -> Option<&'static str> {
    if !Uid::effective().is_root() {
        Some("only root may change the root folder")
    } else if packages::on_path("debootstrap").is_none() {
        Some("debootstrap is missing: apt-get install debootstrap")
    } else {
        None
    }
}

/// Tries the package of `paths.major` in the Debian release that carries that PostgreSQL.
pub fn run(paths: &Paths, deb: &Path) -> Result<()> {
    if let Some(obstacle) = obstacle() {
        bail!("{obstacle}");
    }
    let major = paths.major;
    let Some((_, release)) = second_major::RELEASES.iter().find(|(known, _)| *known == major) else {
        bail!("no Debian release known here carries PostgreSQL {major}");
    };
    let base = bootstrapped(paths, release)?;
    let folder = tempfile::Builder::new()
        .prefix(&format!("package-{major}-"))
        .tempdir_in(&paths.lab)?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    output(
        Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .arg(base.join("."))
            .arg(folder.path()),
    )?;
    let debian = Debian {
        root: folder.path().to_owned(),
        major,
    };
    debian.prepare()?;
    let name = package::name(paths);
    fs::copy(deb, debian.root.join("tmp/package.deb"))?;
    let log = paths.logs().join(format!("package-{major}.log"));
    let install = debian.command("apt-get update -q && apt-get install -y --no-install-recommends /tmp/package.deb");
    progress::run(&format!("{name} into a clean {release}"), install, &log)?;
    let files = debian.run(&format!("dpkg -L {name}"))?;
    let published = publish(&debian);
    // pg_ctlcluster looks into /proc, which is not there.
    let stopped = debian.run(&format!(
        "{AS_POSTGRES} /usr/lib/postgresql/{major}/bin/pg_ctl -D /var/lib/postgresql/{major}/main -m fast -w stop"
    ));
    published?;
    stopped?;
    debian.run(&format!("apt-get remove -y {name}"))?;
    let left: Vec<&str> = files
        .lines()
        .filter(|file| debian.root.join(file.trim_start_matches('/')).is_file())
        .collect();
    if !files.contains("pg_jetstream.so") || !left.is_empty() {
        bail!("{name} had the files\n{files}\nand left behind: {left:?}");
    }
    debian.run(&format!("test -x /usr/lib/postgresql/{major}/bin/postgres"))?;
    println!("{name}: installed in {release}, a message published, removed");
    Ok(())
}

/// A minimal Debian of this release, made once.
fn bootstrapped(paths: &Paths, release: &str) -> Result<PathBuf> {
    let base = paths.lab.join(format!("debian-{release}"));
    if base.join("complete").exists() {
        return Ok(base);
    }
    if base.exists() {
        fs::remove_dir_all(&base)?;
    }
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", release]).arg(&base);
    command.arg("http://deb.debian.org/debian");
    let scripts = Path::new("/usr/share/debootstrap/scripts");
    if !scripts.join(release).exists() {
        // A release that is younger than this debootstrap; sid's script serves for all.
        command.arg(scripts.join("sid"));
    }
    let log = paths.logs().join(format!("debootstrap-{release}.log"));
    progress::run(&format!("Debian {release}"), command, &log)?;
    fs::write(base.join("complete"), "")?;
    Ok(base)
}

/// Creates the extension in the cluster that the package brought, and sees a message arrive in a NATS server outside.
fn publish(debian: &Debian) -> Result<()> {
    let nats = NatsServer::start()?;
    let (major, port) = (debian.major, free_port()?);
    for (name, value) in [
        ("port", port.to_string()),
        ("shared_preload_libraries", "pg_jetstream".into()),
        ("pg_jetstream.databases", "postgres".into()),
    ] {
        debian.run(&format!("pg_conftool {major} main set {name} {value}"))?;
    }
    debian.run(&format!("pg_ctlcluster {major} main start"))?;
    debian.sql("create extension pg_jetstream")?;
    debian.sql(&format!(
        "update jetstream.connections set url = '{}' where name = 'default'",
        nats.url()
    ))?;
    debian.sql("select jetstream.create_stream('ORDERS', array['orders.>'])")?;
    debian.sql("select jetstream.publish('orders.new', '{\"id\": 1}')")?;
    let stored = "select count(*) from jetstream.history where success and stream = 'ORDERS'";
    wait_until(PATIENCE, "a published message", || Ok(debian.sql(stored)? == "1")).with_context(|| {
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
    debian.sql("drop extension pg_jetstream").map(|_| ())
}

/// A Debian in a folder.
struct Debian {
    root: PathBuf,
    major: u32,
}

impl Debian {
    /// Names resolve, shared memory is there, and no package starts a service.
    fn prepare(&self) -> Result<()> {
        fs::copy("/etc/resolv.conf", self.root.join("etc/resolv.conf"))?;
        let policy = self.root.join("usr/sbin/policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
        let shm = self.root.join("dev/shm");
        fs::create_dir_all(&shm)?;
        Ok(fs::set_permissions(shm, fs::Permissions::from_mode(0o1777))?)
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.root).args(["/bin/sh", "-c", script]);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .current_dir("/");
        command
    }

    fn run(&self, script: &str) -> Result<String> {
        output(&mut self.command(script))
    }

    /// The first column of the first row, as superuser by the socket.
    fn sql(&self, text: &str) -> Result<String> {
        let quoted = text.replace('\'', r"'\''");
        self.run(&format!("{AS_POSTGRES} psql -XqAt -v ON_ERROR_STOP=1 -c '{quoted}'"))
    }
}
