-- Moves a rule engine's NATS and webhook data (its tables in schema public) into pg_jetstream, in one transaction:
--
--     psql -X -v ON_ERROR_STOP=1 -d shop -f from_rule_engine.sql
--
-- Run it as the owner of both, with the rule engine's own workers stopped. A second run finds what the first one moved
-- and leaves it alone, also where it has been changed since. Tables that do not exist are passed over, and columns too:
-- rows are read as JSON. Webhooks keep their ids where these are free. Pending calls are taken out of their table, so
-- that nobody else makes them too; everything else is copied. When all is well, drop the old tables, or put schema
-- jetstream before public on the search path.

begin;

create temporary table moved (n serial, what text, moved bigint, left_alone bigint, remark text) on commit drop;

-- Reads a table of the rule engine as JSON; no rows if it does not exist.
create function pg_temp.old_rows(name text, out j jsonb) returns setof jsonb language plpgsql as $$
begin
    if exists (select from pg_class c where c.oid = to_regclass(format('public.%I', name)) and c.relkind in ('r', 'p')) then
        return query execute format('select to_jsonb(t) from public.%I t', name);
    end if;
end
$$;

-- Configurations. The connection "default" of create extension gives way as long as nobody has changed it. User and
-- password (or a token) in a url, where everybody who may look would see them, go to their columns.
do $$
declare
    c record;
    auth text;
    in_url text;
    complete boolean;
    done bigint := 0;
    left_alone bigint := 0;
    remark text;
begin
    for c in
        select j, j ->> 'config_name' as name
        from pg_temp.old_rows('rule_nats_config') order by (j ->> 'config_id')::integer
    loop
        if exists (select from jetstream.connections k where k.name = c.name and (k.name <> 'default' or k.updated_at is not null)) then
            left_alone := left_alone + 1;
            continue;
        end if;
        insert into jetstream.connections (name) select c.name
        where not exists (select from jetstream.connections k where k.name = c.name);
        auth := coalesce(c.j ->> 'auth_type', 'none');
        in_url := substring(c.j ->> 'nats_url' from '//([^/@,]+)@');
        if auth = 'none' and in_url is not null then
            auth := case when in_url like '%:%' then 'password' else 'token' end;
        else
            in_url := null;
        end if;
        complete := case auth when 'none' then true when 'password' then true when 'token' then coalesce(in_url, c.j ->> 'auth_token') is not null
            when 'credentials' then c.j ->> 'auth_credentials_file' is not null
            when 'nkey' then c.j ->> 'auth_nkey_seed' is not null else false end;
        if not complete then
            remark := concat_ws('; ', remark, format('"%s" lacks its credentials (%s) and is disabled', c.name, auth));
        end if;
        update jetstream.connections k
        set url = coalesce(regexp_replace(c.j ->> 'nats_url', '//[^/@,]*@', '//', 'g'), k.url),
            cluster_urls = (select array_agg(regexp_replace(u, '//[^/@,]*@', '//')) from jsonb_array_elements_text(nullif(c.j -> 'nats_cluster_urls', 'null')) u),
            auth_type = case when complete then auth else 'none' end,
            token = case when auth = 'token' then coalesce(in_url, c.j ->> 'auth_token') else c.j ->> 'auth_token' end,
            username = case when auth = 'password' then split_part(in_url, ':', 1) end,
            password = case when auth = 'password' then substr(in_url, strpos(in_url, ':') + 1) end,
            credentials_file = c.j ->> 'auth_credentials_file',
            nkey_seed = c.j ->> 'auth_nkey_seed',
            tls_required = coalesce((c.j ->> 'tls_enabled')::boolean, false), tls_ca_file = c.j ->> 'tls_ca_file',
            tls_cert_file = c.j ->> 'tls_cert_file', tls_key_file = c.j ->> 'tls_key_file',
            max_connections = least(greatest(coalesce((c.j ->> 'max_connections')::integer, 10), 1), 1000),
            connection_timeout_ms = least(greatest(coalesce((c.j ->> 'connection_timeout_ms')::integer, 5000), 100), 600000),
            reconnect_delay_ms = least(greatest(coalesce((c.j ->> 'reconnect_delay_ms')::integer, 2000), 10), 600000),
            max_reconnect_attempts = greatest(coalesce((c.j ->> 'max_reconnect_attempts')::integer, -1), -1),
            webhook_stream = coalesce(c.j ->> 'stream_name', 'WEBHOOKS'),
            webhook_prefix = coalesce(c.j ->> 'subject_prefix', 'webhooks'),
            enabled = coalesce((c.j ->> 'enabled')::boolean, true) and complete
        where k.name = c.name;
        done := done + 1;
    end loop;
    insert into moved (what, moved, left_alone, remark) values ('configurations', done, left_alone, remark);
