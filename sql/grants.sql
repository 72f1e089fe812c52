-- Who may do what. Loaded last: nothing is left to PUBLIC.

do $$
declare
    role text;
begin
    foreach role in array array['jetstream_publisher', 'jetstream_reader', 'jetstream_admin', 'jetstream_worker',
        'jetstream_webhook_worker'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = role) then
            execute pg_catalog.format('create role %I nologin', role);
        end if;
    end loop;
end
$$;

comment on function jetstream.check_subject(text) is 'True for a subject one can publish to; an ERROR that says why for any other
Arguments as the columns of jetstream.outbox';
comment on function jetstream.check_headers(jsonb) is 'True for headers NATS can carry; an ERROR that says why for any other
Arguments as the columns of jetstream.outbox';
comment on function jetstream.check_message_id(text) is 'True for a usable Nats-Msg-Id; an ERROR that says why for any other
Arguments as the columns of jetstream.outbox';
comment on function jetstream.subject_matches(text, text) is 'Whether a subject matches a pattern with the wildcards * and > of NATS
subject: A subject
pattern: A subject in which * stands for one token, > for the rest';
comment on function jetstream.reload_worker() is 'Makes the worker read connections and streams again when the transaction commits';
comment on function jetstream.request_reload(text) is 'Asks the worker to connect anew; use reload()';
comment on function jetstream.await_connection(text, integer) is
    'Asks the worker to connect anew and waits for the result, so many milliseconds at most
connection: connections.name
timeout_ms: Longest wait, milliseconds';
comment on function jetstream.worker_reused_ids() is 'Duplicates that the stream had from another message with the same id, since the worker started; use status()';
comment on function jetstream.worker_role() is 'Role whose rights the worker of this database has; null if none has begun; use status()';
comment on function jetstream.worker_status() is 'The worker as it reports itself; use status()
worker: Database it serves
pid: Its process; null if none runs
state: What it does, in a word or two; "not running", with the reason in last_error
connections: Each enabled or disabled connection with name, state (connecting, connected, disconnected, failed, disabled) and detail
in_flight: Messages claimed and not settled
in_flight_bytes: Their bytes
claimed: Messages claimed since it started
stored: Messages acknowledged since it started, duplicates included
duplicates: Of these, those the stream had already
retried: Failed attempts since it started that are followed by another
dead: Messages that became dead letters since it started
held_keys: Keys that wait for a failing message, or have many waiting
cycles: Transactions since it started
last_error: Last failure of any kind, or why no worker runs
last_error_at: When that was
started_at: When the worker started
last_cycle_at: When its last transaction was
latency: Messages acknowledged since it started by the seconds from their insert (messages: how many took no longer than each bound), and the sum of these (seconds)';

revoke all on schema jetstream from public;
revoke all on all tables in schema jetstream from public;
revoke all on all functions in schema jetstream from public;

grant usage on schema jetstream to jetstream_publisher, jetstream_reader, jetstream_admin, jetstream_worker,
    jetstream_webhook_worker;

-- The checks of the outbox run as whoever inserts.
grant execute on function
    jetstream.check_subject(text),
    jetstream.check_headers(jsonb),
    jetstream.check_message_id(text),
    jetstream.check_connection(text),
    jetstream.subject_matches(text, text)
    to jetstream_publisher, jetstream_reader, jetstream_admin, jetstream_worker;

-- jetstream_publisher: enqueue only.
grant insert (connection, subject, payload, raw, headers, message_id, key, deliver_at, ttl, webhook,
    traceparent), select (id) on jetstream.outbox to jetstream_publisher, jetstream_admin;
grant execute on function
    jetstream.publish(text, jsonb, text, jsonb, text, timestamptz, text, interval),
    jetstream.publish_raw(text, bytea, text, jsonb, text, timestamptz, text, interval),
    jetstream.publish_batch(text, jsonb[], text[], jsonb, text, timestamptz, text, interval)
    to jetstream_publisher, jetstream_admin;

