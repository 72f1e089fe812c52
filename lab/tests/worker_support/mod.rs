//! Webhook workers as separate processes, and what they require: PostgreSQL, NATS and an endpoint.
//!
//! A [`Kind`] describes how to start a worker. The scenarios, which have the names of their files, are the tests that
//! every kind must pass. A new kind needs one `Kind` and one test function per scenario in `e2e_webhook_workers.rs`.

#![allow(dead_code)]

pub mod answers;
pub mod endpoint;
pub mod graceful;
pub mod queue;
pub mod secrets;
pub mod silence;
pub mod started;
pub mod thousand;
pub mod throughput;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use endpoint::Endpoint;
use lab::lab::DATABASE;
use lab::{Lab, StoredMessage};
use nix::sys::signal::Signal;

use crate::e2e_support::{self, eventually};

/// Longest wait until a scenario's calls have ended.
pub const LONG: Duration = Duration::from_secs(150);

/// How to start a worker of one kind.
pub struct Kind {
    /// `rust`, `nodejs` or `go`.
    pub name: &'static str,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Working directory.
    pub dir: PathBuf,
}

/// Root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Runs a command that builds a worker.
pub fn build(dir: &Path, command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Servers, endpoint, and a folder for the workers' logs.
pub struct Place<'a> {
    pub kind: &'a Kind,
    pub lab: Lab,
    pub endpoint: Endpoint,
}

impl<'a> Place<'a> {
    /// A lab with stream `WEBHOOKS` on `webhooks.>`, and a role `hooks` with exactly the rights of a worker.
    pub fn new(kind: &'a Kind, endpoint: Endpoint) -> Place<'a> {
        let lab = e2e_support::lab(&[]);
        e2e_support::stream(&lab, "WEBHOOKS", "webhooks.>");
        lab.sql("create role hooks login in role jetstream_webhook_worker")
            .unwrap();
        Place { kind, lab, endpoint }
    }

    /// The environment of a worker. [`Worker::start`] applies changes to it.
    fn environment(&self, name: &str) -> BTreeMap<String, String> {
        let pairs = [
            ("NATS_URL", self.lab.nats.url()),
            (
                "DATABASE_URL",
                format!("postgresql://hooks@127.0.0.1:{}/{DATABASE}", self.lab.postgres.port()),
            ),
            ("STREAM_NAME", "WEBHOOKS".into()),
            ("CONSUMER_NAME", name.into()),
            ("QUEUE_GROUP", "webhook-workers".into()),
            ("SUBJECT", "webhooks.>".into()),
            ("ALLOW_PRIVATE_ADDRESSES", "127.0.0.1/32".into()),
            ("HTTP_LISTEN", String::new()),
            ("QUEUE_ENABLED", "false".into()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// Starts a worker with this name. The variables are added to the default environment.
    pub fn worker(&self, name: &str, variables: &[(&str, &str)]) -> Worker {
        let mut environment = self.environment(name);
        for (name, value) in variables {
            environment.insert((*name).to_owned(), (*value).to_owned());
        }
        Worker::start(self, self.kind, name, &environment)
    }

    /// Creates a webhook of mode `nats` that calls the endpoint. Returns its id.
    pub fn webhook(&self, name: &str, subject: Option<&str>, more: &str) -> i32 {
        let subject = subject.map_or("null".to_owned(), |subject| format!("'{subject}'"));
        let url = self.endpoint.url(&format!("/{name}"));
        let id = self.lab.value(&format!(
            "insert into jetstream.webhooks (name, url, publish_mode, subject) values ('{name}', '{url}', 'nats', {subject})
             returning id"
        ));
        let id = id.unwrap();
        if !more.is_empty() {
            self.lab
                .sql(&format!("update jetstream.webhooks set {more} where id = {id}"))
                .unwrap();
        }
        id.parse().unwrap()
    }

    /// Messages of the shared consumer that are not delivered yet, and those not acknowledged yet. `None` while there
    /// is no consumer.
    pub fn owed(&self) -> Option<(u64, u64)> {
        let info = self.lab.jetstream(async |context| {
            let mut consumer: async_nats::jetstream::consumer::PullConsumer =
                context.get_consumer_from_stream("webhook-workers", "WEBHOOKS").await?;
            let info = consumer.info().await?;
            Ok((info.num_pending, info.num_ack_pending as u64))
        });
        info.ok()
    }

    /// Waits until `count` messages have been published and every one is acknowledged or terminated.
    pub fn finished(&self, count: u64) {
        e2e_support::arrived(&self.lab, "WEBHOOKS", count);
        let mut last = None;
        let deadline = Instant::now() + LONG;
        while last != Some((0, 0)) {
            last = self.owed();
            assert!(
                Instant::now() < deadline,
                "the calls do not end: {last:?} (pending, unacknowledged); {} requests\n{}",
                self.endpoint.count(),
                e2e_support::account(&self.lab)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The dead letters by the message id of the original. Checks that each exists once.
    pub fn dead(&self) -> BTreeMap<String, StoredMessage> {
        let mut dead = BTreeMap::new();
        for message in self.lab.stream_messages("WEBHOOKS_DEAD").unwrap() {
            let id = header(&message, "Dead-Letter-Message-Id").to_owned();
            assert!(dead.insert(id.clone(), message).is_none(), "{id} has two dead letters");
        }
        dead
    }

    /// A sum over the workers' statistics.
    pub fn sum(&self, column: &str) -> usize {
        let query = format!("select coalesce(sum({column}), 0) from jetstream.rule_nats_consumer_stats");
        self.lab.value(&query).unwrap().parse().unwrap()
    }

    /// The message ids that the failure view shows as dead after a worker's last attempt.
    pub fn shown_as_dead(&self) -> Vec<String> {
        let query =
            "select message_id from jetstream.nats_recent_failures where state = 'call_dead' order by message_id";
        self.lab.sql(query).unwrap().concat()
    }
}

/// A header that must exist.
pub fn header<'m>(message: &'m StoredMessage, name: &str) -> &'m str {
    message
        .header(name)
        .unwrap_or_else(|| panic!("no {name} in {message:?}"))
}

/// A worker process. Dropping it kills it. If the test is failing, the end of its log is printed.
pub struct Worker {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Worker {
    fn start(place: &Place, kind: &Kind, name: &str, environment: &BTreeMap<String, String>) -> Worker {
        let log = place.lab.nats.dir().join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(&kind.command[0]);
        command
            .args(&kind.command[1..])
            .current_dir(&kind.dir)
            .envs(environment);
        // A process group of its own, so that processes started by a launcher such as npm are killed with it.
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {:?}: {error}", kind.command));
        Worker {
            name: name.to_owned(),
            child,
            log,
        }
    }

    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        lab::process::signal(self.child.id(), Signal::SIGTERM).unwrap();
    }

    /// Waits until the process has ended with success.
    pub fn ended(&mut self, limit: Duration) {
        let status = self.wait(limit);
        assert!(
            status.success(),
            "worker {} ended with {status}\n{}",
            self.name,
            self.log()
        );
    }

    fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "worker {} does not end within {limit:?}\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the process is running.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("worker {}:\n{}", self.name, lab::progress::tail(&log, 25));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a query has this value, for as long as a scenario may take.
pub fn shows(lab: &Lab, what: &str, query: &str, value: &str) {
    eventually(lab, LONG, what, || Ok(lab.value(query)? == value));
}

/// Status and body of `http://<address><path>`, or `None` without a response.
pub fn get(address: &str, path: &str) -> Option<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
