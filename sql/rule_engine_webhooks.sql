-- The rule engine's functions for webhooks and their calls.

create function jetstream.rule_webhook_register(
    p_name text,
    p_url text,
    p_method text default 'POST',
    p_headers jsonb default '{}',
    p_description text default null,
    p_timeout_ms integer default 5000,
    p_max_retries integer default 3,
    p_enable_nats boolean default false,
    p_nats_subject text default null,
    p_publish_mode text default null,
    p_config_name text default 'default',
    p_tags text[] default '{}'
) returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    insert into jetstream.webhooks (name, url, method, headers, description, timeout_ms, max_attempts, nats_enabled, subject,
        publish_mode, connection, tags)
    values ($1, $2, upper($3), coalesce($4, '{}'), $5, $6, $7 + 1, $8, $9,
        coalesce($10, case when $8 then 'nats' else 'queue' end), $11, coalesce($12, '{}'))
    returning id
$$;
comment on function jetstream.rule_webhook_register(text, text, text, jsonb, text, integer, integer, boolean, text, text, text,
    text[]) is 'Registers a webhook and returns its id; with p_enable_nats its publish mode is nats unless another is given
p_name: Unique name
p_url: Endpoint, http or https, without credentials
p_method: HTTP method
p_enable_nats: true: may be published to NATS
p_config_name: Configuration its messages go to
Arguments as the columns of jetstream.rule_webhooks';

create function jetstream.rule_webhook_update(
    p_webhook_id integer,
    p_url text default null,
    p_method text default null,
    p_headers jsonb default null,
    p_timeout_ms integer default null,
    p_enabled boolean default null,
    p_max_retries integer default null,
    p_description text default null,
    p_enable_nats boolean default null,
    p_nats_subject text default null,
    p_publish_mode text default null,
    p_tags text[] default null
) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    with changed as (
        update jetstream.webhooks w
        set url = coalesce($2, w.url), method = coalesce(upper($3), w.method), headers = coalesce($4, w.headers),
            timeout_ms = coalesce($5, w.timeout_ms), enabled = coalesce($6, w.enabled),
            max_attempts = coalesce($7 + 1, w.max_attempts), description = coalesce($8, w.description),
            nats_enabled = coalesce($9, w.nats_enabled), subject = coalesce($10, w.subject),
            publish_mode = coalesce($11, w.publish_mode), tags = coalesce($12, w.tags)
        where w.id = $1
        returning 1
    )
    select exists (select from changed)
$$;
comment on function jetstream.rule_webhook_update(integer, text, text, jsonb, integer, boolean, integer, text, boolean, text,
    text, text[]) is 'Changes a webhook; what is left out stays as it is. False if there is none
p_url: Endpoint, http or https, without credentials
p_method: HTTP method
p_enable_nats: Whether it may be published to NATS
Arguments as the columns of jetstream.rule_webhooks';

create function jetstream.rule_webhook_delete(p_webhook_id integer) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    with gone as (delete from jetstream.webhooks w where w.id = $1 returning 1)
    select exists (select from gone)
$$;
comment on function jetstream.rule_webhook_delete(integer) is
    'Removes a webhook with its secrets and finished calls; false if there is none. Refused while calls are still to be made
p_webhook_id: webhooks.id';

create function jetstream.rule_webhook_list(p_enabled_only boolean default false) returns table (
    webhook_id integer, webhook_name text, webhook_url text, http_method text, enabled boolean, publish_mode text,
    total_calls bigint, success_rate numeric, created_at timestamptz
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select w.id, w.name, w.url, w.method, w.enabled, w.publish_mode, count(c.id),
           round(100.0 * count(*) filter (where c.status = 'succeeded')
                 / nullif(count(*) filter (where c.status in ('succeeded', 'dead')), 0), 2),
           w.created_at
    from jetstream.webhooks w left join jetstream.webhook_calls c on c.webhook = w.id
    where w.enabled or not $1
    group by w.id
    order by w.created_at desc, w.id desc
$$;
comment on function jetstream.rule_webhook_list(boolean) is 'All webhooks, with the calls their queue holds
p_enabled_only: true: without those disabled
total_calls: Calls in the queue, ended ones included
success_rate: Share of the ended ones that succeeded, per cent
Arguments as the columns of jetstream.rule_webhooks';

create function jetstream.rule_webhook_get(p_identifier text) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    found_row jsonb;
begin
    select to_jsonb(v) || jsonb_build_object('secrets', coalesce((
               select jsonb_agg(s.name order by s.name) from jetstream.webhook_secrets s where s.webhook = v.webhook_id), '[]'))
    into found_row
    from jetstream.rule_webhooks v
    where v.webhook_name = p_identifier or v.webhook_id::text = p_identifier
    order by v.webhook_name = p_identifier desc
    limit 1;
    if not found then
        raise exception 'webhook "%" does not exist', p_identifier
            using errcode = 'undefined_object', hint = 'See rule_webhooks.';
    end if;
    return found_row;
end
$$;
comment on function jetstream.rule_webhook_get(text) is 'A webhook by name or id, with the names of its secrets
p_identifier: Name or number of the webhook';

create function jetstream.rule_webhook_secret_set(p_webhook_id integer, p_secret_name text, p_secret_value text)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from jetstream.webhooks w where w.id = p_webhook_id) then
        raise exception 'webhook % does not exist', coalesce(p_webhook_id::text, 'null')
            using errcode = 'undefined_object', hint = 'See rule_webhooks.';
    end if;
    insert into jetstream.webhook_secrets (webhook, name, value) values (p_webhook_id, p_secret_name, p_secret_value)
    on conflict on constraint webhook_secrets_key do update set value = excluded.value, created_at = now();
    return true;
