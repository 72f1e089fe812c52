//! What the end-to-end tests share: waiting with a full account of a failure, and counting what arrived.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_nats::ConnectOptions;
use lab::lab::{DATABASE, LabBuilder};
use lab::nats::NatsServer;
use lab::{Lab, StoredMessage};

/// Longest wait for what should take a moment, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);
/// Longest wait for a backlog, or for what waits for the once-a-minute look.
pub const LATER: Duration = Duration::from_secs(100);

/// A lab with a connected worker and a stream `S` that takes `s.>`.
pub fn lab(settings: &[(&str, &str)]) -> Lab {
    quick_lab(
        settings
            .iter()
            .fold(Lab::builder(), |builder, (name, value)| builder.set(name, value)),
    )
}

/// The same of a builder.
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

/// Asks for a stream and waits until it is there.
pub fn stream(lab: &Lab, name: &str, subject: &str) {
    lab.sql(&format!("select jetstream.create_stream('{name}', array['{subject}'])"))
        .unwrap();
    synced(lab, name);
}

/// Waits until the worker has made the stream.
pub fn synced(lab: &Lab, name: &str) {
    let query =
        format!("select synced_at is not null and sync_error is null from jetstream.streams where name = '{name}'");
    becomes(lab, &format!("stream {name} in sync"), &query, "t");
}

/// Waits until `done` says yes; errors on the way (a server that restarts) are no answer. Panics with all there is to
/// know.
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

/// Waits until a query's value is this.
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

/// Waits until nothing is owed.
pub fn drained(lab: &Lab, limit: Duration) {
    eventually(lab, limit, "an empty outbox", || {
        Ok(lab.value("select not exists (select from jetstream.outbox)")? == "t")
    });
}

/// Waits until this many messages stand in the stream, or more.
pub fn arrived(lab: &Lab, stream: &str, count: u64) {
    eventually(lab, LATER, &format!("{count} messages in {stream}"), || {
        Ok(lab.message_count(stream)? >= count)
    });
}

/// What one wants to know when a test fails.
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

/// The number a message carries.
pub fn number(message: &StoredMessage) -> i64 {
    message.json().unwrap()["n"].as_i64().unwrap()
}

/// The numbers of a stream's messages, in the order of the stream.
pub fn numbers(lab: &Lab, stream: &str) -> Vec<i64> {
    lab.stream_messages(stream).unwrap().iter().map(number).collect()
}

/// Nothing is lost, nothing is there twice, and nothing that was not expected.
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

/// Process id of the worker of database `postgres`, once it runs and is connected.
pub fn worker(lab: &Lab) -> u32 {
    let mut pid = 0;
    eventually(lab, SOON, "a connected worker", || {
        pid = lab
            .value("select pid from jetstream.status() where jetstream.health() ->> 'connected' = 'true'")?
            .parse()?;
        Ok(true)
    });
    pid
}

/// Waits until a worker runs whose process is another one than `before`.
pub fn new_worker(lab: &Lab, before: u32) {
    eventually(lab, SOON, "a new worker", || {
        let pid: u32 = lab
            .value("select pid from jetstream.status() where pid is not null")?
            .parse()?;
        Ok(pid != before)
    });
}

/// A NATS server of its own, as connection `name`.
pub fn connection(lab: &Lab, name: &str) -> NatsServer {
    let nats = NatsServer::start().unwrap();
    lab.sql(&format!(
        "insert into jetstream.connections (name, url, reconnect_delay_ms) values ('{name}', '{}', 50)",
        nats.url()
    ))
    .unwrap();
    nats
}

/// How many messages a stream on another NATS server holds.
pub fn count_on(nats: &NatsServer, stream: &str) -> u64 {
    count_with(ConnectOptions::new(), nats, stream)
}

/// The same of a server that wants to know who asks.
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

/// Sessions that write business rows with their messages until they are told to stop. What `business` holds at the end
/// is what must have arrived; `n` is the number of the message.
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    slowest: Arc<Mutex<Duration>>,
    next: Arc<AtomicI64>,
}

impl Writers {
    /// Makes the table with its trigger.
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

    /// Starts writers, each of which makes one transaction after another, with `pause` between.
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
                        // The server may go at any time; whether this one was committed, `business` will tell.
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

    /// Numbers given out so far.
    pub fn so_far(&self) -> i64 {
        self.next.load(Ordering::Relaxed)
    }

    /// The longest transaction so far.
    pub fn slowest(&self) -> Duration {
        *self.slowest.lock().unwrap()
    }

    /// Stops the writers and says what was committed.
    pub fn finish(self, lab: &Lab) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        committed(lab)
    }
}

/// What `business` holds.
pub fn committed(lab: &Lab) -> Vec<i64> {
    let rows = lab.sql("select n from business order by n").unwrap();
    rows.concat().iter().map(|n| n.parse().unwrap()).collect()
}

/// Runs a client program of PostgreSQL (`pg_dump`, `psql`) on the lab's server, in a folder of the test's own.
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
