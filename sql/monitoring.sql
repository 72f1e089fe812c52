-- Looking at the outbox, the history and the worker.

create view jetstream.outbox_summary as
select connection, subject,
       count(*) filter (where attempts > 0 or deliver_at is null or deliver_at <= now()) as owed,
       count(*) filter (where attempts > 0) as failing,
       min(created_at) as oldest,
       min(deliver_at) as next_attempt,
       max(last_error) as last_error,
       count(*) filter (where attempts = 0 and deliver_at > now()) as scheduled
from jetstream.outbox
group by connection, subject
union all
-- Of a transaction's begin and commit, and of changes.
select q.connection::text, case when q.boundary then concat(q.prefix, '.transactions.*.event')
           else concat_ws('.', q.prefix, jetstream.subject_token(q.schema), jetstream.subject_token(q."table"), '*') end,
       sum(q.changes), 0, min(q.at), null, null, 0
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
    'Pending messages, by connection and subject; captured changes that are no messages yet too';
comment on column jetstream.outbox_summary.connection is 'Connection they go to';
comment on column jetstream.outbox_summary.subject is 'Subject they go to, with * for the operation of captured changes that are no messages yet';
comment on column jetstream.outbox_summary.owed is 'Pending messages that are due or failing';
comment on column jetstream.outbox_summary.failing is 'Of these, how many have failed at least once';
comment on column jetstream.outbox_summary.oldest is 'Insert time of the oldest';
comment on column jetstream.outbox_summary.next_attempt is 'Earliest deliver_at among delayed messages and further attempts';
comment on column jetstream.outbox_summary.last_error is 'One of the reasons';
comment on column jetstream.outbox_summary.scheduled is 'Pending messages that are not due yet, as their producer asked; not among owed';

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
       max(published_at) as last_published_at,
       count(*) filter (where success and error is not null) as reused_ids
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
comment on column jetstream.publish_summary.reused_ids is 'Of the duplicates, those the stream had from another message with the same id';

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

-- By indexes and up to a limit, so that it costs the same however much there is.
create function jetstream.backlog(connection text) returns table (
    owed bigint, scheduled bigint, failing bigint, captured bigint, waiting interval, oldest_failing interval
)
language sql volatile security definer rows 1
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
    select d.n + l.n + f.n,
           (select count(*) from (select from jetstream.outbox o
                                  where o.connection = $1 and o.deliver_at > t.now and o.attempts = 0 limit 10000) s),
           f.n,
           q.n,
           case when d.n + l.n + q.n > 0 then t.now - least(d.since, l.since, q.since, t.now) end,
           case when f.n > 0 then t.now - least(f.since, t.now) end
    from (select clock_timestamp() as now) t
    -- At once.
    cross join lateral (
        select count(*) as n, min(o.since) as since
        from (select coalesce(k.due_at, k.created_at) as since from jetstream.outbox k
              where k.connection = $1 and k.deliver_at is null and k.attempts = 0
              order by k.connection, k.deliver_at, k.id limit 10000) o) d
    -- Their time has come.
    cross join lateral (
        select count(*) as n, min(o.since) as since
        from (select coalesce(k.due_at, k.deliver_at) as since, k.attempts from jetstream.outbox k
              where k.connection = $1 and k.deliver_at <= t.now
              order by k.connection, k.deliver_at limit 10000) o
        where o.attempts = 0) l
    -- However often they have been tried, and whenever the next time is.
    cross join lateral (
        select count(*) as n, min(o.since) as since
        from (select coalesce(k.due_at, k.created_at) as since from jetstream.outbox k
              where k.connection = $1 and k.attempts > 0 order by k.connection, k.due_at limit 10000) o) f
    cross join lateral (
        select count(*) as n, min(o.at) as since
        from (select k.at from jetstream.capture_queue k where k.connection = $1 order by k.txid limit 1000) o) q
