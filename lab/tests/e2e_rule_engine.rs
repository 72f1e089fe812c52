//! The rule engine's functions and views under their own names do what its documents promise.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;
mod rule_engine_support;

use std::time::{Duration, Instant};

use e2e_support::{SOON, becomes, drained, eventually, lab, synced, worker};
use lab::lab::DATABASE;
use lab::nats::NatsServer;
use postgres::{Client, SimpleQueryMessage};
use rule_engine_support::{json, session};
use serde_json::Value;

#[test]
fn rule_nats_init_says_what_the_connection_says() {
    let mut lab = lab(&[]);
    worker(&lab);
    let mut client = session(&lab);
    let first = json(&lab, "select jetstream.rule_nats_init('default')");
    assert_eq!(first["success"], true, "{first}");
    assert_eq!(first["config"], "default");
    assert_eq!(first["nats_url"], lab.nats.url());
    assert_eq!(first["jetstream_enabled"], true);
    assert_eq!(first["stream_name"], "WEBHOOKS");
    synced(&lab, "WEBHOOKS");

    let health = json(&lab, "select jetstream.rule_nats_health_check('default')");
    assert_eq!(health["success"], true, "{health}");
    assert_eq!(health["connected"], true);
    assert_eq!(health["jetstream_enabled"], true);
    assert_eq!(health["pool_stats"]["total_connections"], 1);
    assert_eq!(health["pool_stats"]["healthy_connections"], 1);
    assert_eq!(health["pool_stats"]["health_percentage"].as_f64(), Some(100.0));
    assert_eq!(health["pool_stats"]["requests_served"], 0);
    lab.sql("select jetstream.publish('s.a', '1')").unwrap();
    drained(&lab, SOON);
    let served = "select jetstream.rule_nats_health_check() -> 'pool_stats' ->> 'requests_served'";
    becomes(&lab, "delivered messages are counted", served, "1");

    let tested = json(&lab, "select jetstream.rule_nats_test_connection()");
    assert_eq!(tested["success"], true, "{tested}");
    assert_eq!(tested["config"]["name"], "default");

    // The connection test fails within the timeout: false, with the reason.
    lab.sql("update jetstream.connections set connection_timeout_ms = 1500")
        .unwrap();
    lab.nats.kill9().unwrap();
    for function in ["rule_nats_init", "rule_nats_test_connection"] {
        let begin = Instant::now();
        let down = json(&lab, &format!("select jetstream.{function}('default')"));
        assert_eq!(down["success"], false, "{down}");
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?} {down}", begin.elapsed());
        let reason = down.get("error").or_else(|| down.get("message")).unwrap();
        assert!(reason.as_str().unwrap().len() > 5, "{down}");
    }
    let health = json(&lab, "select jetstream.rule_nats_health_check()");
    assert_eq!(
        (&health["success"], &health["connected"]),
        (&false.into(), &false.into()),
        "{health}"
    );
    assert_eq!(health["pool_stats"]["healthy_connections"], 0);

    // The server is back, and many sessions test the connection at the same time.
    lab.nats.restart().unwrap();
    eventually(&lab, SOON, "success again", || {
        Ok(json(&lab, "select jetstream.rule_nats_init()")["success"] == true)
    });
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let ask = || json(&lab, "select jetstream.rule_nats_test_connection()");
        let all: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| answer["success"] == true), "{answers:?}");

    let none = json(&lab, "select jetstream.rule_nats_init('nothing')");
    assert_eq!(none["success"], false, "{none}");
    client
        .simple_query("update rule_nats_config set enabled = false where config_name = 'default'")
        .unwrap();
    let disabled = json(&lab, "select jetstream.rule_nats_init()");
    assert_eq!(disabled["success"], false, "{disabled}");
}