-- jetstream_reader: look, without bodies, headers or secrets.
grant select (id, name, url, cluster_urls, auth_type, username, credentials_file, tls_required, tls_ca_file, tls_cert_file,
    tls_key_file, connection_timeout_ms, reconnect_delay_ms, max_reconnect_attempts, max_connections, default_stream,
    subject_prefix, domain, api_prefix, tls_handshake_first, webhook_stream, webhook_prefix, jetstream_enabled, enabled,
    description, created_at, updated_at)
    on jetstream.connections to jetstream_reader, jetstream_admin;
grant select (txid, id, connection, subject, message_id, key, deliver_at, ttl, webhook, traceparent, attempts,
    last_error, failed_at, unsure_since, created_at, due_at) on jetstream.outbox to jetstream_reader;
grant select (published_at, outbox_id, sequence, webhook, attempts, latency_ms, success, duplicate, connection, subject,
    message_id, stream, key, error) on jetstream.history to jetstream_reader;
grant select (id, outbox_id, connection, subject, message_id, key, ttl, webhook, traceparent, attempts, reason,
    created_at, died_at, unsure_since)
    on jetstream.dead_letters to jetstream_reader;
grant select on jetstream.streams, jetstream.positions, jetstream.control, jetstream.outbox_summary,
    jetstream.recent_failures, jetstream.publish_summary, jetstream.performance to jetstream_reader, jetstream_admin;
grant execute on function jetstream.status(), jetstream.health(text), jetstream.outbox_lag(text), jetstream.verdict(text),
    jetstream.backlog(text), jetstream.worker_status(), jetstream.worker_role(), jetstream.worker_reused_ids()
    to jetstream_reader, jetstream_admin;

-- The figures, also for roles that monitor the whole server.
grant usage on schema jetstream to pg_monitor;
grant select on jetstream.metrics to jetstream_reader, jetstream_admin, pg_monitor;
grant execute on function jetstream.measure() to jetstream_reader, jetstream_admin, pg_monitor;

-- jetstream_admin: everything but reading secrets.
grant insert, update, delete on jetstream.connections, jetstream.streams to jetstream_admin;
grant select, update, delete on jetstream.outbox to jetstream_admin;
grant select on jetstream.history, jetstream.dead_letters to jetstream_admin;
grant execute on function
    jetstream.create_stream(text, text[], text, text, text, bigint, bigint, interval, integer, integer, interval, boolean,
        boolean, text, text),
    jetstream.pause(), jetstream.resume(), jetstream.reload(text), jetstream.retry(text, text),
    jetstream.redrive(bigint, boolean), jetstream.redrive_all(text, boolean), jetstream.discard(bigint)
    to jetstream_admin;

-- jetstream_worker: what the worker may do, secrets included. It has these rights and no others, unless pg_jetstream.role
-- names another role, to which this one is granted.
grant select on jetstream.connections, jetstream.streams, jetstream.control, jetstream.outbox to jetstream_worker;
grant update (synced_at, sync_error, origin, applied) on jetstream.streams to jetstream_worker;
grant update, delete on jetstream.outbox to jetstream_worker;
grant select on sequence jetstream.outbox_id_seq to jetstream_worker;
grant select, insert on jetstream.history, jetstream.dead_letters to jetstream_worker;
grant select, insert, update on jetstream.positions to jetstream_worker;
grant execute on function jetstream.history_maintain(interval, integer) to jetstream_worker;

-- Webhooks: publishers call, readers look (not at headers and bodies), admins change.
grant execute on function
    jetstream.webhook_call(integer, jsonb, text, timestamptz, text, text),
    jetstream.rule_webhook_call_unified(integer, jsonb, text, timestamptz),
    jetstream.rule_webhook_publish_nats(integer, jsonb, text),
    jetstream.rule_webhook_enqueue(integer, jsonb, timestamptz, text),
    jetstream.rule_webhook_call(integer, jsonb)
    to jetstream_publisher, jetstream_admin;
grant select (webhook_id, webhook_name, enabled, publish_mode) on jetstream.rule_webhooks to jetstream_publisher;
grant select (id, name, enabled, publish_mode) on jetstream.webhooks to jetstream_publisher;

