-- The queue side of webhooks: what a worker in any language needs to make the HTTP calls.

-- What is before the path: a secret goes to no other.
create function jetstream.url_origin(url text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select lower((regexp_match(url, '^(https?://[^/?#]+)', 'i'))[1])
$$;
comment on function jetstream.url_origin(text) is 'Scheme, host and port of a url, as they are written';

create function jetstream.webhook_resolve(
    webhook integer, headers jsonb, url text, out resolved jsonb, out missing text, out elsewhere boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    header record;
    rest text;
    done text;
    part text[];
    secret text;
begin
    resolved := coalesce(webhook_resolve.headers, '{}');
    -- A call or an envelope says itself where it goes, and webhooks move: neither may carry the secrets to another host.
    elsewhere := strpos(resolved::text, '{{secret:') > 0 and not exists (
        select from jetstream.webhooks w
        where w.id = webhook_resolve.webhook and jetstream.url_origin(w.url) = jetstream.url_origin(webhook_resolve.url));
    if elsewhere then
        resolved := null;
        return;
    end if;
    for header in select h.key, h.value::text as value from jsonb_each(resolved) h
                  where strpos(h.value::text, '{{secret:') > 0 loop
        -- One pass from the left, so that what a secret holds is never taken for a reference.
        rest := header.value;
        done := '';
        loop
            part := regexp_match(rest, '^(.*?)\{\{secret:([A-Za-z0-9_.-]+)\}\}(.*)$');
            exit when part is null;
            select s.value into secret from jetstream.webhook_secrets s
            where s.webhook = webhook_resolve.webhook and s.name = part[2];
            if not found then
                missing := part[2];
                resolved := null;
                return;
            end if;
            done := done || part[1] || substr(to_jsonb(secret)::text, 2, length(to_jsonb(secret)::text) - 2);
            rest := part[3];
        end loop;
        resolved := jsonb_set(resolved, array[header.key], (done || rest)::jsonb);
    end loop;
end
$$;
comment on function jetstream.webhook_resolve(integer, jsonb, text) is
    'Header values with the secrets of the webhook in their places; missing names one that does not exist; elsewhere: there are secrets among them, and the url is not of the webhook''s scheme, host and port';

create function jetstream.webhook_headers(webhook integer, headers jsonb, url text) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    r record;
begin
    select * into r from jetstream.webhook_resolve(webhook_headers.webhook, webhook_headers.headers, webhook_headers.url);
    if r.elsewhere then
        raise exception 'secrets of webhook % are not sent to "%"', coalesce(webhook_headers.webhook::text, 'null'),
                coalesce(webhook_headers.url, 'null')
            using errcode = 'PJ001', hint = 'They go to scheme, host and port of webhooks.url alone.';
    end if;
    if r.missing is not null then
        raise exception 'secret "%" of webhook % does not exist', r.missing, webhook_headers.webhook
            using errcode = 'undefined_object', hint = 'Set it with jetstream.rule_webhook_secret_set.';
    end if;
    return r.resolved;
end
$$;
comment on function jetstream.webhook_headers(integer, jsonb, text) is
    'Header values of an envelope with the secrets of the webhook in their places, for the worker that makes the call. An ERROR if there are secrets among them and the url is not of the webhook''s scheme, host and port
webhook: webhooks.id
headers: Headers as the envelope has them
url: Where the call goes';

create function jetstream.webhook_backoff(call jetstream.webhook_calls) returns interval
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select least(w.retry_max_ms,
                 w.retry_base_ms * power(w.retry_multiplier::double precision, least(greatest(call.attempts, 1) - 1, 100)))
        * (0.9 + random() * 0.2) * interval '1 millisecond'
    from jetstream.webhooks w where w.id = call.webhook
$$;
comment on function jetstream.webhook_backoff(jetstream.webhook_calls) is
    'Delay until the next attempt of a call, give or take a tenth';

-- Calls whose worker did not come back: pending again, or dead if that was the last attempt.
create function jetstream.webhook_reclaim() returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
    with expired as (
        select c.id from jetstream.webhook_calls c
        where c.status = 'claimed' and c.lease_until < (select clock_timestamp())
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
comment on function jetstream.webhook_reclaim() is
    'Takes calls back whose lease ran out; webhook_claim does it first. Returns how many';

-- By its index, also on a table that was never analyzed.
create function jetstream.webhook_claim(worker text, n integer default 10, lease interval default '1 minute')
returns table (
    call_id bigint, webhook integer, webhook_name text, url text, method text, headers jsonb, payload jsonb,
    timeout_ms integer, message_id text, attempt integer, max_attempts integer, lease_until timestamptz
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    c jetstream.webhook_calls;
    r record;
begin
    if coalesce(btrim(webhook_claim.worker), '') = '' then
        raise exception 'worker name is empty'
            using errcode = 'invalid_parameter_value', hint = 'Name the worker, as in webhook_claim(''worker-1'').';
    elsif webhook_claim.n is null or webhook_claim.n not between 1 and 10000 then
        raise exception 'cannot claim % calls', coalesce(webhook_claim.n::text, 'null')
            using errcode = 'invalid_parameter_value', hint = 'Claim 1 to 10000 at a time.';
    elsif webhook_claim.lease is null or webhook_claim.lease not between '1 millisecond' and '1 day' then
        raise exception 'lease % is out of range', coalesce(webhook_claim.lease::text, 'null')
            using errcode = 'invalid_parameter_value', hint = 'A lease lasts up to a day.';
    end if;
    perform jetstream.webhook_reclaim();
    for c in
        with due as (
            select k.id from jetstream.webhook_calls k
            where k.status in ('pending', 'failed') and k.scheduled_at <= (select clock_timestamp())
            order by k.scheduled_at, k.id
            limit webhook_claim.n
            for update skip locked
        ), claimed as (
            update jetstream.webhook_calls k
            set status = 'claimed', attempts = k.attempts + 1, worker = webhook_claim.worker,
                claimed_at = clock_timestamp(), lease_until = clock_timestamp() + webhook_claim.lease
            from due d where k.id = d.id
            returning k.*
        )
        select * from claimed k order by k.scheduled_at, k.id
    loop
        select * into r from jetstream.webhook_resolve(c.webhook, c.headers, c.url);
        if r.elsewhere or r.missing is not null then
            -- One call that cannot be made must not keep the others from the worker.
            update jetstream.webhook_calls k
            set status = 'dead', completed_at = clock_timestamp(), lease_until = null,
                error = case when r.elsewhere
                    then format('secrets of webhook %s are not sent to "%s": they go to scheme, host and port of '
                                'webhooks.url alone', c.webhook, left(c.url, 200))
                    else format('secret "%s" does not exist', r.missing) end
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
    'Claims up to n calls that are due for a worker, until the lease runs out; headers come with their secrets. Send message_id as Idempotency-Key
worker: Name of the worker
n: Most calls to claim
lease: How long the calls are its own
call_id: webhook_calls.id
webhook_name: webhooks.name
headers: HTTP headers, secrets in their places
attempt: Number of this attempt, from 1
Arguments as the columns of jetstream.webhook_calls';

-- The claimed call, locked; an ERROR if it is not claimed any more, or not by that worker, or in another attempt.
create function jetstream.webhook_claimed(call_id bigint, worker text, attempt integer) returns jetstream.webhook_calls
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    c jetstream.webhook_calls;
begin
    select k.* into c from jetstream.webhook_calls k where k.id = webhook_claimed.call_id for update;
    if not found then
        raise exception 'webhook call % does not exist', coalesce(webhook_claimed.call_id::text, 'null')
            using errcode = 'undefined_object', hint = 'It may have been cleaned up.';
    elsif c.status <> 'claimed' then
        raise exception 'webhook call % is %, not claimed', c.id, c.status
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'It was finished already, or its lease ran out and it went back into the queue.';
    elsif webhook_claimed.worker <> c.worker then
        raise exception 'webhook call % is claimed by "%", not by "%"', c.id, c.worker, webhook_claimed.worker
            using errcode = 'object_not_in_prerequisite_state', hint = 'The lease ran out and another worker took it.';
    elsif webhook_claimed.attempt <> c.attempts then
        raise exception 'webhook call % is in attempt %, not in %', c.id, c.attempts, webhook_claimed.attempt
            using errcode = 'object_not_in_prerequisite_state', hint = 'The lease ran out and the call was claimed again.';
    end if;
    return c;
end
$$;
comment on function jetstream.webhook_claimed(bigint, text, integer) is
    'A claimed call, locked; an ERROR if it is not that worker''s, or in another attempt';

create function jetstream.webhook_fail(
    call_id bigint,
    error text,
    retry boolean default true,
    retry_after interval default null,
    status integer default null,
    body text default null,
    elapsed_ms double precision default null,
    worker text default null,
    attempt integer default null
) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c jetstream.webhook_calls := jetstream.webhook_claimed(webhook_fail.call_id, webhook_fail.worker, webhook_fail.attempt);
    again boolean := coalesce(webhook_fail.retry, true) and c.attempts < c.max_attempts;
begin
    update jetstream.webhook_calls k
    set status = case when again then 'failed' else 'dead' end,
        scheduled_at = case when again
            then clock_timestamp() + greatest(jetstream.webhook_backoff(c), webhook_fail.retry_after)
            else k.scheduled_at end,
        completed_at = case when again then null else clock_timestamp() end,
        lease_until = null, error = left(coalesce(webhook_fail.error, 'failed'), 2000),
        response_status = webhook_fail.status, response_body = left(webhook_fail.body, 16384),
        response_ms = webhook_fail.elapsed_ms
    where k.id = c.id;
    return case when again then 'failed' else 'dead' end;
end
$$;
comment on function jetstream.webhook_fail(bigint, text, boolean, interval, integer, text, double precision, text, integer) is
    'Ends a claimed call''s attempt as failed: tried again with backoff (not before retry_after), or dead; returns which. With worker and attempt it refuses what a later claim owns
call_id: webhook_calls.id
error: Why, of which 2000 characters are kept
retry: false: give up at once
retry_after: Least delay before the next attempt
status: HTTP status, if there was an answer
body: Body of the response, of which 16384 characters are kept
elapsed_ms: Duration of the HTTP call, milliseconds
worker: Name under which it was claimed; null: any
attempt: Attempt as which it was claimed; null: any';

create function jetstream.webhook_complete(
    call_id bigint,
    status integer,
    body text default null,
    elapsed_ms double precision default null,
    worker text default null,
    attempt integer default null
) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c jetstream.webhook_calls;
begin
    if webhook_complete.status is null or webhook_complete.status not between 100 and 599 then
        raise exception '% is not an HTTP status', coalesce(webhook_complete.status::text, 'null')
            using errcode = 'invalid_parameter_value', hint = 'Without an answer, call jetstream.webhook_fail.';
    elsif webhook_complete.status not between 200 and 299 then
        return jetstream.webhook_fail(webhook_complete.call_id, 'HTTP status ' || webhook_complete.status,
            jetstream.http_retryable(webhook_complete.status), null, webhook_complete.status, webhook_complete.body,
            webhook_complete.elapsed_ms, webhook_complete.worker, webhook_complete.attempt);
    end if;
    c := jetstream.webhook_claimed(webhook_complete.call_id, webhook_complete.worker, webhook_complete.attempt);
    update jetstream.webhook_calls k
    set status = 'succeeded', completed_at = clock_timestamp(), lease_until = null, error = null,
        response_status = webhook_complete.status, response_body = left(webhook_complete.body, 16384),
        response_ms = webhook_complete.elapsed_ms
    where k.id = c.id;
    return 'succeeded';
end
$$;
comment on function jetstream.webhook_complete(bigint, integer, text, double precision, text, integer) is
    'Ends a claimed call''s attempt with an HTTP status: 2xx succeeds; 408, 425, 429 and 5xx are tried again; others are dead. Returns which
call_id: webhook_calls.id
status: HTTP status
body: Body of the response, of which 16384 characters are kept
elapsed_ms: Duration of the HTTP call, milliseconds
worker: Name under which it was claimed; null: any
attempt: Attempt as which it was claimed; null: any';

create function jetstream.webhook_retry(call_id bigint) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c jetstream.webhook_calls;
begin
    select k.* into c from jetstream.webhook_calls k where k.id = webhook_retry.call_id for update;
    if not found then
        raise exception 'webhook call % does not exist', coalesce(webhook_retry.call_id::text, 'null')
            using errcode = 'undefined_object', hint = 'It may have been cleaned up.';
    end if;
    if c.status in ('claimed', 'succeeded') then
        return false;
    end if;
    update jetstream.webhook_calls k
    set status = 'pending', scheduled_at = clock_timestamp(), completed_at = null,
        attempts = case when c.status = 'dead' then 0 else k.attempts end
    where k.id = c.id;
    return true;
end
$$;
comment on function jetstream.webhook_retry(bigint) is
    'Makes a call due now; a dead one gets all its attempts again. False if it has succeeded or a worker is at it
call_id: webhook_calls.id';

-- What workers that consume from NATS have given up. The messages themselves are in a dead letter stream.
create table jetstream.webhook_dead_letters (
    id bigint generated by default as identity,
    stream text not null,
    sequence bigint not null,
    message_id text not null,
    subject text not null,
    webhook integer,
    worker text not null,
    attempts integer not null,
    reason text not null,
    status integer,
    died_at timestamptz not null default clock_timestamp(),
    constraint webhook_dead_letters_pkey primary key (id),
    constraint webhook_dead_letters_key unique (stream, sequence, message_id)
);
comment on table jetstream.webhook_dead_letters is 'Calls of webhooks that workers which consume from NATS have given up; the messages are in a dead letter stream';
comment on column jetstream.webhook_dead_letters.id is 'Number of the row';
comment on column jetstream.webhook_dead_letters.stream is 'Stream the message came from';
comment on column jetstream.webhook_dead_letters.sequence is 'Its sequence there';
comment on column jetstream.webhook_dead_letters.message_id is 'Its Nats-Msg-Id, the Idempotency-Key of the call';
comment on column jetstream.webhook_dead_letters.subject is 'Subject it came with';
comment on column jetstream.webhook_dead_letters.webhook is 'webhooks.id; null if the envelope did not say';
comment on column jetstream.webhook_dead_letters.worker is 'Worker that gave it up';
comment on column jetstream.webhook_dead_letters.attempts is 'Attempts made';
comment on column jetstream.webhook_dead_letters.reason is 'Why, at most 2000 characters';
comment on column jetstream.webhook_dead_letters.status is 'HTTP status of the last attempt; null without an answer';
comment on column jetstream.webhook_dead_letters.died_at is 'When it was reported';
create index webhook_dead_letters_died_at on jetstream.webhook_dead_letters (died_at);
comment on index jetstream.webhook_dead_letters_died_at is 'What died lately, and clean-up';

create function jetstream.webhook_dead_letter(
    stream text,
    sequence bigint,
    message_id text,
    subject text,
    webhook integer,
    worker text,
    attempts integer,
    reason text,
    status integer default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if $1 is null or $2 is null or $3 is null or $4 is null or $6 is null or $7 is null then
        raise exception 'a report of a dead letter needs stream, sequence, message_id, subject, worker and attempts'
            using errcode = 'null_value_not_allowed', hint = 'Only webhook, reason and status may be null.';
    elsif octet_length($1) not between 1 and 255 then
        raise exception 'stream "%" of % bytes is not valid', left($1, 100), octet_length($1)
            using errcode = 'invalid_parameter_value', hint = 'The name of a stream has 1 to 255 bytes.';
    end if;
    insert into jetstream.webhook_dead_letters (stream, sequence, message_id, subject, webhook, worker, attempts, reason,
        status)
    values ($1, $2, left($3, 255), left($4, 2000), $5, left($6, 255), $7, left(coalesce($8, 'failed'), 2000), $9)
    on conflict on constraint webhook_dead_letters_key do nothing;
    return found;
end
$$;
comment on function jetstream.webhook_dead_letter(text, bigint, text, text, integer, text, integer, text, integer) is
    'A worker''s report that it has given up a message of a stream, so that nats_recent_failures shows it; false if that is known already
Arguments as the columns of jetstream.webhook_dead_letters';

create function jetstream.webhook_cleanup(older_than interval default '30 days', keep_dead boolean default true)
returns bigint
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    with gone as (
        delete from jetstream.webhook_calls c
        where c.completed_at < (select clock_timestamp()) - $1 and (c.status = 'succeeded' or (c.status = 'dead' and not $2))
        returning 1
    )
    , forgotten as (
        delete from jetstream.webhook_dead_letters d where d.died_at < clock_timestamp() - $1 and not $2
        returning 1
    )
    select (select count(*) from gone) + (select count(*) from forgotten)
$$;
comment on function jetstream.webhook_cleanup(interval, boolean) is
    'Deletes calls that ended longer ago than that; dead ones, and what is known of dead letters, only if asked for, open ones never. Returns how many
older_than: Age since the end of the call
keep_dead: false: dead calls, and what workers reported as dead, too';

select pg_catalog.pg_extension_config_dump('jetstream.webhook_dead_letters', '');
select pg_catalog.pg_extension_config_dump('jetstream.webhook_dead_letters_id_seq', '');
