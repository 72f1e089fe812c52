//! The queue of webhook calls: claims, leases, outcomes and retries.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;
mod webhook_support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2e_support::{SOON, eventually};
use lab::lab::DATABASE;
use postgres::Client;
use webhook_support::{call, claim, status, webhooks};

#[test]
fn many_claimers_get_each_call_once() {
    let lab = webhooks();
    lab.sql("select jetstream.rule_webhook_enqueue(1, to_jsonb(n)) from generate_series(1, 2000) n")
        .unwrap();
    let threads: Vec<_> = (0..6)
        .map(|number| {
            let conninfo = lab.postgres.conninfo(DATABASE);
            std::thread::spawn(move || {
                let mut client = Client::connect(&conninfo, postgres::NoTls).unwrap();
                let name = format!("w{number}");
                let mut mine = Vec::new();
                loop {
                    let rows = client
                        .query(
                            "select call_id, attempt from jetstream.webhook_claim($1, 7, '1 minute')",
                            &[&name],
                        )
                        .unwrap();
                    if rows.is_empty() {
                        return mine;
                    }
                    for row in rows {
                        let (id, attempt): (i64, i32) = (row.get(0), row.get(1));
                        let finish = "select jetstream.webhook_complete($1, 204, null, 1.5, $2, $3)";
                        client.execute(finish, &[&id, &name, &attempt]).unwrap();
                        mine.push(id);
                    }
                }
            })
        })
        .collect();
    let all: Vec<i64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert_eq!(all.len(), 2000);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 2000);
    let done = lab.value("select count(*) from jetstream.webhook_calls where status = 'succeeded' and attempts = 1");
    assert_eq!(done.unwrap(), "2000");
}

#[test]
fn a_lease_that_runs_out_gives_the_call_back() {
    let lab = webhooks();
    lab.sql("update jetstream.webhooks set max_attempts = 3").unwrap();
    call(&lab, 1, "");
    assert_eq!(claim(&lab, "a", 10, "1 minute"), [1]);
    assert_eq!(
        claim(&lab, "b", 10, "1 minute"),
        [0i64; 0],
        "the call is already claimed"
    );
    lab.sql("update jetstream.webhook_calls set lease_until = clock_timestamp() - interval '1 ms'")
        .unwrap();
    assert_eq!(claim(&lab, "b", 10, "50 ms"), [1]);
    assert_eq!(status(&lab, 1)[..2], ["claimed", "2"]);
    // The first worker reports late. What worker b has claimed since does not belong to it.
    assert_eq!(
        lab.failure("select jetstream.webhook_complete(1, 200, worker => 'a')")
            .unwrap(),
        "55000"
    );
    assert_eq!(
        lab.failure("select jetstream.webhook_fail(1, 'x', worker => 'a')")
            .unwrap(),
        "55000"
    );
    assert_eq!(
        lab.failure("select jetstream.webhook_complete(1, 200, attempt => 1)")
            .unwrap(),
        "55000"
    );
    // A call that kills its workers is dead after its last attempt.
    eventually(&lab, SOON, "the call is claimed a third time", || {
        Ok(claim(&lab, "c", 10, "50 ms") == [1])
    });
    eventually(&lab, SOON, "its end", || {
        assert!(claim(&lab, "d", 10, "50 ms").is_empty());
        Ok(status(&lab, 1)[0] == "dead")
    });
    assert_eq!(
        status(&lab, 1),
        ["dead", "3", "worker c did not come back within its lease", "0"]
    );
    assert_eq!(
        lab.value("select error_message from jetstream.webhook_recent_failures")
            .unwrap(),
        "worker c did not come back within its lease"
    );
}

#[test]
fn a_finished_call_cannot_be_finished_again() {
    let lab = webhooks();
    (0..3).for_each(|_| drop(call(&lab, 1, "")));
    assert_eq!(
        lab.failure("select jetstream.webhook_complete(1, 200)").unwrap(),
        "55000",
        "not claimed"
    );
    assert_eq!(claim(&lab, "w", 10, "1 minute"), [1, 2, 3]);
    let one = |query: &str| lab.value(query).unwrap();
    assert_eq!(
        one("select jetstream.webhook_complete(1, 200, repeat('x', 20000), 12.5)"),
        "succeeded"
    );
    assert_eq!(
        lab.sql(
            "select length(response_body), response_ms, completed_at is not null, error is null
                 from jetstream.webhook_calls where id = 1"
        )
        .unwrap(),
        [["16384", "12.5", "t", "t"]]
    );
    assert_eq!(one("select jetstream.webhook_fail(2, 'bad', retry => false)"), "dead");
    assert_eq!(one("select jetstream.webhook_complete(3, 404, 'no')"), "dead");
    assert_eq!(status(&lab, 3), ["dead", "1", "HTTP status 404", "404"]);
    for call in 1..=3 {
        for end in [
            format!("webhook_complete({call}, 200)"),
            format!("webhook_fail({call}, 'x')"),
        ] {
            assert_eq!(
                lab.failure(&format!("select jetstream.{end}")).unwrap(),
                "55000",
                "{end}"
            );
        }
    }
    assert_eq!(
        lab.failure("select jetstream.webhook_complete(99, 200)").unwrap(),
        "42704"
    );
    assert_eq!(
        lab.failure("select jetstream.webhook_complete(1, null)").unwrap(),
        "22023"
    );
    for wrong in [
        "'', 1, '1 s'",
        "'w', 0, '1 s'",
        "'w', null, '1 s'",
        "'w', 1, '0'",
        "'w', 1, null",
    ] {
        assert_eq!(
            lab.failure(&format!("select jetstream.webhook_claim({wrong})"))
                .unwrap(),
            "22023",
            "{wrong}"
        );
    }
    // Retried by hand, the call starts again from the beginning. A deleted call cannot be retried.
    assert_eq!(one("select jetstream.rule_webhook_retry(3)"), "t");
    assert_eq!(one("select jetstream.rule_webhook_retry(1)"), "f");
    assert_eq!(status(&lab, 3)[..2], ["pending", "0"]);
    assert_eq!(one("select jetstream.rule_webhook_cleanup_old_calls('0', false)"), "2");
    assert_eq!(lab.failure("select jetstream.rule_webhook_retry(1)").unwrap(), "42704");
    assert_eq!(
        lab.failure("select jetstream.rule_webhook_call_status(1)").unwrap(),
        "42704"
    );
    assert_eq!(
        one("select jetstream.rule_webhook_call_status(3) ->> 'status'"),
        "pending"
    );
}