grant select (id, name, url, method, timeout_ms, max_attempts, retry_base_ms, retry_max_ms, retry_multiplier, enabled,
    description, tags, connection, subject, publish_mode, nats_enabled, created_at, updated_at)
    on jetstream.webhooks to jetstream_reader;
grant select (id, webhook, message_id, status, url, method, timeout_ms, attempts, max_attempts, scheduled_at, worker,
    claimed_at, lease_until, response_status, response_ms, error, created_at, completed_at)
    on jetstream.webhook_calls to jetstream_reader;
grant select (webhook_id, webhook_name, description, webhook_url, http_method, timeout_ms, retry_enabled, max_retries,
    retry_delay_ms, retry_backoff_multiplier, enabled, tags, publish_mode, nats_enabled, nats_subject, nats_config_id,
    created_at, updated_at) on jetstream.rule_webhooks to jetstream_reader;
grant select (publish_id, webhook_id, subject, published_at, message_id, stream_name, sequence_number, success, duplicate,
    error_message, latency_ms, attempts, expires_at) on jetstream.rule_nats_publish_history to jetstream_reader;
grant select on jetstream.consumers, jetstream.rule_nats_config, jetstream.rule_nats_streams,
    jetstream.rule_nats_consumer_stats, jetstream.nats_publish_summary, jetstream.nats_performance_stats,
    jetstream.nats_recent_failures, jetstream.webhook_status_summary, jetstream.webhook_recent_failures,
    jetstream.webhook_performance_stats, jetstream.webhook_dead_letters to jetstream_reader, jetstream_admin;
grant execute on function
    jetstream.rule_nats_health_check(text), jetstream.rule_nats_config_info(text),
    jetstream.rule_nats_stats(integer, integer), jetstream.rule_nats_webhooks_list(), jetstream.rule_webhook_list(boolean)
    to jetstream_reader, jetstream_admin;

grant select, insert, update, delete on jetstream.webhooks, jetstream.webhook_calls, jetstream.consumers,
    jetstream.webhook_dead_letters,
    jetstream.rule_nats_config, jetstream.rule_nats_streams, jetstream.rule_webhooks,
    jetstream.rule_nats_publish_history, jetstream.rule_nats_consumer_stats to jetstream_admin;
grant select (webhook, name, created_at) on jetstream.webhook_secrets to jetstream_admin;
grant execute on function
    jetstream.check_webhook_url(text), jetstream.check_call_status(text),
    jetstream.await_connection(text, integer),
    jetstream.webhook_retry(bigint), jetstream.webhook_cleanup(interval, boolean), jetstream.webhook_reclaim(),
    jetstream.rule_nats_configure(text, text, text, boolean, text, text, text, text, text, text, text, text[], boolean, text,
        text, text, integer, integer, integer, integer),
    jetstream.rule_nats_stream_create(text, text[], text, text, text, bigint, text, bigint, bigint, integer, integer),
    jetstream.rule_nats_init(text), jetstream.rule_nats_test_connection(text),
    jetstream.rule_nats_cleanup_old_history(interval, boolean), jetstream.rule_nats_cleanup_expired(),
    jetstream.rule_webhook_register(text, text, text, jsonb, text, integer, integer, boolean, text, text, text, text[]),
    jetstream.rule_webhook_update(integer, text, text, jsonb, integer, boolean, integer, text, boolean, text, text, text[]),
    jetstream.rule_webhook_delete(integer), jetstream.rule_webhook_get(text),
    jetstream.rule_webhook_secret_set(integer, text, text), jetstream.rule_webhook_secret_delete(integer, text),
    jetstream.rule_webhook_enable_nats(integer, text, text, text), jetstream.rule_webhook_disable_nats(integer),
    jetstream.rule_webhook_retry(bigint), jetstream.rule_webhook_call_status(bigint),
    jetstream.rule_webhook_cleanup_old_calls(interval, boolean)
    to jetstream_admin;