end
$$;
comment on function jetstream.rule_webhook_secret_set(integer, text, text) is
    'Sets a secret, which header values refer to as {{secret:NAME}}; calls not made yet use the new value
p_webhook_id: webhooks.id
p_secret_name: Name, as in {{secret:NAME}}: up to 63 letters, digits, _, . and -
p_secret_value: Secret, without control characters';

create function jetstream.rule_webhook_secret_delete(p_webhook_id integer, p_secret_name text) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    with gone as (delete from jetstream.webhook_secrets s where s.webhook = $1 and s.name = $2 returning 1)
    select exists (select from gone)
$$;
comment on function jetstream.rule_webhook_secret_delete(integer, text) is 'Removes a secret; false if there is none
p_webhook_id: webhooks.id
p_secret_name: Name, as in {{secret:NAME}}';

create function jetstream.rule_webhook_enable_nats(
    p_webhook_id integer,
    p_nats_subject text default null,
    p_publish_mode text default null,
    p_config_name text default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update jetstream.webhooks w
    set nats_enabled = true, subject = coalesce(p_nats_subject, w.subject), publish_mode = coalesce(p_publish_mode, case when w.publish_mode = 'queue' then 'both' else w.publish_mode end),
        connection = coalesce(p_config_name, w.connection)
    where w.id = p_webhook_id;
    if not found then
        raise exception 'webhook % does not exist', coalesce(p_webhook_id::text, 'null')
            using errcode = 'undefined_object', hint = 'See rule_webhooks.';
    end if;
    return true;
end
$$;
comment on function jetstream.rule_webhook_enable_nats(integer, text, text, text) is
    'Lets a webhook be published to NATS; what is left out (null) stays as it is, but for the publish mode queue, which becomes both. Takes effect with the next call
p_config_name: Configuration its messages go to
Arguments as the columns of jetstream.rule_webhooks';

create function jetstream.rule_webhook_disable_nats(p_webhook_id integer) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update jetstream.webhooks w set nats_enabled = false, publish_mode = 'queue' where w.id = p_webhook_id;
    if not found then
        raise exception 'webhook % does not exist', coalesce(p_webhook_id::text, 'null')
            using errcode = 'undefined_object', hint = 'See rule_webhooks.';
    end if;
    return true;
end
$$;
comment on function jetstream.rule_webhook_disable_nats(integer) is
    'Makes the queue the only way of a webhook; takes effect with the next call
p_webhook_id: webhooks.id';

-- Calls.

create function jetstream.rule_webhook_publish_nats(webhook_id integer, payload jsonb, message_id text default null)
returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ begin return jetstream.webhook_call($1, $2, $3, publish_mode => 'nats'); end $$;
comment on function jetstream.rule_webhook_publish_nats(integer, jsonb, text) is
    'Stores a message for NATS, whatever the publish mode; it is published once this transaction commits. The id is made up if null
webhook_id: webhooks.id
Arguments as the columns of jetstream.webhook_calls';

create function jetstream.rule_webhook_call_unified(
    webhook_id integer, payload jsonb, message_id text default null, scheduled_at timestamptz default null
) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ begin return jetstream.webhook_call($1, $2, $3, $4); end $$;
comment on function jetstream.rule_webhook_call_unified(integer, jsonb, text, timestamptz) is
    'Calls a webhook by its publish mode once this transaction commits; returns what was stored
webhook_id: webhooks.id
Arguments as the columns of jetstream.webhook_calls';

create function jetstream.rule_webhook_enqueue(
    p_webhook_id integer, p_payload jsonb, p_scheduled_at timestamptz default null, p_message_id text default null
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ begin return jetstream.webhook_call($1, $2, $4, $3, 'queue') ->> 'call_id'; end $$;
comment on function jetstream.rule_webhook_enqueue(integer, jsonb, timestamptz, text) is
    'Stores a call in the queue, whatever the publish mode; returns its id
p_webhook_id: webhooks.id
Arguments as the columns of jetstream.webhook_calls';

create function jetstream.rule_webhook_call(p_webhook_id integer, p_payload jsonb) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ begin return jetstream.webhook_call($1, $2, publish_mode => 'queue'); end $$;
comment on function jetstream.rule_webhook_call(integer, jsonb) is
    'Stores a call in the queue, whatever the publish mode; returns what was stored. A worker makes the HTTP call
p_webhook_id: webhooks.id
p_payload: Body as JSON';

create function jetstream.rule_webhook_retry(p_call_id bigint) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select jetstream.webhook_retry($1) $$;
comment on function jetstream.rule_webhook_retry(bigint) is
    'Makes a call due now; a dead one gets all its attempts again. False if it has succeeded or a worker is at it
p_call_id: webhook_calls.id';

create function jetstream.rule_webhook_call_status(p_call_id bigint) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    status jsonb;
begin
    select jsonb_build_object(
        'call_id', c.id, 'webhook_id', c.webhook, 'webhook_name', w.name, 'url', c.url, 'status', c.status,
        'message_id', c.message_id, 'attempts', c.attempts, 'max_attempts', c.max_attempts,
        'retry_count', greatest(c.attempts - 1, 0), 'payload', c.payload, 'response_status', c.response_status,
        'response_body', c.response_body, 'error_message', c.error, 'execution_time_ms', c.response_ms,
        'worker', c.worker, 'scheduled_at', c.scheduled_at, 'started_at', c.claimed_at, 'completed_at', c.completed_at,
        'next_retry_at', case when c.status = 'failed' then c.scheduled_at end, 'created_at', c.created_at)
    into status
    from jetstream.webhook_calls c join jetstream.webhooks w on w.id = c.webhook
    where c.id = p_call_id;
    if not found then
        raise exception 'webhook call % does not exist', coalesce(p_call_id::text, 'null')
            using errcode = 'undefined_object', hint = 'It may have been cleaned up.';
    end if;
    return status;
end
$$;
comment on function jetstream.rule_webhook_call_status(bigint) is 'How far a call of the queue is
p_call_id: webhook_calls.id';

create function jetstream.rule_webhook_cleanup_old_calls(
    p_older_than interval default '30 days', p_keep_failed boolean default true
) returns bigint
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select jetstream.webhook_cleanup($1, $2) $$;
comment on function jetstream.rule_webhook_cleanup_old_calls(interval, boolean) is
    'Deletes calls that ended longer ago than that, dead ones only if asked for; returns how many
p_older_than: Age since the end of the call
p_keep_failed: false: dead calls too';

-- The queue of HTTP calls.

create view jetstream.webhook_status_summary as
select w.id as webhook_id, w.name as webhook_name, w.url as webhook_url, w.enabled,
       count(c.id) as total_calls,
       count(*) filter (where c.status = 'succeeded') as successful_calls,
       count(*) filter (where c.status = 'dead') as failed_calls,
       count(*) filter (where c.status = 'pending') as pending_calls,
       count(*) filter (where c.status = 'claimed') as processing_calls,
       count(*) filter (where c.status = 'failed') as retrying_calls,
       round(100.0 * count(*) filter (where c.status = 'succeeded')
             / nullif(count(*) filter (where c.status in ('succeeded', 'dead')), 0), 2) as success_rate_pct,
       round(avg(c.response_ms)::numeric, 2) as avg_execution_time_ms,
       max(c.created_at) as last_call_at
from jetstream.webhooks w left join jetstream.webhook_calls c on c.webhook = w.id
group by w.id;
comment on view jetstream.webhook_status_summary is 'Calls in the queue, by webhook';
comment on column jetstream.webhook_status_summary.failed_calls is 'Given up';
comment on column jetstream.webhook_status_summary.pending_calls is 'Not tried yet, or given back';
comment on column jetstream.webhook_status_summary.processing_calls is 'Claimed by a worker';
comment on column jetstream.webhook_status_summary.retrying_calls is 'Failed, and tried again later';
comment on column jetstream.webhook_status_summary.success_rate_pct is 'Share of successful calls among those that ended';
comment on column jetstream.webhook_status_summary.webhook_id is 'webhooks.id';
comment on column jetstream.webhook_status_summary.webhook_name is 'Name of the webhook';
comment on column jetstream.webhook_status_summary.webhook_url is 'Endpoint';
comment on column jetstream.webhook_status_summary.enabled is 'Whether it may be called';
comment on column jetstream.webhook_status_summary.total_calls is 'Calls the queue holds';
comment on column jetstream.webhook_status_summary.successful_calls is 'Those that succeeded';
comment on column jetstream.webhook_status_summary.avg_execution_time_ms is 'Average duration of an attempt, milliseconds';
comment on column jetstream.webhook_status_summary.last_call_at is 'When it was last called';

create view jetstream.webhook_recent_failures as
select c.id as call_id, w.name as webhook_name, c.url as webhook_url, c.status, c.attempts,
       greatest(c.attempts - 1, 0) as retry_count, c.error as error_message, c.response_status, c.message_id, c.created_at,
       c.claimed_at as failed_at, c.completed_at, case when c.status = 'failed' then c.scheduled_at end as next_retry_at,
       c.webhook as webhook_id
from jetstream.webhook_calls c join jetstream.webhooks w on w.id = c.webhook
where c.status in ('failed', 'dead') and coalesce(c.claimed_at, c.created_at) > now() - interval '1 day'
order by coalesce(c.claimed_at, c.created_at) desc;
comment on view jetstream.webhook_recent_failures is 'Calls of the last day that failed, newest first';
comment on column jetstream.webhook_recent_failures.status is 'failed: tried again at next_retry_at; dead: given up';
comment on column jetstream.webhook_recent_failures.failed_at is 'When the failed attempt began';
comment on column jetstream.webhook_recent_failures.call_id is 'webhook_calls.id';
comment on column jetstream.webhook_recent_failures.webhook_name is 'Name of the webhook';
comment on column jetstream.webhook_recent_failures.webhook_url is 'Endpoint';
comment on column jetstream.webhook_recent_failures.attempts is 'Attempts made';
comment on column jetstream.webhook_recent_failures.retry_count is 'Attempts after the first';
comment on column jetstream.webhook_recent_failures.error_message is 'Why the last attempt failed';
comment on column jetstream.webhook_recent_failures.response_status is 'HTTP status of the last attempt';
comment on column jetstream.webhook_recent_failures.message_id is 'Idempotency-Key of the call';
comment on column jetstream.webhook_recent_failures.created_at is 'When it was called';
comment on column jetstream.webhook_recent_failures.completed_at is 'When it was given up';
comment on column jetstream.webhook_recent_failures.next_retry_at is 'When it is tried again';
comment on column jetstream.webhook_recent_failures.webhook_id is 'webhooks.id';

create view jetstream.webhook_performance_stats as
select c.webhook as webhook_id, w.name as webhook_name,
       count(*) as total_calls,
       round(avg(c.response_ms)::numeric, 2) as avg_time_ms,
       round(min(c.response_ms)::numeric, 2) as min_time_ms,
       round(max(c.response_ms)::numeric, 2) as max_time_ms,
       round((percentile_cont(0.5) within group (order by c.response_ms))::numeric, 2) as p50,
       round((percentile_cont(0.95) within group (order by c.response_ms))::numeric, 2) as p95,
       round((percentile_cont(0.99) within group (order by c.response_ms))::numeric, 2) as p99
from jetstream.webhook_calls c join jetstream.webhooks w on w.id = c.webhook
where c.status = 'succeeded' and c.completed_at > now() - interval '1 day'
group by c.webhook, w.name;
comment on view jetstream.webhook_performance_stats is 'Duration of the successful HTTP calls of the last day, by webhook, milliseconds';
comment on column jetstream.webhook_performance_stats.p50 is 'Half of them were as fast or faster';
comment on column jetstream.webhook_performance_stats.p95 is '95 of 100 were as fast or faster';
comment on column jetstream.webhook_performance_stats.p99 is '99 of 100 were as fast or faster';
comment on column jetstream.webhook_performance_stats.webhook_id is 'webhooks.id';
comment on column jetstream.webhook_performance_stats.webhook_name is 'Name of the webhook';
comment on column jetstream.webhook_performance_stats.total_calls is 'Calls that succeeded';
comment on column jetstream.webhook_performance_stats.avg_time_ms is 'Average duration';
comment on column jetstream.webhook_performance_stats.min_time_ms is 'The shortest';
comment on column jetstream.webhook_performance_stats.max_time_ms is 'The longest';
