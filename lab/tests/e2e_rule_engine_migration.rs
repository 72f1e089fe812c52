//! The database of a rule engine moves in once, completely, and works.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use e2e_support::{SOON, drained, lab, synced};
use lab::Lab;

const MIGRATION: &str = include_str!("../../migrations/from_rule_engine.sql");

/// The rule engine's tables as its own migrations create them, with rows in each.
const RULE_ENGINE: &str = r#"
create table public.rule_nats_config (config_id serial primary key, config_name text not null unique, nats_url text,
    nats_cluster_urls text[], auth_type text default 'none', auth_token text, auth_credentials_file text,
    auth_nkey_seed text, tls_enabled boolean default false, tls_cert_file text, tls_key_file text, tls_ca_file text,
    max_connections integer default 10, connection_timeout_ms integer default 5000,
    reconnect_delay_ms integer default 2000, max_reconnect_attempts integer default -1,
    jetstream_enabled boolean default true, stream_name text default 'WEBHOOKS', subject_prefix text default 'webhooks',
    enabled boolean default true);
insert into public.rule_nats_config (config_name, nats_url, auth_type, auth_token, max_connections, nats_cluster_urls)
    values ('default', '$URL', 'none', null, 50, null),
           ('guarded', 'nats://localhost:1', 'token', 't0ken', 5, array['nats://localhost:2', 'nats://localhost:3']),
           ('broken', 'nats://localhost:1', 'nkey', null, 5, null),
           ('inurl', 'nats://ann:pa:ss@localhost:1,nats://ann:pa:ss@localhost:2', 'none', null, 5, array['nats://x@localhost:3']);
create table public.rule_nats_streams (stream_id serial primary key, config_id integer, stream_name text, subjects text[],
    storage_type text default 'file', max_messages bigint default 1000000, max_bytes bigint default 10000000,
    max_age_seconds bigint default 604800, retention_policy text default 'limits', discard_policy text default 'old',
    replicas integer default 1, duplicate_window_seconds integer default 120, description text,
    enabled boolean default true);
insert into public.rule_nats_streams (config_id, stream_name, subjects, enabled)
    values (1, 'WEBHOOKS', array['webhooks.>'], true), (1, 'OFF', array['off.>'], false);
create table public.rule_webhooks (webhook_id serial primary key, webhook_name text not null unique, description text,
    $COLUMNS, headers jsonb default '{}', timeout_ms integer default 5000,
    retry_enabled boolean default true, max_retries integer default 3, retry_delay_ms integer default 1000,
    retry_backoff_multiplier numeric default 2.0, enabled boolean default true, created_at timestamptz default now(),
    tags text[] default '{}', nats_enabled boolean default false, nats_subject text, nats_config_id integer,
    publish_mode text default 'queue');
insert into public.rule_webhooks (webhook_id, webhook_name, $NAMES, headers, max_retries, tags, publish_mode, nats_enabled,
        nats_subject, nats_config_id)
    values (7, 'slack', 'https://example.com/slack', 'PUT', '{"A": "{{secret:key}}"}', 5, '{a,b}', 'both', true,
            'webhooks.slack', 1),
           (8, 'plain', 'https://example.com/plain', 'POST', null, 0, null, 'queue', false, null, null);
create table public.rule_webhook_secrets (secret_id serial primary key, webhook_id integer, secret_name text,
    secret_value text);
insert into public.rule_webhook_secrets (webhook_id, secret_name, secret_value) values (7, 'key', 'hunter2');
create table public.rule_webhook_calls (call_id serial primary key, webhook_id integer, status text, payload jsonb,
    scheduled_at timestamptz default now(), retry_count integer default 0, next_retry_at timestamptz,
    error_message text, created_at timestamptz default now());
insert into public.rule_webhook_calls (webhook_id, status, payload, retry_count, scheduled_at)
    values (7, 'pending', '{"n": 1}', 0, now()), (7, 'success', '{"n": 2}', 0, now()), (7, 'processing', '{"n": 3}', 1, now()),
           (8, 'retrying', '{"n": 4}', 9, now()), (8, 'failed', '{"n": 5}', 3, now()),
           (8, 'pending', '{"n": 6}', 0, now() + interval '1 hour');
create table public.rule_nats_publish_history (publish_id bigserial primary key, webhook_id integer, subject text,
    payload jsonb, headers jsonb, published_at timestamptz default now(), message_id text, sequence_number bigint,
    success boolean, error_message text, latency_ms numeric(10,2));
insert into public.rule_nats_publish_history (webhook_id, subject, payload, published_at, message_id, sequence_number,
        success, error_message, latency_ms)
    values (7, 'webhooks.slack', '{}', now() - interval '5 days', 'h1', 10, true, null, 12.5),
           (7, 'webhooks.slack', '{}', now() - interval '1 hour', null, null, false, 'timeout', 99),
           (7, 'webhooks.slack', '{}', now() - interval '100 days', 'h3', 1, true, null, 1);
"#;

/// Both sets of names that the columns have had.
const NAMES: [(&str, &str); 2] = [
    (
        "webhook_url text not null, http_method text",
        "webhook_url, http_method",
    ),
    ("url text not null, method text", "url, method"),
];

fn migrate(lab: &Lab) -> Vec<Vec<String>> {
    let rows = lab.sql(MIGRATION).unwrap();
    rows.into_iter().filter(|row| row.len() == 4).collect()
}

