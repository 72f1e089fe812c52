//! A throwaway PostgreSQL on a free port. Its files are removed when it is dropped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use postgres::SimpleQueryMessage;

use crate::nats::free_port;
use crate::paths::Paths;
use crate::user::ServerUser;
use crate::{cluster, process, progress};

/// Longest wait for the server to start or stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// PostgreSQL's shutdown modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Waits for clients to disconnect.
    Smart,
    /// Disconnects clients and writes a checkpoint.
    Fast,
    /// Stops immediately. The next start performs recovery.
    Immediate,
}

/// The configuration of a server. See [`Postgres::builder`].
#[derive(Clone, Debug)]
pub struct PostgresBuilder {
    settings: BTreeMap<String, String>,
    wal_mb: u32,
    dir: Option<PathBuf>,
    primary: Option<u16>,
    paths: Option<Paths>,
}

impl PostgresBuilder {
    /// Uses the PostgreSQL at these paths, for example of another major version.
    pub fn of(mut self, paths: Paths) -> Self {
        self.paths = Some(paths);
        self
    }

    /// Sets one line of postgresql.conf. The value needs no quotes.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Configures the server as in production, for measurements: with fsync, and WAL segments of the usual size.
    pub fn durable(mut self) -> Self {
        self.wal_mb = cluster::DEFAULT_WAL;
        self.set("fsync", "on")
            .set("full_page_writes", "on")
            .set("shared_buffers", "128MB")
    }

    /// Creates a streaming standby of the server on this port, named `standby`. It has the settings of this builder,
    /// not those of the primary.
    pub fn standby_of(mut self, port: u16) -> Self {
        self.primary = Some(port);
        self
    }

    /// Sets a folder for data and log, which is created and kept. By default a temporary one is used.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Creates the cluster, starts the server, and waits until it accepts connections.
    pub fn start(self) -> Result<Postgres> {
        let paths = self.paths.map_or_else(Paths::ready, Ok)?;
        let user = ServerUser::find()?;
        let (dir, temporary) = match self.dir {
            Some(dir) => {
                fs::create_dir_all(&dir)?;
                (dir, false)
            }
            None => {
                fs::create_dir_all(paths.run())?;
                (
                    tempfile::Builder::new()
                        .prefix(&format!("pg-{}-", std::process::id()))
                        .tempdir_in(paths.run())?
                        .keep(),
                    true,
                )
            }
        };
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        user.own(&dir)?;
        match self.primary {
            Some(port) => cluster::follow(&paths, &user, port, &dir.join("data"))?,
            None => cluster::create(&paths, &user, self.wal_mb, &dir.join("data"))?,
        }
        let mut server = Postgres {
            paths,
            user,
            dir,
            temporary,
            port: 0,
            settings: self.settings,
            child: None,
            pid: 0,
        };
        let mut tries = 0;
        loop {
            tries += 1;
            server.port = free_port()?;
            match server.start_again() {
                // Another process may have taken the port after it was found to be free.
                Err(_) if tries < 4 && server.log_contains("Address already in use") => {}
                result => return result.map(|()| server),
            }
        }
    }
}

/// A running server. Dropping it stops the server immediately and removes its files, unless a test is failing.
#[derive(Debug)]
pub struct Postgres {
    paths: Paths,
    user: ServerUser,
    dir: PathBuf,
    temporary: bool,
    port: u16,
    settings: BTreeMap<String, String>,
    child: Option<Child>,
    pid: u32,
}

impl Postgres {
    /// A builder that preloads pg_jetstream for database `postgres`. The settings are for tests: data survives a crash
    /// of the server, but not of the machine.
    pub fn builder() -> PostgresBuilder {
        let settings = [
            ("shared_preload_libraries", "pg_jetstream"),
            ("pg_jetstream.databases", "postgres"),
            ("wal_level", "logical"),
            ("max_prepared_transactions", "10"),
            ("shared_buffers", "32MB"),
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("log_line_prefix", "%m [%p] %b %a: "),
            ("log_checkpoints", "off"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        PostgresBuilder {
            settings: settings.into(),
            wal_mb: cluster::SMALL_WAL,
            dir: None,
            primary: None,
            paths: None,
        }
    }

    /// Starts a server with the builder's defaults.
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id of the postmaster, or of the last one.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Writes a file for the server, such as a certificate, next to the data. Only the server can read it.
    pub fn write_file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        self.user.own(&path)?;
        Ok(path)
    }

    /// Starts a stopped or killed server again on the same port.
    pub fn start_again(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("the server is already running");
        }
        self.write_settings()?;
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.user.command(self.paths.pg_bin().join("postgres"));
        command
            .arg("-D")
            .arg(self.data())
            .current_dir(&self.dir)
            // As some environments have it: no test's error may carry a backtrace.
            .env("RUST_BACKTRACE", "1")
            .process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("cannot run postgres")?;
        self.pid = child.id();
        self.child = Some(child);
        self.wait_ready()
    }

