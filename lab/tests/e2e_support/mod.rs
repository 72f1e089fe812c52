//! Helpers of the end-to-end tests: waiting with a full report of a failure, and counting messages that arrived.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_nats::ConnectOptions;
use lab::lab::{DATABASE, LabBuilder};
use lab::nats::NatsServer;
use lab::{Lab, StoredMessage};

/// Longest wait for something that should take a moment, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);
/// Longest wait for a backlog, or for something that may need the sweep, which runs once a minute.
pub const LATER: Duration = Duration::from_secs(100);

/// A lab with a connected worker and a stream `S` that takes `s.>`.
pub fn lab(settings: &[(&str, &str)]) -> Lab {
    quick_lab(
        settings
            .iter()
            .fold(Lab::builder(), |builder, (name, value)| builder.set(name, value)),
    )
}

/// Starts a lab from the builder, with short delays, a connected worker and stream `S`.
pub fn quick_lab(builder: LabBuilder) -> Lab {
    let lab = builder
        .set("pg_jetstream.retry_backoff_base", "50ms")
        .set("pg_jetstream.retry_backoff_max", "500ms")
        .start()
        .unwrap();
    lab.sql("update jetstream.connections set reconnect_delay_ms = 50")
        .unwrap();
    stream(&lab, "S", "s.>");
    lab
}

/// Creates a stream and waits until it exists.
pub fn stream(lab: &Lab, name: &str, subject: &str) {
    lab.sql(&format!("select jetstream.create_stream('{name}', array['{subject}'])"))
        .unwrap();
    synced(lab, name);
}

/// Waits until the worker has created or updated the stream.
pub fn synced(lab: &Lab, name: &str) {
    let query =
        format!("select synced_at is not null and sync_error is null from jetstream.streams where name = '{name}'");
    becomes(lab, &format!("stream {name} in sync"), &query, "t");
}

