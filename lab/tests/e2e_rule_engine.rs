//! The rule engine's documents: each SQL statement in them runs as written, and says what it promises.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::time::{Duration, Instant};

use e2e_support::{SOON, becomes, drained, eventually, lab, synced, worker};
use lab::Lab;
use lab::lab::DATABASE;
use lab::nats::NatsServer;
use postgres::{Client, SimpleQueryMessage};
use serde_json::Value;

const DOCUMENTS: [(&str, &str); 3] = [
    (
        "rule_engine_nats_integration.md",
        include_str!("data/rule_engine_nats_integration.md"),
    ),
    (
        "rule_engine_implementation_plan.md",
        include_str!("data/rule_engine_implementation_plan.md"),
    ),
    (
        "rule_engine_go_worker.md",
        include_str!("data/rule_engine_go_worker.md"),
    ),
];

/// Statements that cannot run, by how they begin (spaces counted once), and why.
const CANNOT: [(&str, &str); 8] = [
    (
        r"\i migrations/007_nats_integration.sql",
        "a command of psql for a file of the rule engine; create extension pg_jetstream takes its place",
    ),
    (
        "CREATE INDEX CONCURRENTLY idx_nats_publish_webhook_time ON rule_nats_publish_history",
        "PostgreSQL makes no index on a view; the history has its own",
    ),
    (
        "CREATE TABLE rule_nats_config (",
        "elided in the document, hence no SQL; the name is a view already",
    ),
    (
        "ALTER TABLE rule_webhooks ADD COLUMN",
        "a view gets no columns; these are there",
    ),
    (
        "CREATE OR REPLACE FUNCTION rule_nats_configure(",
        "elided in the document, hence no SQL",
    ),
    (
        "CREATE OR REPLACE FUNCTION rule_webhook_register(",
        "elided in the document, hence no SQL",
    ),
    (
        "CREATE OR REPLACE VIEW nats_publish_summary AS SELECT ...",
        "elided in the document, hence no SQL",
    ),
    (
        "SELECT rule_nats_configure(...)",
        "elided in the document, hence no SQL",
    ),
];

/// What the documents presuppose: webhooks they name, one with the id they use, and tables of the application.
const PRESUPPOSED: &str = "
    insert into rule_webhooks (webhook_id, webhook_name, webhook_url, publish_mode, nats_enabled)
        values (123, 'onehundredtwentythree', 'https://example.com/123', 'nats', true);
    insert into rule_webhooks (webhook_name, webhook_url, publish_mode)
        values ('user_notifications', 'https://example.com/users', 'both'),
               ('analytics_events', 'https://example.com/analytics', 'nats'),
               ('critical_webhook_1', 'https://example.com/1', 'queue'),
               ('critical_webhook_2', 'https://example.com/2', 'queue');
    create table users (user_id integer, email text, created_at timestamptz)";

/// Free-standing names in the documents' examples, as psql variables would be, and what stands for them.
const VARIABLES: [(&str, &str); 4] = [
    (
        "(\n    webhook_id,",
        "(\n    (select webhook_id from rule_webhooks where webhook_name = 'slack_notifications'),",
    ),
    ("    payload,\n", "    '{\"order\": 77}'::jsonb,\n"),
    ("'order-%s', order_id", "'order-%s', 77"),
    (":webhook_id", "123"),
];

/// The fenced blocks of SQL of a document.
fn blocks(document: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<String> = None;
    for line in document.lines() {
        let fence = line.trim();
        match &mut open {
            None if fence == "```sql" => open = Some(String::new()),
            Some(_) if fence == "```" => found.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
            None => {}
        }
    }
    found
}

/// The statements of a block: split at semicolons outside of strings, dollar quotes and comments.
fn statements(block: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut statement = String::new();
    let mut quote: Option<&str> = None;
    let mut rest = block;
    while let Some(c) = rest.chars().next() {
        if quote.is_none() && rest.starts_with("--") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
            continue;
        }
        let mark = ["'", "$$"].into_iter().find(|mark| rest.starts_with(mark));
        let step = mark.map_or(c.len_utf8(), str::len);
        match (quote, mark) {
            (None, Some(mark)) => quote = Some(mark),
            (Some(open), Some(mark)) if open == mark => quote = None,
            _ => {}
        }
        if quote.is_none() && c == ';' {
            found.push(std::mem::take(&mut statement));
        } else {
            statement.push_str(&rest[..step]);
        }
        rest = &rest[step..];
    }
    found.push(statement);
    found.retain(|statement| !statement.trim().is_empty());
    found
}

