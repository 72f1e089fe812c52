//! Programs beside the servers, and asking them by HTTP.
#![allow(dead_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lab::Lab;
use lab::lab::DATABASE;
use lab::nats::free_port;

/// What lets one change something by way of the console.
pub const TOKEN: &str = "a-token-for-tests-0123456789";

/// The folder of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A program that runs until this is dropped.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts it, and waits until it listens on the port.
    pub fn start(mut command: Command, log: PathBuf, port: u16) -> Program {
        let file = File::create(&log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let mut program = Program { child, log };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = program.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{command:?} does not listen ({ended:?}):\n{}",
                program.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        program
    }

    /// What it has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(&mut self, limit: Duration) {
        lab::process::signal(self.child.id(), nix::sys::signal::Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + limit;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end within {limit:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), self.log());
        }
    }
}

/// `examples/console`, built as these tests are.
pub fn console_binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| {
            let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "-q", "--profile", profile, "-p", "console"]);
            assert!(build.current_dir(repository()).status().unwrap().success());
            // target/<profile>/deps/<this test>
            let own = std::env::current_exe().unwrap();
            own.ancestors().nth(2).unwrap().join("console")
        })
        .clone()
}

/// The console of a lab, as a user who may only look or, with a token, as one who may also change.
pub fn console(lab: &Lab, token: Option<&str>) -> (Program, u16) {
    let role = if token.is_some() {
        "console_admin"
    } else {
        "console_reader"
    };
    lab.sql(&format!(
        "do $$ begin
             if to_regrole('{role}') is null then
                 create role {role} login;
                 grant jetstream_reader to {role};
                 if '{role}' = 'console_admin' then grant jetstream_admin to {role}; end if;
             end if;
         end $$"
    ))
    .unwrap();
    console_at(lab, &database_url(lab, role), token)
}

/// The console of the database at this url.
pub fn console_at(lab: &Lab, url: &str, token: Option<&str>) -> (Program, u16) {
    let port = free_port().unwrap();
    let mut command = Command::new(console_binary());
    command
        .env("DATABASE_URL", url)
        .env("HTTP_LISTEN", format!("127.0.0.1:{port}"))
        .env("ALLOWED_HOSTS", "console.example.com");
    match token {
        Some(token) => command.env("CONSOLE_TOKEN", token),
        None => command.env_remove("CONSOLE_TOKEN"),
    };
    let log = lab.nats.dir().join(format!("console-{port}.log"));
    (Program::start(command, log, port), port)
}

/// Where the lab's database is, for another user.
pub fn database_url(lab: &Lab, user: &str) -> String {
    format!("postgresql://{user}@127.0.0.1:{}/{DATABASE}", lab.postgres.port())
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Asks a program on this machine.
pub fn http(method: &str, port: u16, path: &str, headers: &[(&str, &str)]) -> Answer {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    // With 1.0 no answer comes in chunks.
    let head = format!("{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{headers}");
    request(port, &head)
}

/// Sends this request line and these headers, each with its line end.
pub fn request(port: u16, head: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let request = format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

/// The same, without headers.
pub fn get(port: u16, path: &str) -> Answer {
    http("GET", port, path, &[])
}