end
$$;

-- Streams.
with old as (
    select s.j, c.j ->> 'config_name' as connection
    from pg_temp.old_rows('rule_nats_streams') s
    join pg_temp.old_rows('rule_nats_config') c on c.j -> 'config_id' = s.j -> 'config_id'
), new as (
    insert into jetstream.streams (connection, name, subjects, description, storage, max_messages, max_bytes, max_age,
        retention, discard, replicas, duplicate_window)
    select o.connection, o.j ->> 'stream_name', array(select jsonb_array_elements_text(o.j -> 'subjects')),
           o.j ->> 'description', coalesce(o.j ->> 'storage_type', 'file'), coalesce((o.j ->> 'max_messages')::bigint, -1),
           coalesce((o.j ->> 'max_bytes')::bigint, -1),
           make_interval(secs => coalesce((o.j ->> 'max_age_seconds')::bigint, 604800)),
           coalesce(o.j ->> 'retention_policy', 'limits'), coalesce(o.j ->> 'discard_policy', 'old'),
           coalesce((o.j ->> 'replicas')::integer, 1),
           make_interval(secs => coalesce((o.j ->> 'duplicate_window_seconds')::integer, 120))
    from old o
    where coalesce((o.j ->> 'enabled')::boolean, true)
    on conflict on constraint streams_name_key do nothing
    returning 1
)
insert into moved (what, moved, left_alone, remark)
select 'streams', (select count(*) from new), (select count(*) from old) - (select count(*) from new),
       (select count(*) || ' are disabled' from old o where not (o.j ->> 'enabled')::boolean having count(*) > 0);

-- Webhooks, with the ids of the old ones and the new, which are the same where they were free.
create temporary table webhook_ids on commit drop as
select (o.j ->> 'webhook_id')::integer as old_id, o.j ->> 'webhook_name' as name, w.id as new_id, w.id is not null as known,
       o.j, coalesce(c.j ->> 'config_name', 'default') as connection
from pg_temp.old_rows('rule_webhooks') o
left join pg_temp.old_rows('rule_nats_config') c on c.j -> 'config_id' = o.j -> 'nats_config_id'
left join jetstream.webhooks w on w.name = o.j ->> 'webhook_name';

update webhook_ids i set new_id = i.old_id
where not i.known and not exists (select from jetstream.webhooks w where w.id = i.old_id);
select setval('jetstream.webhooks_id_seq', greatest(s.last_value, i.highest), s.is_called or i.highest >= s.last_value)
from jetstream.webhooks_id_seq s, (select max(greatest(old_id, new_id)) as highest from webhook_ids) i
where i.highest is not null;
update webhook_ids i set new_id = nextval('jetstream.webhooks_id_seq') where i.new_id is null;

insert into jetstream.webhooks (id, name, description, url, method, headers, timeout_ms, max_attempts, retry_base_ms,
    retry_multiplier, enabled, tags, publish_mode, nats_enabled, subject, connection, created_at)
select i.new_id, i.name, i.j ->> 'description', coalesce(i.j ->> 'webhook_url', i.j ->> 'url'),
       upper(coalesce(i.j ->> 'http_method', i.j ->> 'method', 'POST')),
       coalesce(nullif(i.j -> 'headers', 'null'), '{}'), coalesce((i.j ->> 'timeout_ms')::integer, 5000),
       case when (i.j ->> 'retry_enabled')::boolean is false then 1 else coalesce((i.j ->> 'max_retries')::integer, 3) + 1 end,
       greatest(coalesce((i.j ->> 'retry_delay_ms')::integer, 1000), 1),
       least(greatest(coalesce((i.j ->> 'retry_backoff_multiplier')::numeric, 2), 1), 100),
       coalesce((i.j ->> 'enabled')::boolean, true),
       array(select jsonb_array_elements_text(nullif(i.j -> 'tags', 'null'))),
       coalesce(i.j ->> 'publish_mode', 'queue'), coalesce((i.j ->> 'nats_enabled')::boolean, false),
       nullif(i.j ->> 'nats_subject', ''), i.connection, coalesce((i.j ->> 'created_at')::timestamptz, now())
from webhook_ids i
where not i.known;
insert into moved (what, moved, left_alone, remark)
select 'webhooks', count(*) filter (where not known), count(*) filter (where known),
       'new ids: ' || string_agg(format('%s (%s, was %s)', name, new_id, old_id), ', ' order by old_id)
           filter (where new_id <> old_id)
from webhook_ids;

