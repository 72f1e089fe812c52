-- The rule engine's names, as far as no server and no worker is needed.
\pset format unaligned
\pset tuples_only on
set search_path = public, jetstream;
select relname, string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)
from pg_class join pg_attribute on attrelid = pg_class.oid and attnum > 0
where relnamespace = 'jetstream'::regnamespace and relkind = 'v' and relname ~ '^(rule_|nats_|webhook_)'
group by relname order by relname;
select oid::regprocedure, pg_get_function_result(oid) from pg_proc
where pronamespace = 'jetstream'::regnamespace and proname ~ '^rule_' and prorettype <> 'trigger'::regtype
order by proname, 1::text;
-- Configurations.
insert into rule_nats_config (config_name, nats_url) values ('default', 'nats://elsewhere:4222')
on conflict (config_name) do nothing returning config_id;
insert into rule_nats_config (config_name, nats_url, nats_cluster_urls, tls_enabled) values
    ('regress', 'nats://localhost:1,nats://localhost:2', array['nats://localhost:3'], true)
on conflict (config_name) do update set nats_url = excluded.nats_url
returning config_name, auth_type, max_connections, reconnect_delay_ms, jetstream_enabled, stream_name, subject_prefix, enabled;
update rule_nats_config set stream_name = 'HOOKS', subject_prefix = 'hooks' where config_name = 'regress'
returning stream_name, subject_prefix;
select failure('update rule_nats_config set jetstream_enabled = false');
select failure('update rule_nats_config set stream_name = ''a.b''');
select rule_nats_configure('regress', 'nats://localhost:1', 'token', p_auth_token => 'abc');
select auth_type, token, webhook_stream, tls_required from jetstream.connections where name = 'regress';
select rule_nats_config_info('regress') - 'created_at' - 'updated_at' - 'config_id';
select failure('select rule_nats_configure(''regress'', ''nats://localhost:1'', ''nkey'')');
select failure('select rule_nats_configure(''regress'', ''nats://localhost:1'', p_connection_timeout_ms => 1)');
select failure('select rule_nats_config_info(''nothing'')');
select rule_nats_init('nothing'), rule_nats_test_connection('nothing'), rule_nats_health_check('nothing');
-- Streams.
insert into rule_nats_streams (config_id, stream_name, subjects)
select config_id, 'HOOKS', array['hooks.>'] from rule_nats_config where config_name = 'regress'
returning stream_name, storage_type, max_messages, max_age_seconds, retention_policy, discard_policy, replicas,
    duplicate_window_seconds, sync_error;
update rule_nats_streams set storage_type = 'memory', max_messages = 5, duplicate_window_seconds = 60
where stream_name = 'HOOKS';
select connection, storage, max_messages, max_age, duplicate_window from jetstream.streams where name = 'HOOKS';
select failure('update rule_nats_streams set config_id = -1');
select failure('update rule_nats_streams set storage_type = ''paper''');
select rule_nats_stream_create('HOOKS', array['hooks.>', 'more.>'], 'regress', p_max_age_seconds => 60) > 0;
select subjects, storage_type, max_age_seconds from rule_nats_streams where stream_name = 'HOOKS';
-- Webhooks.
insert into rule_webhooks (webhook_id, webhook_name, webhook_url, http_method, publish_mode, nats_enabled, nats_subject, nats_config_id)
values (2001, 'one', 'https://example.com/1', 'PUT', 'nats', true, 'hooks.one',
    (select config_id from rule_nats_config where config_name = 'regress'))
returning webhook_id, timeout_ms, max_retries, retry_enabled, retry_delay_ms, retry_backoff_multiplier, enabled, tags, headers;
update rule_webhooks set max_retries = 0, tags = '{a,b}' where webhook_id = 2001 returning retry_enabled, max_retries, tags;
update rule_webhooks set retry_enabled = true where webhook_id = 2001 returning retry_enabled, max_retries;
update rule_webhooks set nats_enabled = false where webhook_id = 2001 returning publish_mode, nats_enabled;
select rule_webhook_enable_nats(2001, null, 'both', 'regress'), rule_webhook_update(2001, p_timeout_ms => 77);
select webhook_name, nats_subject, publish_mode, config_name, total_published, success_rate from rule_nats_webhooks_list()
where webhook_id = 2001;
select rule_webhook_get('one') - 'created_at' - 'updated_at' - 'nats_config_id' = rule_webhook_get('2001') - 'created_at' - 'updated_at' - 'nats_config_id',
       rule_webhook_get('one') ->> 'timeout_ms', rule_webhook_get('one') ->> 'secrets';
select failure('select rule_webhook_get(''nothing'')');
select failure('select rule_webhook_enable_nats(9999)');
select rule_webhook_update(9999), rule_webhook_delete(9999), rule_webhook_secret_delete(9999, 'a');
select webhook_name, publish_mode, total_calls, success_rate from rule_webhook_list() where webhook_id = 2001;
-- Calls.
select rule_webhook_publish_nats(2001, '{"n": 1}', 'm-1') - 'outbox_id';
select rule_webhook_call_unified(2001, '{"n": 2}', 'm-2') - 'outbox_id' - 'call_id';
select rule_webhook_call(2001, '{"n": 3}') - 'call_id' - 'message_id';
select rule_webhook_enqueue(2001, '{"n": 4}', now() + interval '1 hour') > 0;
select rule_webhook_call_status(id) - array['call_id', 'message_id', 'scheduled_at', 'created_at']
from jetstream.webhook_calls order by id limit 1;
select rule_webhook_retry(max(id)) from jetstream.webhook_calls;
select subject, message_id, connection from jetstream.outbox order by id;
-- What was published.
select jetstream.history_maintain('10 years') >= 0;
insert into rule_nats_publish_history (webhook_id, subject, success, latency_ms, error_message)
select 2001, 'hooks.one', n <= 100, case when n <= 100 then n end, case when n > 100 then 'why' end from generate_series(1, 110) n;
select webhook_name, total_published, successful, failed, success_rate_pct, avg_latency_ms from nats_publish_summary;
select webhook_name, message_count, avg_latency_ms, p50, p95, p99 from nats_performance_stats;
select webhook_name, subject, error_message, state from nats_recent_failures limit 2;
select rule_nats_stats(2001) - 'period_start' - 'period_end';
select rule_nats_cleanup_expired(), rule_nats_cleanup_old_history('-1 hour', true), rule_nats_cleanup_old_history('-1 hour', false);
-- Workers.
select rule_nats_consumer_update_stats('S', 'w', 10, 9, 1, 20), rule_nats_consumer_update_stats('S', 'w', 30, 30, 0, 40),
       rule_nats_consumer_update_stats('S', 'w', 5, 5, p_queue_group => 'g', p_ack_policy => 'explicit', p_max_deliver => 3),
       rule_nats_consumer_update_stats('S', 'w', 0, 0, p_queue_group => 'h');
select messages_delivered, messages_acknowledged, messages_pending, avg_processing_time_ms, active from rule_nats_consumer_stats;
select queue_group, ack_policy, max_deliver from rule_nats_consumer_stats;
select failure('select rule_nats_consumer_update_stats(''S'', ''w'', -1, 0)');
select failure('select rule_nats_consumer_update_stats(''S'', ''w'', 0, 0, p_ack_policy => ''some'')');
truncate jetstream.outbox, jetstream.webhook_calls, jetstream.consumers;
delete from rule_webhooks where webhook_id = 2001;
delete from rule_nats_streams where stream_name = 'HOOKS';
delete from rule_nats_config where config_name = 'regress';
