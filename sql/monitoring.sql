-- Looking at the outbox, the history and the worker.

create view jetstream.outbox_summary as
select connection, subject,
       count(*) as owed,
       count(*) filter (where attempts > 0) as failing,
       min(created_at) as oldest,
       min(deliver_at) as next_attempt,
       max(last_error) as last_error
from jetstream.outbox
group by connection, subject
union all
-- Of a transaction's begin and commit, and of changes.
select q.connection::text, case when q.boundary then concat(q.prefix, '.transactions.*.event')
           else concat_ws('.', q.prefix, jetstream.subject_token(q.schema), jetstream.subject_token(q."table"), '*') end,
       sum(q.changes), 0, min(q.at), null, null
from (select c.connection, c.changes, c.at,
             -- In this order, or by name, as 0.1.0 stored it.
             coalesce(h.head ->> 1, h.head ->> 'prefix') as prefix,
             coalesce(h.head ->> 2, h.head ->> 'schema') as schema,
             coalesce(h.head ->> 3, h.head ->> 'table') as "table",
             get_byte(substring(c.body for 1), 0) in (ascii('B'), ascii('C'), ascii('b'), ascii('c')) as boundary
      from jetstream.capture_queue c
      cross join lateral (select c.head::jsonb as head) h) q
group by 1, 2;
comment on view jetstream.outbox_summary is
    'Messages owed, by connection and subject; captured changes that are no messages yet too';
comment on column jetstream.outbox_summary.connection is 'Connection they go to';
comment on column jetstream.outbox_summary.subject is 'Subject they go to, with * for the operation of captured changes that are no messages yet';
comment on column jetstream.outbox_summary.owed is 'Messages owed';
comment on column jetstream.outbox_summary.failing is 'Of these, how many have failed at least once';
comment on column jetstream.outbox_summary.oldest is 'Insert time of the oldest';
comment on column jetstream.outbox_summary.next_attempt is 'Earliest deliver_at among delayed messages and further attempts';
comment on column jetstream.outbox_summary.last_error is 'One of the reasons';

create view jetstream.recent_failures as
select o.failed_at, 'owed'::text as state, o.id as outbox_id, o.connection, o.subject, o.message_id, o.attempts,
       o.last_error as error, o.deliver_at as next_attempt
from jetstream.outbox o
where o.attempts > 0
union all
select h.published_at, 'dead', h.outbox_id, h.connection, h.subject, h.message_id, h.attempts, h.error, null
from jetstream.history h
where not h.success and h.published_at > now() - interval '1 day'
order by 1 desc nulls last;
comment on view jetstream.recent_failures is 'Messages that are failing now, and those that died in the last day, newest first';
comment on column jetstream.recent_failures.failed_at is 'When it failed last';
comment on column jetstream.recent_failures.outbox_id is 'outbox.id';
comment on column jetstream.recent_failures.connection is 'Connection it goes to';
comment on column jetstream.recent_failures.subject is 'Its subject';
comment on column jetstream.recent_failures.message_id is 'Nats-Msg-Id';
comment on column jetstream.recent_failures.attempts is 'Attempts that failed';
comment on column jetstream.recent_failures.error is 'Why';
comment on column jetstream.recent_failures.next_attempt is 'When it is tried again; null for a dead letter';
comment on column jetstream.recent_failures.state is 'owed: will be tried again at next_attempt; dead: see dead_letters';

create view jetstream.publish_summary as
select connection, subject,
       count(*) as total,
       count(*) filter (where success) as successful,
       count(*) filter (where not success) as failed,
       count(*) filter (where duplicate) as duplicates,
       round(100.0 * count(*) filter (where success) / count(*), 2) as success_rate_pct,
       round(avg(latency_ms)::numeric, 3) as avg_latency_ms,
       max(published_at) as last_published_at
from jetstream.history
group by connection, subject;
comment on view jetstream.publish_summary is 'What the history holds, by connection and subject';
comment on column jetstream.publish_summary.connection is 'Connection';
comment on column jetstream.publish_summary.subject is 'Subject';
comment on column jetstream.publish_summary.total is 'Messages settled';
comment on column jetstream.publish_summary.successful is 'Of these, stored';
comment on column jetstream.publish_summary.failed is 'Of these, given up';
comment on column jetstream.publish_summary.duplicates is 'Of those stored, those the stream had already';
comment on column jetstream.publish_summary.success_rate_pct is 'Share of those stored, per cent';
comment on column jetstream.publish_summary.avg_latency_ms is 'Average from insert to acknowledgement, milliseconds';
comment on column jetstream.publish_summary.last_published_at is 'When the last one was settled';

create view jetstream.performance as
select connection, stream,
       count(*) as count,
       round(avg(latency_ms)::numeric, 3) as avg_latency_ms,
       round((percentile_cont(0.5) within group (order by latency_ms))::numeric, 3) as p50_ms,
       round((percentile_cont(0.95) within group (order by latency_ms))::numeric, 3) as p95_ms,
       round((percentile_cont(0.99) within group (order by latency_ms))::numeric, 3) as p99_ms
from jetstream.history
where success and published_at > now() - interval '1 hour'
group by connection, stream;
comment on view jetstream.performance is
    'Latency from insert to acknowledgement over the last hour, by stream, milliseconds; needs pg_jetstream.history = all';