/// Waits until `done` returns true. Errors count as false, because a server may be restarting. Panics with a full
/// report.
pub fn eventually(lab: &Lab, limit: Duration, what: &str, mut done: impl FnMut() -> anyhow::Result<bool>) {
    let deadline = Instant::now() + limit;
    loop {
        let answer = done();
        if matches!(answer, Ok(true)) {
            return;
        }
        if Instant::now() > deadline {
            panic!(
                "timed out after {} s: {what} ({answer:?})\n{}",
                limit.as_secs(),
                account(lab)
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a query returns this value.
pub fn becomes(lab: &Lab, what: &str, query: &str, value: &str) {
    let mut last = String::new();
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        last = lab.value(query).unwrap_or_else(|error| format!("{error:#}"));
        if last == value {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: {query} is {last:?} and not {value:?}\n{}", account(lab));
}

/// Waits until nothing is pending.
pub fn drained(lab: &Lab, limit: Duration) {
    eventually(lab, limit, "the outbox is empty", || {
        Ok(lab.value("select not exists (select from jetstream.outbox)")? == "t")
    });
}

/// Waits until the stream holds this many messages or more.
pub fn arrived(lab: &Lab, stream: &str, count: u64) {
    eventually(lab, LATER, &format!("{count} messages in {stream}"), || {
        Ok(lab.message_count(stream)? >= count)
    });
}

/// The state of the lab, for the report of a failed test.
pub fn account(lab: &Lab) -> String {
    let rows = |query: &str| match lab.sql(query) {
        Ok(rows) => rows.concat().join("\n"),
        Err(error) => format!("{error:#}"),
    };
    format!(
        "status: {}\nowed: {}\ndead: {}\n{}",
        rows("select to_jsonb(s) from jetstream.status() s"),
        rows("select to_jsonb(o) from jetstream.outbox_summary o limit 10"),
        rows("select count(*), max(reason) from jetstream.dead_letters"),
        lab.logs()
    )
}

/// Insert statement for messages `{"n": from}` … `{"n": to}`, in order.
pub fn insert(subject: &str, from: i64, to: i64) -> String {
    format!(
        "insert into jetstream.outbox (subject, payload) \
         select '{subject}', jsonb_build_object('n', n) from generate_series({from}, {to}) n order by n"
    )
}

/// The number that a message carries.
pub fn number(message: &StoredMessage) -> i64 {
    message.json().unwrap()["n"].as_i64().unwrap()
}

/// The numbers of a stream's messages, in stream order.
pub fn numbers(lab: &Lab, stream: &str) -> Vec<i64> {
    lab.stream_messages(stream).unwrap().iter().map(number).collect()
}

/// Checks that no expected message is missing, none is there twice, and no other message is there.
pub fn exactly_once(lab: &Lab, stream: &str, expected: impl IntoIterator<Item = i64>) {
    let mut count: BTreeMap<i64, i64> = expected.into_iter().map(|n| (n, -1)).collect();
    let total = count.len();
    for n in numbers(lab, stream) {
        *count.entry(n).or_insert(0) += 1;
    }
    let lost: Vec<_> = count.iter().filter(|(_, c)| **c < 0).map(|(n, _)| *n).collect();
    let extra: Vec<_> = count.iter().filter(|(_, c)| **c > 0).map(|(n, _)| *n).collect();
    assert!(
        lost.is_empty() && extra.is_empty(),
        "of {total}: {} lost {:?}, {} too many {:?}\n{}",
        lost.len(),
        &lost[..lost.len().min(10)],
        extra.len(),
        &extra[..extra.len().min(10)],
        account(lab)
    );
}

/// Process id of the worker of database `postgres`, once it is running and connected.
pub fn worker(lab: &Lab) -> u32 {
    let mut pid = 0;
    eventually(lab, SOON, "the worker is connected", || {
        pid = lab
            .value("select pid from jetstream.status() where jetstream.health() ->> 'connected' = 'true'")?
            .parse()?;
        Ok(true)
    });
    pid
}

/// Waits until a worker runs in a process other than `before`.
pub fn new_worker(lab: &Lab, before: u32) {
    eventually(lab, SOON, "a new worker is running", || {
        let pid: u32 = lab
            .value("select pid from jetstream.status() where pid is not null")?
            .parse()?;
        Ok(pid != before)
    });
}

/// Starts another NATS server and configures it as connection `name`.
pub fn connection(lab: &Lab, name: &str) -> NatsServer {
    let nats = NatsServer::start().unwrap();
    lab.sql(&format!(
        "insert into jetstream.connections (name, url, reconnect_delay_ms) values ('{name}', '{}', 50)",
        nats.url()
    ))
    .unwrap();
    nats
}

/// Number of messages in a stream of another NATS server.
pub fn count_on(nats: &NatsServer, stream: &str) -> u64 {
    count_with(ConnectOptions::new(), nats, stream)
}

/// The same for a server that requires a login.
pub fn count_with(login: ConnectOptions, nats: &NatsServer, stream: &str) -> u64 {
    let (url, stream) = (nats.url(), stream.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let Ok(client) = login.connect(url).await else { return 0 };
        match async_nats::jetstream::new(client).get_stream(stream).await {
            Ok(stream) => stream.cached_info().state.messages,
            Err(_) => 0,
        }
    })
}

/// Sessions that insert business rows with their messages until they are stopped. Afterwards, `business` holds the
/// numbers of all messages that must arrive.
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    slowest: Arc<Mutex<Duration>>,
    next: Arc<AtomicI64>,
}

impl Writers {
    /// Creates the table with its trigger.
    pub fn prepare(lab: &Lab) {
        lab.sql(
            "create table business (n bigint primary key);
             create function enqueue() returns trigger language plpgsql as $$
             begin
                 perform jetstream.publish('s.business', jsonb_build_object('n', new.n));
                 return null;
             end $$;
             create trigger enqueue after insert on business for each row execute function enqueue()",
        )
        .unwrap();
    }

    /// Starts producers. Each runs one transaction after another, with `pause` between them.
    pub fn start(lab: &Lab, count: usize, pause: Duration) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let slowest = Arc::new(Mutex::new(Duration::ZERO));
        let next = Arc::new(AtomicI64::new(
            lab.value("select coalesce(max(n), 0) from business")
                .unwrap()
                .parse()
                .unwrap(),
        ));
        let threads = (0..count)
            .map(|_| {
                let (stop, slowest, next) = (stop.clone(), slowest.clone(), next.clone());
                let conninfo = lab.postgres.conninfo(DATABASE);
                std::thread::spawn(move || {
                    let mut client = None;
                    while !stop.load(Ordering::Relaxed) {
                        let Some(open) = client.as_mut() else {
                            client = postgres::Client::connect(&conninfo, postgres::NoTls).ok();
                            std::thread::sleep(Duration::from_millis(5));
                            continue;
                        };
                        let n = next.fetch_add(1, Ordering::Relaxed) + 1;
                        let before = Instant::now();
                        // The server may stop at any time. `business` shows whether this transaction was committed.
                        match open.execute("insert into business values ($1)", &[&n]) {
                            Ok(_) => {
                                let took = before.elapsed();
                                let mut slowest = slowest.lock().unwrap();
                                *slowest = took.max(*slowest);
                            }
                            Err(_) => client = None,
                        }
                        std::thread::sleep(pause);
                    }
                })
            })
            .collect();
        Writers {
            stop,
            threads,
            slowest,
            next,
        }
    }

    /// The highest number used so far.
    pub fn so_far(&self) -> i64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Duration of the longest transaction so far.
    pub fn slowest(&self) -> Duration {
        *self.slowest.lock().unwrap()
    }

    /// Stops the producers and returns what was committed.
    pub fn finish(self, lab: &Lab) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        committed(lab)
    }
}

/// The numbers in `business`.
pub fn committed(lab: &Lab) -> Vec<i64> {
    let rows = lab.sql("select n from business order by n").unwrap();
    rows.concat().iter().map(|n| n.parse().unwrap()).collect()
}

/// Runs a client program of PostgreSQL (`pg_dump`, `psql`) on the lab's server, in the folder of the test.
pub fn program(lab: &Lab, name: &str, arguments: &[&str]) -> std::process::Output {
    std::process::Command::new(lab::paths::Paths::ready().unwrap().pg_bin().join(name))
        .args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &lab.postgres.port().to_string(),
        ])
        .args(arguments)
        .current_dir(lab.nats.dir())
        .output()
        .unwrap()
}
