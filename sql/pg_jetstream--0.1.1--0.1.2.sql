-- Written by `lab/run upgrade-script` from migrations/ and sql/. Do not edit.

-- DDL from 0.1.1 to 0.1.2. Functions, views, comments and rights come from sql/.

-- The statements of sql/guard.sql.
set local search_path = pg_catalog, pg_temp;

do $$
begin
    if current_setting('server_encoding') <> 'UTF8' then
        raise exception 'pg_jetstream needs a database in UTF8; this one is in %', current_setting('server_encoding')
            using errcode = 'feature_not_supported',
                  hint = 'Make one with: create database ... encoding ''UTF8'' template template0.';
    end if;
end
$$;

do $$
declare
    place pg_namespace;
    extension oid;
    intruder text;
begin
    select n.* into place from pg_namespace n where n.nspname = 'jetstream';
    select e.oid into extension from pg_extension e where e.extname = 'pg_jetstream';
    -- A superuser could replace everything anyway, and a restored dump may bring the name of another one.
    select r.rolname into intruder from pg_roles r
    where r.oid = place.nspowner and not r.rolsuper and r.rolname <> current_user;
    if found then
        raise exception 'schema "jetstream" belongs to role "%"', intruder
            using errcode = 'object_not_in_prerequisite_state',
                  hint = format('Its owner can replace what runs with your rights. Check what it holds, then drop it, or: '
                                'alter schema jetstream owner to %I;', current_user);
    end if;
    select coalesce(r.rolname, 'public') into intruder
    from aclexplode(place.nspacl) a left join pg_roles r on r.oid = a.grantee
    where a.privilege_type = 'CREATE' and a.grantee <> place.nspowner and not coalesce(r.rolsuper, false)
    order by 1 limit 1;
    if found then
        raise exception 'role "%" can create objects in schema "jetstream"', intruder
            using errcode = 'object_not_in_prerequisite_state',
                  hint = format('They could run with your rights. First: revoke create on schema jetstream from %s;',
                                case intruder when 'public' then intruder else quote_ident(intruder) end);
    end if;
    select pg_describe_object(d.classid, d.objid, d.objsubid) into intruder
    from pg_depend d
    where d.refclassid = 'pg_namespace'::regclass and d.refobjid = place.oid and d.deptype = 'n'
      and not (d.classid = 'pg_extension'::regclass and d.objid = extension)
      and not exists (
          select from pg_depend m
          where m.classid = d.classid and m.objid = d.objid and m.deptype = 'e'
            and m.refclassid = 'pg_extension'::regclass and m.refobjid = extension)
    order by 1 limit 1;
    if found then
        raise exception 'schema "jetstream" holds what is not part of the extension: %', intruder
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'It could run with your rights. Drop it, or move it to another schema.';
    end if;
end
$$;

-- What a webhook's secrets may be sent to depends on the url.
drop function jetstream.webhook_resolve(integer, jsonb);

-- What a publication covers can be updated and deleted.
alter table jetstream.webhook_secrets replica identity full;
alter table jetstream.history replica identity full;
do $$
declare
    day regclass;
begin
    for day in select i.inhrelid from pg_inherits i where i.inhparent = 'jetstream.history'::regclass loop
        execute format('alter table %s replica identity full', day);
    end loop;
end
$$;

-- What a worker reports has three more arguments.
drop function if exists jetstream.rule_nats_consumer_update_stats(text, text, bigint, bigint, bigint, numeric, bigint, boolean);

create or replace function jetstream."check_headers"(
	"headers" jsonb /* JsonText */
) RETURNS bool /* bool */
IMMUTABLE STRICT PARALLEL SAFE
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'check_headers_wrapper';

create or replace function jetstream.history_maintain(retention interval, days_ahead integer default 7) returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '500ms'
as $$
declare
    today date := (now() at time zone 'UTC')::date;
    day date;
    partition text;
    changed integer := 0;
