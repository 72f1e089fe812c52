//! Keys that fail cost their own messages only, however many they are: beyond what the worker holds in memory too.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use e2e_support::{
    LATER, arrived, connection, count_on, drained, eventually, lab, new_worker, number, stream, synced, worker,
};
use lab::process;
use nix::sys::signal::Signal;

/// More than the worker holds in memory.
const MANY: i64 = 22_000;

#[test]
fn more_failing_keys_than_fit_in_memory_cost_only_their_own_messages() {
    let lab = lab(&[
        ("pg_jetstream.retry_backoff_base", "30s"),
        ("pg_jetstream.retry_backoff_max", "60s"),
    ]);
    stream(&lab, "T", "t.>");
    let other = connection(&lab, "other");
    lab.sql("select jetstream.create_stream('O', array['o.>'], connection => 'other')")
        .unwrap();
    // Three messages of each key.
    lab.sql(&format!(
        "insert into jetstream.outbox (subject, payload, key)
         select 'nostream.' || k, jsonb_build_object('n', n), 'k' || k
         from generate_series(1, 3) n, generate_series(1, {MANY}) k order by n, k"
    ))
    .unwrap();
    eventually(&lab, LATER, "all keys failing", || {
        Ok(lab.value(&format!(
            "select count(*) >= {MANY} from jetstream.outbox where attempts > 0"
        ))? == "t")
    });
    let others_arrive = |round: i64| {
        let before = Instant::now();
        lab.sql(&format!(
            "select jetstream.publish('t.x', '{{\"n\": {round}}}');
             select jetstream.publish('t.x', '{{\"n\": {round}}}', key => 'fresh');
             select jetstream.publish('o.x', '{{\"n\": {round}}}', connection => 'other')"
        ))
        .unwrap();
        eventually(&lab, LATER, "what has nothing to do with them", || {
            Ok(lab.message_count("T")? == 2 * round as u64 && count_on(&other, "O") == round as u64)
        });
        before.elapsed()
    };
    let took = others_arrive(1);
    assert!(took < Duration::from_secs(10), "{took:?}");
    // Nothing of a failing key goes before its first message, also of a worker that knows them from the outbox alone.
    let before = worker(&lab);
    process::signal(before, Signal::SIGTERM).unwrap();
    new_worker(&lab, before);
    lab.sql("select jetstream.publish('t.k1', '{\"n\": 9}', key => 'k1')")
        .unwrap();
    others_arrive(2);
    assert_eq!(
        lab.value("select (held_keys <= 21000)::text || ' ' || verdict from jetstream.status()")
            .unwrap(),
        "true degraded"
    );
    let verdict = lab
        .value("select jetstream.health('default') ->> 'verdict' || ' ' || (jetstream.health('other') ->> 'verdict')")
        .unwrap();
    assert_eq!(verdict, "degraded healthy");
    let reason =
        "select jetstream.health('default') -> 'reasons' -> 0 ->> 'reason' like '%at least 10000 messages%no stream%'";
    assert_eq!(lab.value(reason).unwrap(), "t");
    // One blocker is removed by hand: the rest of its key goes, in order, when there is a stream.
    lab.sql("delete from jetstream.outbox where key = 'k7' and attempts > 0")
        .unwrap();
    stream(&lab, "N", "nostream.>");
    lab.sql("select jetstream.retry()").unwrap();
    drained(&lab, LATER);
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    let messages = lab.stream_messages("N").unwrap();
    assert_eq!(messages.len() as i64, 3 * MANY - 1);
    for message in &messages {
        let n = number(message);
        if let Some(before) = last.insert(message.subject.clone(), n) {
            assert!(before < n, "{n} after {before} of {}", message.subject);
        }
    }
    assert_eq!(last.get("nostream.7"), Some(&3));
    assert_eq!(lab.message_count("T").unwrap(), 5);
}

#[test]
fn a_full_stream_of_captured_changes_costs_only_their_own() {
    let lab = lab(&[
        ("pg_jetstream.retry_backoff_base", "30s"),
        ("pg_jetstream.retry_backoff_max", "60s"),
    ]);
    stream(&lab, "T", "t.>");
    let other = connection(&lab, "other");
    lab.sql(
        "select jetstream.create_stream('O', array['o.>'], connection => 'other');
         select jetstream.create_stream('FULL', array['postgres.>'], discard => 'new', max_messages => 1);
         create table wide (id int primary key, n int);
         insert into wide select id, 0 from generate_series(1, 30000) id",
    )
    .unwrap();
    synced(&lab, "FULL");
    lab.sql("select jetstream.capture('wide', stream => 'FULL')").unwrap();
    // More keys than fit in memory, of which one finds room.
    lab.sql("update wide set n = 1").unwrap();
    let mut slowest = Duration::ZERO;
    let mut round = 0;
    let failed = "select count(*) > 20500 from jetstream.outbox where attempts > 0";
    let deadline = Instant::now() + LATER;
    loop {
        // Before, while and after they fail.
        let last = lab.value(failed).unwrap() == "t";
        round += 1;
        let before = Instant::now();
        lab.sql(
            "select jetstream.publish('t.x', '1');
             select jetstream.publish('o.x', '1', connection => 'other')",
        )
        .unwrap();
        arrived(&lab, "T", round);
        eventually(&lab, LATER, "what another connection publishes", || {
            Ok(count_on(&other, "O") == round)
        });
        slowest = slowest.max(before.elapsed());
        if last {
            break;
        }
        assert!(Instant::now() < deadline, "{}", e2e_support::account(&lab));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(slowest < Duration::from_secs(25), "{slowest:?}");
    assert_eq!(lab.message_count("FULL").unwrap(), 1);
    let verdict = "select verdict || ' ' || (jetstream.health('other') ->> 'verdict') || ' '
                       || (jetstream.health('default') -> 'reasons' -> 0 ->> 'reason' like '%messages%maximum messages exceeded%')
                   from jetstream.status()";
    assert_eq!(lab.value(verdict).unwrap(), "degraded healthy true");
}
