//! A throwaway `nats-server` on free ports with its own store. It can be stopped, killed, paused and restarted.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Longest wait for a server to start or stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ports are chosen below the range that the kernel uses for outgoing connections, so that a server can restart on the
/// same port.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The server's limit for stored bytes. By default it is three quarters of the free disk space, and on a full disk no
/// stream with `max_bytes` could be created.
const MAX_FILE_STORE: u64 = 100 << 30;

/// Path of the `nats-server` binary: `NATS_BIN`, or the one in the project's virtual environment.
pub fn nats_binary() -> PathBuf {
    match std::env::var_os("NATS_BIN") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/bin/nats-server"),
    }
}

/// A TCP port of 127.0.0.1 on which nothing listens at the moment.
pub fn free_port() -> io::Result<u16> {
    for _ in 0..200 {
        let port = rand::random_range(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::other("no free port"))
}

/// The configuration of a server. See [`NatsServer::builder`].
#[derive(Debug, Clone, Default)]
pub struct NatsBuilder {
    extra: String,
    port: Option<u16>,
    monitor_port: Option<u16>,
    dir: Option<PathBuf>,
    without_jetstream: bool,
    domain: Option<String>,
    silent: bool,
    run_as: Option<(u32, u32)>,
}

impl NatsBuilder {
    /// Appends lines to the configuration (`authorization { … }`, `tls { … }`, `max_payload: 1024`, …).
    pub fn extra(mut self, lines: impl AsRef<str>) -> Self {
        self.extra.push_str(lines.as_ref());
        self.extra.push('\n');
        self
    }

    /// Sets the client port. By default a free one is chosen.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Sets the HTTP monitoring port. By default a free one is chosen.
    pub fn monitor_port(mut self, port: u16) -> Self {
        self.monitor_port = Some(port);
        self
    }

    /// Sets the directory for configuration (`nats.conf`), log (`nats.log`) and store (`store/`). It is created, and
    /// kept when the server is dropped. By default a temporary directory is used and removed.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Starts the server without JetStream.
    pub fn without_jetstream(mut self) -> Self {
        self.without_jetstream = true;
        self
    }

    /// The server says nothing before the client does (`handshake_first`).
    pub fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// JetStream's domain.
    pub fn domain(mut self, domain: &str) -> Self {
        self.domain = Some(domain.to_owned());
        self
    }

    /// Runs the server as this user and group, which requires root.
    pub fn run_as(mut self, uid: u32, gid: u32) -> Self {
        self.run_as = Some((uid, gid));
        self
    }

    /// Starts the server and waits until it answers and its streams are recovered.
    pub fn start(self) -> io::Result<NatsServer> {
        let (dir, temporary) = match &self.dir {
            Some(dir) => (dir.clone(), false),
            None => (temporary_dir(), true),
        };
        fs::create_dir_all(&dir)?;
        let mut server = NatsServer {
            builder: self,
            dir,
            temporary,
            port: 0,
            monitor_port: 0,
            child: None,
            pid: 0,
        };
        let mut tries = 0;
        loop {
            tries += 1;
            server.port = server.builder.port.map_or_else(free_port, Ok)?;
            server.monitor_port = server.builder.monitor_port.map_or_else(free_port, Ok)?;
            match server.launch() {
                Ok(()) => return Ok(server),
                // Another process may have taken the port after it was found to be free.
                Err(error) if tries < 4 && error.kind() == io::ErrorKind::AddrInUse => continue,
                Err(error) => return Err(error),
            }
        }
    }
}

/// A running server. Dropping it kills the server and removes its temporary directory, unless it was detached.
#[derive(Debug)]
pub struct NatsServer {
    builder: NatsBuilder,
    dir: PathBuf,
    temporary: bool,
    port: u16,
    monitor_port: u16,
    child: Option<Child>,
    pid: u32,
}

impl NatsServer {
    /// A builder with JetStream, free ports and a temporary directory.
    pub fn builder() -> NatsBuilder {
        NatsBuilder::default()
    }

    /// Starts a server with the builder's defaults.
    pub fn start() -> io::Result<NatsServer> {
        Self::builder().start()
    }

    /// `nats://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `http://127.0.0.1:<port>` of the monitoring endpoint.
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor_port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id of the running server, or of the last one.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Directory with configuration, log and store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("nats.log")).unwrap_or_default()
    }

    /// Body of the monitoring endpoint `path` (`/varz`, `/jsz?streams=true`, …).
    pub fn monitor(&self, path: &str) -> io::Result<String> {
        http_get(self.monitor_port, path)
    }

    /// Kills the server without warning. The store stays.
    pub fn kill9(&mut self) -> io::Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Stops the server cleanly. The store stays.
    pub fn stop(&mut self) -> io::Result<()> {
        self.end(Signal::SIGTERM)
    }

    /// Stops every thread of the server (SIGSTOP) and waits until they are stopped. Sockets stay open, but nothing
    /// answers.
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::SIGSTOP)?;
        waitpid(self.os_pid()?, Some(WaitPidFlag::WUNTRACED))?;
        Ok(())
    }

    /// Resumes a paused server.
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Reloads the configuration (SIGHUP), for example after [`NatsServer::rewrite`].
    pub fn reload(&self) -> io::Result<()> {
        self.signal(Signal::SIGHUP)
    }

    /// Replaces the extra configuration lines in the file. They take effect after [`NatsServer::reload`] or a restart.
    pub fn rewrite(&mut self, extra: impl Into<String>) -> io::Result<()> {
        self.builder.extra = extra.into();
        self.write_config()
    }

    /// Starts the server again on the same ports and store. Kills it first if it is running.
    pub fn restart(&mut self) -> io::Result<()> {
        if self.child.is_some() {
            self.kill9()?;
        }
        self.launch()
    }

    /// Leaves the server running and its directory in place. Returns its process id.
    pub fn detach(mut self) -> u32 {
        self.child = None;
        self.temporary = false;
        self.pid
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.child.is_none() {
            return Err(io::Error::other("the server is not running"));
        }
        kill(self.os_pid()?, signal).map_err(io::Error::from)
    }

    fn os_pid(&self) -> io::Result<Pid> {
        i32::try_from(self.pid).map(Pid::from_raw).map_err(io::Error::other)
    }

    fn end(&mut self, signal: Signal) -> io::Result<()> {
        self.signal(signal)?;
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other("the server did not end in time and was killed"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn write_config(&self) -> io::Result<()> {
        let mut text = format!(
            "listen: \"127.0.0.1:{}\"\nhttp: \"127.0.0.1:{}\"\n",
            self.port, self.monitor_port
        );
        if !self.builder.without_jetstream {
            let store = self.dir.join("store");
            text.push_str(&format!(
                "jetstream {{ store_dir: {:?}, max_file_store: {MAX_FILE_STORE}{} }}\n",
                store.to_string_lossy(),
                match &self.builder.domain {
                    Some(domain) => format!(", domain: {domain}"),
                    None => String::new(),
                }
            ));
        }
        text.push_str(&self.builder.extra);
        fs::write(self.dir.join("nats.conf"), text)
    }

    fn launch(&mut self) -> io::Result<()> {
        self.write_config()?;
        let log_path = self.dir.join("nats.log");
        let log = File::options().create(true).append(true).open(&log_path)?;
        let log_start = log.metadata()?.len();
        let mut command = Command::new(nats_binary());
        command.arg("-c").arg(self.dir.join("nats.conf"));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        if let Some((uid, gid)) = self.builder.run_as {
            for path in [self.dir.clone(), self.dir.join("nats.conf"), log_path.clone()] {
                std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
            }
            command.uid(uid).gid(gid);
        }
        let child = command.spawn()?;
        self.pid = child.id();
        self.child = Some(child);
        self.wait_ready(&log_path, log_start)
    }

    fn wait_ready(&mut self, log_path: &Path, log_start: u64) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.child = None;
                let log: String = fs::read(log_path)?
                    .get(usize::try_from(log_start).unwrap_or(0)..)
                    .map(|tail| String::from_utf8_lossy(tail).into_owned())
                    .unwrap_or_default();
                let kind = match log.contains("address already in use") {
                    true => io::ErrorKind::AddrInUse,
                    false => io::ErrorKind::Other,
                };
                return Err(io::Error::new(kind, format!("nats-server ended with {status}: {log}")));
            }
            if (self.builder.silent || greets(self.port))
                && self.monitor("/healthz").is_ok_and(|body| body.contains("\"ok\""))
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("nats-server is not ready: {}", self.log())));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.temporary {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn temporary_dir() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!(
        "lab-nats-{}-{next}-{:08x}",
        std::process::id(),
        rand::random::<u32>()
    ))
}

/// Whether a NATS server sends INFO on the port.
fn greets(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
        return false;
    };
    let mut first = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && BufReader::new(stream).read_line(&mut first).is_ok()
        && first.starts_with("INFO ")
}

fn http_get(port: u16, path: &str) -> io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("unexpected answer from {path}"))),
    }
}
