-- What monitoring systems read: which metrics there are, that they say what the tables hold, and who may look.
\pset format unaligned
\pset tuples_only on
truncate jetstream.outbox, jetstream.history, jetstream.dead_letters, jetstream.webhooks cascade;
select jetstream.history_maintain('10 years') >= 0;
delete from jetstream.streams;
delete from jetstream.connections where name <> 'default';
insert into jetstream.connections (name, enabled) values ('other', true), ('off', false);
insert into jetstream.streams (name, subjects, sync_error) values ('M', '{m.>}', 'why'), ('N', '{n.>}', null);
insert into jetstream.outbox (connection, subject, payload, attempts, failed_at, deliver_at, created_at) values
    ('default', 'm.a', '1', 0, null, null, now() - interval '2 hours'),
    ('default', 'm.b', '2', 0, null, null, now()),
    ('other', 'm.c', '3', 2, now() - interval '1 hour', now() + interval '1 hour', now() - interval '5 hours'),
    ('off', 'm.d', '4', 0, null, now() + interval '1 hour', now());
insert into jetstream.dead_letters (outbox_id, connection, subject, message_id, attempts, reason, created_at)
select n, case when n <= 3 then 'default' else 'gone' end, 'm', n, 1, 'why', now() from generate_series(1, 5) n;
insert into jetstream.history (published_at, outbox_id, attempts, success, connection, subject, message_id)
select now() - n * interval '50 minutes', n, 1, n > 2, 'other', 'm', n from generate_series(0, 3) n
where now() - n * interval '50 minutes' >= date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' - interval '1 day';
insert into jetstream.webhooks (name, url) values ('metrics', 'http://localhost/');
insert into jetstream.webhook_calls (webhook, message_id, url, method, headers, timeout_ms, max_attempts, status, scheduled_at,
    completed_at)
select w.id, n, w.url, 'POST', '{}', 1, 3, status, now() - n * interval '1 hour',
       case when status = 'dead' then now() - n * interval '10 minutes' end
from jetstream.webhooks w, unnest('{pending,pending,failed,claimed,dead,dead,dead}'::text[]) with ordinality c (status, n);
select jetstream.webhook_dead_letter('M', 1, 'id', 'm', null, 'worker', 3, 'why');
select jetstream.rule_nats_consumer_update_stats('M', 'worker', 10, 8, 5, 1.5, 2, true) is not null;
-- All there are; the worker's own differ with the server.
select name, labels - 'database', kind, case when name ~ 'worker_|connection_up|_bytes$' then null
    when name ~ '_seconds$' then round(value / 60) else value end
from jetstream.metrics where name !~ '_bucket$|_start_time_|_last_cycle_' order by name collate "C", labels::text collate "C";
select distinct labels ->> 'database' = current_database() from jetstream.metrics;
select count(*), count(distinct labels), bool_or(labels ->> 'le' = '+Inf') from jetstream.metrics
where name = 'pg_jetstream_worker_latency_seconds_bucket';
-- Names and labels as Prometheus takes them; a name has one kind and one help.
select distinct name from jetstream.metrics where name !~ '^pg_jetstream_[a-z_]+[a-z]$';
select name from jetstream.metrics group by name having count(distinct kind) > 1 or count(distinct help) > 1;
select name from jetstream.metrics where kind = 'counter' and name !~ '_total$' or kind = 'gauge' and name ~ '_total$';
select name, labels from jetstream.metrics group by name, labels having count(*) > 1;
select distinct l.key from jetstream.metrics, jsonb_each(labels) l where jsonb_typeof(l.value) <> 'string';
-- Who monitors the server may look, and at nothing else.
create role regress_monitor in role pg_monitor;
create role regress_reader in role jetstream_reader;
set role regress_reader;
select count(*) > 30 from jetstream.metrics;
set role regress_monitor;
select count(*) > 30 from jetstream.metrics;
select failure('select * from jetstream.outbox');
select failure('select * from jetstream.dead_letters');
select failure('select * from jetstream.status()');
select failure('select * from jetstream.connections');
reset role;
drop role regress_monitor, regress_reader;
truncate jetstream.outbox, jetstream.history, jetstream.dead_letters, jetstream.webhooks, jetstream.webhook_dead_letters, jetstream.consumers cascade;
delete from jetstream.streams;
delete from jetstream.connections where name <> 'default';