-- Secrets.
with old as (
    select i.new_id, s.j from pg_temp.old_rows('rule_webhook_secrets') s
    join webhook_ids i on i.old_id = (s.j ->> 'webhook_id')::integer
), new as (
    insert into jetstream.webhook_secrets (webhook, name, value)
    select o.new_id, o.j ->> 'secret_name', o.j ->> 'secret_value' from old o
    on conflict on constraint webhook_secrets_key do nothing
    returning 1
)
insert into moved (what, moved, left_alone)
select 'secrets', (select count(*) from new), (select count(*) from old) - (select count(*) from new);

-- Calls that are still to be made; one that the old engine was at may be made twice.
do $$
declare
    call record;
    done bigint := 0;
    at_work bigint := 0;
begin
    if to_regclass('public.rule_webhook_calls') is not null then
        for call in execute $sql$
            with gone as (
                delete from public.rule_webhook_calls t
                using webhook_ids i
                where i.old_id = t.webhook_id and t.status in ('pending', 'processing', 'retrying')
                returning to_jsonb(t) as j, i.new_id
            )
            select j, new_id from gone order by (j ->> 'call_id')::bigint
        $sql$ loop
            insert into jetstream.webhook_calls (webhook, message_id, url, method, headers, payload, timeout_ms, attempts,
                max_attempts, scheduled_at, error, created_at)
            select w.id, 'rule-engine-' || (call.j ->> 'call_id'), w.url, w.method, w.headers,
                   nullif(call.j -> 'payload', 'null'), w.timeout_ms,
                   least(coalesce((call.j ->> 'retry_count')::integer, 0), w.max_attempts - 1), w.max_attempts,
                   coalesce((call.j ->> 'next_retry_at')::timestamptz, (call.j ->> 'scheduled_at')::timestamptz, now()),
                   call.j ->> 'error_message', coalesce((call.j ->> 'created_at')::timestamptz, now())
            from jetstream.webhooks w where w.id = call.new_id;
            done := done + 1;
            at_work := at_work + (call.j ->> 'status' = 'processing')::integer;
        end loop;
    end if;
    insert into moved (what, moved, left_alone, remark) values ('pending calls', done, 0,
        case when at_work > 0 then format('%s were being made and may be made twice', at_work) end);
end
$$;

-- History, as far back as pg_jetstream.history_retention. publish_id becomes a negative outbox_id.
create temporary table old_history on commit drop as
select h.j, -(h.j ->> 'publish_id')::bigint as outbox_id, (h.j ->> 'published_at')::timestamptz as published_at,
       (h.j ->> 'published_at')::timestamptz > now() - current_setting('pg_jetstream.history_retention')::interval
           and (h.j ->> 'published_at')::timestamptz < now() + interval '7 days' as kept,
       exists (select from jetstream.history k where k.outbox_id = -(h.j ->> 'publish_id')::bigint) as known
from pg_temp.old_rows('rule_nats_publish_history') h;

do $$
declare
    day date;
    partition text;
begin
    for day in
        select distinct (h.published_at at time zone 'UTC')::date from old_history h where h.kept and not h.known
    loop
        partition := 'history_' || to_char(day, 'YYYYMMDD');
        continue when to_regclass('jetstream.' || partition) is not null;
        execute format('create table jetstream.%I (like jetstream.history including defaults)', partition);
        execute format('alter table jetstream.history attach partition jetstream.%I for values from (%L) to (%L)',
            partition, day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC');
        execute format('alter extension pg_jetstream add table jetstream.%I', partition);
    end loop;
end
$$;

insert into jetstream.history (outbox_id, webhook, connection, subject, payload, headers, published_at, message_id, stream,
    sequence, success, error, latency_ms, attempts)
select h.outbox_id, i.new_id, coalesce(i.connection, 'default'), h.j ->> 'subject',
       case when b.kept then nullif(h.j -> 'payload', 'null') end, case when b.kept then nullif(h.j -> 'headers', 'null') end,
       h.published_at, coalesce(h.j ->> 'message_id', 'rule-engine-' || (h.j ->> 'publish_id')), h.j ->> 'stream_name',
       (h.j ->> 'sequence_number')::bigint, (h.j ->> 'success')::boolean, h.j ->> 'error_message',
       (h.j ->> 'latency_ms')::real, 1
from old_history h
cross join (select current_setting('pg_jetstream.history_payload')::boolean as kept) b
left join webhook_ids i on i.old_id = (h.j ->> 'webhook_id')::integer
where h.kept and not h.known;
insert into moved (what, moved, left_alone, remark)
select 'publish history', count(*) filter (where kept and not known), count(*) filter (where not kept or known),
       count(*) filter (where not kept) || ' are older than pg_jetstream.history_retention'
from old_history;

drop function pg_temp.old_rows(text);

select what, moved, left_alone, coalesce(remark, '') as remark from moved order by n;

commit;