$$;
comment on function jetstream.backlog(text) is 'What is pending for one connection, counted up to 10000 each; use status() or health()
connection: connections.name
owed: Messages that are due or failing
scheduled: Messages that are not due yet, as their producer asked
failing: Messages that have failed at least once
captured: Rows of captured changes that are no messages yet, counted up to 1000
waiting: How long the oldest one has been due that has not failed; null if there is none
oldest_failing: How long the oldest failing one has been due; null if there is none';

create function jetstream.outbox_lag(connection text default null) returns interval
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
    select max(greatest(b.waiting, b.oldest_failing))
    from jetstream.connections c cross join lateral jetstream.backlog(c.name) b
    where $1 is null or c.name = $1;
$$;
comment on function jetstream.outbox_lag(text) is 'Age of the oldest message that is due, failing ones included, or captured change, of one connection or of all; null if there is none
connection: connections.name; null: all';

create function jetstream.verdict(connection text default null) returns table (verdict text, reasons jsonb)
language sql volatile security definer rows 1
set search_path = pg_catalog, pg_temp
set jit = off
as $$
    with worker as materialized (
        select w.pid, w.last_error, w.connections from jetstream.worker_status() w
    ), links as materialized (
        select c.name, c.enabled, coalesce(l.value ->> 'state', 'unknown') as state, l.value ->> 'detail' as detail
        from jetstream.connections c
        cross join worker w
        left join lateral jsonb_array_elements(w.connections) l on l.value ->> 'name' = c.name
        where $1 is null or c.name = $1
    ), found (number, level, connection, reason, next_step) as (
        select 1, 'down', null::text, 'no worker runs: ' || coalesce(nullif(w.last_error, ''), 'see the server''s log'),
               case when pg_is_in_recovery() then 'None: publishing starts when the server is promoted.'
                    else 'Fix the cause; the worker then starts within seconds. The server''s log has the details.' end
        from worker w where w.pid is null
        union all
        select 2, 'down', null, format('publishing is paused since %s by %s', p.paused_at, p.paused_by),
               'Call jetstream.resume().'
        from jetstream.control p
        union all
        select 3, 'down', $1, case when $1 is null then 'no connection is enabled' else format('connection "%s" is disabled', $1) end,
               'Set enabled in jetstream.connections.'
        where not exists (select from links l where l.enabled)
        union all
        select 4, case when exists (select from links k where k.enabled and k.state = 'connected') then 'degraded' else 'down' end,
               l.name, format('connection "%s" is %s', l.name, l.state) || coalesce(': ' || nullif(l.detail, ''), ''),
               case l.state
                   when 'failed' then format('Fix the cause, then call jetstream.reload(%L).', l.name)
                   when 'unknown' then 'Wait a second: the worker has not read this connection yet.'
                   else format('Fix the cause; the worker keeps trying, and jetstream.reload(%L) makes it try immediately.', l.name)
               end
        from links l cross join worker w
        where w.pid is not null and l.enabled and l.state <> 'connected'
        union all
        select 5, 'degraded', s.connection, format('stream "%s" is not as asked: %s', s.name, s.sync_error),
               'Correct the row in jetstream.streams or the stream on the server.'
        from jetstream.streams s join links l on l.name = s.connection
        where s.sync_error is not null
        union all
        select 6, 'degraded', l.name,
               format('%s%s messages to connection "%s" fail, the oldest is due since %s ago', case when b.failing >= 10000 then 'at least ' end,
                      b.failing, l.name, date_trunc('second', b.oldest_failing))
                   || coalesce(': ' || nullif(f.last_error, ''), ''),
               'See jetstream.recent_failures. Only messages of the same keys wait. Fix the cause, then call jetstream.retry().'
        from links l
        cross join lateral jetstream.backlog(l.name) b
        left join lateral (select o.last_error from jetstream.outbox o where o.connection = l.name and o.attempts > 0
                           order by o.due_at limit 1) f on true
        where b.failing > 0
        union all
        select 7, 'degraded', l.name,
               format('the oldest message to connection "%s" has waited for %s', l.name, date_trunc('second', b.waiting)),
               'More is inserted than is published, or the worker waits for a lock: see jetstream.status() and pg_stat_activity.'
        from links l cross join lateral jetstream.backlog(l.name) b
        where l.state = 'connected' and b.waiting > interval '1 minute'
    )
    select case when bool_or(f.level = 'down') then 'down' when count(*) > 0 then 'degraded' else 'healthy' end,
           coalesce(jsonb_agg(jsonb_build_object('level', f.level, 'connection', f.connection, 'reason', f.reason,
                                                 'next_step', f.next_step) order by f.number, f.connection), '[]')
    from found f
