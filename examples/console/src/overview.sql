-- What the page shows, in one look. Neither bodies nor headers; of a webhook's url only the server, as the path of some is
-- a secret. Each list ends somewhere.
with worker as materialized (
    select w.* from jetstream.worker_status() w
), failing as (
    select o.failed_at, 'owed' as state, o.connection, o.subject, o.attempts, o.last_error as error, o.deliver_at as next_attempt
    from jetstream.connections c
    cross join lateral (
        select o.* from (
            select k.failed_at, k.connection, k.subject, k.attempts, k.last_error, k.deliver_at
            from jetstream.outbox k where k.connection = c.name and k.attempts > 0
            order by k.due_at limit 10000) o
        order by o.failed_at desc limit 50) o
    union all
    (select h.published_at, 'dead', h.connection, h.subject, h.attempts, h.error, null
     from jetstream.history h
     where not h.success and h.published_at > now() - interval '1 day'
     order by h.published_at desc limit 50)
), open_calls as (
    select k.webhook, count(*) filter (where k.status = 'pending') as pending, count(*) filter (where k.status = 'failed') as failing
    from (select c.webhook, c.status from jetstream.webhook_calls c where c.status in ('pending', 'failed')
          order by c.scheduled_at limit 10000) k
    group by k.webhook
), dead_calls as (
    select k.webhook, count(*) as dead
    from (select c.webhook from jetstream.webhook_calls c
          where c.status = 'dead' and c.completed_at > now() - interval '1 hour' limit 10000) k
    group by k.webhook
)
select jsonb_build_object(
    'at', extract(epoch from clock_timestamp()),
    'database', current_database(),
    'version', (select e.extversion from pg_extension e where e.extname = 'pg_jetstream'),
    'metrics', (select jsonb_agg(jsonb_build_object('name', m.name, 'labels', m.labels, 'value', m.value)) from jetstream.metrics m),
    'health', (select jsonb_build_object('verdict', v.verdict, 'reasons', v.reasons) from jetstream.verdict() v),
    'worker', (select jsonb_build_object('pid', w.pid, 'state', w.state, 'last_error', w.last_error, 'last_error_at', w.last_error_at)
               from worker w),
    'connections', (
        select jsonb_agg(jsonb_build_object('name', c.name, 'url', c.url, 'enabled', c.enabled, 'state', l.value ->> 'state',
                                            'detail', l.value ->> 'detail') order by c.name)
        from jetstream.connections c
        cross join worker w
        left join lateral jsonb_array_elements(w.connections) l on l.value ->> 'name' = c.name),
    'streams', (
        select jsonb_agg(jsonb_build_object('name', s.name, 'connection', s.connection, 'subjects', s.subjects,
                                            'synced_at', s.synced_at, 'sync_error', s.sync_error) order by s.connection, s.name)
        from jetstream.streams s),
    'webhooks', (
        select jsonb_agg(jsonb_build_object('name', w.name, 'server', substring(w.url from '^[A-Za-z]+://[^/?#]*'),
                                            'publish_mode', w.publish_mode, 'enabled', w.enabled, 'pending', coalesce(o.pending, 0),
                                            'failing', coalesce(o.failing, 0), 'dead', coalesce(d.dead, 0)) order by w.name)
        from jetstream.webhooks w
        left join open_calls o on o.webhook = w.id
        left join dead_calls d on d.webhook = w.id),
    'failures', (
        select jsonb_agg(to_jsonb(f) order by f.failed_at desc nulls last)
        from (select * from failing order by failed_at desc nulls last limit 50) f),
    'dead_letters', (
        select jsonb_agg(to_jsonb(d) order by d.died_at desc, d.id desc)
        from (select l.id, l.connection, l.subject, l.message_id, l.key, l.attempts, l.reason, l.died_at
              from jetstream.dead_letters l order by l.died_at desc limit 100) d)
)