comment on column jetstream.performance.connection is 'Connection';
comment on column jetstream.performance.stream is 'Stream';
comment on column jetstream.performance.count is 'Messages stored';
comment on column jetstream.performance.avg_latency_ms is 'Average latency';
comment on column jetstream.performance.p50_ms is 'Half are not slower';
comment on column jetstream.performance.p95_ms is '95 of 100 are not slower';
comment on column jetstream.performance.p99_ms is '99 of 100 are not slower';

create function jetstream.outbox_lag(connection text default null) returns interval
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select clock_timestamp() - min(s.since)
    from (
        select x.since
        from jetstream.connections c
        cross join lateral (
            (select o.created_at from jetstream.outbox o
             where o.connection = c.name and o.deliver_at is null order by o.deliver_at, o.id limit 1)
            union all
            -- Of the first that have a time, so that a million due later are not all looked at.
            (select least(f.deliver_at, coalesce(f.failed_at, f.deliver_at))
             from (select o.deliver_at, o.failed_at, o.attempts from jetstream.outbox o
                   where o.connection = c.name and o.deliver_at is not null
                   order by o.deliver_at limit 10000) f
             where f.deliver_at <= clock_timestamp() or f.attempts > 0
             order by f.deliver_at limit 1)
        ) as x (since)
        where $1 is null or c.name = $1
        union all
        -- By the index: of the oldest transaction.
        (select q.at from jetstream.capture_queue q
         where $1 is null or q.connection = $1 order by q.txid limit 1)
    ) s;
$$;
comment on function jetstream.outbox_lag(text) is 'Age of the oldest message owed and due, or captured change, of one connection or of all; null if there is none
connection: connections.name; null: all';

create function jetstream.status() returns table (
    worker text,
    pid integer,
    role text,
    state text,
    connections jsonb,
    in_flight integer,
    in_flight_bytes bigint,
    lag interval,
    claimed bigint,
    stored bigint,
    duplicates bigint,
    retried bigint,
    dead bigint,
    held_keys integer,
    cycles bigint,
    last_error text,
    last_error_at timestamptz,
    started_at timestamptz,
    last_cycle_at timestamptz
)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    select w.worker, w.pid, jetstream.worker_role(), w.state, w.connections, w.in_flight, w.in_flight_bytes,
           jetstream.outbox_lag(), w.claimed,
           w.stored, w.duplicates, w.retried, w.dead, w.held_keys, w.cycles, w.last_error, w.last_error_at,
           w.started_at, w.last_cycle_at
    from jetstream.worker_status() w;
$$;
comment on function jetstream.status() is
    'The worker of this database: what it does, its connections, what is in flight, lag, counters since it started, and its last error
worker: Database it serves
pid: Its process; null if none runs
role: Role whose rights it has (pg_jetstream.role); null while it has not begun
state: What it does, in a word or two; "not running", with the reason in last_error
connections: Each enabled or disabled connection with name, state (connecting, connected, disconnected, failed, disabled) and detail
in_flight: Messages claimed and not settled
in_flight_bytes: Their bytes
lag: Age of the oldest message owed and due; null if there is none
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
last_cycle_at: When its last transaction was';

create function jetstream.health(connection text default 'default') returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    w record;
    link jsonb;
    c jetstream.connections;
begin
    select k.* into c from jetstream.connections k where k.name = health.connection;
    if not found then
        raise exception 'connection "%" does not exist', health.connection
            using errcode = 'undefined_object', hint = 'See jetstream.connections.';
    end if;
    select s.* into w from jetstream.worker_status() s;
    select l.value into link from jsonb_array_elements(w.connections) l where l.value ->> 'name' = health.connection;
    return jsonb_build_object(
        'connection', c.name,
        'healthy', w.pid is not null and coalesce(link ->> 'state', '') = 'connected' and w.state <> 'paused'
            and not exists (select from jetstream.streams s
                            where s.connection = c.name and s.sync_error is not null),
        'connected', coalesce(link ->> 'state', '') = 'connected',
        'connection_state', coalesce(link ->> 'state', case when c.enabled then 'unknown' else 'disabled' end),
        'detail', link ->> 'detail',
        'worker_pid', w.pid,
        'worker_state', w.state,
        'owed', exists (select from jetstream.outbox o where o.connection = c.name)
            or exists (select from jetstream.capture_queue q where q.connection = c.name),
        'lag_seconds', round(extract(epoch from jetstream.outbox_lag(c.name))::numeric, 3),
        'in_flight', w.in_flight,
        'dead_letters', (select count(*) from jetstream.dead_letters d where d.connection = c.name),
        'stream_errors', coalesce((select jsonb_object_agg(s.name, s.sync_error) from jetstream.streams s
                          where s.connection = c.name and s.sync_error is not null), '{}'::jsonb),
        'last_error', w.last_error);
end
$$;
comment on function jetstream.health(text) is 'Health of one connection as the worker sees it, with what is owed to it
healthy is true while the worker runs and is not paused, the connection is up, and all its streams are as asked; in_flight and
last_error are those of all connections
connection: connections.name';

create function jetstream.reload(connection text default null) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if reload.connection is not null
        and not exists (select from jetstream.connections k where k.name = reload.connection) then
        raise exception 'connection "%" does not exist', reload.connection
            using errcode = 'undefined_object', hint = 'See jetstream.connections.';
    end if;
    return jetstream.request_reload(reload.connection);
end
$$;
comment on function jetstream.reload(text) is
    'Makes the worker read connections and streams again and connect anew, to one connection or (null) to all; false if no worker runs here
connection: connections.name; null: all';