$$;
comment on function jetstream.verdict(text) is 'Whether all (healthy), some (degraded) or none (down) of the work can proceed, and why not
connection: connections.name; null: all
verdict: healthy, degraded or down
reasons: Array of objects with level, connection (null: all), reason and next_step; empty if healthy';

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
    last_cycle_at timestamptz,
    verdict text,
    reasons jsonb,
    owed bigint,
    scheduled bigint,
    failing bigint,
    oldest_failing interval,
    reused_ids bigint
)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
    select w.worker, w.pid, jetstream.worker_role(), w.state, w.connections, w.in_flight, w.in_flight_bytes, b.lag, w.claimed,
           w.stored, w.duplicates, w.retried, w.dead, w.held_keys, w.cycles, w.last_error, w.last_error_at,
           w.started_at, w.last_cycle_at, v.verdict, v.reasons, b.owed, b.scheduled, b.failing, b.oldest_failing,
           jetstream.worker_reused_ids()
    from jetstream.worker_status() w
    cross join jetstream.verdict() v
    cross join (select max(greatest(k.waiting, k.oldest_failing)) as lag, coalesce(sum(k.owed), 0)::bigint as owed,
                       coalesce(sum(k.scheduled), 0)::bigint as scheduled, coalesce(sum(k.failing), 0)::bigint as failing,
                       max(k.oldest_failing) as oldest_failing
                from jetstream.connections c cross join lateral jetstream.backlog(c.name) k) b;
$$;
comment on function jetstream.status() is
    'The worker of this database: whether all is well, what it does, its connections, what is pending, counters since it started, and its last error
worker: Database it serves
pid: Its process; null if none runs
role: Role whose rights it has (pg_jetstream.role); null while it has not begun
state: What it does, in a word or two; "not running", with the reason in last_error
connections: Each enabled or disabled connection with name, state (connecting, connected, disconnected, failed, disabled) and detail
in_flight: Messages claimed and not settled
in_flight_bytes: Their bytes
lag: Age of the oldest message that is due, failing ones included; null if there is none
claimed: Messages claimed since it started
stored: Messages acknowledged since it started, duplicates included
duplicates: Of these, those the stream had already
retried: Failed attempts since it started that are followed by another
dead: Messages that became dead letters since it started
held_keys: Keys in the worker''s memory that wait for a failing message, or have many waiting
cycles: Transactions since it started
last_error: Last failure of any kind, or why no worker runs
last_error_at: When that was
started_at: When the worker started
last_cycle_at: When its last transaction was
verdict: healthy, degraded or down: all, some or none of the work can proceed
reasons: Why it is not healthy: array of objects with level, connection, reason and next_step
owed: Pending messages that are due or failing; counted up to 10000 for each connection and kind
scheduled: Pending messages that are not due yet, as their producer asked; counted like owed
failing: Of those owed, those that have failed at least once
oldest_failing: How long the oldest failing message has been due; null if none fails
reused_ids: Of the duplicates, those the stream had from another message with the same id';

create function jetstream.health(connection text default null) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    w record;
    v record;
    b record;
    l record;