begin
    for day in select d::date from generate_series(today - 1, today + days_ahead, interval '1 day') d loop
        partition := 'history_' || to_char(day, 'YYYYMMDD');
        continue when to_regclass('jetstream.' || partition) is not null;
        execute format('create table jetstream.%I (like jetstream.history including defaults)', partition);
        execute format('alter table jetstream.%I replica identity full', partition);
        execute format('alter table jetstream.history attach partition jetstream.%I for values from (%L) to (%L)',
            partition, day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC');
        execute format('alter extension pg_jetstream add table jetstream.%I', partition);
        changed := changed + 1;
    end loop;
    begin
        for partition in
            select c.relname
            from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent = 'jetstream.history'::regclass
              and c.relname ~ '^history_[0-9]{8}$'
              and to_date(substr(c.relname, 9), 'YYYYMMDD') + 1 < (now() at time zone 'UTC') - retention
        loop
            execute format('alter extension pg_jetstream drop table jetstream.%I', partition);
            execute format('drop table jetstream.%I', partition);
            changed := changed + 1;
        end loop;
    exception when lock_not_available then
        -- A reader holds the oldest day; the next round drops it.
        null;
    end;
    return changed;
end
$$;

create or replace function jetstream.check_webhook_url(url text) returns boolean
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    -- Without what may be a password or a token.
    shown text := left(regexp_replace(regexp_replace(url, '[?#].*$', '?…'), '^([a-z][a-z0-9+.-]*://)?.*@', '\1', 'i'), 200);
begin
    if url !~* '^https?://' then
        raise exception 'webhook url "%" is not http or https', shown
            using errcode = 'invalid_parameter_value', hint = 'Write https://host/path.';
    elsif url ~* '^https?://[^/?#]*@' then
        raise exception 'webhook url "%" contains credentials', shown
            using errcode = 'invalid_parameter_value',
                  hint = 'Put them into a secret and refer to it in a header as {{secret:NAME}}.';
    elsif url !~* '^https?://[^/?#\s:]+(:[0-9]{1,5})?([/?#]\S*)?$' and url !~* '^https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?([/?#]\S*)?$' then
        raise exception 'webhook url "%" is not valid', shown
            using errcode = 'invalid_parameter_value', hint = 'Write https://host/path.';
    end if;
    return true;
end
$$;

create or replace function jetstream.webhooks_before_write() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    missing text;
begin
    -- Constraints would refuse the same, but would say it with the whole row.
    select e.key into missing
    from jsonb_each(to_jsonb(new)) e
    where e.value = 'null' and e.key not in ('description', 'subject', 'id')
    order by e.key limit 1;
    if found then
        raise exception 'webhook%has no %', coalesce(' "' || left(new.name, 100) || '" ', ' '), missing
            using errcode = 'null_value_not_allowed', hint = 'Give a value, or leave the column out for its default.';
    elsif btrim(new.name) = '' or octet_length(new.name) > 255 then
        raise exception 'webhook name "%" of % bytes is not valid', left(new.name, 100), octet_length(new.name)
            using errcode = 'invalid_parameter_value', hint = 'A name has 1 to 255 bytes and is not blank.';
    end if;
    perform jetstream.check_webhook_url(new.url), jetstream.check_headers(new.headers),
            jetstream.check_connection(new.connection);
    if new.method not in ('GET', 'POST', 'PUT', 'PATCH', 'DELETE') then
        raise exception 'method "%" of webhook "%" is not known', left(new.method, 100), new.name
            using errcode = 'invalid_parameter_value', hint = 'Use GET, POST, PUT, PATCH or DELETE.';
    elsif new.publish_mode not in ('queue', 'nats', 'both') then
        raise exception 'publish mode "%" of webhook "%" is not known', left(new.publish_mode, 100), new.name
            using errcode = 'invalid_parameter_value', hint = 'It is queue, nats or both.';
    elsif new.timeout_ms not between 1 and 3600000 then
        raise exception 'timeout_ms % of webhook "%" is out of range', new.timeout_ms, new.name
            using errcode = 'invalid_parameter_value', hint = 'It is 1 to 3600000 milliseconds.';
    elsif new.max_attempts not between 1 and 1000 then
        raise exception 'max_attempts % of webhook "%" is out of range', new.max_attempts, new.name
            using errcode = 'invalid_parameter_value',
                  hint = 'It is 1 to 1000, the first attempt included (one more than max_retries).';
    elsif new.retry_base_ms not between 1 and 86400000 or new.retry_max_ms not between 1 and 86400000 then
        raise exception 'retry_base_ms % or retry_max_ms % of webhook "%" is out of range', new.retry_base_ms,
                new.retry_max_ms, new.name
            using errcode = 'invalid_parameter_value', hint = 'Both are 1 to 86400000 milliseconds.';
    elsif new.retry_multiplier not between 1 and 100 then
        raise exception 'retry_multiplier % of webhook "%" is out of range', new.retry_multiplier, new.name
            using errcode = 'invalid_parameter_value', hint = 'It is 1 to 100.';
    end if;
    if tg_op = 'UPDATE' then
        new.updated_at := now();
        if old.nats_enabled and not new.nats_enabled and new.publish_mode = old.publish_mode then
            new.publish_mode := 'queue';
        end if;
    end if;
    new.nats_enabled := new.nats_enabled or new.publish_mode <> 'queue';
    -- Also the one that is made of the name.
    if new.nats_enabled or new.subject is not null then
        perform jetstream.check_subject(jetstream.webhook_subject(new));
    end if;
    return new;
end
$$;

comment on function jetstream.webhooks_before_write() is
    'Refuses a webhook that could not be called, and keeps updated_at, and nats_enabled in line with publish_mode';

create or replace function jetstream.check_call_status(status text) returns boolean
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if status not in ('pending', 'claimed', 'succeeded', 'failed', 'dead') then
        raise exception 'status "%" of a webhook call is not known', left(status, 100)
            using errcode = 'invalid_parameter_value', hint = 'It is pending, claimed, succeeded, failed or dead.';
    end if;
    return true;
end
$$;

comment on function jetstream.check_call_status(text) is 'True for a status a call may have; an ERROR for any other
status: The status';

create or replace function jetstream.consumers_before_write() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.stream is null or new.consumer is null or octet_length(new.stream) not between 1 and 255
        or octet_length(new.consumer) not between 1 and 255 then
        raise exception 'consumer "%" of stream "%" is not a valid name', left(new.consumer, 100), left(new.stream, 100)
            using errcode = 'invalid_parameter_value', hint = 'Both names have 1 to 255 bytes.';
    elsif least(new.delivered, new.acknowledged, new.redelivered, new.pending, new.timed) < 0 or new.processing_ms < 0
        or new.avg_processing_ms < 0 then
        raise exception 'a figure of consumer "%" is below zero', new.consumer
            using errcode = 'invalid_parameter_value', hint = 'Report counts and times of zero or more.';
    end if;
    new.updated_at := now();
    if new.avg_processing_ms is not null and new.timed = 0
        or tg_op = 'UPDATE' and new.avg_processing_ms is distinct from old.avg_processing_ms then
        new.timed := case when new.avg_processing_ms is null then 0 else greatest(new.delivered, 1) end;
        new.processing_ms := coalesce(new.avg_processing_ms, 0) * new.timed;
    end if;
    new.avg_processing_ms := case when new.timed > 0 then round((new.processing_ms / new.timed)::numeric, 2) end;
    return new;
end
$$;

comment on function jetstream.consumers_before_write() is 'Refuses figures that cannot be, and keeps the average of a consumer in line with its sums';

create or replace function jetstream.webhook_resolve(
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

create or replace function jetstream.webhook_headers(webhook integer, headers jsonb, url text) returns jsonb
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

create or replace function jetstream.webhook_claim(worker text, n integer default 10, lease interval default '1 minute')
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

create or replace function jetstream.webhook_dead_letter(
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

create or replace function jetstream.rule_nats_publish_history_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    at timestamptz := coalesce(new.published_at, now());
begin
    if new.subject is null or new.success is null then
        raise exception '% of a published message is null', case when new.subject is null then 'subject' else 'success' end
            using errcode = 'null_value_not_allowed', hint = 'Give the subject, and whether a stream stored the message.';
    elsif not isfinite(at) or to_regclass('jetstream.history_' || to_char(at at time zone 'UTC', 'YYYYMMDD')) is null then
        raise exception 'the history has no day for published_at %', at
            using errcode = 'invalid_parameter_value',
                  hint = 'It holds the days since pg_jetstream.history_retention, and the coming week.';
    end if;
    insert into jetstream.history as h (outbox_id, webhook, subject, payload, headers, published_at, message_id, stream,
        sequence, success, duplicate, error, latency_ms, attempts, connection)
    values (coalesce(new.publish_id, 0), new.webhook_id, new.subject, new.payload, new.headers,
        at, coalesce(new.message_id, gen_random_uuid()::text), new.stream_name,
        new.sequence_number, new.success, coalesce(new.duplicate, false), new.error_message, new.latency_ms,
        coalesce(new.attempts, 1),
        coalesce((select w.connection from jetstream.webhooks w where w.id = new.webhook_id), 'default'))
    returning h.outbox_id, h.published_at, h.message_id into new.publish_id, new.published_at, new.message_id;
    return new;
end
$$;

create or replace function jetstream.rule_nats_consumer_update_stats(
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

revoke all on schema jetstream from public;

revoke all on all tables in schema jetstream from public;

revoke all on all functions in schema jetstream from public;

grant execute on function
    jetstream.webhook_complete(bigint, integer, text, double precision, text, integer),
    jetstream.webhook_fail(bigint, text, boolean, interval, integer, text, double precision, text, integer),
    jetstream.rule_nats_consumer_update_stats(text, text, bigint, bigint, bigint, numeric, bigint, boolean, text, text, integer),
    jetstream.webhook_dead_letter(text, bigint, text, text, integer, text, integer, text, integer)
    to jetstream_webhook_worker, jetstream_admin;

-- The functions that it calls are there now.
alter table jetstream.webhook_calls
    drop constraint webhook_calls_status_known,
    add constraint webhook_calls_status_known
        check (status in ('pending', 'claimed', 'succeeded', 'failed', 'dead') or jetstream.check_call_status(status));