-- jetstream_webhook_worker: what makes the HTTP calls. It gets the secrets of the calls it makes.
grant execute on function jetstream.webhook_claim(text, integer, interval), jetstream.webhook_headers(integer, jsonb, text)
    to jetstream_webhook_worker;
grant execute on function
    jetstream.webhook_complete(bigint, integer, text, double precision, text, integer),
    jetstream.webhook_fail(bigint, text, boolean, interval, integer, text, double precision, text, integer),
    jetstream.rule_nats_consumer_update_stats(text, text, bigint, bigint, bigint, numeric, bigint, boolean, text, text, integer),
    jetstream.webhook_dead_letter(text, bigint, text, text, integer, text, integer, text, integer)
    to jetstream_webhook_worker, jetstream_admin;

-- Captures: who owns a table and may publish can have its changes captured. What its writers do needs no right here.
grant execute on function
    jetstream.capture(regclass, text[], text, text, text[], text, text[], text, boolean, text), jetstream.uncapture(regclass),
    jetstream.capture_schema(regnamespace, text[], text, text, text, boolean, text), jetstream.uncapture_schema(regnamespace),
    jetstream.capture_changes(), jetstream.capture_argument(bytea), jetstream.subject_token(text),
    jetstream.capture_triggers(regclass, text[], jsonb), jetstream.capture_drop_triggers(regclass),
    jetstream.capture_must_own(regclass), jetstream.capture_remove(regclass), jetstream.capture_enable(regclass),
    jetstream.capture_as(regclass, jsonb), jetstream.capture_must_own_schema(regnamespace),
    jetstream.capture_check_condition(regclass, text), jetstream.capture_analyze(oid, text), jetstream.connection_exists(text),
    jetstream.capture_check_options(text[], text, text, text), jetstream.capture_may_restore(), jetstream.capture_check_connection(text),
    jetstream.capture_is_root(oid), jetstream.capture_partitions(regclass), jetstream.capture_watch(),
    jetstream.capture_stream(regclass), jetstream.capture_members(regclass),
    jetstream.capture_columns(regclass, text[])
    to jetstream_publisher, jetstream_admin;
grant select, insert, update, delete on jetstream.capture_schemas to jetstream_publisher, jetstream_admin;
grant select on jetstream.captures to jetstream_publisher, jetstream_reader, jetstream_admin;
grant execute on function jetstream.capture_argument(bytea), jetstream.subject_token(text) to jetstream_reader;
grant select on jetstream.capture_relations, jetstream.capture_schemas, jetstream.capture_epochs to jetstream_reader, jetstream_admin;
grant select (txid, lsn, number, changes, at, connection, head) on jetstream.capture_queue to jetstream_reader;
grant execute on function jetstream.capture_epoch(bigint, integer, bigint, integer) to jetstream_worker;
grant select, delete on jetstream.capture_queue to jetstream_admin, jetstream_worker;
grant insert (connection, subject, raw, headers, message_id, key, created_at) on jetstream.outbox to jetstream_worker;

do $$
begin
    if not pg_catalog.current_setting('shared_preload_libraries') ~ '(^|[,\s"/])pg_jetstream(\.so)?("|\s|,|$)' then
        raise warning 'pg_jetstream is not in shared_preload_libraries: messages are stored and not published'
            using hint = pg_catalog.format('Add shared_preload_libraries = ''pg_jetstream'' and '
                'pg_jetstream.databases = %L to postgresql.conf and restart PostgreSQL.',
                pg_catalog.current_database());
    elsif not exists (
            select from pg_catalog.unnest(pg_catalog.string_to_array(
                pg_catalog.current_setting('pg_jetstream.databases'), ',')) as listed (name)
            where pg_catalog.btrim(listed.name, ' "') = pg_catalog.current_database()) then
        -- create extension does not show less than a warning.
        raise warning 'database "%" is not in pg_jetstream.databases: messages are stored and not published',
                pg_catalog.current_database()
            using hint = 'Add it to pg_jetstream.databases in postgresql.conf and run select pg_reload_conf().';
    end if;
end
$$;
