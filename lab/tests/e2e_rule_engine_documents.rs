//! Runs each SQL statement in the rule engine's documents as written.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;
mod rule_engine_support;

use e2e_support::{SOON, drained, lab, synced, worker};
use rule_engine_support::session;

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

/// Statements that cannot run, identified by their beginning (with single spaces), and why.
const CANNOT: [(&str, &str); 8] = [
    (
        r"\i migrations/007_nats_integration.sql",
        "a command of psql for a file of the rule engine; create extension pg_jetstream takes its place",
    ),
    (
        "CREATE INDEX CONCURRENTLY idx_nats_publish_webhook_time ON rule_nats_publish_history",
        "PostgreSQL cannot index a view; the history has its own index",
    ),
    (
        "CREATE TABLE rule_nats_config (",
        "abridged in the document, so not valid SQL; the name is already a view",
    ),
    (
        "ALTER TABLE rule_webhooks ADD COLUMN",
        "a view cannot get columns; these already exist",
    ),
    (
        "CREATE OR REPLACE FUNCTION rule_nats_configure(",
        "abridged in the document, so not valid SQL",
    ),
    (
        "CREATE OR REPLACE FUNCTION rule_webhook_register(",
        "abridged in the document, so not valid SQL",
    ),
    (
        "CREATE OR REPLACE VIEW nats_publish_summary AS SELECT ...",
        "abridged in the document, so not valid SQL",
    ),
    (
        "SELECT rule_nats_configure(...)",
        "abridged in the document, so not valid SQL",
    ),
];

/// Prerequisites of the documents: webhooks that they name, one with the id that they use, and tables of the
/// application.
const PRESUPPOSED: &str = "
    insert into rule_webhooks (webhook_id, webhook_name, webhook_url, publish_mode, nats_enabled)
        values (123, 'onehundredtwentythree', 'https://example.com/123', 'nats', true);
    insert into rule_webhooks (webhook_name, webhook_url, publish_mode)
        values ('user_notifications', 'https://example.com/users', 'both'),
               ('analytics_events', 'https://example.com/analytics', 'nats'),
               ('critical_webhook_1', 'https://example.com/1', 'queue'),
               ('critical_webhook_2', 'https://example.com/2', 'queue');
    create table users (user_id integer, email text, created_at timestamptz)";

/// Bare names in the documents' examples, which are like psql variables, and their values.
const VARIABLES: [(&str, &str); 4] = [
    (
        "(\n    webhook_id,",
        "(\n    (select webhook_id from rule_webhooks where webhook_name = 'slack_notifications'),",
    ),
    ("    payload,\n", "    '{\"order\": 77}'::jsonb,\n"),
    ("'order-%s', order_id", "'order-%s', 77"),
    (":webhook_id", "123"),
];

/// The fenced SQL blocks of a document.
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

/// The statements of a block, split at semicolons outside strings, dollar quotes and comments.
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
                    // The statement must really fail.
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
    assert_eq!(cannot.len(), CANNOT.len(), "listed, but in no document: {cannot:?}");
    assert!(ran >= 45, "only {ran} statements");

    // The messages it stored are published.
    client.simple_query(&restore).unwrap();
    client
        .simple_query("insert into users values (1, 'a@example.com', now())")
        .unwrap();
    // The documents request 10 GB of storage, which a small disk refuses.
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
    // The migration guide has switched the webhook from `both` to `nats`.
    assert_eq!(lab.value("select count(*) from jetstream.webhook_calls").unwrap(), "0");
}

#[test]
fn blocks_and_statements_are_found() {
    let text = "x\n  ```sql\n  select 'a;b'; -- no; none\n  do $$ begin; end $$;\n  ```\n```bash\nselect 1;\n```\n";
    let found = blocks(text);
    assert_eq!(found.len(), 1);
    let found: Vec<String> = statements(&found[0]).iter().map(|text| one_space(text)).collect();
    assert_eq!(found, ["select 'a;b'", "do $$ begin; end $$"]);
}
