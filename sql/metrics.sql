-- Figures for any monitoring system. What is counted in tables is counted by an index and up to a limit, so that a look
-- costs the same however much there is.

create function jetstream.measure() returns table (name text, labels jsonb, value double precision, kind text, help text)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
with worker as materialized (
    select w.*, exists (select from jetstream.control) as paused from jetstream.worker_status() w
), connections as materialized (
    select c.name, c.enabled, w.pid is not null as running,
           (select l.value ->> 'state' from jsonb_array_elements(w.connections) l where l.value ->> 'name' = c.name) as state
    from jetstream.connections c cross join worker w
), backlog as materialized (
    select c.name, b.* from connections c cross join lateral jetstream.backlog(c.name) b
), verdict as materialized (
    select v.verdict from jetstream.verdict() v
), of_worker as (
    select v.* from worker w cross join lateral (values
        ('worker_up', 'gauge', case when not pg_is_in_recovery() then (w.pid is not null)::int::double precision end,
         'Whether a worker runs for this database; none on a standby'),
        ('worker_paused', 'gauge', w.paused::int, 'Whether pause() holds it'),
        ('worker_start_time_seconds', 'gauge', extract(epoch from w.started_at)::double precision,
         'When it started, from when on its counters count, as Unix time'),
        ('worker_last_cycle_time_seconds', 'gauge', extract(epoch from w.last_cycle_at)::double precision,
         'When it last looked at the outbox, as Unix time'),
        ('worker_claimed_total', 'counter', w.claimed, 'Messages claimed'),
        ('worker_stored_total', 'counter', w.stored, 'Messages acknowledged by JetStream, duplicates included'),
        ('worker_duplicates_total', 'counter', w.duplicates, 'Of these, those the stream had already'),
        ('worker_reused_ids_total', 'counter', jetstream.worker_reused_ids(),
         'Of the duplicates, those the stream had from another message with the same id: they are lost'),
        ('worker_retried_total', 'counter', w.retried, 'Failed attempts that another one follows'),
        ('worker_dead_total', 'counter', w.dead, 'Messages that became dead letters'),
        ('worker_cycles_total', 'counter', w.cycles, 'Transactions of the worker'),
        ('worker_in_flight_messages', 'gauge', w.in_flight, 'Messages claimed and not settled'),
        ('worker_in_flight_bytes', 'gauge', w.in_flight_bytes, 'Their size'),
        ('worker_held_keys', 'gauge', w.held_keys, 'Keys held back by a failing or a crowding message')
    ) as v (name, kind, value, help)
), latency as (
    select 'worker_latency_seconds_bucket' as name, jsonb_build_object('le', b.key) as labels, b.value::double precision as value
    from worker w cross join jsonb_each_text(w.latency -> 'messages') b
    union all
    select 'worker_latency_seconds_sum', '{}', (w.latency ->> 'seconds')::double precision from worker w
    union all
    select 'worker_latency_seconds_count', '{}', (w.latency -> 'messages' ->> '+Inf')::double precision from worker w
), of_database as (
    select v.* from (values
        ('outbox_owed_messages', 'gauge',
         (select case when max(b.owed) < 10000 then sum(b.owed)
                      else greatest(sum(b.owed), pg_stat_get_live_tuples('jetstream.outbox'::regclass) - sum(b.scheduled)) end
          from backlog b)::double precision,
         'Pending messages that are due or failing: counted up to 10000, above that as PostgreSQL''s statistics have them'),
        ('outbox_bytes', 'gauge', pg_total_relation_size('jetstream.outbox'),
         'Size of the outbox with its indexes, room for further rows included'),
        ('history_bytes', 'gauge',
         (select sum(pg_total_relation_size(i.inhrelid)) from pg_inherits i where i.inhparent = 'jetstream.history'::regclass),
         'Size of the history with its indexes'),
        ('history_days_ahead', 'gauge',
         (select count(*) from generate_series(1, 7) d
          where to_regclass('jetstream.history_' || to_char(now() at time zone 'UTC' + d * interval '1 day', 'YYYYMMDD'))
                is not null),
         'Of the coming seven days, those the history has a partition for'),
        ('capture_queue_rows', 'gauge',
         (select count(*) from (select from jetstream.capture_queue q order by q.txid limit 1000) q),
         'Rows of captured changes that are not messages yet, counted up to 1000'),
        ('capture_lag_seconds', 'gauge',
         coalesce((select extract(epoch from clock_timestamp() - q.at)::double precision
                   from jetstream.capture_queue q order by q.txid limit 1), 0),
         'Age of the oldest of these; 0 if there are none'),
        ('webhook_lag_seconds', 'gauge',
         greatest(
             (select extract(epoch from clock_timestamp() - c.scheduled_at)::double precision
              from jetstream.webhook_calls c where c.status in ('pending', 'failed') order by c.scheduled_at limit 1),
             (select extract(epoch from clock_timestamp() - c.lease_until)::double precision
              from jetstream.webhook_calls c where c.status = 'claimed' order by c.lease_until limit 1),
             0),
         'How long the oldest call of the queue has been due, or its lease over with no worker to take it back; 0 if none is'),
        ('webhook_dead_calls', 'gauge',
         (select count(*) from (select from jetstream.webhook_calls c
                                where c.completed_at > now() - interval '1 hour' and c.status = 'dead' limit 10000) c)
         + (select count(*) from (select from jetstream.webhook_dead_letters d
                                  where d.died_at > now() - interval '1 hour' limit 10000) d),
         'Calls given up in the last hour, those of workers that consume from NATS included')
    ) as v (name, kind, value, help)
), of_connection as (
    select v.name, v.kind, jsonb_build_object('connection', c.name) as labels, v.value, v.help
    from connections c join backlog b on b.name = c.name cross join lateral (values
        ('connection_up', 'gauge',
         case when c.enabled and not pg_is_in_recovery() then case when c.running and c.state is null then null
              else (c.running and c.state = 'connected')::int::double precision end end,
         'Whether the worker is connected; none for a connection that is not enabled, and on a standby'),
        ('connection_lag_seconds', 'gauge',
         coalesce(extract(epoch from greatest(b.waiting, b.oldest_failing))::double precision, 0),
         'Age of the oldest message that is due, failing ones included; 0 if none is'),
        ('connection_oldest_failing_seconds', 'gauge', coalesce(extract(epoch from b.oldest_failing)::double precision, 0),
         'How long the oldest failing message has been due; 0 if none fails'),
        ('connection_failing_messages', 'gauge', b.failing,
         'Messages that have failed and will be tried again, counted up to 10000'),
        ('connection_scheduled_messages', 'gauge', b.scheduled,
         'Messages that are not due yet, as their producer asked, counted up to 10000')
    ) as v (name, kind, value, help)
), dead as (
    -- From one connection to the next by the index, also those that are gone.
    with recursive found (connection) as (
        (select d.connection from jetstream.dead_letters d order by 1 limit 1)
        union all
        select (select d.connection from jetstream.dead_letters d where d.connection > f.connection order by 1 limit 1)
        from found f where f.connection is not null
    )
    select jsonb_build_object('connection', c.connection) as labels,
           (select count(*) from (select from jetstream.dead_letters d where d.connection = c.connection limit 10000) d) as value
    from (select f.connection from found f where f.connection is not null
          union select k.name from jetstream.connections k) c
), failed as (
    select jsonb_build_object('connection', c.name) as labels, count(h.connection) as value
    from jetstream.connections c
    left join (select h.connection from jetstream.history h
               where not h.success and h.published_at > now() - interval '1 hour' limit 10000) h on h.connection = c.name
    group by c.name
), calls as (
    select s.status, count(c.status) as value
    from (values ('pending'), ('failed'), ('claimed')) s (status)
    left join ((select c.status from jetstream.webhook_calls c where c.status in ('pending', 'failed')
                order by c.scheduled_at limit 10000)
               union all
               (select c.status from jetstream.webhook_calls c where c.status = 'claimed' limit 10000)) c
        on c.status = s.status
    group by s.status
), of_consumer as (
    select v.name, v.kind, jsonb_build_object('stream', c.stream, 'consumer', c.consumer) as labels, v.value, v.help
    from jetstream.consumers c cross join lateral (values
        ('consumer_delivered_total', 'counter', c.delivered::double precision, 'Deliveries a webhook worker has dealt with'),
        ('consumer_acknowledged_total', 'counter', c.acknowledged, 'Of these, those that succeeded'),
        ('consumer_redelivered_total', 'counter', c.redelivered, 'Of these, those that were not the first of their message'),
        ('consumer_pending_messages', 'gauge', c.pending, 'Messages that waited for it when it last reported')
    ) as v (name, kind, value, help)
), all_of_them (name, kind, labels, value, help) as (
    select w.name, w.kind, '{}'::jsonb, w.value, w.help from of_worker w
    union all
    select l.name, 'histogram', l.labels, l.value, 'From the insert (or deliver_at, if later) to the acknowledgement' from latency l
    union all
    select d.name, d.kind, '{}', d.value, d.help from of_database d
    union all
    select 'verdict', 'gauge', jsonb_build_object('verdict', s.verdict), (s.verdict = v.verdict)::int,
           '1 for the verdict that holds: healthy, degraded (some of the work can proceed) or down (none)'
    from verdict v cross join (values ('healthy'), ('degraded'), ('down')) s (verdict)
    union all
    select c.name, c.kind, c.labels, c.value, c.help from of_connection c
    union all
    select 'connection_dead_letters', 'gauge', d.labels, d.value, 'Dead letters, counted up to 10000' from dead d
    union all
    select 'connection_failed_messages', 'gauge', f.labels, f.value,
           'Messages given up in the last hour, as the history has them, counted up to 10000' from failed f
    union all
    select 'stream_sync_error', 'gauge', jsonb_build_object('connection', s.connection, 'stream', s.name),
           (s.sync_error is not null)::int, 'Whether the server does not have the stream as asked; see streams.sync_error'
    from jetstream.streams s
    union all
    select 'webhook_calls', 'gauge', jsonb_build_object('status', c.status), c.value,
           'Calls of the queue that are not made yet, counted up to 10000 (pending and failed together)' from calls c
    union all
    select c.name, c.kind, c.labels, c.value, c.help from of_consumer c
)
select 'pg_jetstream_' || a.name as name, jsonb_build_object('database', current_database()) || a.labels as labels, a.value,
       a.kind, a.help
from all_of_them a
where a.value is not null
$$;
comment on function jetstream.measure() is 'What the view metrics shows
name: Name of the metric
labels: Object of labels to strings
value: Value
kind: counter, gauge or histogram
help: What it says';

create view jetstream.metrics as
select m.name, m.labels, m.value, m.kind, m.help from jetstream.measure() m;
comment on view jetstream.metrics is
    'Figures of this database for monitoring systems, named as Prometheus does; the worker''s counters begin anew with each worker';
comment on column jetstream.metrics.name is 'Name of the metric';
comment on column jetstream.metrics.labels is 'Object of labels to strings: database, and connection, stream, consumer, status, verdict or le where there are several';
comment on column jetstream.metrics.value is 'Value';
comment on column jetstream.metrics.kind is
    'counter: grows until it begins anew; gauge: goes up and down; histogram: counters whose names end in _bucket, _sum and _count';
comment on column jetstream.metrics.help is 'What it says';

create index webhook_calls_dead on jetstream.webhook_calls (completed_at) where status = 'dead';
comment on index jetstream.webhook_calls_dead is 'What died lately';
create index dead_letters_connection on jetstream.dead_letters (connection);
comment on index jetstream.dead_letters_connection is 'How many each connection has';
