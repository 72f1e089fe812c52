-- The rule engine's functions for NATS: configurations, streams, what was published, workers.

create function jetstream.rule_nats_configure(
    p_config_name text default 'default',
    p_nats_url text default null,
    p_auth_type text default null,
    p_jetstream_enabled boolean default null,
    p_stream_name text default null,
    p_subject_prefix text default null,
    p_auth_token text default null,
    p_auth_username text default null,
    p_auth_password text default null,
    p_auth_credentials_file text default null,
    p_auth_nkey_seed text default null,
    p_nats_cluster_urls text[] default null,
    p_tls_enabled boolean default null,
    p_tls_ca_file text default null,
    p_tls_cert_file text default null,
    p_tls_key_file text default null,
    p_max_connections integer default null,
    p_connection_timeout_ms integer default null,
    p_reconnect_delay_ms integer default null,
    p_max_reconnect_attempts integer default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into jetstream.connections (name) select p_config_name
    where not exists (select from jetstream.connections c where c.name = p_config_name);
    update jetstream.connections c
    set url = coalesce(p_nats_url, c.url), cluster_urls = coalesce(p_nats_cluster_urls, c.cluster_urls),
        token = coalesce(p_auth_token, c.token), username = coalesce(p_auth_username, c.username),
        password = coalesce(p_auth_password, c.password), nkey_seed = coalesce(p_auth_nkey_seed, c.nkey_seed),
        credentials_file = coalesce(p_auth_credentials_file, c.credentials_file),
        auth_type = coalesce(p_auth_type, c.auth_type), tls_required = coalesce(p_tls_enabled, c.tls_required),
        tls_ca_file = coalesce(p_tls_ca_file, c.tls_ca_file), tls_cert_file = coalesce(p_tls_cert_file, c.tls_cert_file),
        tls_key_file = coalesce(p_tls_key_file, c.tls_key_file),
        jetstream_enabled = coalesce(p_jetstream_enabled, c.jetstream_enabled),
        webhook_stream = coalesce(p_stream_name, c.webhook_stream),
        webhook_prefix = coalesce(p_subject_prefix, c.webhook_prefix),
        max_connections = coalesce(p_max_connections, c.max_connections),
        connection_timeout_ms = coalesce(p_connection_timeout_ms, c.connection_timeout_ms),
        reconnect_delay_ms = coalesce(p_reconnect_delay_ms, c.reconnect_delay_ms),
        max_reconnect_attempts = coalesce(p_max_reconnect_attempts, c.max_reconnect_attempts)
    where c.name = p_config_name;
    return true;
end
$$;
comment on function jetstream.rule_nats_configure(text, text, text, boolean, text, text, text, text, text, text, text,
    text[], boolean, text, text, text, integer, integer, integer, integer) is
    'Makes or changes a configuration; what is left out (null) stays as it is. Takes effect at commit
p_auth_token: Secret: token for auth_type token
p_auth_username: User for auth_type password
p_auth_password: Secret: password for auth_type password
p_auth_credentials_file: Path of a .creds file on the server, for auth_type credentials
p_auth_nkey_seed: Secret: nkey seed for auth_type nkey
Arguments as the columns of jetstream.rule_nats_config';

create function jetstream.rule_nats_stream_create(
    p_stream_name text,
    p_subjects text[] default null,
    p_config_name text default 'default',
    p_description text default null,
    p_retention_policy text default null,
    p_max_age_seconds bigint default null,
    p_storage_type text default null,
    p_max_messages bigint default null,
    p_max_bytes bigint default null,
    p_replicas integer default null,
    p_duplicate_window_seconds integer default null
) returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    select jetstream.create_stream(name => $1, subjects => $2, storage => $7, retention => $5, max_messages => $8,
        max_bytes => $9, replicas => $10,
        -- A new one keeps messages for a week, as the rule engine has it.
        max_age => coalesce(make_interval(secs => $6),
            case when not exists (select from jetstream.streams s where s.connection = $3 and s.name = $1) then interval '7 days' end),
        duplicate_window => make_interval(secs => $11), connection => $3, description => $4)
$$;
comment on function jetstream.rule_nats_stream_create(text, text[], text, text, text, bigint, text, bigint, bigint, integer,
    integer) is 'Asks for a stream, or for a change of it: what is left out (null) then stays as it is. Returns rule_nats_streams.stream_id, whose row says whether the server has it
p_config_name: Configuration the stream lives on
Arguments as the columns of jetstream.rule_nats_streams';

create function jetstream.rule_nats_test_connection(config_name text default 'default') returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c jetstream.connections;
    answer jsonb;
begin
    select k.* into c from jetstream.connections k where k.name = rule_nats_test_connection.config_name;
    if not found or not c.enabled then
        return jsonb_build_object('success', false, 'config', rule_nats_test_connection.config_name, 'connected', false,
            'message', case when c.name is null then 'no such configuration' else 'the configuration is disabled' end);
    end if;
    answer := jetstream.await_connection(c.name, c.connection_timeout_ms);
    return jsonb_build_object(
        'success', answer -> 'connected', 'connected', answer -> 'connected', 'state', answer -> 'state',
        'message', case when (answer ->> 'connected')::boolean then 'connected to ' else '' end || (answer ->> 'detail'),
        'waited_ms', answer -> 'waited_ms',
        'config', jsonb_build_object('name', c.name, 'url', c.url, 'jetstream', c.jetstream_enabled));
end
$$;
comment on function jetstream.rule_nats_test_connection(text) is
    'Makes the worker connect anew, as the committed configuration says, and waits for the result, for the connection timeout at most
Arguments as the columns of jetstream.rule_nats_config';

create function jetstream.rule_nats_init(config_name text default 'default') returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c jetstream.connections;
    answer jsonb;
begin
    select k.* into c from jetstream.connections k where k.name = rule_nats_init.config_name;
    if found and c.enabled then
        insert into jetstream.streams (connection, name, subjects, max_age, description)
        select c.name, c.webhook_stream,
               array[case when starts_with(c.webhook_prefix || '.', c.subject_prefix || '.') then ''
                          else coalesce(c.subject_prefix || '.', '') end || c.webhook_prefix || '.>'],
               '7 days', 'webhooks'
        where not exists (select from jetstream.streams s where s.connection = c.name and s.name = c.webhook_stream);
    end if;
    answer := jetstream.rule_nats_test_connection(rule_nats_init.config_name);
    return jsonb_strip_nulls(jsonb_build_object(
        'success', answer -> 'success', 'config', rule_nats_init.config_name,
        'nats_url', c.url, 'jetstream_enabled', c.jetstream_enabled,
        'stream_name', c.webhook_stream, 'state', answer -> 'state', 'waited_ms', answer -> 'waited_ms',
        'stream_error', (select s.sync_error from jetstream.streams s
                         where s.connection = c.name and s.name = c.webhook_stream),
        'server', case when (answer ->> 'success')::boolean then answer ->> 'message' end,
        'error', case when not (answer ->> 'success')::boolean then answer ->> 'message' end));
end
$$;
comment on function jetstream.rule_nats_init(text) is
    'Asks for the stream of the webhooks if there is none, makes the worker connect anew and says whether it did, within the connection timeout. The worker sees what is committed: call it after the changes, not in their transaction
Arguments as the columns of jetstream.rule_nats_config';

create function jetstream.rule_nats_health_check(config_name text default 'default') returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    health jsonb;
    connected boolean;
begin
    if not exists (select from jetstream.connections c where c.name = rule_nats_health_check.config_name) then
        return jsonb_build_object('success', false, 'config', rule_nats_health_check.config_name, 'connected', false,
            'error', 'no such configuration');
    end if;
    health := jetstream.health(rule_nats_health_check.config_name);
    connected := (health ->> 'connected')::boolean;
    return jsonb_strip_nulls(jsonb_build_object(
        'success', connected, 'config', rule_nats_health_check.config_name, 'connected', connected,
        'pool_stats', jsonb_build_object(
            'total_connections', 1,
            'healthy_connections', connected::integer,
            'health_percentage', connected::integer * 100.0,
            'requests_served', (select s.stored from jetstream.worker_status() s)),
        'jetstream_enabled', true,
        'state', health -> 'connection_state',
        'error', case when not connected then coalesce(nullif(health ->> 'detail', ''), health ->> 'last_error') end,
        'lag_seconds', health -> 'lag_seconds',
        'dead_letters', health -> 'dead_letters',
        'stream_errors', nullif(health -> 'stream_errors', '{}')));
end
$$;
comment on function jetstream.rule_nats_health_check(text) is
    'What the worker says of the connection now; requests_served counts the messages it has stored since it started
Arguments as the columns of jetstream.rule_nats_config';

create function jetstream.rule_nats_config_info(p_config_name text default 'default') returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    info jsonb;
begin
    select to_jsonb(v) into info
    from jetstream.rule_nats_config v where v.config_name = p_config_name;
    if not found then
        raise exception 'NATS configuration "%" does not exist', p_config_name
            using errcode = 'undefined_object', hint = 'See rule_nats_config.';
    end if;
    return info;
end
$$;
comment on function jetstream.rule_nats_config_info(text) is 'A configuration, without credentials
Arguments as the columns of jetstream.rule_nats_config';

-- What was published.

create view jetstream.nats_publish_summary as
select h.webhook as webhook_id, coalesce(w.name, format('deleted webhook %s', h.webhook)) as webhook_name,
       count(*) as total_published,
       count(*) filter (where h.success) as successful,
       count(*) filter (where not h.success) as failed,
       round(100.0 * count(*) filter (where h.success) / count(*), 2) as success_rate_pct,
       round(avg(h.latency_ms)::numeric, 2) as avg_latency_ms,
       round(min(h.latency_ms)::numeric, 2) as min_latency_ms,
       round(max(h.latency_ms)::numeric, 2) as max_latency_ms,
       max(h.published_at) as last_published_at
from jetstream.history h left join jetstream.webhooks w on w.id = h.webhook
where h.webhook is not null
group by h.webhook, w.name;
comment on view jetstream.nats_publish_summary is 'What the history holds, by webhook';
comment on column jetstream.nats_publish_summary.webhook_name is 'Name of the webhook';
comment on column jetstream.nats_publish_summary.total_published is 'Messages settled';
comment on column jetstream.nats_publish_summary.successful is 'Of these, those stored in the stream';
comment on column jetstream.nats_publish_summary.failed is 'Of these, those given up';
comment on column jetstream.nats_publish_summary.success_rate_pct is 'Share of those stored';
comment on column jetstream.nats_publish_summary.avg_latency_ms is 'From the insert to the acknowledgement, milliseconds';
comment on column jetstream.nats_publish_summary.last_published_at is 'When the last one was settled';
comment on column jetstream.nats_publish_summary.webhook_id is 'webhooks.id';
comment on column jetstream.nats_publish_summary.min_latency_ms is 'The shortest';
comment on column jetstream.nats_publish_summary.max_latency_ms is 'The longest';

create view jetstream.nats_performance_stats as
select h.webhook as webhook_id, coalesce(w.name, format('deleted webhook %s', h.webhook)) as webhook_name,
       count(h.latency_ms) as message_count,
       round(avg(h.latency_ms)::numeric, 2) as avg_latency_ms,
       round((percentile_cont(0.5) within group (order by h.latency_ms))::numeric, 2) as p50,
       round((percentile_cont(0.95) within group (order by h.latency_ms))::numeric, 2) as p95,
       round((percentile_cont(0.99) within group (order by h.latency_ms))::numeric, 2) as p99
from jetstream.history h left join jetstream.webhooks w on w.id = h.webhook
where h.webhook is not null and h.success and h.published_at > now() - interval '1 day'
group by h.webhook, w.name;
comment on view jetstream.nats_performance_stats is
    'Latency from the insert to the acknowledgement over the last day, by webhook, milliseconds; needs pg_jetstream.history = all';
comment on column jetstream.nats_performance_stats.message_count is 'Messages stored';
comment on column jetstream.nats_performance_stats.p50 is 'Half of them were as fast or faster';
comment on column jetstream.nats_performance_stats.p95 is '95 of 100 were as fast or faster';
comment on column jetstream.nats_performance_stats.p99 is '99 of 100 were as fast or faster';
comment on column jetstream.nats_performance_stats.webhook_id is 'webhooks.id';
comment on column jetstream.nats_performance_stats.webhook_name is 'Name of the webhook';
comment on column jetstream.nats_performance_stats.avg_latency_ms is 'Average latency';

create view jetstream.nats_recent_failures as
select f.outbox_id as publish_id, coalesce(w.name, format('deleted webhook %s', f.webhook)) as webhook_name, f.subject,
       f.error_message, f.published_at, f.state, f.message_id, f.attempts, f.next_attempt_at, f.webhook as webhook_id
from (
    select h.outbox_id, h.webhook, h.subject, h.error as error_message, h.published_at, 'dead' as state, h.message_id,
           h.attempts, null::timestamptz as next_attempt_at
    from jetstream.history h
    where not h.success and h.published_at > now() - interval '1 day'
    union all
    select o.id, o.webhook, o.subject, o.last_error, o.failed_at, 'owed', o.message_id, o.attempts, o.deliver_at
    from jetstream.outbox o
    where o.attempts > 0
    union all
    -- Not tried because the connection is down: the newest of each.
    select o.id, o.webhook, o.subject,
           format('connection "%s" is %s: %s', l.value ->> 'name', l.value ->> 'state', l.value ->> 'detail'),
           o.created_at, 'waiting', o.message_id, o.attempts, null
    from jetstream.worker_status() s
    cross join lateral jsonb_array_elements(s.connections) l
    cross join lateral (
        select k.* from jetstream.outbox k
        where k.connection = l.value ->> 'name' and k.deliver_at is null and k.attempts = 0
        order by k.deliver_at desc, k.id desc limit 1000
    ) o
    where l.value ->> 'state' in ('disconnected', 'failed', 'disabled')
) f left join jetstream.webhooks w on w.id = f.webhook
where f.webhook is not null
union all
select null, coalesce(w.name, 'deleted webhook ' || d.webhook), d.subject, d.reason, d.died_at, 'call_dead',
       d.message_id, d.attempts, null, d.webhook
from jetstream.webhook_dead_letters d left join jetstream.webhooks w on w.id = d.webhook
where d.died_at > now() - interval '1 day'
order by published_at desc nulls last;
comment on view jetstream.nats_recent_failures is
    'Webhook messages that died in the last day, that are failing now, and that wait for a connection that is down, and calls that workers have given up in the last day; newest first';
comment on column jetstream.nats_recent_failures.error_message is 'Why';
comment on column jetstream.nats_recent_failures.published_at is 'When it failed last; of one that waits, when it was inserted';
comment on column jetstream.nats_recent_failures.state is 'dead: not published, see jetstream.dead_letters; owed: will be tried again; waiting: for the connection; call_dead: published, and the call given up by a worker, see webhook_dead_letters';
comment on column jetstream.nats_recent_failures.next_attempt_at is 'When it is tried again';
comment on column jetstream.nats_recent_failures.publish_id is 'outbox.id; null for call_dead';
comment on column jetstream.nats_recent_failures.webhook_name is 'Name of the webhook';
comment on column jetstream.nats_recent_failures.subject is 'Subject';
comment on column jetstream.nats_recent_failures.message_id is 'Nats-Msg-Id';
comment on column jetstream.nats_recent_failures.attempts is 'Attempts that failed';
comment on column jetstream.nats_recent_failures.webhook_id is 'webhooks.id';

create function jetstream.rule_nats_stats(p_webhook_id integer default null, p_hours integer default 24) returns jsonb
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'total_published', count(*),
        'successful', count(*) filter (where h.success),
        'failed', count(*) filter (where not h.success),
        'success_rate_pct', round(100.0 * count(*) filter (where h.success) / nullif(count(*), 0), 2),
        'avg_latency_ms', round(avg(h.latency_ms)::numeric, 2),
        'min_latency_ms', round(min(h.latency_ms)::numeric, 2),
        'max_latency_ms', round(max(h.latency_ms)::numeric, 2),
        'p50_latency_ms', round((percentile_cont(0.5) within group (order by h.latency_ms))::numeric, 2),
        'p95_latency_ms', round((percentile_cont(0.95) within group (order by h.latency_ms))::numeric, 2),
        'p99_latency_ms', round((percentile_cont(0.99) within group (order by h.latency_ms))::numeric, 2),
        'unique_subjects', count(distinct h.subject),
        'time_range_hours', $2,
        'period_start', min(h.published_at),
        'period_end', max(h.published_at))
    from jetstream.history h
    where h.published_at > now() - make_interval(hours => $2)
      and case when $1 is null then h.webhook is not null else h.webhook = $1 end