#[test]
fn a_server_that_does_not_answer_or_refuses_is_no_success() {
    let lab = lab(&[]);
    worker(&lab);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    lab.sql(&format!(
        "insert into jetstream.rule_nats_config (config_name, nats_url, connection_timeout_ms)
             values ('silent', 'nats://{}', 700)",
        silent.local_addr().unwrap()
    ))
    .unwrap();
    let begin = Instant::now();
    let answer = json(&lab, "select jetstream.rule_nats_init('silent')");
    assert_eq!(answer["success"], false, "{answer}");
    assert!(begin.elapsed() >= Duration::from_millis(600) && begin.elapsed() < Duration::from_secs(3));

    let guarded = NatsServer::builder()
        .extra("authorization { token: \"s3cr3t-token\" }")
        .start()
        .unwrap();
    let configure = |token: &str| {
        lab.sql(&format!(
            "select jetstream.rule_nats_configure(p_config_name => 'guarded', p_nats_url => '{}',
                 p_auth_type => 'token', p_auth_token => '{token}')",
            guarded.url()
        ))
        .unwrap();
        json(&lab, "select jetstream.rule_nats_init('guarded')")
    };
    let refused = configure("wrong");
    assert_eq!(
        (&refused["success"], &refused["state"]),
        (&false.into(), &"failed".into()),
        "{refused}"
    );
    let accepted = configure("s3cr3t-token");
    assert_eq!(accepted["success"], true, "{accepted}");
    let info = lab.value("select jetstream.rule_nats_config_info('guarded')").unwrap();
    assert!(
        !info.contains("s3cr3t") && info.contains("\"auth_type\": \"token\""),
        "{info}"
    );
    assert!(
        !lab.value("select to_jsonb(c) from jetstream.rule_nats_config c where config_name = 'guarded'")
            .unwrap()
            .contains("s3cr3t")
    );
    let error = lab
        .sql("select jetstream.rule_nats_configure('guarded', 'nats://x', p_connection_timeout_ms => 1)")
        .unwrap_err();
    assert!(!format!("{error:?}").contains("s3cr3t"), "{error:?}");
    assert!(
        !lab.postgres
            .log()
            .replace("p_auth_token => 's3cr3t-token'", "")
            .contains("s3cr3t")
    );
}

#[test]
fn what_jetstream_refuses_shows_where_one_looks() {
    let lab = lab(&[]);
    lab.sql("select jetstream.rule_nats_init()").unwrap();
    synced(&lab, "WEBHOOKS");
    let mut client = session(&lab);
    client
        .simple_query("update rule_nats_streams set storage_type = 'memory' where stream_name = 'WEBHOOKS'")
        .unwrap();
    let error = "select coalesce(sync_error, '') from jetstream.rule_nats_streams where stream_name = 'WEBHOOKS'";
    eventually(&lab, SOON, "the refusal", || Ok(lab.value(error)?.contains("storage")));
    let init = json(&lab, "select jetstream.rule_nats_init()");
    assert!(init["stream_error"].as_str().unwrap().contains("storage"), "{init}");
    assert!(
        lab.postgres
            .log_contains("does not change the storage of stream \"WEBHOOKS\"")
    );
    client
        .simple_query(
            "update rule_nats_streams set storage_type = 'file', max_messages = 5, duplicate_window_seconds = 60,
                 max_age_seconds = 3600, discard_policy = 'new'
             where stream_name = 'WEBHOOKS'",
        )
        .unwrap();
    becomes(&lab, "the stream is synchronized again", error, "");
    let config = lab
        .jetstream(async |context| {
            let stream = context.get_stream("WEBHOOKS").await?;
            Ok(stream.cached_info().config.clone())
        })
        .unwrap();
    assert_eq!(
        (
            config.max_messages,
            config.duplicate_window.as_secs(),
            config.max_age.as_secs()
        ),
        (5, 60, 3600)
    );
    assert_eq!(config.subjects, ["webhooks.>"]);

    let created = client
        .simple_query(
            "insert into rule_nats_streams (stream_name, subjects) values ('MORE', array['more.>'])
             returning stream_id, storage_type, max_age_seconds, duplicate_window_seconds",
        )
        .unwrap();
    let SimpleQueryMessage::Row(row) = &created[1] else {
        panic!("{created:?}")
    };
    assert!(row.get(0).is_some());
    assert_eq!(
        (row.get(1), row.get(2), row.get(3)),
        (Some("file"), Some("604800"), Some("120"))
    );
    synced(&lab, "MORE");
    client
        .simple_query("delete from rule_nats_streams where stream_name = 'MORE'")
        .unwrap();
    assert_eq!(
        lab.value("select count(*) from jetstream.streams where name = 'MORE'")
            .unwrap(),
        "0"
    );
}

