//! Old snapshots, open transactions, late commits and locked rows: no message is missed, and none waits.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::{Duration, Instant};

use e2e_support::{LATER, SOON, arrived, drained, eventually, exactly_once, insert, lab, new_worker, numbers, worker};
use lab::lab::DATABASE;
use lab::process;
use nix::sys::signal::Signal;

/// A backlog drains at its usual speed while one session holds an old snapshot, and another one has an open transaction
/// with messages of its own. Those arrive when the transaction commits.
#[test]
fn a_backlog_drains_under_an_old_snapshot_and_an_open_transaction() {
    let lab = lab(&[]);
    let mut time = Vec::new();
    let mut from = 0;
    let mut drain = |held: i64| {
        lab.sql("select jetstream.pause()").unwrap();
        lab.sql(&insert("s.backlog", from + 1, from + 50_000)).unwrap();
        from += 50_000;
        let start = Instant::now();
        lab.sql("select jetstream.resume()").unwrap();
        arrived(&lab, "S", (from - held) as u64);
        time.push(start.elapsed());
    };
    drain(0);
    let mut reader = lab.postgres.client(DATABASE).unwrap();
    reader.batch_execute("begin isolation level repeatable read").unwrap();
    let seen: i64 = reader
        .query_one("select count(*) from jetstream.outbox", &[])
        .unwrap()
        .get(0);
    let mut open = lab.postgres.client(DATABASE).unwrap();
    open.batch_execute(&format!(
        "begin; {}; savepoint a; {}",
        insert("s.open", 1_000_001, 1_000_010),
        insert("s.open", 1_000_011, 1_000_020)
    ))
    .unwrap();
    for _ in 0..3 {
        drain(0);
    }
    open.batch_execute("commit").unwrap();
    drained(&lab, SOON);
    let still: i64 = reader
        .query_one("select count(*) from jetstream.outbox", &[])
        .unwrap()
        .get(0);
    assert_eq!(still, seen, "the snapshot was not old");
    reader.batch_execute("commit").unwrap();
    exactly_once(&lab, "S", (1..=200_000).chain(1_000_001..=1_000_020));
    let (first, last) = (time[0], time[3]);
    assert!(
        last < first * 2 + Duration::from_secs(2),
        "the drain became slower and slower: {time:?}"
    );
}