$$;
comment on function jetstream.rule_nats_stats(integer, integer) is
    'What was published for one webhook or (null) for all, over the last hours
p_webhook_id: One webhook; null: all
p_hours: How many hours back';

create function jetstream.rule_nats_webhooks_list() returns table (
    webhook_id integer, webhook_name text, nats_subject text, publish_mode text, config_name text,
    total_published bigint, success_rate numeric
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select w.id, w.name, jetstream.webhook_subject(w), w.publish_mode, w.connection, coalesce(s.total_published, 0),
           s.success_rate_pct
    from jetstream.webhooks w left join jetstream.nats_publish_summary s on s.webhook_id = w.id
    where w.nats_enabled
    order by w.name
$$;
comment on function jetstream.rule_nats_webhooks_list() is 'Webhooks that may be published to NATS, with what the history holds of them
config_name: Configuration its messages go to
total_published: Its messages in the history
success_rate: Share of those stored, per cent
Arguments as the columns of jetstream.rule_webhooks';

create function jetstream.rule_nats_cleanup_old_history(
    p_older_than interval default '30 days', p_keep_failed boolean default true
) returns bigint
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    with gone as (
        delete from jetstream.history h where h.published_at < now() - $1 and (h.success or not $2) returning 1
    )
    select count(*) from gone
$$;
comment on function jetstream.rule_nats_cleanup_old_history(interval, boolean) is
    'Deletes the history older than that, failures only if asked for; returns how many rows. The worker drops whole days after pg_jetstream.history_retention by itself
p_older_than: Age since it was settled
p_keep_failed: false: failures too';

create function jetstream.rule_nats_cleanup_expired() returns bigint
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    select jetstream.rule_nats_cleanup_old_history(current_setting('pg_jetstream.history_retention')::interval, false)
$$;
comment on function jetstream.rule_nats_cleanup_expired() is
    'Deletes the history older than pg_jetstream.history_retention, which the worker would drop by whole days; returns how many rows';

create function jetstream.rule_nats_consumer_update_stats(
    p_stream_name text,
    p_consumer_name text,
    p_messages_delivered bigint,
    p_messages_acknowledged bigint,
    p_messages_pending bigint default null,
    p_avg_processing_time_ms numeric default null,
    p_messages_redelivered bigint default 0,
    p_active boolean default true,
    p_queue_group text default null,
    p_ack_policy text default null,
    p_max_deliver integer default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_ack_policy not in ('none', 'all', 'explicit') then
        raise exception 'unknown acknowledgement policy "%"', p_ack_policy
            using errcode = 'invalid_parameter_value', hint = 'It is none, all or explicit.';
    end if;
    if p_messages_delivered < 0 or p_messages_acknowledged < 0 or p_messages_redelivered < 0 or p_messages_pending < 0
        or p_avg_processing_time_ms < 0 then
        raise exception 'a report cannot take anything back'
            using errcode = 'invalid_parameter_value', hint = 'Report what was done since the last report.';
    end if;
    insert into jetstream.consumers as c (stream, consumer, delivered, acknowledged, redelivered, pending, timed,
        processing_ms, active, queue_group, ack_policy, max_deliver)
    values (p_stream_name, p_consumer_name, coalesce(p_messages_delivered, 0), coalesce(p_messages_acknowledged, 0),
        coalesce(p_messages_redelivered, 0), coalesce(p_messages_pending, 0),
        case when p_avg_processing_time_ms is null then 0 else coalesce(p_messages_delivered, 0) end,
        coalesce(p_avg_processing_time_ms * p_messages_delivered, 0), coalesce(p_active, true),
        p_queue_group, p_ack_policy, p_max_deliver)
    on conflict on constraint consumers_key do update set
        delivered = c.delivered + excluded.delivered, acknowledged = c.acknowledged + excluded.acknowledged,
        redelivered = c.redelivered + excluded.redelivered, timed = c.timed + excluded.timed,
        processing_ms = c.processing_ms + excluded.processing_ms,
        pending = coalesce(p_messages_pending, c.pending), active = excluded.active, last_active_at = clock_timestamp(),
        queue_group = coalesce(p_queue_group, c.queue_group), ack_policy = coalesce(p_ack_policy, c.ack_policy),
        max_deliver = coalesce(p_max_deliver, c.max_deliver);
    return true;
end
$$;
comment on function jetstream.rule_nats_consumer_update_stats(text, text, bigint, bigint, bigint, numeric, bigint, boolean, text, text, integer) is
    'A worker''s report of what it did since its last one: counts are added up, also those of several workers under one name; the average time is that of the messages reported now
p_stream_name: Stream it consumes
p_consumer_name: Name of the worker
p_messages_delivered: Deliveries since the last report
p_messages_acknowledged: Acknowledged since the last report
p_messages_pending: Messages that wait in the stream; null: not known
p_avg_processing_time_ms: Average of those acknowledged, milliseconds; null: not known
p_messages_redelivered: Deliveries since the last report that were not the first
p_active: false: the worker ends
p_queue_group: Durable consumer that the workers share; null: as last reported
p_ack_policy: none, all or explicit; null: as last reported
p_max_deliver: Most deliveries of one message; null: as last reported';