#[test]
fn a_failure_shows_and_says_why() {
    let mut lab = lab(&[("pg_jetstream.max_attempts", "3")]);
    worker(&lab);
    lab.sql(
        "select jetstream.rule_webhook_register('lost', 'https://example.com', p_enable_nats => true,
             p_nats_subject => 'nowhere.lost')",
    )
    .unwrap();
    lab.sql("select jetstream.rule_webhook_call_unified(1, '{}')").unwrap();
    let shown =
        |state: &str| format!("select error_message from jetstream.nats_recent_failures where state = '{state}'");
    eventually(&lab, SOON, "a dead letter is listed", || {
        Ok(lab.sql(&shown("dead"))?.concat().concat().contains("stream"))
    });
    let row = lab
        .sql("select webhook_name, subject, attempts, published_at is not null from jetstream.nats_recent_failures")
        .unwrap();
    assert_eq!(row, [["lost", "nowhere.lost", "3", "t"]]);
    assert_eq!(
        lab.sql("select failed, success_rate_pct from jetstream.nats_publish_summary")
            .unwrap(),
        [["1", "0.00"]]
    );
    assert_eq!(
        lab.value("select count(*) from jetstream.rule_nats_publish_history where not success")
            .unwrap(),
        "1"
    );
    // An outage of NATS: waiting messages are listed with the reason.
    lab.nats.kill9().unwrap();
    becomes(
        &lab,
        "the connection is down",
        "select jetstream.rule_nats_health_check() ->> 'connected'",
        "false",
    );
    lab.sql("select jetstream.rule_webhook_call_unified(1, '{}')").unwrap();
    eventually(&lab, SOON, "a waiting message is listed", || {
        Ok(lab.sql(&shown("waiting"))?.concat().concat().contains("default"))
    });
    lab.nats.restart().unwrap();
    drained(&lab, SOON);
    becomes(
        &lab,
        "both dead",
        "select count(*) from jetstream.nats_recent_failures where state = 'dead'",
        "2",
    );
}

#[test]
fn summaries_and_percentiles_are_right() {
    let lab = lab(&[]);
    let mut client = session(&lab);
    client
        .simple_query(
            "select rule_webhook_register('w', 'https://example.com');
             insert into rule_nats_publish_history (webhook_id, subject, success, latency_ms, error_message)
                 select 1, 'webhooks.w', true, n, null from generate_series(1, 100) n
                 union all select 1, 'webhooks.w', false, null, 'no' from generate_series(1, 25);
             insert into jetstream.webhook_calls (webhook, message_id, url, method, headers, timeout_ms, max_attempts,
                     status, completed_at, response_ms, claimed_at)
                 select 1, 'm' || n, 'https://example.com', 'POST', '{}', 1000, 3,
                        case when n > 200 then 'dead' else 'succeeded' end, clock_timestamp(), n, clock_timestamp()
                 from generate_series(1, 250) n",
        )
        .unwrap();
    let row = |query: &str| lab.sql(query).unwrap().concat();
    assert_eq!(
        row("select webhook_name, message_count, avg_latency_ms, p50, p95, p99 from jetstream.nats_performance_stats"),
        ["w", "100", "50.50", "50.50", "95.05", "99.01"]
    );
    assert_eq!(
        row(
            "select webhook_name, total_published, successful, failed, success_rate_pct, avg_latency_ms
             from jetstream.nats_publish_summary"
        ),
        ["w", "125", "100", "25", "80.00", "50.50"]
    );
    assert_eq!(
        row(
            "select s ->> 'p50_latency_ms', s ->> 'p95_latency_ms', s ->> 'p99_latency_ms', s ->> 'failed'
             from jetstream.rule_nats_stats(1) s"
        ),
        ["50.50", "95.05", "99.01", "25"]
    );
    assert_eq!(
        row("select s ->> 'total_published' from jetstream.rule_nats_stats(2) s"),
        ["0"]
    );
    assert_eq!(
        row("select total_calls, p50, p95, p99 from jetstream.webhook_performance_stats"),
        ["200", "100.50", "190.05", "198.01"]
    );
    assert_eq!(
        row(
            "select total_calls, successful_calls, failed_calls, success_rate_pct from jetstream.webhook_status_summary"
        ),
        ["250", "200", "50", "80.00"]
    );
    assert_eq!(row("select count(*) from jetstream.webhook_recent_failures"), ["50"]);

    // Cleanup keeps failures by default.
    let clean = |call: &str| lab.value(&format!("select jetstream.{call}")).unwrap();
    assert_eq!(clean("rule_nats_cleanup_old_history('1 hour', false)"), "0");
    assert_eq!(clean("rule_nats_cleanup_old_history('-1 hour', true)"), "100");
    assert_eq!(clean("rule_nats_cleanup_expired()"), "0");
    assert_eq!(clean("rule_nats_cleanup_old_history('-1 hour', false)"), "25");
    assert_eq!(clean("rule_webhook_cleanup_old_calls('-1 hour')"), "200");
    assert_eq!(clean("rule_webhook_cleanup_old_calls('-1 hour', false)"), "50");
}

