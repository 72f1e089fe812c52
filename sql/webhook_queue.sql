-- The queue side of webhooks: what a worker in any language needs to make the HTTP calls.

create function jetstream.webhook_resolve(webhook integer, headers jsonb, out resolved jsonb, out missing text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    text_form text := coalesce(webhook_resolve.headers, '{}')::text;
    secret record;
    quoted text;
begin
    if strpos(text_form, '{{secret:') > 0 then
        for secret in select s.name, s.value from jetstream.webhook_secrets s where s.webhook = webhook_resolve.webhook loop
            quoted := to_jsonb(secret.value)::text;
            text_form := replace(text_form, '{{secret:' || secret.name || '}}', substr(quoted, 2, length(quoted) - 2));
        end loop;
        missing := substring(text_form from '\{\{secret:([A-Za-z0-9_.-]+)\}\}');
    end if;
    resolved := case when missing is null then text_form::jsonb end;
end
$$;
comment on function jetstream.webhook_resolve(integer, jsonb) is 'Header values with the secrets of the webhook in their places; missing names one that does not exist';

create function jetstream.webhook_headers(webhook integer, headers jsonb) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    r record;
begin
    select * into r from jetstream.webhook_resolve(webhook_headers.webhook, webhook_headers.headers);
    if r.missing is not null then
        raise exception 'secret "%" of webhook % does not exist', r.missing, webhook_headers.webhook
            using errcode = 'undefined_object', hint = 'Set it with jetstream.rule_webhook_secret_set.';
    end if;
    return r.resolved;
end
$$;
comment on function jetstream.webhook_headers(integer, jsonb) is
    'Header values of an envelope with the secrets of the webhook in their places, for the worker that makes the call';

create function jetstream.webhook_backoff(call jetstream.webhook_calls) returns interval
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select least(w.retry_max_ms, w.retry_base_ms * 2 ^ least(greatest(call.attempts, 1) - 1, 30))
        * (0.9 + random() * 0.2) * interval '1 millisecond'
    from jetstream.webhooks w where w.id = call.webhook
$$;
comment on function jetstream.webhook_backoff(jetstream.webhook_calls) is 'Delay until the next attempt of a call, give or take a tenth';

-- Calls whose worker did not come back: pending again, or dead if that was the last attempt.
create function jetstream.webhook_reclaim() returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    with expired as (
        select c.id from jetstream.webhook_calls c
        where c.status = 'claimed' and c.lease_until < clock_timestamp()
        for update skip locked
    ), back as (
        update jetstream.webhook_calls c
        set status = case when c.attempts >= c.max_attempts then 'dead' else 'pending' end,
            completed_at = case when c.attempts >= c.max_attempts then clock_timestamp() end,
            error = format('worker %s did not come back within its lease', c.worker),
            lease_until = null
        from expired e where c.id = e.id
        returning 1
    )
    select count(*)::integer from back
$$;
comment on function jetstream.webhook_reclaim() is 'Takes calls back whose lease ran out; webhook_claim does it first. Returns how many';

create function jetstream.webhook_claim(worker text, n integer default 10, lease interval default '1 minute')
returns table (
    call_id bigint, webhook integer, webhook_name text, url text, method text, headers jsonb, payload jsonb,
    timeout_ms integer, message_id text, attempt integer, max_attempts integer, lease_until timestamptz
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    c jetstream.webhook_calls;
    r record;
begin
    if coalesce(btrim(webhook_claim.worker), '') = '' then
        raise exception 'worker name is empty'
            using errcode = 'invalid_parameter_value', hint = 'Name the worker, as in webhook_claim(''worker-1'').';
    elsif webhook_claim.n not between 1 and 10000 then
        raise exception 'cannot claim % calls', webhook_claim.n
            using errcode = 'invalid_parameter_value', hint = 'Claim 1 to 10000 at a time.';
    elsif webhook_claim.lease not between '1 millisecond' and '1 day' then
        raise exception 'lease % is out of range', webhook_claim.lease
            using errcode = 'invalid_parameter_value', hint = 'A lease lasts up to a day.';
    end if;
    perform jetstream.webhook_reclaim();
    for c in
        with due as (
            select k.id from jetstream.webhook_calls k
            where k.status in ('pending', 'failed') and k.scheduled_at <= clock_timestamp()
            order by k.scheduled_at, k.id
            limit webhook_claim.n
            for update skip locked
        )
        update jetstream.webhook_calls k
        set status = 'claimed', attempts = k.attempts + 1, worker = webhook_claim.worker,
            lease_until = clock_timestamp() + webhook_claim.lease
        from due d where k.id = d.id
        returning k.*
    loop
        select * into r from jetstream.webhook_resolve(c.webhook, c.headers);
        if r.missing is not null then
            -- One call that cannot be made must not keep the others from the worker.
            update jetstream.webhook_calls k
            set status = 'dead', completed_at = clock_timestamp(), lease_until = null,
                error = format('secret "%s" does not exist', r.missing)
            where k.id = c.id;
            continue;
        end if;
        return query
            select c.id, c.webhook, w.name, c.url, c.method, r.resolved, c.payload, c.timeout_ms, c.message_id, c.attempts,
                   c.max_attempts, c.lease_until
            from jetstream.webhooks w where w.id = c.webhook;
    end loop;
end
$$;
comment on function jetstream.webhook_claim(text, integer, interval) is
    'Claims up to n calls that are due for a worker, until the lease runs out; headers come with their secrets';

-- The claimed call, locked; an ERROR if it is not claimed any more, or by another worker.
create function jetstream.webhook_claimed(call_id bigint, worker text) returns jetstream.webhook_calls
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    c jetstream.webhook_calls;
begin
    select k.* into c from jetstream.webhook_calls k where k.id = webhook_claimed.call_id for update;
    if not found then
        raise exception 'webhook call % does not exist', webhook_claimed.call_id
            using errcode = 'undefined_object', hint = 'It may have been cleaned up.';
    elsif c.status <> 'claimed' then
        raise exception 'webhook call % is %, not claimed', c.id, c.status
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'It was finished already, or its lease ran out and it went back into the queue.';
    elsif webhook_claimed.worker is not null and webhook_claimed.worker <> c.worker then
        raise exception 'webhook call % is claimed by "%", not by "%"', c.id, c.worker, webhook_claimed.worker
            using errcode = 'object_not_in_prerequisite_state', hint = 'The lease ran out and another worker took it.';
    end if;
    return c;
end
$$;
comment on function jetstream.webhook_claimed(bigint, text) is 'A claimed call, locked; an ERROR if it is not that worker''s';

create function jetstream.webhook_fail(
    call_id bigint,
    error text,
    retry boolean default true,
    retry_after interval default null,
    status integer default null,
    body text default null,
    elapsed_ms double precision default null,
    worker text default null
) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c jetstream.webhook_calls := jetstream.webhook_claimed(webhook_fail.call_id, webhook_fail.worker);
    again boolean := webhook_fail.retry and c.attempts < c.max_attempts;
begin
    update jetstream.webhook_calls k
    set status = case when again then 'failed' else 'dead' end,
        scheduled_at = case when again
            then clock_timestamp() + greatest(jetstream.webhook_backoff(c), webhook_fail.retry_after)
            else k.scheduled_at end,
        completed_at = case when again then null else clock_timestamp() end,
        lease_until = null, error = webhook_fail.error, response_status = webhook_fail.status,
        response_body = left(webhook_fail.body, 16384), response_ms = webhook_fail.elapsed_ms
    where k.id = c.id;
    return case when again then 'failed' else 'dead' end;
end
$$;
comment on function jetstream.webhook_fail(bigint, text, boolean, interval, integer, text, double precision, text) is
    'Ends a claimed call''s attempt as failed: tried again with backoff (not before retry_after), or dead; returns which';

create function jetstream.webhook_complete(
    call_id bigint,
    status integer,
    body text default null,
    elapsed_ms double precision default null,
    worker text default null
) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c jetstream.webhook_calls;
begin
    if webhook_complete.status is null or webhook_complete.status not between 200 and 299 then
        return jetstream.webhook_fail(webhook_complete.call_id, 'HTTP status ' || webhook_complete.status,
            coalesce(jetstream.http_retryable(webhook_complete.status), true), null, webhook_complete.status,
            webhook_complete.body, webhook_complete.elapsed_ms, webhook_complete.worker);
    end if;
    c := jetstream.webhook_claimed(webhook_complete.call_id, webhook_complete.worker);
    update jetstream.webhook_calls k
    set status = 'succeeded', completed_at = clock_timestamp(), lease_until = null, error = null,
        response_status = webhook_complete.status, response_body = left(webhook_complete.body, 16384),
        response_ms = webhook_complete.elapsed_ms
    where k.id = c.id;
    return 'succeeded';
end
$$;
comment on function jetstream.webhook_complete(bigint, integer, text, double precision, text) is
    'Ends a claimed call''s attempt with an HTTP status: 2xx succeeds; 408, 425, 429 and 5xx are tried again; others are dead. Returns which';

create table jetstream.consumers (
    stream text not null,
    consumer text not null,
    delivered bigint not null default 0,
    acknowledged bigint not null default 0,
    failed bigint not null default 0,
    processing_ms double precision not null default 0,
    active boolean not null default true,
    first_active_at timestamptz not null default clock_timestamp(),
    last_active_at timestamptz not null default clock_timestamp(),
    constraint consumers_pkey primary key (stream, consumer),
    constraint consumers_not_negative
        check (delivered >= 0 and acknowledged >= 0 and failed >= 0 and processing_ms >= 0)
);
comment on table jetstream.consumers is 'Statistics of the workers that consume the webhooks'' streams, as they report them';
comment on column jetstream.consumers.stream is 'Stream consumed';
comment on column jetstream.consumers.consumer is 'Name of the worker';
comment on column jetstream.consumers.delivered is 'Messages delivered to it';
comment on column jetstream.consumers.acknowledged is 'Of these, those that succeeded';
comment on column jetstream.consumers.failed is 'Of these, those that failed';
comment on column jetstream.consumers.processing_ms is 'Time spent on all of them, milliseconds';
comment on column jetstream.consumers.active is 'false once it has ended';
comment on column jetstream.consumers.first_active_at is 'When it first reported';
comment on column jetstream.consumers.last_active_at is 'When it last reported';