#[test]
fn late_committers_with_savepoints_are_published_once_and_none_is_missed() {
    let lab = lab(&[]);
    let conninfo = lab.postgres.conninfo(DATABASE);
    lab.sql("create table truth (n bigint)").unwrap();
    let writers: Vec<_> = (0..8_i64)
        .map(|writer| {
            let conninfo = conninfo.clone();
            std::thread::spawn(move || {
                let mut client = postgres::Client::connect(&conninfo, postgres::NoTls).unwrap();
                for round in 0..60_i64 {
                    let n = writer * 1_000_000 + round * 1_000;
                    let put = |n: i64| format!("insert into truth values ({n}); {};", insert("s.late", n, n));
                    client.batch_execute(&format!("begin; {}", put(n))).unwrap();
                    for point in 1..=5 + round % 3 * 40 {
                        let end = if point % 3 == 0 { "rollback to p" } else { "release p" };
                        client
                            .batch_execute(&format!("savepoint p; {} {end}", put(n + point)))
                            .unwrap();
                    }
                    // Some transactions commit immediately, some late, and some never.
                    if (writer + round) % 4 == 0 {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    client
                        .batch_execute(if round % 10 == 9 { "rollback" } else { "commit" })
                        .unwrap();
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    drained(&lab, LATER);
    let truth = lab.sql("select n from truth").unwrap().concat();
    assert!(truth.len() > 5_000, "{}", truth.len());
    exactly_once(&lab, "S", truth.iter().map(|n| n.parse().unwrap()));
}

#[test]
fn prepared_transactions_arrive_when_they_are_committed() {
    let mut lab = lab(&[]);
    for n in 1..=3 {
        lab.sql(&format!(
            "begin; {}; prepare transaction 'p{n}'",
            insert("s.prepared", n, n)
        ))
        .unwrap();
    }
    lab.sql(&insert("s.other", 100, 1_000)).unwrap();
    drained(&lab, SOON);
    lab.sql("commit prepared 'p1'").unwrap();
    lab.sql("rollback prepared 'p2'").unwrap();
    drained(&lab, SOON);
    arrived(&lab, "S", 902);
    // One prepared transaction survives a restart, and the new worker has never seen it in progress.
    lab.postgres.restart().unwrap();
    worker(&lab);
    lab.sql(&insert("s.other", 1_001, 2_000)).unwrap();
    drained(&lab, SOON);
    lab.sql("commit prepared 'p3'").unwrap();
    arrived(&lab, "S", 1_903);
    drained(&lab, SOON);
    exactly_once(&lab, "S", (100..=2_000).chain([1, 3]));
}

#[test]
fn rows_somebody_holds_are_skipped_and_published_after_their_release() {
    let lab = lab(&[]);
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&insert("s.locked", 1, 2_000)).unwrap();
    let mut operator = lab.postgres.client(DATABASE).unwrap();
    operator
        .batch_execute(
            "begin; select from jetstream.outbox where (payload ->> 'n')::int between 500 and 510 for update",
        )
        .unwrap();
    lab.sql("select jetstream.resume()").unwrap();
    arrived(&lab, "S", 1_989);
    // The operator deletes one row, changes another, and unlocks the rest. The changed row is found immediately.
    operator
        .batch_execute("delete from jetstream.outbox where payload ->> 'n' = '500'")
        .unwrap();
    operator
        .batch_execute("update jetstream.outbox set payload = '{\"n\": 5050}' where payload ->> 'n' = '505'; commit")
        .unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", (1..=2_000).filter(|n| *n != 500 && *n != 505).chain([5_050]));
}

/// A bulk delete that has not committed, or any lock of thousands of rows. Messages after them are sent, whether they
/// are due or scheduled.
#[test]
fn thousands_of_rows_somebody_holds_are_skipped() {
    let lab = lab(&[]);
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&insert("s.locked", 1, 10_000)).unwrap();
    lab.sql(
        "insert into jetstream.outbox (subject, payload, deliver_at)
         select 's.later', jsonb_build_object('n', n), now() + n * interval '1 microsecond'
         from generate_series(10001, 20000) n",
    )
    .unwrap();
    let mut operator = lab.postgres.client(DATABASE).unwrap();
    operator.batch_execute("begin").unwrap();
    let held = operator.execute(
        "delete from jetstream.outbox where (payload ->> 'n')::int % 10000 between 1 and 6000",
        &[],
    );
    assert_eq!(held.unwrap(), 12_000);
    lab.sql("select jetstream.resume()").unwrap();
    arrived(&lab, "S", 8_000);
    // The locked rows are not scanned again and again. The worker is idle, except that it polls for messages that are
    // due.
    let cycles = || lab.value("select cycles from jetstream.worker_status()").unwrap();
    let before: i64 = cycles().parse().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let after: i64 = cycles().parse().unwrap();
    assert!(after - before < 200, "{} cycles in two seconds", after - before);
    operator.batch_execute("commit").unwrap();
    drained(&lab, SOON);
    exactly_once(&lab, "S", (6_001..=10_000).chain(16_001..=20_000));
}

/// A lock that is released without a change is noticed by the sweep, once a minute.
#[test]
fn a_row_that_was_only_locked_is_found_by_the_sweep() {
    let lab = lab(&[]);
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&insert("s.locked", 1, 10)).unwrap();
    let mut operator = lab.postgres.client(DATABASE).unwrap();
    operator
        .batch_execute("begin; select from jetstream.outbox where payload ->> 'n' = '5' for update")
        .unwrap();
    lab.sql("select jetstream.resume()").unwrap();
    arrived(&lab, "S", 9);
    operator.batch_execute("rollback").unwrap();
    drained(&lab, LATER);
    exactly_once(&lab, "S", 1..=10);
}

/// If another session has locked the row of a message, only the settlement of this message waits. The worker continues
/// with all others.
#[test]
fn a_row_locked_while_its_message_is_in_flight_does_not_stop_the_worker() {
    let lab = lab(&[]);
    lab.nats.pause().unwrap();
    lab.sql(&insert("s.flight", 1, 3)).unwrap();
    eventually(&lab, SOON, "messages are in flight", || {
        Ok(lab.value("select in_flight from jetstream.status()")? == "3")
    });
    let mut operator = lab.postgres.client(DATABASE).unwrap();
    operator
        .batch_execute("begin; select from jetstream.outbox where payload ->> 'n' = '2' for update")
        .unwrap();
    lab.nats.resume().unwrap();
    arrived(&lab, "S", 3);
    lab.sql(&insert("s.flight", 4, 1_000)).unwrap();
    eventually(&lab, SOON, "all but the locked row are settled", || {
        Ok(lab.value("select count(*) from jetstream.outbox")? == "1")
    });
    let before = worker(&lab);
    operator.batch_execute("commit").unwrap();
    drained(&lab, SOON);
    assert_eq!(worker(&lab), before, "the worker was replaced");
    exactly_once(&lab, "S", 1..=1_000);
}

/// A lock on the whole table (VACUUM FULL, ALTER TABLE) delays the worker, but does not end it.
#[test]
fn a_locked_table_holds_messages_up_and_nothing_else() {
    let lab = lab(&[]);
    let pid = worker(&lab);
    let mut operator = lab.postgres.client(DATABASE).unwrap();
    lab.nats.pause().unwrap();
    lab.sql(&insert("s.table", 1, 500)).unwrap();
    operator.batch_execute("begin; lock table jetstream.outbox").unwrap();
    lab.nats.resume().unwrap();
    let waiting = "select last_error like '%lock%' from jetstream.worker_status()";
    eventually(&lab, SOON, "the worker reports that it waits", || {
        Ok(lab.value(waiting)? == "t")
    });
    operator
        .batch_execute("alter table jetstream.outbox add column mine text; commit")
        .unwrap();
    lab.sql(&insert("s.table", 501, 1_000)).unwrap();
    drained(&lab, SOON);
    assert_eq!(worker(&lab), pid, "the worker was replaced");
    exactly_once(&lab, "S", 1..=1_000);
    // The result of synchronizing a stream is not lost while another session has locked its row.
    operator
        .batch_execute("begin; select from jetstream.streams where name = 'S' for update")
        .unwrap();
    lab.sql("select jetstream.reload()").unwrap();
    lab.sql("select jetstream.create_stream('T', array['t.>'])").unwrap();
    e2e_support::synced(&lab, "T");
    operator
        .batch_execute("update jetstream.streams set max_messages = 5000 where name = 'S'; commit")
        .unwrap();
    lab.sql("update jetstream.streams set synced_at = null where name = 'S'")
        .unwrap();
    operator
        .batch_execute("begin; select from jetstream.streams where name = 'S' for update")
        .unwrap();
    lab.sql("select jetstream.reload()").unwrap();
    lab.sql(&insert("s.table", 1_001, 1_100)).unwrap();
    arrived(&lab, "S", 1_100);
    operator.batch_execute("commit").unwrap();
    e2e_support::synced(&lab, "S");
}

#[test]
fn a_sequence_set_back_loses_nothing() {
    let lab = lab(&[]);
    lab.sql(&insert("s.before", 1, 1_000)).unwrap();
    drained(&lab, SOON);
    lab.sql("alter sequence jetstream.outbox_id_seq restart").unwrap();
    lab.sql(&insert("s.after", 1_001, 1_100)).unwrap();
    drained(&lab, SOON);
    // The sequence is reset once more, and this time it passes its old value before the worker can scan anything.
    lab.sql(&format!(
        "begin; alter sequence jetstream.outbox_id_seq restart; {}; commit",
        insert("s.after", 1_101, 3_100)
    ))
    .unwrap();
    drained(&lab, LATER);
    exactly_once(&lab, "S", 1..=3_100);
    let duplicates = lab
        .value("select count(*) from jetstream.history where duplicate")
        .unwrap();
    assert_eq!(duplicates, "0", "ids were reused");
}

#[test]
fn a_worker_that_starts_finds_all_there_is() {
    let lab = lab(&[]);
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(&insert("s.x", 1, 100)).unwrap();
    lab.sql("update jetstream.outbox set attempts = 3, last_error = 'x', failed_at = now(), deliver_at = now() where id % 3 = 0").unwrap();
    let pid = worker(&lab);
    process::signal(pid, Signal::SIGTERM).unwrap();
    new_worker(&lab, pid);
    lab.sql("select jetstream.resume()").unwrap();
    drained(&lab, SOON);
    let mut got = numbers(&lab, "S");
    got.sort_unstable();
    assert_eq!(got, (1..=100).collect::<Vec<_>>());
}

/// A restored row has the transaction id of another cluster, which is higher than every id of this one.
#[test]
fn a_restored_keyed_message_goes_in_its_turn_while_somebody_is_at_work() {
    let lab = lab(&[]);
    let mut open = lab.postgres.client(DATABASE).unwrap();
    open.batch_execute("begin; select pg_current_xact_id()").unwrap();
    lab.sql(&insert("s.x", 1, 1)).unwrap();
    drained(&lab, SOON);
    lab.sql(
        "insert into jetstream.outbox (txid, subject, payload, key) values ('9000000000', 's.k', '{\"n\": 2}', 'k')",
    )
    .unwrap();
    lab.sql("select jetstream.publish('s.k', '{\"n\": 3}', key => 'k')")
        .unwrap();
    drained(&lab, SOON);
    assert_eq!(numbers(&lab, "S"), [1, 2, 3]);
    open.batch_execute("commit").unwrap();
}

/// Messages that are due immediately do not wait for a scan through the dead rows of scheduled messages.
#[test]
fn dead_rows_of_delayed_messages_hold_up_nothing_under_an_old_snapshot() {
    let lab = lab(&[("autovacuum", "off")]);
    let mut n = 0;
    let mut latency = || -> f64 {
        for _ in 0..100 {
            n += 1;
            lab.sql(&insert("s.one", n, n)).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        drained(&lab, SOON);
        let median = "select percentile_cont(0.5) within group (order by latency_ms) from \
             (select latency_ms from jetstream.history order by published_at desc limit 100) h";
        lab.value(median).unwrap().parse().unwrap()
    };
    let before = latency();
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(
        "insert into jetstream.outbox (subject, payload, deliver_at) \
         select 's.many', '1', now() - interval '1 minute' from generate_series(1, 200000)",
    )
    .unwrap();
    let mut reader = lab.postgres.client(DATABASE).unwrap();
    reader
        .batch_execute("begin isolation level repeatable read; select count(*) from jetstream.outbox")
        .unwrap();
    lab.sql("delete from jetstream.outbox").unwrap();
    lab.sql("select jetstream.resume()").unwrap();
    let after = latency();
    assert!(
        after < before * 5.0 + 15.0,
        "latency rose from {before} ms to {after} ms"
    );
    // Messages are found both before and after the part that has been scanned.
    for (place, number) in [("- interval '1 hour'", 1_001), ("+ interval '1 second'", 1_002)] {
        let delayed = insert("s.delayed", number, number)
            .replace("(subject, payload)", "(deliver_at, subject, payload)")
            .replace("select '", &format!("select now() {place}, '"));
        lab.sql(&delayed).unwrap();
    }
    drained(&lab, SOON);
    exactly_once(&lab, "S", (1..=200).chain([1_001, 1_002]));
    reader.batch_execute("commit").unwrap();
}

#[test]
fn many_that_are_due_at_once_are_walked_through_once_under_an_old_snapshot() {
    let lab = lab(&[("autovacuum", "off"), ("pg_jetstream.batch_size", "500")]);
    let mut reader = lab.postgres.client(DATABASE).unwrap();
    reader
        .batch_execute("begin isolation level repeatable read; select count(*) from jetstream.outbox")
        .unwrap();
    lab.sql("select jetstream.pause()").unwrap();
    lab.sql(
        "insert into jetstream.outbox (subject, payload, message_id, deliver_at) \
         select 's.many', jsonb_build_object('n', n), 'm' || n, now() - interval '1 hour' from generate_series(1, 20000) n",
    )
    .unwrap();
    lab.sql("select jetstream.resume()").unwrap();
    drained(&lab, LATER);
    exactly_once(&lab, "S", 1..=20_000);
    // The worker reports its statistics some time later.
    let read = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'outbox_due'";
    let mut entries = 0;
    eventually(&lab, SOON, "what the worker read is counted", || {
        entries = lab.value(read)?.parse::<u64>()?;
        Ok(entries >= 20_000)
    });
    assert!(entries < 200_000, "{entries} entries were read for 20000 messages");
    reader.batch_execute("commit").unwrap();
}