#[test]
fn reports_of_workers_add_up() {
    let lab = lab(&[]);
    let report = |text: &str| {
        lab.sql(&format!(
            "select jetstream.rule_nats_consumer_update_stats('WEBHOOKS', {text})"
        ))
    };
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let conninfo = lab.postgres.conninfo(DATABASE);
            std::thread::spawn(move || {
                let mut client = Client::connect(&conninfo, postgres::NoTls).unwrap();
                for _ in 0..25 {
                    client
                        .simple_query(
                            "select jetstream.rule_nats_consumer_update_stats('WEBHOOKS', 'shared', 10, 9, 3, 20);
                             select jetstream.rule_nats_consumer_update_stats('WEBHOOKS', 'shared', 30, 30, 2, 40)",
                        )
                        .unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let row = lab.sql(
        "select messages_delivered, messages_acknowledged, messages_pending, avg_processing_time_ms, active
         from jetstream.rule_nats_consumer_stats where consumer_name = 'shared'",
    );
    assert_eq!(row.unwrap(), [["4000", "3900", "2", "35.00", "t"]]);
    report("'shared', 0, 0, p_active => false").unwrap();
    let row =
        lab.sql("select avg_processing_time_ms, active, messages_pending from jetstream.rule_nats_consumer_stats");
    assert_eq!(row.unwrap(), [["35.00", "f", "2"]]);
    assert!(report("'shared', -1, 0").is_err());
    // Written directly, as other workers do.
    lab.sql(
        "insert into jetstream.rule_nats_consumer_stats (stream_name, consumer_name, messages_delivered,
             avg_processing_time_ms) values ('WEBHOOKS', 'direct', 10, 50), ('WEBHOOKS', 'shared', 1, 1)
         on conflict (stream_name, consumer_name) do nothing",
    )
    .unwrap();
    report("'direct', 30, 30, null, 10").unwrap();
    let row = lab.sql(
        "select messages_delivered, avg_processing_time_ms from jetstream.rule_nats_consumer_stats
         where consumer_name = 'direct'",
    );
    assert_eq!(row.unwrap(), [["40", "20.00"]]);
}

#[test]
fn the_untouched_default_configuration_gives_way_even_when_webhooks_use_it() {
    let postgres = lab::postgres::Postgres::start().unwrap();
    let rows = postgres.sql(
        DATABASE,
        "create extension pg_jetstream;
         select jetstream.rule_webhook_register('w', 'https://example.com');
         insert into jetstream.rule_nats_config (config_name, nats_url) values ('default', 'nats://elsewhere:4222')
             on conflict (config_name) do nothing returning config_id;
         select config_name, nats_url, stream_name, subject_prefix from jetstream.rule_nats_config",
    );
    assert_eq!(
        rows.unwrap(),
        [
            vec!["1"],
            vec!["2"],
            vec!["default", "nats://elsewhere:4222", "WEBHOOKS", "webhooks"]
        ]
    );
}