#[test]
fn a_failed_call_is_tried_again_with_backoff() {
    let lab = webhooks();
    lab.sql("update jetstream.webhooks set retry_base_ms = 100000, retry_multiplier = 3, retry_max_ms = 500000")
        .unwrap();
    call(&lab, 1, "");
    let mut delays = Vec::new();
    for end in ["webhook_complete(1, 503)", "webhook_fail(1, 'timeout')"] {
        assert_eq!(claim(&lab, "w", 1, "1 minute"), [1]);
        assert_eq!(lab.value(&format!("select jetstream.{end}")).unwrap(), "failed");
        let delay = "select extract(epoch from scheduled_at - clock_timestamp()) from jetstream.webhook_calls";
        delays.push(lab.value(delay).unwrap().parse::<f64>().unwrap());
        assert_eq!(claim(&lab, "w", 1, "1 minute"), [0i64; 0]);
        assert_eq!(lab.value("select jetstream.webhook_retry(1)").unwrap(), "t");
    }
    assert!(
        (85.0..=110.0).contains(&delays[0]) && (265.0..=330.0).contains(&delays[1]),
        "{delays:?}"
    );
    assert_eq!(claim(&lab, "w", 1, "1 minute"), [1]);
    assert_eq!(
        lab.value("select jetstream.webhook_complete(1, 429)").unwrap(),
        "dead",
        "there was no attempt left"
    );
    // The delay is the one that the endpoint requests.
    call(&lab, 1, "");
    assert_eq!(claim(&lab, "w", 1, "1 minute"), [2]);
    lab.sql("select jetstream.webhook_fail(2, 'busy', retry_after => '1 hour', status => 429)")
        .unwrap();
    let later =
        "select scheduled_at > clock_timestamp() + interval '50 minutes' from jetstream.webhook_calls where id = 2";
    assert_eq!(lab.value(later).unwrap(), "t");
}

#[test]
fn claiming_stays_fast_with_a_long_history() {
    let lab = webhooks();
    let mut client = lab.postgres.client(DATABASE).unwrap();
    let mut rounds = |what: &str| {
        client
            .batch_execute("select jetstream.rule_webhook_enqueue(1, to_jsonb(n)) from generate_series(1, 300) n")
            .unwrap();
        let mut times: Vec<Duration> = (0..30)
            .map(|_| {
                let begin = Instant::now();
                let rows = client
                    .query("select call_id from jetstream.webhook_claim('w', 10)", &[])
                    .unwrap();
                let time = begin.elapsed();
                assert_eq!(rows.len(), 10);
                for row in rows {
                    let id: i64 = row.get(0);
                    client
                        .execute("select jetstream.webhook_complete($1, 200)", &[&id])
                        .unwrap();
                }
                time
            })
            .collect();
        times.sort();
        println!("{what}: median {:?}, slowest {:?}", times[15], times[29]);
        times[15]
    };
    let fresh = rounds("empty queue");
    lab.sql(
        "insert into jetstream.webhook_calls (webhook, message_id, url, method, headers, timeout_ms, max_attempts, status,
             completed_at, scheduled_at)
         select 1, n::text, 'https://example.com', 'POST', '{}', 1000, 3, 'succeeded', clock_timestamp(),
                clock_timestamp() - n * interval '1 s'
         from generate_series(1, 500000) n",
    )
    .unwrap();
    let full = rounds("500000 finished calls");
    assert!(
        full < fresh * 3 + Duration::from_millis(10),
        "{fresh:?} became {full:?}"
    );
}

#[test]
fn claiming_stays_fast_with_many_calls_that_are_due_later() {
    let lab = webhooks();
    lab.sql(
        "insert into jetstream.webhook_calls (webhook, message_id, url, method, headers, payload, timeout_ms, max_attempts, scheduled_at)
         select 1, 'later-' || n, 'https://example.com/', 'POST', '{}', '{}', 1000, 3, now() + interval '1 day'
         from generate_series(1, 100000) n",
    )
    .unwrap();
    lab.sql("vacuum analyze jetstream.webhook_calls").unwrap();
    lab.sql("select pg_stat_reset()").unwrap();
    for _ in 0..20 {
        assert!(claim(&lab, "w", 10, "1 minute").is_empty());
    }
    // Compares rows that were read, because times mean little on a busy machine.
    let read = "select pg_stat_get_tuples_fetched('jetstream.webhook_calls'::regclass)
                     + pg_stat_get_tuples_returned('jetstream.webhook_calls'::regclass)
                     + (select sum(idx_tup_read) from pg_stat_all_indexes where relid = 'jetstream.webhook_calls'::regclass)";
    std::thread::sleep(Duration::from_secs(2));
    let read: i64 = lab.value(read).unwrap().parse().unwrap();
    assert!(read < 1_000, "{read} rows read");
}