/// The extension's data as one text.
fn state(lab: &Lab) -> String {
    let parts = [
        "select to_jsonb(c) - array['updated_at', 'created_at'] from jetstream.connections c order by name",
        "select to_jsonb(s) - array['synced_at', 'created_at', 'sync_error', 'origin', 'applied'] from jetstream.streams s order by name",
        "select to_jsonb(w) - 'updated_at' from jetstream.webhooks w order by name",
        "select to_jsonb(s) from jetstream.webhook_secrets s",
        "select to_jsonb(c) from jetstream.webhook_calls c order by id",
        "select to_jsonb(h) from jetstream.history h order by published_at",
    ];
    parts
        .map(|part| lab.sql(part).unwrap().concat().join("\n"))
        .join("\n\n")
}

fn moves_in((columns, names): (&str, &str)) {
    let lab = lab(&[]);
    // The state of a database that moves in: connection "default" has not been changed yet.
    lab.sql("update jetstream.connections set url = 'nats://localhost:1'")
        .unwrap();
    lab.sql("alter table jetstream.connections disable trigger connections_before_write")
        .unwrap();
    lab.sql("update jetstream.connections set updated_at = null").unwrap();
    lab.sql("alter table jetstream.connections enable trigger connections_before_write")
        .unwrap();
    lab.sql(
        &RULE_ENGINE
            .replace("$URL", &lab.nats.url())
            .replace("$COLUMNS", columns)
            .replace("$NAMES", names),
    )
    .unwrap();
    // A webhook with the same id already exists.
    lab.sql("insert into jetstream.webhooks (id, name, url) values (8, 'mine', 'https://example.com')")
        .unwrap();

    assert_eq!(
        migrate(&lab),
        [
            [
                "configurations",
                "4",
                "0",
                "\"broken\" lacks its credentials (nkey) and is disabled"
            ],
            ["streams", "1", "1", "1 are disabled"],
            ["webhooks", "2", "0", "new ids: plain (9, was 8)"],
            ["secrets", "1", "0", ""],
            ["pending calls", "4", "0", "1 were being made and may be made twice"],
            [
                "publish history",
                "2",
                "1",
                "1 are older than pg_jetstream.history_retention"
            ],
        ]
    );
    let once = state(&lab);
    let again = migrate(&lab);
    assert!(again.iter().all(|row| row[1] == "0"), "{again:?}");
    assert_eq!(state(&lab), once);

    let calls = lab.sql(
        "select call_id, webhook_name, payload ->> 'n', headers ->> 'A', attempt, max_attempts
                         from jetstream.webhook_claim('w', 10)",
    );
    let calls = calls.unwrap();
    assert_eq!(calls.len(), 3, "{calls:?}");
    assert!(
        calls
            .iter()
            .any(|call| call[1..] == ["slack", "1", "hunter2", "1", "6"]),
        "{calls:?}"
    );
    assert!(
        calls
            .iter()
            .any(|call| call[1..] == ["slack", "3", "hunter2", "2", "6"]),
        "{calls:?}"
    );
    assert!(
        calls.iter().any(|call| call[1..] == ["plain", "4", "", "1", "1"]),
        "{calls:?}"
    );
    assert_eq!(
        lab.value("select count(*) from public.rule_webhook_calls").unwrap(),
        "2",
        "what had ended"
    );
    let history = lab.sql(
        "select webhook_id, success, error_message, latency_ms, sequence_number
                           from jetstream.rule_nats_publish_history order by published_at",
    );
    assert_eq!(
        history.unwrap(),
        [["7", "t", "", "12.50", "10"], ["7", "f", "timeout", "99.00", ""]]
    );
    let guarded = lab.sql("select auth_type, token, cluster_urls from jetstream.connections where name = 'guarded'");
    assert_eq!(
        guarded.unwrap(),
        [["token", "t0ken", "{nats://localhost:2,nats://localhost:3}"]]
    );

    let in_url = lab
        .sql("select url, auth_type, username, password, cluster_urls from jetstream.connections where name = 'inurl'");
    assert_eq!(
        in_url.unwrap(),
        [[
            "nats://localhost:1,nats://localhost:2",
            "password",
            "ann",
            "pa:ss",
            "{nats://localhost:3}"
        ]]
    );

    // What moved in works.
    synced(&lab, "WEBHOOKS");
    lab.sql("set search_path = jetstream, public; select rule_webhook_call_unified(7, '{\"in\": 1}')")
        .unwrap();
    drained(&lab, SOON);
    let got = lab.stream_messages("WEBHOOKS").unwrap();
    assert_eq!((got.len(), got[0].subject.as_str()), (1, "webhooks.slack"));
    assert_eq!(
        lab.value("select jetstream.rule_webhook_register('next', 'https://example.com')")
            .unwrap(),
        "10"
    );
}

#[test]
fn a_rule_engine_moves_in_once() {
    moves_in(NAMES[0]);
}

#[test]
fn one_with_the_first_column_names_moves_in_too() {
    moves_in(NAMES[1]);
}

#[test]
fn nothing_to_move_is_no_error_and_a_bad_row_moves_nothing() {
    let lab = lab(&[]);
    assert!(migrate(&lab).iter().all(|row| row[1] == "0"));
    lab.sql(
        "create table public.rule_webhooks (webhook_id integer, webhook_name text, url text);
         insert into public.rule_webhooks values (1, 'good', 'https://example.com'), (2, 'bad', 'ftp://example.com')",
    )
    .unwrap();
    assert_eq!(lab.failure(MIGRATION).unwrap(), "22023");
    assert_eq!(lab.value("select count(*) from jetstream.webhooks").unwrap(), "0");
}