fn one_space(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn session(lab: &Lab) -> Client {
    let mut client = lab.postgres.client(DATABASE).unwrap();
    client.simple_query("set search_path = public, jetstream").unwrap();
    client
}

fn json(lab: &Lab, query: &str) -> Value {
    serde_json::from_str(&lab.value(query).unwrap()).unwrap()
}

#[test]
fn each_statement_of_the_documents_runs_as_written() {
    let lab = lab(&[]);
    worker(&lab);
    let mut client = session(&lab);
    client.simple_query(PRESUPPOSED).unwrap();
    let restore = format!(
        "update jetstream.connections set url = '{}', connection_timeout_ms = 5000 where name = 'default'",
        lab.nats.url()
    );
    let (mut ran, mut cannot) = (0, Vec::new());
    for (name, document) in DOCUMENTS {
        let blocks = blocks(document);
        assert!(blocks.len() > 3, "{name}: {} blocks", blocks.len());
        for block in blocks {
            for statement in statements(&block) {
                let beginning = one_space(&statement);
                if let Some((known, _)) = CANNOT.iter().find(|(known, _)| beginning.starts_with(known)) {
                    // It really cannot.
                    assert!(client.simple_query(&statement).is_err(), "{statement}");
                    cannot.push(*known);
                    continue;
                }
                let statement = VARIABLES
                    .iter()
                    .fold(statement, |text, (variable, value)| text.replace(variable, value));
                let result = client.simple_query(&statement);
                assert!(result.is_ok(), "{name}: {statement}\n{:?}", result.err());
                ran += 1;
                if statement.contains("production-server") {
                    client.simple_query(&restore).unwrap();
                }
            }
        }
    }
    cannot.sort_unstable();
    cannot.dedup();
    assert_eq!(
        cannot.len(),
        CANNOT.len(),
        "in the list, but in no document: {cannot:?}"
    );
    assert!(ran >= 45, "only {ran} statements");

    // What they stored is published.
    client.simple_query(&restore).unwrap();
    client
        .simple_query("insert into users values (1, 'a@example.com', now())")
        .unwrap();
    // The documents ask for 10 GB of storage, which a small disk refuses.
    client
        .simple_query("update rule_nats_streams set max_bytes = -1, storage_type = 'file'")
        .unwrap();
    synced(&lab, "WEBHOOKS");
    drained(&lab, SOON);
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "0");
    let analytics =
        lab.value("select total_published from jetstream.nats_publish_summary where webhook_name = 'analytics_events'");
    assert_eq!(analytics.unwrap(), "1000");
    let messages = lab.stream_messages("WEBHOOKS").unwrap();
    let slack = messages
        .iter()
        .find(|message| message.subject == "webhooks.slack")
        .unwrap();
    assert_eq!(slack.json().unwrap()["data"]["channel"], "#general");
    assert!(messages.iter().any(|message| message.id() == Some("order-456")));
    let user = messages
        .iter()
        .find(|message| message.subject == "webhooks.user_notifications")
        .unwrap();
    assert_eq!(user.json().unwrap()["data"]["email"], "a@example.com");
    // The migration guide has switched it from both to nats.
    assert_eq!(lab.value("select count(*) from jetstream.webhook_calls").unwrap(), "0");
}

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
    becomes(&lab, "stored messages counted", served, "1");

    let tested = json(&lab, "select jetstream.rule_nats_test_connection()");
    assert_eq!(tested["success"], true, "{tested}");
    assert_eq!(tested["config"]["name"], "default");

    // Not there any more: false, with the reason, within the timeout.
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

    // Back again, and with many asking at once.
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
    becomes(&lab, "in sync again", error, "");
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
    eventually(&lab, SOON, "a dead one", || {
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
    // A broker that is away: what waits for it shows, with the reason.
    lab.nats.kill9().unwrap();
    becomes(
        &lab,
        "the connection is down",
        "select jetstream.rule_nats_health_check() ->> 'connected'",
        "false",
    );
    lab.sql("select jetstream.rule_webhook_call_unified(1, '{}')").unwrap();
    eventually(&lab, SOON, "one that waits", || {
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

    // Clean-up: failures are kept unless asked for.
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
fn the_default_configuration_of_a_new_database_stays_when_webhooks_use_it() {
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
            vec!["default", "nats://localhost:4222", "WEBHOOKS", "webhooks"]
        ]
    );
}

#[test]
fn blocks_and_statements_are_found() {
    let text = "x\n  ```sql\n  select 'a;b'; -- no; none\n  do $$ begin; end $$;\n  ```\n```bash\nselect 1;\n```\n";
    let found = blocks(text);
    assert_eq!(found.len(), 1);
    let found: Vec<String> = statements(&found[0]).iter().map(|text| one_space(text)).collect();
    assert_eq!(found, ["select 'a;b'", "do $$ begin; end $$"]);
}
