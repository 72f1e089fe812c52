-- Webhooks and the queue of calls, as far as no server and no worker is needed.
\pset format unaligned
\pset tuples_only on
truncate jetstream.outbox, jetstream.webhook_calls, jetstream.webhook_dead_letters;
-- A url is checked at registration.
select url, failure(format('insert into jetstream.webhooks (name, url) values (''x'', %L)', url)) from unnest(array[
    'ftp://a', 'https://', 'https://u:p@a/', 'https://a b/', 'https://a:x/', 'http://[::1', 'https:/a']) url;
insert into jetstream.webhooks (id, name, url, publish_mode, headers) values
    (1001, 'A queue', 'https://example.com/a', 'queue', '{"X": "1"}'),
    (1002, 'By NATS', 'http://localhost:8080', 'nats', '{}'),
    (1003, 'both', 'https://[::1]/?q=a@b', 'both', '{"Authorization": "Bearer {{secret:key}}"}');
select name, publish_mode, nats_enabled, jetstream.webhook_subject(w) from jetstream.webhooks w order by id;
select failure('insert into jetstream.webhooks (name, url) values (''both'', ''https://a'')');
select failure('insert into jetstream.webhooks (name, url, method) values (''m'', ''https://a'', ''BREW'')');
select failure('insert into jetstream.webhooks (name, url, publish_mode) values (''m'', ''https://a'', ''mail'')');
select failure('insert into jetstream.webhooks (name, url, headers) values (''m'', ''https://a'', ''{"a b": 1}'')');
select failure('insert into jetstream.webhooks (name, url, subject) values (''m'', ''https://a'', ''a.*'')');
select failure('insert into jetstream.webhooks (name, url, connection) values (''m'', ''https://a'', ''nowhere'')');
-- Every column refuses what cannot be, in a sentence, by whatever way it comes.
select failure(format('insert into jetstream.webhooks (%s', c)) from unnest(array[
    'url) values (''https://a'')', 'name, url) values ('' '', ''https://a'')', 'name, url) values (repeat(''n'', 256), ''https://a'')',
    'name) values (''m'')', 'name, url) values (''m'', ''user:secret@host'')', 'name, url) values (null, ''https://user:secret@host'')',
    'name, url) values (''m'', ''https://user:sec/ret@host'')', 'name, url) values (''m'', ''ftp://a?token=secret'')',
    'name, url, method) values (''m'', ''https://a'', null)', 'name, url, headers) values (''m'', ''https://a'', null)',
    'name, url, headers) values (''m'', ''https://a'', ''[]'')', 'name, url, timeout_ms) values (''m'', ''https://a'', 0)',
    'name, url, max_attempts) values (''m'', ''https://a'', 1001)', 'name, url, retry_base_ms) values (''m'', ''https://a'', 0)',
    'name, url, retry_max_ms) values (''m'', ''https://a'', -1)', 'name, url, retry_multiplier) values (''m'', ''https://a'', ''NaN'')',
    'name, url, tags) values (''m'', ''https://a'', null)', 'name, url, enabled) values (''m'', ''https://a'', null)',
    'name, url, publish_mode) values (repeat(''n'', 250), ''https://a'', ''nats'')',
    'name, url, connection) values (''m'', ''https://a'', null)']) with ordinality as t (c, n) order by n;