    /// Stops the server and waits until it has ended.
    pub fn stop(&mut self, mode: Stop) -> Result<()> {
        let signal = match mode {
            Stop::Smart => Signal::SIGTERM,
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        let Some(child) = &mut self.child else { return Ok(()) };
        process::signal(child.id(), signal)?;
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("postgres does not stop ({mode:?}):\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child = None;
        Ok(())
    }

    /// Kills the postmaster without warning and waits until its children have noticed and ended. A new postmaster
    /// cannot start before that.
    pub fn kill9(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let children = process::children(child.id());
        child.kill()?;
        child.wait()?;
        if !process::wait_gone(&children, Duration::from_secs(10)) {
            for &pid in children
                .iter()
                .filter(|&&pid| process::arguments(pid).concat().starts_with("postgres"))
            {
                process::signal(pid, Signal::SIGKILL)?;
            }
            if !process::wait_gone(&children, Duration::from_secs(5)) {
                bail!("children of the killed postmaster do not end:\n{}", self.log_tail());
            }
        }
        Ok(())
    }

    /// Stops the server (fast) and starts it again.
    pub fn restart(&mut self) -> Result<()> {
        self.stop(Stop::Fast)?;
        self.start_again()
    }

    /// Changes lines of postgresql.conf. A running server reloads them. Settings that require a restart take effect
    /// later.
    pub fn set(&mut self, settings: &[(&str, &str)]) -> Result<()> {
        for (name, value) in settings {
            self.settings.insert((*name).to_owned(), (*value).to_owned());
        }
        self.write_settings()?;
        match &self.child {
            Some(child) => process::signal(child.id(), Signal::SIGHUP),
            None => Ok(()),
        }
    }

    /// A connection as superuser, driven by a task of the current runtime.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client> {
        let (client, connection) = tokio_postgres::connect(&self.conninfo(database), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A blocking connection as superuser. It must not be used on a thread that runs async code.
    pub fn client(&self, database: &str) -> Result<postgres::Client> {
        Ok(postgres::Client::connect(&self.conninfo(database), postgres::NoTls)?)
    }

    /// `host=… port=…` for clients that take libpq connection strings.
    pub fn conninfo(&self, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname={database} application_name=lab",
            self.port
        )
    }

    /// Runs statements on a new connection and returns all rows as text, with nulls as empty strings. Several
    /// statements are one transaction. Blocks, and can be called from any thread. [`sqlstate`] extracts the SQLSTATE of
    /// an error.
    pub fn sql(&self, database: &str, text: &str) -> Result<Vec<Vec<String>>> {
        let query = || -> Result<Vec<Vec<String>>> {
            let messages = self.client(database)?.simple_query(text)?;
            Ok(messages.iter().filter_map(row).collect())
        };
        let result = std::thread::scope(|scope| scope.spawn(query).join());
        result
            .map_err(|_| anyhow!("the query thread panicked"))?
            .with_context(|| format!("in {text}"))
    }

    /// The first column of the first row of [`Postgres::sql`].
    pub fn value(&self, database: &str, text: &str) -> Result<String> {
        let rows = self.sql(database, text)?;
        rows.into_iter()
            .flatten()
            .next()
            .with_context(|| format!("no row from {text}"))
    }

    /// Process ids of the backends whose type or application name matches the ILIKE pattern.
    pub fn backends(&self, pattern: &str) -> Result<Vec<u32>> {
        let pattern = pattern.replace('\'', "''");
        let query = format!(
            "select pid from pg_stat_activity where pid <> pg_backend_pid() \
             and (backend_type ilike '{pattern}' or application_name ilike '{pattern}') order by backend_start"
        );
        self.sql("postgres", &query)?
            .into_iter()
            .flatten()
            .map(|pid| Ok(pid.parse()?))
            .collect()
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Whether the log contains this text.
    pub fn log_contains(&self, text: &str) -> bool {
        self.log().contains(text)
    }

    /// The end of the log, for error messages.
    pub fn log_tail(&self) -> String {
        progress::tail(&self.log(), 30)
    }

    /// Leaves the server running and its files in place. Returns the postmaster's process id.
    pub fn detach(mut self) -> u32 {
        self.child = None;
        self.temporary = false;
        self.pid
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    fn write_settings(&self) -> Result<()> {
        let port = self.port.to_string();
        let fixed = [
            ("listen_addresses", "127.0.0.1"),
            ("port", &port),
            ("unix_socket_directories", ""),
        ];
        let own = self
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let lines: Vec<String> = fixed
            .into_iter()
            .chain(own)
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
            .collect();
        Ok(fs::write(self.data().join("postgresql.conf"), lines.concat())?)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.child = None;
                bail!("postgres failed to start ({status}):\n{}", self.log_tail());
            }
            if is_ready(&self.data(), self.pid) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("postgres is not ready after {PATIENCE:?}:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.stop(Stop::Immediate).is_err() {
            let _ = self.kill9();
        }
        if !self.temporary {
            return;
        }
        if std::thread::panicking() {
            eprintln!(
                "files kept in {}; the end of the log:\n{}",
                self.dir.display(),
                self.log_tail()
            );
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// The SQLSTATE in an error of [`Postgres::sql`].
pub fn sqlstate(error: &anyhow::Error) -> Option<&str> {
    let error = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<postgres::Error>())?;
    Some(error.as_db_error()?.code().code())
}

/// The last line of postmaster.pid is the state of the server whose process id is in the first line.
fn is_ready(data: &Path, pid: u32) -> bool {
    fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|text| {
        let mut lines = text.lines();
        lines.next() == Some(&pid.to_string())
            && lines
                .nth(6)
                .is_some_and(|state| matches!(state.trim(), "ready" | "standby"))
    })
}

fn row(message: &SimpleQueryMessage) -> Option<Vec<String>> {
    match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).unwrap_or("").to_owned()).collect()),
        _ => None,
    }
}
