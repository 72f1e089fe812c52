-- The shape of what one looks at, and that it adds up.
\pset format unaligned
\pset tuples_only on
select relname, string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)
from pg_class join pg_attribute on attrelid = pg_class.oid and attnum > 0
where relnamespace = 'jetstream'::regnamespace and relkind = 'v'
  and relname in ('outbox_summary', 'recent_failures', 'publish_summary', 'performance')
group by relname order by relname;
select pg_get_function_result('jetstream.status()'::regprocedure);
truncate jetstream.outbox, jetstream.history;
insert into jetstream.outbox (subject, payload, attempts, last_error, failed_at, deliver_at, created_at) values
    ('a', '1', 0, null, null, null, '2020-01-01'),
    ('a', '2', 3, 'why', '2020-01-03', '2100-01-01', '2020-01-02'),
    ('b', '3', 0, null, null, null, '2020-01-03');
select connection, subject, owed, failing, oldest at time zone 'UTC', next_attempt at time zone 'UTC', last_error
from jetstream.outbox_summary order by subject;
insert into jetstream.history (published_at, outbox_id, attempts, success, duplicate, connection, subject, message_id, stream, latency_ms)
select now(), n, 1, n % 10 <> 0, n % 5 = 1, 'default', 's', n, case when n % 10 <> 0 then 'S' end, case when n % 10 <> 0 then n end
from generate_series(1, 100) n;
select connection, subject, total, successful, failed, duplicates, success_rate_pct, avg_latency_ms from jetstream.publish_summary;
select connection, stream, count, avg_latency_ms, p50_ms, p95_ms, p99_ms from jetstream.performance;
select state, count(*), min(attempts), max(error) from jetstream.recent_failures group by state order by state;
select jetstream.outbox_lag() > '1 year', jetstream.outbox_lag('default') > '1 year', jetstream.outbox_lag('nowhere') is null;
select jetstream.health() ->> 'owed', (jetstream.health() ->> 'lag_seconds')::numeric > 1e6, jetstream.health() ->> 'dead_letters',
       jetstream.health() ->> 'stream_errors';
truncate jetstream.outbox, jetstream.history;
-- Captured changes that are no messages yet
insert into jetstream.capture_queue (number, changes, at, salt, connection, head, body)
select 1, n, '2020-01-05', 's', 'default', jsonb_build_object('prefix', 'p', 'schema', 'a.b', 'table', 't'), body
from (values (1, '\x62'::bytea), (60, '\x69'), (3, '\x75'), (1, '\x63')) v (n, body);
select connection, subject, owed, failing, oldest at time zone 'UTC', next_attempt, last_error
from jetstream.outbox_summary order by subject;
select jetstream.outbox_lag() > '1 year', jetstream.outbox_lag('default') > '1 year', jetstream.outbox_lag('nowhere') is null,
       jetstream.health() ->> 'owed';
truncate jetstream.capture_queue;
select count(*), jetstream.outbox_lag() is null from jetstream.status();