select failure('update jetstream.webhooks set publish_mode = ''mail'' where id = 1001');
select failure('select jetstream.rule_webhook_register(''m'', ''https://a'', ''BREW'')');
select failure('select jetstream.rule_webhook_register(''m'', ''https://a'', p_publish_mode => ''mail'')');
select failure('select jetstream.rule_webhook_register(null, null)');
select failure('select jetstream.rule_webhook_update(1001, p_max_retries => -1)');
select failure('insert into jetstream.rule_webhooks (webhook_name, webhook_url, publish_mode) values (''m'', ''https://a'', ''mail'')');
select failure('insert into jetstream.webhook_calls (webhook, message_id, status, url, method, headers, timeout_ms, max_attempts)
                values (1001, ''x'', ''lost'', ''https://a'', ''POST'', ''{}'', 1, 1)');
select failure('insert into jetstream.consumers (stream, consumer, pending) values (''S'', ''c'', -1)');
select failure('insert into jetstream.consumers (stream) values (''S'')');
select failure('select jetstream.rule_nats_consumer_update_stats(null, ''c'', 1, 1)');
select failure('select jetstream.rule_nats_consumer_update_stats(''S'', ''c'', 1, 1, -1)');
select failure('select jetstream.webhook_dead_letter(null, 7, ''id-2'', ''s'', null, ''w1'', 3, ''x'')');
select failure('insert into jetstream.rule_nats_publish_history (subject) values (''a'')');
select failure('insert into jetstream.rule_nats_publish_history (subject, success, published_at) values (''a'', true, ''2020-01-01 00:00+00'')');
select failure('insert into jetstream.rule_nats_publish_history (subject, success, published_at) values (''a'', true, ''infinity'')');
-- An administrator may store calls and webhooks, and gets the same answers.
set role jetstream_admin;
select failure('insert into jetstream.webhook_calls (id, webhook, message_id, status, url, method, headers, timeout_ms, max_attempts)
                values (-1, 1001, ''x'', ''dead'', ''https://a'', ''POST'', ''{}'', 1, 1)');
select failure('update jetstream.webhook_calls set status = ''lost'' where id = -1');
select failure('update jetstream.webhooks set retry_multiplier = 101, publish_mode = ''nats'' where id = 1001');
reset role;
delete from jetstream.webhook_calls where id = -1;
-- Secrets: no error shows the value.
select failure('select jetstream.rule_webhook_secret_set(1003, ''a b'', ''value'')');
select failure(E'select jetstream.rule_webhook_secret_set(1003, ''key'', ''line\nline'')');
select failure('select jetstream.rule_webhook_secret_set(9999, ''key'', ''value'')');
select jetstream.rule_webhook_secret_set(1003, 'key', 'value');
-- Calls.
select jetstream.webhook_call(1001, '{"n": 1}', 'id-1') - 'call_id';
select jetstream.webhook_call(1002, '{"n": 2}', 'id-2') - 'outbox_id';
select jetstream.webhook_call(1003, '{"n": 3}', 'id-3') - 'call_id' - 'outbox_id';
select jetstream.webhook_call(1003, '{"n": 4}', 'id-4', scheduled_at => '2100-01-01', publish_mode => 'queue', key => 'k') - 'call_id';
select failure('select jetstream.webhook_call(1001, ''{}'', publish_mode => ''nats'')');
select failure('select jetstream.webhook_call(1001, ''{}'', publish_mode => ''mail'')');
select failure('select jetstream.webhook_call(null, ''{}'')');
select failure('select jetstream.webhook_call(1001, ''{}'', message_id => '''')');
select message_id, subject, payload, headers is null, webhook from jetstream.outbox order by id;
select message_id, status, url, method, headers, payload, scheduled_at > now() as later from jetstream.webhook_calls order by id;
-- The queue.
create temporary table claimed as select * from jetstream.webhook_claim('w1', 1, '1 hour');
insert into claimed select * from jetstream.webhook_claim('w2', 10, '1 hour');
select webhook_name, method, url, headers, payload, message_id, attempt, max_attempts from claimed order by call_id;
select count(*) from jetstream.webhook_claim('w3');
select jetstream.webhook_complete(call_id, 503, 'later', 12.5, 'w1', 1) from claimed where message_id = 'id-1';
select status, attempts, error, response_status, response_body, response_ms, scheduled_at > now(), worker
from jetstream.webhook_calls where message_id = 'id-1';
select failure(format('select jetstream.webhook_complete(1e6::bigint, 200)'));
select regexp_replace(failure(format('select jetstream.webhook_complete(%s, 200)', call_id)), 'call \d+', 'call N') from claimed
where message_id = 'id-1';
select regexp_replace(failure(format('select jetstream.webhook_complete(%s, 200, worker => ''w1'')', call_id)), 'call \d+', 'call N')
from claimed where message_id = 'id-3';
select jetstream.webhook_complete(call_id, 200, 'fine', 1, 'w2', 1) from claimed where message_id = 'id-3';
select regexp_replace(failure(format('select jetstream.webhook_fail(%s, ''x'')', call_id)), 'call \d+', 'call N') from claimed
where message_id = 'id-3';
-- Secrets go to scheme, host and port of the webhook's url, whatever a call says, and whoever has moved the webhook since.
insert into jetstream.webhook_calls (webhook, message_id, url, method, headers, timeout_ms, max_attempts)
select 1003, url, url, 'POST', '{"X": "{{secret:key}}"}', 1000, 3 from unnest(array['https://evil.example/', 'http://[::1]/',
    'https://[::1]:444/', 'https://[::1]@evil.example/', E'https://[::1]\\.evil.example/', 'https://[::1]/other?path']) url;
insert into jetstream.webhook_calls (webhook, message_id, url, method, headers, timeout_ms, max_attempts)
values (1003, 'no secret', 'https://evil.example/', 'POST', '{"X": "1"}', 1000, 3);
select url, headers from jetstream.webhook_claim('w4', 100) order by url collate "C";
select url, status, error from jetstream.webhook_calls where worker = 'w4' and status = 'dead' order by url collate "C";
select jetstream.webhook_call(1003, '{"n": 5}', 'before the move', publish_mode => 'queue') ->> 'status';
update jetstream.webhooks set url = 'https://new.example/' where id = 1003;
select jetstream.rule_webhook_secret_set(1003, 'key', 'for the new host');
select jetstream.webhook_call(1003, '{"n": 6}', 'behind the move', publish_mode => 'queue') ->> 'status';
select url, headers from jetstream.webhook_claim('w5', 100);
select failure('select jetstream.webhook_headers(1003, ''{"X": "{{secret:key}}"}'', ''https://[::1]/'')');
select failure('select jetstream.webhook_headers(1003, ''{"X": ["{{secret:key}}"]}'', ''HTTPS://NEW.example/x'')');
delete from jetstream.webhook_calls where worker in ('w4', 'w5');
select failure('select jetstream.webhook_complete(1, 42)');
select failure('select jetstream.webhook_claim('''')');
select failure('select jetstream.webhook_claim(''w'', 0)');
select failure('select jetstream.webhook_claim(''w'', 1, ''-1 s'')');
select webhook_name, total_calls, successful_calls, failed_calls, pending_calls, retrying_calls, success_rate_pct
from jetstream.webhook_status_summary where webhook_id > 1000 order by webhook_id;
select webhook_name, status, attempts, error_message, response_status from jetstream.webhook_recent_failures;
-- What workers that consume from NATS have given up.
select jetstream.webhook_dead_letter('WEBHOOKS', 7, 'id-2', 'webhooks.by_nats', 1002, 'w1', 3, 'HTTP status 503', 503);
select jetstream.webhook_dead_letter('WEBHOOKS', 7, 'id-2', 'webhooks.by_nats', 1002, 'w2', 3, 'again', 503);
select jetstream.webhook_dead_letter('WEBHOOKS', 8, 'id-9', 'webhooks.x', null, 'w1', 1, 'envelope cannot be read');
select webhook_name, subject, error_message, state, message_id, attempts, webhook_id from jetstream.nats_recent_failures
where state = 'call_dead' order by message_id;
select jetstream.webhook_cleanup('-1 hour');
select count(*) from jetstream.webhook_dead_letters;
select jetstream.webhook_cleanup('-1 hour', false);
select count(*) from jetstream.webhook_dead_letters;
-- A webhook goes when its calls are made; nats_enabled and publish_mode stay in line.
select failure('delete from jetstream.webhooks where id = 1001');
update jetstream.webhooks set nats_enabled = false where id = 1003 returning publish_mode, nats_enabled;
update jetstream.webhooks set publish_mode = 'both' where id = 1003 returning publish_mode, nats_enabled;
update jetstream.webhooks set publish_mode = 'queue' where id = 1003 returning publish_mode, nats_enabled;
truncate jetstream.outbox, jetstream.webhook_calls, jetstream.webhook_dead_letters;
delete from jetstream.webhooks where id > 1000;
select count(*) from jetstream.webhook_secrets;