begin
    if health.connection is not null
        and not exists (select from jetstream.connections k where k.name = health.connection) then
        raise exception 'connection "%" does not exist', health.connection
            using errcode = 'undefined_object', hint = 'See jetstream.connections.';
    end if;
    select s.* into w from jetstream.worker_status() s;
    select x.* into v from jetstream.verdict(health.connection) x;
    select coalesce(sum(k.owed), 0) as owed, coalesce(sum(k.captured), 0) as captured, coalesce(sum(k.scheduled), 0) as scheduled, coalesce(sum(k.failing), 0) as failing,
           max(greatest(k.waiting, k.oldest_failing)) as lag, max(k.oldest_failing) as oldest_failing
        into b
        from jetstream.connections c cross join lateral jetstream.backlog(c.name) k
        where health.connection is null or c.name = health.connection;
    -- Of several, the one that is worst off: a connection that is not enabled counts only if it is asked about.
    select s.state, s.detail, s.connected into l
        from (select coalesce(k.value ->> 'state', case when c.enabled then 'unknown' else 'disabled' end) as state,
                     k.value ->> 'detail' as detail, coalesce(k.value ->> 'state' = 'connected', false) as connected,
                     c.enabled, c.name
              from jetstream.connections c
              left join lateral jsonb_array_elements(w.connections) k on k.value ->> 'name' = c.name
              where health.connection is null or c.name = health.connection) s
        order by s.enabled desc, s.connected, s.name limit 1;
    return jsonb_build_object(
        'connection', health.connection,
        'verdict', v.verdict,
        'healthy', v.verdict = 'healthy',
        'reasons', v.reasons,
        'connected', coalesce(l.connected, false),
        'connection_state', l.state,
        'detail', l.detail,
        'worker_pid', w.pid,
        'worker_state', w.state,
        'owed', b.owed + b.captured > 0,
        'owed_messages', b.owed,
        'scheduled', b.scheduled,
        'failing', b.failing,
        'lag_seconds', round(extract(epoch from b.lag)::numeric, 3),
        'oldest_failing_seconds', round(extract(epoch from b.oldest_failing)::numeric, 3),
        'in_flight', w.in_flight,
        'dead_letters', (select count(*) from jetstream.dead_letters d
                         where health.connection is null or d.connection = health.connection),
        'stream_errors', coalesce((select jsonb_object_agg(s.name, s.sync_error) from jetstream.streams s
                          where (health.connection is null or s.connection = health.connection)
                              and s.sync_error is not null), '{}'::jsonb),
        'last_error', case
            when health.connection is null or w.pid is null then w.last_error
            when not l.connected then nullif(l.detail, '')
            else coalesce(
                (select s.sync_error from jetstream.streams s
                 where s.connection = health.connection and s.sync_error is not null order by s.name limit 1),
                (select e.error
                 from ((select o.failed_at as at, o.last_error as error
                        from (select k.failed_at, k.last_error from jetstream.outbox k
                              where k.connection = health.connection and k.attempts > 0 limit 1000) o
                        order by o.failed_at desc nulls last limit 1)
                       union all
                       (select d.died_at, d.reason
                        from (select k.died_at, k.reason from jetstream.dead_letters k
                              where k.connection = health.connection limit 1000) d
                        order by d.died_at desc limit 1)) e
                 order by e.at desc nulls last limit 1))
        end);
end
$$;
comment on function jetstream.health(text) is 'The verdict on one connection, or (null) on all, as the worker sees it, with what is pending for it
verdict is healthy, degraded or down; healthy is true for the first of them, and reasons says why for the others, with a next step
each; last_error is that of the connection; in_flight is that of all connections
connection: connections.name; null: all';

create function jetstream.retry(subject_pattern text default '>', connection text default null) returns bigint
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    with due as (
        update jetstream.outbox o set deliver_at = clock_timestamp()
        from (select f.id from jetstream.outbox f
              where f.attempts > 0 and f.deliver_at > clock_timestamp()
                  and ($2 is null or f.connection = $2) and ($1 is null or jetstream.subject_matches(f.subject, $1))
              for update skip locked) f
        where o.id = f.id
        returning 1
    )
    select count(*) from due
$$;
comment on function jetstream.retry(text, text) is 'Makes failing messages due immediately, to be called when the cause is fixed; returns how many
subject_pattern: Only messages whose subject it matches, with the wildcards * and > of NATS
connection: connections.name; null: all';

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
