//! The worker's effect on the server: its memory, its threads, and its work when idle.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::fs;
use std::time::Duration;

use e2e_support::{LATER, SOON, arrived, drained, eventually, insert, lab, worker};
use lab::lab::DATABASE;
use nix::sys::signal::Signal;

/// A line of /proc/<pid>/status. Sizes are in kB.
fn proc_status(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with(name))
        .unwrap_or_else(|| panic!("{name}: {status}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_million_messages_owed_fit_into_a_hundred_megabytes() {
    let lab = lab(&[("pg_jetstream.history", "none"), ("max_wal_size", "4GB")]);
    let pid = worker(&lab);
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(
        "set synchronous_commit = off;
         insert into jetstream.outbox (subject, payload, key)
         select 's.m', jsonb_build_object('n', n, 'filler', repeat('x', 200)), case when n % 2 = 0 then 'k' || n % 50000 end
         from generate_series(1, 1000000) n",
    )
    .unwrap();
    lab.sql("select jetstream.resume()").unwrap();
    arrived(&lab, "S", 200_000);
    let (peak, own) = (proc_status(pid, "VmHWM:") / 1024, proc_status(pid, "RssAnon:") / 1024);
    assert_eq!(worker(&lab), pid);
    assert!(
        own < 100,
        "{own} MB of private memory, peak of {peak} MB with shared memory"
    );
    assert!(peak < 100 + 32, "peak of {peak} MB, of which 32 are shared buffers");
}

/// The threads of a process, the main thread first, and the signals that each does not block.
fn threads(pid: u32) -> Vec<(String, Vec<u32>)> {
    let mut tasks: Vec<_> = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().collect();
    tasks.sort_by_key(|task| task.file_name().to_str() != Some(&pid.to_string()));
    // A thread may end while its files are being read.
    tasks
        .iter()
        .filter_map(|task| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let line = |name: &str| {
                Some(
                    status
                        .lines()
                        .find_map(|line| line.strip_prefix(name))?
                        .trim()
                        .to_owned(),
                )
            };
            let blocked = u64::from_str_radix(&line("SigBlk:")?, 16).unwrap();
            // SIGKILL and SIGSTOP are excluded, because they cannot be blocked.
            let open = (1..=31_u32).filter(|signal| ![9, 19].contains(signal) && blocked & 1 << (signal - 1) == 0);
            Some((line("Name:")?, open.collect()))
        })
        .collect()
}

/// If another thread received a signal, the signal would set that thread's latch and be lost, or run PostgreSQL code
/// there.
#[test]
fn signals_reach_the_main_thread_alone() {
    let mut lab = lab(&[]);
    // With a host name, the runtime starts threads for lookups, again for each connection.
    let url = lab.nats.url().replace("127.0.0.1", "localhost");
    lab.sql(&format!("update jetstream.connections set url = '{url}'"))
        .unwrap();
    lab.sql(&insert("s.x", 1, 10_000)).unwrap();
    let pid = worker(&lab);
    let mut most = 0;
    for round in 0..40 {
        for _ in 0..100 {
            for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGURG] {
                lab::process::signal(pid, signal).unwrap();
            }
        }
        if round % 10 == 0 {
            lab.sql("select jetstream.reload()").unwrap();
            lab.sql(&insert("s.x", 10_001 + round * 100, 11_000 + round * 100))
                .unwrap();
        }
        let threads = threads(pid);
        most = most.max(threads.len());
        assert!(!threads[0].1.is_empty(), "the main thread blocks signals: {threads:?}");
        let closed = threads[1..].iter().all(|(_, open)| open.is_empty());
        assert!(closed, "signals are not blocked in {threads:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(most >= 3, "no lookup thread was seen next to the relay's");
    drained(&lab, SOON);
    arrived(&lab, "S", 14_000);
    assert_eq!(worker(&lab), pid, "the worker was replaced");
    // The last of many reloads is applied.
    lab.postgres.set(&[("pg_jetstream.databases", "")]).unwrap();
    eventually(&lab, SOON, "the worker ends", || Ok(!lab::process::alive(pid)));
}

#[test]
fn an_idle_worker_makes_few_transactions_and_little_noise() {
    let lab = lab(&[("autovacuum", "off")]);
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    drained(&lab, SOON);
    let pid = worker(&lab);
    let count = |query: &str| lab.value(query).unwrap().parse::<i64>().unwrap();
    let cycles = "select cycles from jetstream.status()";
    let commits = "select xact_commit from pg_stat_database where datname = 'postgres'";
    let cpu = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    std::thread::sleep(Duration::from_secs(2));
    let (log, before, commits_before, cpu_before) = (lab.postgres.log().len(), count(cycles), count(commits), cpu());
    std::thread::sleep(Duration::from_secs(5));
    let made = count(cycles) - before;
    assert!(made <= 5, "{made} cycles in 5 s");
    let made = count(commits) - commits_before;
    assert!(made <= 40, "{made} transactions in 5 s");
    let used = cpu() - cpu_before;
    assert!(used <= 10, "{used} hundredths of a second of processor time in 5 s");
    assert_eq!(lab.postgres.log().len(), log, "{}", lab.postgres.log_tail());
    // An idle worker holds neither a snapshot nor a transaction.
    let held = "select count(*) from pg_stat_activity where backend_type ilike 'pg_jetstream%' \
                and (backend_xmin is not null or backend_xid is not null)";
    eventually(&lab, SOON, "no snapshot is held", || Ok(lab.value(held)? == "0"));
}

#[test]
fn what_the_worker_does_is_seen_where_one_looks() {
    let lab = lab(&[]);
    let pid = worker(&lab);
    let seen = lab.sql("select pid, backend_type, application_name, state, datname from pg_stat_activity where backend_type ilike 'pg_jetstream worker%'").unwrap();
    assert_eq!(seen[0][0], pid.to_string());
    assert_eq!(seen[0][2..], ["pg_jetstream", "idle", DATABASE], "{seen:?}");
    lab.sql(&insert("s.x", 1, 5_000)).unwrap();
    drained(&lab, LATER);
    // Deleted rows are counted, so that autovacuum notices them.
    let deleted =
        "select n_tup_del >= 5000 from pg_stat_user_tables where schemaname = 'jetstream' and relname = 'outbox'";
    eventually(&lab, SOON, "statistics", || Ok(lab.value(deleted)? == "t"));
    let status = lab.sql("select worker, state, in_flight, claimed, stored, duplicates, retried, dead, lag is null from jetstream.status()").unwrap();
    assert_eq!(status, [["postgres", "idle", "0", "5000", "5000", "0", "0", "0", "t"]]);
    let health = lab
        .value("select jetstream.health() - 'detail' - 'worker_pid'")
        .unwrap();
    for part in [
        "\"healthy\": true",
        "\"owed\": false",
        "\"dead_letters\": 0",
        "\"connected\": true",
    ] {
        assert!(health.contains(part), "{part}: {health}");
    }
    assert_eq!(
        lab.value("select successful from jetstream.publish_summary").unwrap(),
        "5000"
    );
    assert_eq!(
        lab.value("select count from jetstream.performance where stream = 'S'")
            .unwrap(),
        "5000"
    );
    eventually(&lab, SOON, "a position", || {
        Ok(lab.value("select coalesce(max(last_sequence), 0) from jetstream.positions where stream = 'S'")? == "5000")
    });
}
