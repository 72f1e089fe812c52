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

-- Written out in webhook_call, which was slow.
drop function jetstream.webhook_enqueue(jetstream.webhooks, jsonb, text, timestamptz);
drop function jetstream.webhook_envelope(jetstream.webhooks, jsonb);

create index if not exists history_webhook on jetstream.history (webhook, published_at) where webhook is not null;

-- Its name hid the window function lag(); it is outbox_lag(text) now.
drop function jetstream.lag(text);

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

-- What is failing: when it was due for the first time, and indexes that find it.
alter table jetstream.outbox add column due_at timestamptz;
update jetstream.outbox set due_at = created_at where attempts > 0;
drop index jetstream.outbox_key;
create index outbox_key on jetstream.outbox (connection, key, attempts, id) where key is not null;
create index outbox_failing on jetstream.outbox (connection, due_at) where attempts > 0;
-- It has more columns, and the view names those of the outbox.
drop function if exists jetstream.status();
drop view jetstream.nats_recent_failures;

-- References between tables become triggers, which come from sql/references.sql below.
alter table jetstream.streams drop constraint streams_connection_fkey;
alter table jetstream.webhooks drop constraint webhooks_connection_fkey;
alter table jetstream.webhook_secrets drop constraint webhook_secrets_webhook_fkey;
alter table jetstream.webhook_calls drop constraint webhook_calls_webhook_fkey;

-- What follows definitions keeps a table's shape and partitions, and runs only while something is captured.
drop event trigger jetstream_capture_changed;
drop event trigger jetstream_capture_dropped;
drop event trigger jetstream_capture_renaming;
drop function jetstream.capture(regclass, text[], text, text, text[], text, text[], text, boolean);
drop function jetstream.capture_schema(regnamespace, text[], text, text, text, boolean);
drop function jetstream.capture_touched(oid[]);
drop function jetstream.capture_follow(regclass);
create table jetstream.capture_epochs (
    epoch bigint not null,
    system_identifier bigint not null,
    timeline integer not null,
    since timestamptz not null default clock_timestamp(),
    here boolean not null default true
);
alter table jetstream.capture_epochs replica identity full;
select pg_catalog.pg_extension_config_dump('jetstream.capture_epochs', '');
alter table jetstream.capture_relations add column shape text, add column partitions oid[];

-- Connections and streams: domains, order of the TLS handshake, who made a stream.
alter table jetstream.connections add column if not exists domain text;
alter table jetstream.connections add column if not exists api_prefix text;
alter table jetstream.connections add column if not exists tls_handshake_first boolean not null default false;
alter table jetstream.streams add column if not exists accept_other boolean not null default false;
alter table jetstream.streams add column if not exists origin text;
alter table jetstream.streams add column if not exists applied jsonb;
alter table jetstream.streams add constraint streams_origin_known check (origin in ('created', 'found'));
-- 0.1.1 has given these to the server as they are.
update jetstream.streams set origin = 'created' where synced_at is not null;

create or replace function jetstream."capture_relation"(
	"relation" oid, /* Option < pg_sys :: Oid > */
	"argument" TEXT, /* Option < & str > */
	"known" TEXT /* Option < & str > */
) RETURNS TEXT /* String */
VOLATILE
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'capture_relation_wrapper';

create or replace function jetstream."check_headers"(
	"headers" jsonb /* JsonText */
) RETURNS bool /* bool */
IMMUTABLE STRICT PARALLEL SAFE
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'check_headers_wrapper';

create or replace function jetstream."worker_reused_ids"() RETURNS bigint /* i64 */
STRICT VOLATILE
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'reload_worker_wrapper';
update pg_catalog.pg_proc set prosrc = 'worker_reused_ids_wrapper'
where pronamespace = 'jetstream'::pg_catalog.regnamespace and proname = 'worker_reused_ids' and prosrc = 'reload_worker_wrapper';

create or replace function jetstream."worker_role"() RETURNS TEXT /* Option < String > */
STRICT VOLATILE
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'reload_worker_wrapper';
update pg_catalog.pg_proc set prosrc = 'worker_role_wrapper'
where pronamespace = 'jetstream'::pg_catalog.regnamespace and proname = 'worker_role' and prosrc = 'reload_worker_wrapper';

comment on column jetstream.connections.reconnect_delay_ms is 'First delay between attempts to connect, milliseconds; doubles up to 1400, a longer one stays as it is';

comment on column jetstream.connections.domain is 'JetStream domain in which streams are made and messages are looked up; null: the server''s own. For a leaf node whose messages are stored elsewhere';

comment on column jetstream.connections.api_prefix is 'Begins the subjects of requests to the JetStream API, $JS.API by default. For an account that imports the API of another one under a name of its own';

comment on column jetstream.connections.tls_handshake_first is 'Begin TLS before the server has said anything, as a server with handshake_first demands';

create or replace function jetstream.check_server_url(url text) returns boolean
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    one text;
begin
    if url like '%@%' then
        -- Without the url, which may hold a password.
        raise exception 'a server url contains credentials'
            using errcode = 'invalid_parameter_value',
                  hint = 'Give them as auth_type with token, username and password, credentials_file or nkey_seed.';
    end if;
    foreach one in array string_to_array(coalesce(nullif(btrim(url), ''), '-'), ',') loop
        if btrim(one) !~* '^((nats|tls)://)?(\[[0-9a-f:.]+\]|[^\s:/?#,\[\]-][^\s:/?#,\[\]]*)(:[0-9]{1,5})?/?$'
                or substring(one from ':([0-9]+)/?\s*$')::integer not between 1 and 65535 then
            raise exception 'server url "%" is not valid', left(coalesce(url, 'null'), 200)
                using errcode = 'invalid_parameter_value',
                      hint = 'Write nats://host:port or tls://host:port; separate several by commas.';
        end if;
    end loop;
    return true;
end
$$;

comment on function jetstream.check_server_url(text) is 'True for the address of a NATS server, or several separated by commas; an ERROR that says why for any other
url: Address nats://host:port or tls://host:port';

create or replace function jetstream.connections_check(c jetstream.connections) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    problem text;
    hint text;
begin
    if c.name is null or octet_length(c.name) not between 1 and 63 then
        raise exception 'connection name "%" is not valid', left(c.name, 80)
            using errcode = 'invalid_parameter_value', hint = 'A name has 1 to 63 bytes.';
    end if;
    perform jetstream.check_server_url(c.url);
    perform jetstream.check_server_url(u) from unnest(c.cluster_urls) u;
    perform jetstream.check_subject(c.subject_prefix);
    perform jetstream.check_stream_name(s) from unnest(array[c.default_stream, c.webhook_stream]) s where s is not null;
    perform jetstream.check_subject(c.webhook_prefix);
    select v.problem, v.hint into problem, hint
    from (values
        (c.auth_type in ('none', 'token', 'password', 'credentials', 'nkey'),
            format('auth_type is %s', coalesce(c.auth_type, 'null')), 'Use none, token, password, credentials or nkey.'),
        (c.auth_type <> 'token' or c.token <> '', 'auth_type token needs a token', 'Set token.'),
        (c.auth_type <> 'password' or c.username <> '' and c.password <> '',
            'auth_type password needs a username and a password', 'Set username and password.'),
        (c.auth_type <> 'credentials' or c.credentials_file <> '',
            'auth_type credentials needs a credentials_file', 'Set credentials_file to the path of a .creds file on the server.'),
        (c.auth_type <> 'nkey' or c.nkey_seed <> '', 'auth_type nkey needs a nkey_seed', 'Set nkey_seed to the seed, SU...'),
        ((c.tls_cert_file is null) = (c.tls_key_file is null), 'tls_cert_file and tls_key_file need each other', 'Set both or neither.'),
        (c.id is not null, 'id is null', 'Leave it out.'),
        (c.created_at is not null, 'created_at is null', 'Leave it out.'),
        (c.webhook_stream is not null, 'webhook_stream is null', 'Give the name of a stream.'),
        (c.webhook_prefix is not null, 'webhook_prefix is null', 'Give the beginning of a subject.'),
        (c.jetstream_enabled, 'jetstream_enabled is not true', 'Nothing is published without JetStream; use enabled = false.'),
        (c.tls_required is not null, 'tls_required is null', 'Use true or false.'),
        (c.tls_handshake_first is not null, 'tls_handshake_first is null', 'Use true or false.'),
        (c.enabled is not null, 'enabled is null', 'Use true or false.'),
        (c.connection_timeout_ms between 100 and 600000,
            format('connection_timeout_ms is %s', coalesce(c.connection_timeout_ms::text, 'null')), 'Use 100 to 600000.'),
        (c.reconnect_delay_ms between 10 and 600000,
            format('reconnect_delay_ms is %s', coalesce(c.reconnect_delay_ms::text, 'null')), 'Use 10 to 600000.'),
        (c.max_reconnect_attempts >= -1,
            format('max_reconnect_attempts is %s', coalesce(c.max_reconnect_attempts::text, 'null')), 'Use a number, or -1 for no limit.'),
        (c.max_connections between 1 and 1000,
            format('max_connections is %s', coalesce(c.max_connections::text, 'null')), 'Use 1 to 1000.'),
        (coalesce(c.domain ~ '^[!-~]{1,255}$' and c.domain !~ '[.*>/\\]', true),
            format('domain is "%s"', left(c.domain, 60)), 'Give the name of a JetStream domain, which has no dots and wildcards.'),
        (coalesce(c.api_prefix ~ '^[!-~]{1,200}$' and c.api_prefix !~ '(^|\.)(\*|>)?(\.|$)', true),
            format('api_prefix is "%s"', left(c.api_prefix, 60)), 'Give a subject without wildcards and without a dot at its end, such as JS.hub.API.'),
        (c.domain is null or c.api_prefix is null, 'domain and api_prefix exclude each other', 'Set one of them.')
    ) as v (valid, problem, hint)
    where v.valid is not true limit 1;
    if problem is not null then
        raise exception 'connection "%": %', c.name, problem using errcode = 'invalid_parameter_value', hint = hint;
    end if;
end
$$;

comment on function jetstream.connections_check(jetstream.connections) is 'Raises an ERROR if a connection cannot work as it is written';

create or replace function jetstream.connections_before_write() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    -- What a dump holds is restored as it is; the worker reports what cannot work.
    if not (tg_op = 'INSERT' and coalesce(jetstream.is_restored(new.created_at), false)) then
        perform jetstream.connections_check(new);
    end if;
    if tg_op = 'INSERT' then
        delete from jetstream.connections c where c.name = new.name and c.name = 'default' and c.updated_at is null;
    else
        if new.name <> old.name and old.name = 'default' then
            raise exception 'connection "default" cannot be renamed'
                using errcode = 'foreign_key_violation',
                      hint = 'Messages that name no connection go there. Insert a further connection instead.';
        end if;
        if new.name <> old.name then
            perform jetstream.connection_must_be_free(old.name);
        end if;
        new.updated_at := now();
    end if;
    return new;
end
$$;

comment on function jetstream.connections_before_write() is 'Refuses a connection that cannot work, keeps connections.updated_at, and lets a restored "default" row replace the untouched one';

create or replace function jetstream.check_stream_name(name text) returns boolean
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if name is null or name = '' or octet_length(name) > 255 or name ~ '[\s.*>/\\[:cntrl:]]' then
        raise exception 'stream name "%" is not valid', left(name, 60)
            using errcode = 'invalid_parameter_value',
                  hint = 'A name has 1 to 255 bytes, without spaces, dots, *, > and slashes.';
    end if;
    return true;
end
$$;

comment on function jetstream.check_stream_name(text) is 'True for a name a stream may have; an ERROR that says why for any other
name: Name of a stream';

create or replace function jetstream.check_stream_subject(subject text) returns boolean
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    reason text := case
        when subject is null or subject = '' then 'is empty'
        when octet_length(subject) > 255 then 'has more than 255 bytes'
        when subject ~ '[^!-~]' then 'contains a character that is not printable ASCII'
        when subject ~ '(^|\.)(\.|$)' then 'has an empty token'
        when subject ~ '(^|\.)>\.' then 'has > before its end'
        when subject ~ '^(\$JS|\$JSC|\$NRG|\$SYS|_INBOX)(\.|$)' then 'belongs to the server'
        when subject ~ '^(>|\*\.)' then 'takes subjects that belong to the server'
    end;
begin
    if reason is not null then
        raise exception 'subject "%" of a stream %', left(subject, 60), reason
            using errcode = 'invalid_parameter_value',
                  hint = 'Write tokens separated by single dots; * stands for one token, > at the end for the rest, such as orders.>.';
    end if;
    return true;
end
$$;

comment on function jetstream.check_stream_subject(text) is 'True for a subject, wildcards allowed, that a stream may take; an ERROR that says why for any other
subject: A subject of a stream';

create or replace function jetstream.subjects_overlap(a text, b text) returns boolean
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    x text[] := string_to_array(a, '.');
    y text[] := string_to_array(b, '.');
begin
    for i in 1 .. greatest(cardinality(x), cardinality(y)) loop
        if x[i] is null or y[i] is null then
            return false;
        elsif x[i] = '>' or y[i] = '>' then
            return true;
        elsif x[i] <> y[i] and x[i] <> '*' and y[i] <> '*' then
            return false;
        end if;
    end loop;
    return true;
end
$$;

comment on function jetstream.subjects_overlap(text, text) is 'Whether a subject exists that both patterns match
a: A pattern with the wildcards * and > of NATS
b: Another pattern';

comment on column jetstream.streams.accept_other is 'true: a stream of another name that takes the subjects will do';

comment on column jetstream.streams.origin is 'created: by pg_jetstream, which changes it when this row changes; found: it existed already and is used as it is (set "created" to take it over); null: not known yet';

comment on column jetstream.streams.applied is 'What the worker gave the server last, in JetStream''s own names: what differs from it there was changed by others; null: everything in this row is applied again';

comment on column jetstream.streams.sync_error is 'Why the server does not have it as asked, or what was changed there by others; null if it does or has not been asked yet';

create or replace function jetstream.streams_before_write() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    -- JetStream keeps nanoseconds in 64 bits.
    longest constant interval := '106751 days';
    problem text;
    hint text;
begin
    -- What a dump holds is restored as it is; the worker reports what the server refuses.
    if tg_op = 'INSERT' and jetstream.is_restored(new.created_at) then
        return new;
    end if;
    perform jetstream.check_stream_name(new.name);
    if coalesce(cardinality(new.subjects), 0) = 0 then
        raise exception 'stream "%" has no subjects', new.name
            using errcode = 'invalid_parameter_value', hint = 'Give at least one, such as array[''orders.>''].';
    end if;
    perform jetstream.check_stream_subject(s) from unnest(new.subjects) s;
    select format('%s is %s', v.name, coalesce(v.value, 'null')), v.hint into problem, hint
    from (values
        ('connection', new.connection, new.connection is not null, 'Leave it out for the connection "default".'),
        ('storage', new.storage, new.storage in ('file', 'memory'), 'Use file or memory.'),
        ('retention', new.retention, new.retention in ('limits', 'interest', 'workqueue'), 'Use limits, interest or workqueue.'),
        ('discard', new.discard, new.discard in ('old', 'new'), 'Use old or new.'),
        ('max_messages', new.max_messages::text, new.max_messages >= -1, 'Use a number, or -1 for no limit.'),
        ('max_messages_per_subject', new.max_messages_per_subject::text, new.max_messages_per_subject >= -1,
            'Use a number, or -1 for no limit.'),
        ('max_bytes', new.max_bytes::text, new.max_bytes >= -1, 'Use a number of bytes, or -1 for no limit.'),
        ('max_message_size', new.max_message_size::text, new.max_message_size >= -1, 'Use a number of bytes, or -1 for no limit.'),
        ('max_age', new.max_age::text, new.max_age = '0' or new.max_age between '100 ms' and longest,
            'Use 100 ms to 106751 days, or 0 for no limit.'),
        ('duplicate_window', new.duplicate_window::text, new.duplicate_window = '0' or new.duplicate_window between '100 ms' and longest,
            'Use 100 ms to 106751 days, or 0 for the server''s own.'),
        ('replicas', new.replicas::text, new.replicas between 1 and 5, 'Use 1 to 5, most often 1 or 3.'),
        ('allow_message_ttl', new.allow_message_ttl::text, new.allow_message_ttl is not null, 'Use true or false.'),
        ('allow_atomic', new.allow_atomic::text, new.allow_atomic is not null, 'Use true or false.'),
        ('accept_other', new.accept_other::text, new.accept_other is not null, 'Use true or false.'),
        ('origin', new.origin, new.origin is null or new.origin in ('created', 'found'), 'Use created, found or null.')
    ) as v (name, value, valid, hint)
    where v.valid is not true limit 1;
    if problem is not null then
        raise exception 'stream "%": %', new.name, problem using errcode = 'invalid_parameter_value', hint = hint;
    end if;
    select format('subject "%s" of stream "%s" overlaps with "%s" of %s', p, new.name, o.subject,
               case when o.id is null then 'the same' else format('stream "%s"', o.name) end) into problem
    from unnest(new.subjects) with ordinality as x (p, n)
    join (select null as id, new.name, y.q, y.n from unnest(new.subjects) with ordinality as y (q, n)
          union all
          select s.id, s.name, q, null from jetstream.streams s, unnest(s.subjects) q
          where s.connection = new.connection and s.id <> new.id and s.name <> new.name and not new.accept_other) as o (id, name, subject, n)
        -- The first tokens first, which is cheap with many streams.
        on (split_part(o.subject, '.', 1) in (split_part(p, '.', 1), '*', '>') or split_part(p, '.', 1) in ('*', '>'))
            and (o.id is not null or x.n < o.n) and jetstream.subjects_overlap(p, o.subject)
    limit 1;
    if problem is not null then
        raise exception '%', problem
            using errcode = 'invalid_parameter_value', hint = 'JetStream lets one stream of an account take a subject.';
    end if;
    -- The server forgets an id no later than its message.
    if new.max_age > '0' and new.duplicate_window > new.max_age then
        raise notice 'duplicate_window of stream "%" is % like its max_age, and not %', new.name, new.max_age, new.duplicate_window;
        new.duplicate_window := new.max_age;
    end if;
    return new;
end
$$;

comment on function jetstream.streams_before_write() is 'Refuses a stream that no server would make, or whose subjects another one takes';

create or replace function jetstream.create_stream(
    name text,
    subjects text[] default null,
    storage text default null,
    retention text default null,
    discard text default null,
    max_messages bigint default null,
    max_bytes bigint default null,
    max_age interval default null,
    max_message_size integer default null,
    replicas integer default null,
    duplicate_window interval default null,
    allow_message_ttl boolean default null,
    allow_atomic boolean default null,
    connection text default 'default',
    description text default null
) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    -- What is asked for, in JetStream's own names.
    asked text[] := array_remove(array[
        case when $2 is not null then 'subjects' end, case when $3 is not null then 'storage' end,
        case when $4 is not null then 'retention' end, case when $5 is not null then 'discard' end,
        case when $6 is not null then 'max_msgs' end, case when $7 is not null then 'max_bytes' end,
        case when $8 is not null then 'max_age' end, case when $9 is not null then 'max_msg_size' end,
        case when $10 is not null then 'num_replicas' end, case when $11 is not null then 'duplicate_window' end,
        case when $12 is not null then 'allow_msg_ttl' end, case when $13 is not null then 'allow_atomic' end,
        case when $15 is not null then 'description' end], null);
    result integer;
    origin text;
begin
    perform jetstream.check_connection($14);
    -- What is asked for again is applied again, also where others have changed it on the server.
    update jetstream.streams s
    set subjects = coalesce($2, s.subjects), storage = coalesce($3, s.storage), retention = coalesce($4, s.retention),
        discard = coalesce($5, s.discard), max_messages = coalesce($6, s.max_messages),
        max_bytes = coalesce($7, s.max_bytes), max_age = coalesce($8, s.max_age),
        max_message_size = coalesce($9, s.max_message_size), replicas = coalesce($10, s.replicas),
        duplicate_window = coalesce($11, s.duplicate_window), allow_message_ttl = coalesce($12, s.allow_message_ttl),
        allow_atomic = coalesce($13, s.allow_atomic), description = coalesce($15, s.description),
        applied = s.applied - asked
    where s.connection = $14 and s.name = $1
    returning s.id, s.origin into result, origin;
    if not found then
        insert into jetstream.streams as s (name, connection, subjects, storage, retention, discard, max_messages, max_bytes,
            max_age, max_message_size, replicas, duplicate_window, allow_message_ttl, allow_atomic, description)
        values ($1, $14, $2, coalesce($3, 'file'), coalesce($4, 'limits'), coalesce($5, 'old'), coalesce($6, -1),
            coalesce($7, -1), coalesce($8, '0'), coalesce($9, -1), coalesce($10, 1), coalesce($11, '2 minutes'),
            coalesce($12, false), coalesce($13, false), $15)
        returning s.id into result;
    elsif origin = 'found' then
        raise warning 'stream "%" was not created by pg_jetstream and stays as it is on the server', $1
            using hint = format('Change it there, or take it over: update jetstream.streams set origin = ''created'' where connection = %L and name = %L.', $14, $1);
    end if;
    return result;
end
$$;

comment on function jetstream.create_stream(text, text[], text, text, text, bigint, bigint, interval, integer, integer,
    interval, boolean, boolean, text, text) is
    'Asks for a stream, or for a change of it, once the transaction commits; returns streams.id. Of a stream asked for before, what is left out (null) stays as it is. See streams.synced_at and sync_error for the result
Arguments as the columns of jetstream.streams';

comment on column jetstream.outbox.message_id is 'Nats-Msg-Id by which JetStream drops duplicates; 1 to 255 bytes without white space at the ends, random by default';

comment on column jetstream.outbox.due_at is 'When it was due for the first time; set by the worker as soon as deliver_at says something else, null until then';

comment on index jetstream.outbox_key is 'Claim of the messages that waited behind a failing one of their key, and whether a key has a failing one';

comment on index jetstream.outbox_failing is 'Failing messages, the oldest first';

comment on column jetstream.capture_queue.salt is 'Random, for the message ids, and the same for all changes of a statement: 12 digits; behind it the cluster that wrote it, system identifier and timeline in hexadecimal';

comment on column jetstream.capture_relations.shape is 'Its definition as a digest: see capture_shape';

comment on column jetstream.capture_relations.partitions is 'Its partitions';

create or replace view jetstream.captures as
select t.tgrelid::regclass as "table",
       array_agg(o.operation order by t.tgname) as operations,
       (a.argument ->> 'prefix') || '.' || jetstream.subject_token(n.nspname) || '.' || jetstream.subject_token(c.relname)
           || '.*' as subjects,
       a.argument ->> 'format' as format,
       (select array_agg(e ->> 0 order by i) from jsonb_array_elements(nullif(a.argument -> 'columns', 'null'))
           with ordinality as x (e, i)) as columns,
       a.argument ->> 'condition' as condition,
       case when a.argument -> 'key' <> 'null' then array(
           select e ->> 0 from jsonb_array_elements(a.argument -> 'key') with ordinality as x (e, i) order by i) end as key,
       a.argument ->> 'connection' as connection,
       (a.argument ->> 'transactions')::boolean as transactions,
       bool_and(t.tgenabled <> 'D') as enabled,
       a.argument ->> 'stream' as stream
from pg_trigger t
join pg_class c on c.oid = t.tgrelid
join pg_namespace n on n.oid = c.relnamespace
cross join lateral (select jetstream.capture_argument(t.tgargs) as argument) a
cross join lateral (select substr(t.tgname, 19) as operation) o
where t.tgfoid = 'jetstream.capture_changes()'::regprocedure and not (a.argument ->> 'partition')::boolean
group by t.tgrelid, n.nspname, c.relname, a.argument;

comment on column jetstream.captures.stream is 'Stream that was asked for by name; null: one that takes the subjects, else {prefix}_replication';

create or replace function jetstream.capture_is_root(relation oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(bool_or(not (jetstream.capture_argument(t.tgargs) ->> 'partition')::boolean), false) from pg_trigger t
    where t.tgrelid = capture_is_root.relation and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
$$;

comment on function jetstream.capture_is_root(oid) is 'Whether a table is captured itself, and not only a table that it is a partition of';

create or replace function jetstream.capture_enable(root regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    relation regclass;
    trigger name;
begin
    for relation, trigger in
        select t.tgrelid, t.tgname from pg_catalog.pg_trigger t
        where t.tgfoid = 'jetstream.capture_changes()'::regprocedure and t.tgenabled = 'D'
          and t.tgrelid = any (root::oid || jetstream.capture_partitions(root))
    loop
        execute pg_catalog.format('alter table %s enable trigger %I', relation, trigger);
    end loop;
end
$$;

create or replace function jetstream.capture_check_connection(connection text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if connection is null or not jetstream.connection_exists(connection) then
        raise exception 'connection "%" does not exist', connection
            using errcode = 'foreign_key_violation', hint = 'Insert it into jetstream.connections first.';
    end if;
end
$$;

comment on function jetstream.capture_check_connection(text) is 'Raises an ERROR if there is no connection of this name';

create or replace function jetstream.capture_check_options(operations text[], subject_prefix text, format text, connection text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if operations is null or cardinality(operations) = 0
        or not operations <@ '{insert,update,delete,truncate}' or array_position(operations, null) is not null then
        raise exception 'operations % are not of insert, update, delete and truncate', operations
            using errcode = 'invalid_parameter_value';
    end if;
    if format is null or format not in ('pgoutput', 'row', 'debezium', 'cloudevents') then
        raise exception 'format "%" is not known', format
            using errcode = 'invalid_parameter_value', hint = 'Use pgoutput, row, debezium or cloudevents.';
    end if;
    perform jetstream.check_subject(subject_prefix || '.s.t.relation');
    if subject_prefix is null then
        raise exception 'subject_prefix is null' using errcode = 'null_value_not_allowed';
    end if;
    perform jetstream.capture_check_connection(connection);
end
$$;

create or replace function jetstream.capture(
    "table" regclass,
    operations text[] default '{insert,update,delete,truncate}',
    subject_prefix text default 'postgres',
    format text default 'pgoutput',
    columns text[] default null,
    condition text default null,
    key text[] default null,
    connection text default 'default',
    transactions boolean default false,
    stream text default null
) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    relation regclass := "table";
    kind "char";
    partition boolean;
    schema oid;
    argument jsonb;
    above regclass;
    subjects text;
begin
    select c.relkind, c.relispartition, c.relnamespace into kind, partition, schema from pg_class c where c.oid = relation;
    if kind is null or kind not in ('r', 'p') then
        raise exception 'cannot capture %: it is no table', relation
            using errcode = 'wrong_object_type', hint = 'Capture ordinary and partitioned tables.';
    end if;
    perform jetstream.capture_must_own(relation);
    if schema = 'jetstream'::regnamespace then
        raise exception 'cannot capture %: it is a table of pg_jetstream', relation using errcode = 'wrong_object_type';
    end if;
    select p.relid into above from pg_partition_ancestors(relation) as p (relid)
    where p.relid <> relation and jetstream.capture_is_root(p.relid);
    if found then
        raise exception 'cannot capture %: it is a partition of %, which is captured', relation, above
            using errcode = 'object_in_use', hint = 'Its changes appear under that table.';
    end if;
    if partition then
        raise exception 'cannot capture %: it is a partition of %', relation, (
                select i.inhparent::regclass from pg_inherits i where i.inhrelid = relation)
            using errcode = 'wrong_object_type',
                hint = 'Capture the table it is a partition of: what is written through that does not fire triggers of partitions.';
    end if;
    select subject_prefix || '.' || jetstream.subject_token(n.nspname) || '.' || jetstream.subject_token(c.relname) || '.'
    into subjects
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation;
    perform jetstream.check_subject(subjects || 'relation');
    perform jetstream.capture_check_options(operations, subject_prefix, format, connection);
    if columns is not null and cardinality(columns) = 0 then
        raise exception 'no columns to capture' using errcode = 'invalid_parameter_value', hint = 'Leave columns out for all.';
    end if;
    argument := jsonb_build_object('columns', jetstream.capture_columns(relation, columns),
        'key', jetstream.capture_columns(relation, key), 'table', relation::oid::bigint, 'format', format, 'prefix', subject_prefix,
        'connection', connection, 'condition', condition, 'transactions', coalesce(transactions, false), 'partition', false, 'stream', stream);
    perform jetstream.capture_check_condition(relation, condition);
    perform jetstream.capture_enable(relation);
    perform jetstream.capture_triggers(relation, operations, argument);
    perform jetstream.capture_stream(relation);
    if kind = 'p' then
        perform jetstream.capture_members(relation);
    end if;
    return subjects || '*';
end
$$;

comment on function jetstream.capture(regclass, text[], text, text, text[], text, text[], text, boolean, text) is
    'Publishes a table''s changes from the end of this transaction on; returns their subjects. Called again, it changes how
subject_prefix: First tokens of the subject
Arguments as the columns of jetstream.captures';

create or replace function jetstream.capture_remove(relation regclass) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    partition regclass;
    dropped integer := 0;
begin
    -- Partitions have triggers of their own, for statements that name them.
    for partition in
        select p.relid from pg_catalog.pg_partition_tree(relation) p where p.level > 0
        union all select relation
    loop
        dropped := dropped + jetstream.capture_drop_triggers(partition);
    end loop;
    perform jetstream.capture_watch();
    return dropped;
end
$$;

create or replace function jetstream.capture_stream(relation regclass) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    argument jsonb := (
        select jetstream.capture_argument(t.tgargs) from pg_catalog.pg_trigger t
        where t.tgrelid = relation and t.tgfoid = 'jetstream.capture_changes()'::regprocedure limit 1);
    prefix text := argument ->> 'prefix';
    connection text := argument ->> 'connection';
    asked text := argument ->> 'stream';
    -- What a subject may hold and the name of a stream may not.
    token text := pg_catalog.replace(pg_catalog.replace(jetstream.subject_token(prefix), '/', '%2F'), '\', '%5C');
    stream text := coalesce(asked, pg_catalog.replace(token, '%2E', '_') || '_replication');
    subjects text[];
begin
    if prefix is null or (argument ->> 'partition')::boolean then
        return;
    end if;
    select array[s.subject || 'insert', s.subject || 'relation']
           || case when (argument ->> 'transactions')::boolean then array[prefix || '.transactions.begin.event'] else '{}' end
    into subjects
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    cross join lateral (select prefix || '.' || jetstream.subject_token(n.nspname) || '.'
                               || jetstream.subject_token(c.relname) || '.' as subject) s
    where c.oid = relation;
    if not exists (
            select from pg_catalog.unnest(subjects) as o (subject) where not exists (
                select from jetstream.streams s, pg_catalog.unnest(s.subjects) p
                where s.connection = connection and (asked is null or s.name = asked)
                  and jetstream.subject_matches(o.subject, p))) then
        return;
    end if;
    -- That of another prefix, such as x.y and x_y.
    if asked is null and exists (select from jetstream.streams s where s.connection = connection and s.name = stream) then
        stream := pg_catalog.replace(token, '_', '%5F') || '_replication';
    end if;
    if exists (select from jetstream.streams s where s.connection = connection and s.name = stream) then
        raise exception 'stream "%" does not take %.>', stream, prefix
            using errcode = 'invalid_parameter_value',
                  hint = 'Give jetstream.capture the name of another stream, or add the subject to jetstream.streams.';
    end if;
    -- One stream of a prefix for all: what does not fit takes the oldest away. One that exists is used as it is.
    insert into jetstream.streams (name, connection, subjects, max_messages, max_bytes, description, accept_other)
    values (stream, connection, array[prefix || '.>'], 1000000, 1073741824, 'Table changes captured by pg_jetstream',
            asked is null);
end
$$;

comment on function jetstream.capture_stream(regclass) is
    'Asks for the stream that a capture names, else for {prefix}_replication, unless one in jetstream.streams takes the subjects';

create or replace function jetstream.capture_as(relation regclass, options jsonb) returns text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select jetstream.capture(relation,
        array(select pg_catalog.jsonb_array_elements_text(options -> 'operations')), options ->> 'prefix',
        options ->> 'format', connection => options ->> 'connection',
        transactions => (options ->> 'transactions')::boolean, stream => options ->> 'stream')
$$;

comment on function jetstream.capture_as(regclass, jsonb) is 'Captures a table as capture_schema was told; returns its subjects
relation: The table
options: What capture_schema was given: operations, prefix, format, connection, transactions, stream';

create or replace function jetstream.capture_may_restore() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.pg_has_role(c.relowner, 'USAGE') from pg_catalog.pg_class c
    where c.oid = 'jetstream.capture_schemas'::regclass
$$;

comment on function jetstream.capture_may_restore() is
    'Whether the current user may add a schema or a connection later than what names it, as a restore does: it has the rights of the extension''s owner';

create or replace function jetstream.capture_schemas_check() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        -- One that is gone has no owner.
        perform jetstream.capture_must_own_schema(n.oid) from pg_catalog.pg_namespace n where n.nspname = old.schema;
    end if;
    if tg_op = 'DELETE' then
        return old;
    end if;
    perform jetstream.capture_must_own_schema(n.oid) from pg_catalog.pg_namespace n where n.nspname = new.schema;
    if not found and not jetstream.capture_may_restore() then
        raise exception 'schema "%" does not exist', new.schema using errcode = 'invalid_schema_name';
    end if;
    if tg_op = 'INSERT' or new.options <> old.options then
        perform jetstream.capture_check_options(
            array(select pg_catalog.jsonb_array_elements_text(new.options -> 'operations')), new.options ->> 'prefix',
            new.options ->> 'format', case when not jetstream.capture_may_restore() then new.options ->> 'connection'
                                           else 'default' end);
        perform (new.options ->> 'transactions')::boolean;
    end if;
    return new;
end
$$;

create or replace function jetstream.capture_new_table(relation regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    options jsonb;
    schema name;
    owned boolean;
begin
    -- Schema public has the role pg_database_owner for its owner from PostgreSQL 15 on.
    select s.options, s.schema, pg_catalog.pg_has_role(case r.rolname when 'pg_database_owner' then d.datdba else r.oid end,
                                                       c.relowner, 'USAGE')
    into options, schema, owned
    from jetstream.capture_schemas s
    join pg_catalog.pg_namespace n on n.nspname = s.schema
    join pg_catalog.pg_roles r on r.oid = n.nspowner
    join pg_catalog.pg_class c on c.relnamespace = n.oid
    join pg_catalog.pg_database d on d.datname = pg_catalog.current_database()
    where c.oid = relation and not c.relispartition;
    if owned then
        perform jetstream.capture_as(relation, options);
    elsif found then
        raise warning 'table % is not captured: the owner of schema "%" does not have the rights of its owner', relation, schema
            using errcode = 'insufficient_privilege', hint = 'The table''s owner can capture it with jetstream.capture.';
    end if;
end
$$;

create or replace function jetstream.capture_schema(
    schema regnamespace,
    operations text[] default '{insert,update,delete,truncate}',
    subject_prefix text default 'postgres',
    format text default 'pgoutput',
    connection text default 'default',
    transactions boolean default false,
    stream text default null
) returns setof text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    relation regclass;
    options jsonb := pg_catalog.jsonb_build_object('operations', operations, 'prefix', subject_prefix, 'format', format,
        'connection', connection, 'transactions', transactions, 'stream', stream);
begin
    perform jetstream.capture_must_own_schema(capture_schema.schema);
    for relation in
        select c.oid from pg_catalog.pg_class c
        where c.relnamespace = capture_schema.schema and c.relkind in ('r', 'p') and not c.relispartition order by c.relname
    loop
        return next jetstream.capture_as(relation, options);
    end loop;
    insert into jetstream.capture_schemas as s (schema, options)
    select n.nspname, options
    from pg_catalog.pg_namespace n where n.oid = capture_schema.schema
    on conflict on constraint capture_schemas_pkey do update set options = excluded.options;
end
$$;

comment on function jetstream.capture_schema(regnamespace, text[], text, text, text, boolean, text) is
    'Captures all tables of a schema, and those that are created in it later; returns their subjects
schema: The schema
subject_prefix: First tokens of the subject
Arguments as the columns of jetstream.captures';

create or replace function jetstream.uncapture_schema(schema regnamespace) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    relation regclass;
    ended integer := 0;
begin
    perform jetstream.capture_must_own_schema(uncapture_schema.schema);
    for relation in
        select c.oid from pg_catalog.pg_class c
        where c.relnamespace = uncapture_schema.schema and c.relkind in ('r', 'p') and jetstream.capture_is_root(c.oid)
    loop
        perform jetstream.uncapture(relation);
        ended := ended + 1;
    end loop;
    delete from jetstream.capture_schemas s using pg_catalog.pg_namespace n
    where n.oid = uncapture_schema.schema and s.schema = n.nspname;
    return ended;
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
    perform jetstream.check_webhook_url(new.url), jetstream.check_headers(new.headers);
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

create or replace function jetstream.webhook_subject(webhook jetstream.webhooks) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(webhook.subject,
        (select c.webhook_prefix from jetstream.connections c where c.name = webhook.connection)
            || '.' || regexp_replace(lower(webhook.name), '[^a-z0-9_-]+', '_', 'g'));
end
$$;

create or replace function jetstream.webhook_call(
    webhook integer,
    payload jsonb,
    message_id text default null,
    scheduled_at timestamptz default null,
    publish_mode text default null,
    key text default null
) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    w jetstream.webhooks;
    mode text;
    id text := coalesce(webhook_call.message_id, gen_random_uuid()::text);
    subject text;
    call_id bigint;
    outbox_id bigint;
begin
    select k.* into w from jetstream.webhooks k where k.id = webhook_call.webhook;
    if not found or not w.enabled then
        w := jetstream.webhook_by_id(webhook_call.webhook);
    end if;
    mode := coalesce(webhook_call.publish_mode, w.publish_mode);
    if mode not in ('queue', 'nats', 'both') then
        raise exception 'publish mode "%" is not known', mode
            using errcode = 'invalid_parameter_value', hint = 'It is queue, nats or both.';
    elsif mode <> 'queue' and not w.nats_enabled then
        raise exception 'webhook "%" is not enabled for NATS', w.name
            using errcode = 'object_not_in_prerequisite_state',
                  hint = format('update jetstream.webhooks set nats_enabled = true where id = %s;', w.id);
    end if;
    if mode in ('queue', 'both') then
        insert into jetstream.webhook_calls as c (webhook, message_id, url, method, headers, payload, timeout_ms,
            max_attempts, scheduled_at)
        values (w.id, id, w.url, w.method, w.headers, webhook_call.payload, w.timeout_ms, w.max_attempts,
            coalesce(webhook_call.scheduled_at, clock_timestamp()))
        returning c.id into call_id;
    end if;
    if mode in ('nats', 'both') then
        subject := w.subject;
        if subject is null then
            -- As webhook_subject.
            select c.webhook_prefix || '.' || regexp_replace(lower(w.name), '[^a-z0-9_-]+', '_', 'g') into subject
            from jetstream.connections c where c.name = w.connection;
        end if;
        insert into jetstream.outbox as o (connection, subject, payload, message_id, deliver_at, key, webhook)
        values (w.connection, subject,
            -- The message on the wire; secrets appear by name only.
            jsonb_build_object('webhook_url', w.url, 'data', webhook_call.payload, 'headers', w.headers, 'method', w.method,
                'timeout_ms', w.timeout_ms, 'webhook_id', w.id, 'webhook_name', w.name),
            id, webhook_call.scheduled_at, webhook_call.key, w.id)
        returning o.id into outbox_id;
    end if;
    if call_id is null then
        return jsonb_build_object('success', true, 'status', 'enqueued', 'webhook_id', w.id, 'webhook_name', w.name,
            'publish_mode', mode, 'message_id', id, 'outbox_id', outbox_id);
    end if;
    return jsonb_strip_nulls(jsonb_build_object(
        'success', true, 'status', 'enqueued', 'webhook_id', w.id, 'webhook_name', w.name, 'publish_mode', mode,
        'message_id', id, 'call_id', call_id, 'outbox_id', outbox_id));
end
$$;

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

create or replace function jetstream.is_restored(created_at timestamptz) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select created_at not between now() and clock_timestamp()
$$;

comment on function jetstream.is_restored(timestamptz) is
    'Whether a row was created before this transaction, so that a dump or another server brings it
created_at: Its time, by default that of the insert';

create or replace function jetstream.connection_must_exist() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.connection is null or tg_op = 'UPDATE' and new.connection is not distinct from old.connection
        or tg_op = 'INSERT' and jetstream.is_restored(new.created_at) then
        return new;
    end if;
    -- Locked, so that a transaction that removes or renames it waits for this one.
    perform from jetstream.connections c where c.name = new.connection for key share;
    if not found then
        raise exception 'connection "%" does not exist', new.connection
            using errcode = 'foreign_key_violation', table = tg_table_name, schema = tg_table_schema, column = 'connection',
                  hint = 'Insert it into jetstream.connections first, or leave connection out to use "default".';
    end if;
    return new;
end
$$;

comment on function jetstream.connection_must_exist() is 'Refuses a connection that does not exist, except in a row that a dump brings';

create or replace function jetstream.connections_after_write() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'TRUNCATE' then
        raise exception 'connection "default" cannot be removed'
            using errcode = 'foreign_key_violation', hint = 'Delete the others: delete from jetstream.connections where name <> ''default''.';
    elsif tg_op = 'UPDATE' then
        if new.name <> old.name then
            update jetstream.streams s set connection = new.name where s.connection = old.name;
            update jetstream.webhooks w set connection = new.name where w.connection = old.name;
        end if;
    -- A restored "default" replaces the one of create extension.
    elsif old.name <> 'default' then
        if exists (select from jetstream.streams s where s.connection = old.name) then
            raise exception 'connection "%" still has streams', old.name
                using errcode = 'foreign_key_violation', hint = 'Remove them from jetstream.streams first.';
        elsif exists (select from jetstream.webhooks w where w.connection = old.name) then
            raise exception 'connection "%" still has webhooks', old.name
                using errcode = 'foreign_key_violation', hint = 'Give them another connection in jetstream.webhooks first.';
        end if;
    end if;
    return null;
end
$$;

comment on function jetstream.connections_after_write() is
    'Renames a connection where streams and webhooks name it; refuses to remove one that they name';

create or replace function jetstream.webhook_must_exist() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.webhook is null or tg_op = 'UPDATE' and new.webhook is not distinct from old.webhook
        or tg_op = 'INSERT' and jetstream.is_restored(new.created_at) then
        return new;
    end if;
    perform from jetstream.webhooks w where w.id = new.webhook for key share;
    if not found then
        raise exception 'webhook % does not exist', new.webhook
            using errcode = 'foreign_key_violation', table = tg_table_name, schema = tg_table_schema, column = 'webhook',
                  hint = 'See jetstream.webhooks for those there are.';
    end if;
    return new;
end
$$;

comment on function jetstream.webhook_must_exist() is 'Refuses a webhook that does not exist, except in a row that a dump brings';

create or replace function jetstream.webhooks_after_write() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'TRUNCATE' then
        truncate jetstream.webhook_secrets, jetstream.webhook_calls;
    elsif tg_op = 'DELETE' then
        delete from jetstream.webhook_secrets s where s.webhook = old.id;
        delete from jetstream.webhook_calls c where c.webhook = old.id;
    elsif new.id <> old.id and (exists (select from jetstream.webhook_secrets s where s.webhook = old.id)
                                or exists (select from jetstream.webhook_calls c where c.webhook = old.id)) then
        raise exception 'webhook % has secrets or calls', old.id
            using errcode = 'foreign_key_violation', hint = 'Register a webhook of the new number instead.';
    end if;
    return null;
end
$$;

comment on function jetstream.webhooks_after_write() is
    'Removes the secrets and calls of a removed webhook; refuses to change the number of one that has some';

create or replace function jetstream.triggers_switched("table" name, enabled boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if not enabled then
        if "table" = 'connections' then
            delete from jetstream.connections c where c.name = 'default' and c.updated_at is null;
        end if;
        return;
    end if;
    case "table"
        when 'connections' then
            insert into jetstream.connections (name)
            select 'default' where not exists (select from jetstream.connections c where c.name = 'default');
            -- What the triggers of statements do.
            update jetstream.connections set name = name where false;
        when 'streams' then
            update jetstream.streams set name = name where false;
        when 'control' then
            update jetstream.control set paused = paused where false;
        when 'outbox' then
            alter table jetstream.outbox enable always trigger outbox_check;
            update jetstream.outbox set attempts = attempts where false;
        when 'capture_schemas' then
            perform jetstream.capture_watch();
        else
    end case;
end
$$;

comment on function jetstream.triggers_switched(name, boolean) is
    'Does what triggers would have done, before and after pg_restore --disable-triggers
table: A table of this schema
enabled: Whether all its triggers were enabled just now, or disabled';

comment on table jetstream.capture_epochs is
    'Clusters that have captured changes of this database, by the epoch in their messages: a later one has a greater epoch';

comment on column jetstream.capture_epochs.epoch is 'Seconds since 1970 when it captured its first change, or more: greater than every epoch before it';

comment on column jetstream.capture_epochs.system_identifier is 'Its system identifier, as pg_control_system() shows it';

comment on column jetstream.capture_epochs.timeline is 'Its timeline: a promoted standby has another than its primary';

comment on column jetstream.capture_epochs.since is 'When it captured its first change';

comment on column jetstream.capture_epochs.here is 'Whether this database recorded it; false in a row that a dump brings, as a copied cluster has the identifier of the other';

create or replace function jetstream.capture_epochs_before_insert() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.here := not jetstream.is_restored(new.since);
    return new;
end
$$;

comment on function jetstream.capture_epochs_before_insert() is 'Notes whether a dump brings the row';

create or replace function jetstream.capture_epoch(system_identifier bigint, timeline integer, current_system bigint, current_timeline integer)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    latest jetstream.capture_epochs;
begin
    select e.* into latest from jetstream.capture_epochs e order by e.epoch desc limit 1;
    if latest.epoch is null or not latest.here or (latest.system_identifier, latest.timeline) <> (current_system, current_timeline) then
        insert into jetstream.capture_epochs (epoch, system_identifier, timeline)
        values (greatest(latest.epoch + 1, extract(epoch from clock_timestamp())::bigint), current_system, current_timeline)
        returning * into latest;
    end if;
    if (capture_epoch.system_identifier, capture_epoch.timeline) = (current_system, current_timeline) then
        return latest.epoch;
    end if;
    -- Captured elsewhere, and restored here before it was a message. One that is not known comes before all others.
    return coalesce(
        (select max(e.epoch) from jetstream.capture_epochs e
         where e.system_identifier = capture_epoch.system_identifier and e.timeline = capture_epoch.timeline),
        (select min(e.epoch) - 1 from jetstream.capture_epochs e));
end
$$;

comment on function jetstream.capture_epoch(bigint, integer, bigint, integer) is
    'The epoch of changes that a cluster captured. The worker calls it, which also records the worker''s own cluster
system_identifier: System identifier of the cluster that captured the changes
timeline: Timeline of that cluster
current_system: System identifier of this cluster
current_timeline: Timeline of this cluster';

create or replace function jetstream.capture_shape(root regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select md5(concat_ws(' ', c.relnamespace, c.relname, c.relowner, c.relispartition, (
        select string_agg(format('%s %s %s %s', a.attnum, a.attname, a.atttypid, a.atttypmod), ', ' order by a.attnum)
        from pg_attribute a where a.attrelid = root and a.attnum > 0 and not a.attisdropped)))
    from pg_class c where c.oid = root
$$;

comment on function jetstream.capture_shape(regclass) is 'What a condition and the names of columns depend on in a table''s definition, as a digest';

create or replace function jetstream.capture_partitions(root regclass) returns oid[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array(select p.relid::oid from pg_partition_tree(root) p where p.level > 0 order by p.relid::oid)
$$;

comment on function jetstream.capture_partitions(regclass) is 'The partitions of a table, those of partitions too';

create or replace function jetstream.capture_describe(root regclass, argument jsonb) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    known jetstream.capture_relations := (select r from jetstream.capture_relations r where r.relation = root);
    described text := jetstream.capture_relation(root, argument::text, known.described);
    numbers jsonb := (select coalesce(jsonb_object_agg(a.attname, a.attnum), '{}') from pg_attribute a
                      where a.attrelid = root and a.attnum > 0 and not a.attisdropped);
    shape text := jetstream.capture_shape(root);
    partitions oid[] := jetstream.capture_partitions(root);
begin
    if (described, numbers, shape, partitions)
        is distinct from (known.described, known.numbers, known.shape, known.partitions) then
        insert into jetstream.capture_relations as r (relation, described, numbers, shape, partitions)
        select root, described, numbers, shape, partitions
        on conflict on constraint capture_relations_pkey
            do update set described = excluded.described, numbers = excluded.numbers, shape = excluded.shape,
                          partitions = excluded.partitions;
    end if;
end
$$;

comment on function jetstream.capture_describe(regclass, jsonb) is
    'Publishes the columns of a captured table if they changed, and records its definition';

create or replace function jetstream.capture_members(root regclass) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    member regclass;
    argument jsonb;
    operations text[];
    members oid[] := jetstream.capture_partitions(root);
begin
    select jetstream.capture_argument(t.tgargs), pg_catalog.array_agg(pg_catalog.substr(t.tgname, 19) order by t.tgname)
    into argument, operations
    from pg_catalog.pg_trigger t
    where t.tgrelid = root and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
    group by t.tgargs limit 1;
    argument := argument || '{"partition": true}';
    for member in
        -- Foreign tables have no such triggers.
        select c.oid from pg_catalog.pg_class c
        where c.oid = any (members) and c.relkind <> 'f' and operations is distinct from (
            select pg_catalog.array_agg(pg_catalog.substr(t.tgname, 19) order by t.tgname) from pg_catalog.pg_trigger t
            where t.tgrelid = c.oid and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
              and jetstream.capture_argument(t.tgargs) = argument)
    loop
        perform jetstream.capture_triggers(member, operations, argument);
    end loop;
    -- Partitions that were detached are captured no more, unless they are in another table that is captured.
    for member in
        select c.oid from jetstream.capture_relations r
        join pg_catalog.pg_class c on c.oid = any (r.partitions) and c.oid <> all (members)
        where r.relation = root and not exists (
            select from pg_catalog.pg_partition_ancestors(c.oid) as a (relid) where jetstream.capture_is_root(a.relid))
    loop
        perform jetstream.capture_drop_triggers(member);
    end loop;
end
$$;

create or replace function jetstream.capture_concerned(touched oid[], tag text) returns table (root regclass, condition boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- Planning takes longer than what it finds. A catalog that was small when this was planned may have grown: only
-- indexes, and nested loops over few rows.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
    if tag = 'ALTER SCHEMA' then
        -- Its tables, and what conditions find in it by name.
        touched := touched || array(
            select c.oid from pg_class c where c.relnamespace = any (touched) and c.relkind in ('r', 'p')
            union select p.oid from pg_proc p where p.pronamespace = any (touched)
            union select y.oid from pg_type y where y.typnamespace = any (touched)
            union select o.oid from pg_operator o where o.oprnamespace = any (touched));
    end if;
    -- Each step by an index: nothing here grows with the number of captured tables.
    return query
    with recursive part (oid) as (
        select unnest(touched)
        union select i.indrelid from pg_index i where i.indexrelid = any (touched)
        union select n.conrelid from pg_constraint n where n.oid = any (touched)
    ),
    below (oid) as (select p.oid from part p union select i.inhrelid from below b join pg_inherits i on i.inhparent = b.oid),
    above (oid) as (select p.oid from part p union select i.inhparent from above a join pg_inherits i on i.inhrelid = a.oid),
    concerned (oid, condition) as (
        select b.oid, false from below b
        union all select a.oid, false from above a
        -- What a condition needs; see capture_depend.
        -- The filter on classid stays outside: by that index, all triggers would be read.
        union all select t.tgrelid, true from (
            select d.classid, d.objid, d.refobjid from pg_depend d
            where d.refobjid = any (touched)
              and d.refclassid in ('pg_proc'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass, 'pg_class'::regclass)
            offset 0) d
        join pg_trigger t on t.oid = d.objid and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
        where d.classid = 'pg_trigger'::regclass and d.refobjid <> t.tgrelid
    )
    select c.oid::regclass, bool_or(c.condition) from concerned c where jetstream.capture_is_root(c.oid) group by c.oid;
end
$$;

comment on function jetstream.capture_concerned(oid[], text) is
    'Captured tables that a change of these objects may concern: tables, what is a table''s, schemas, and what conditions need; and whether it may concern their conditions';

create or replace function jetstream.capture_follow(root regclass, condition boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    argument jsonb;
    named jsonb;
    operations text[];
    known jetstream.capture_relations := (select r from jetstream.capture_relations r where r.relation = root);
    above regclass := (select i.inhparent from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
                       where i.inhrelid = root and c.relispartition);
    -- What a restore does between the triggers of a dump, such as enabling one, changes neither.
    reshaped boolean := known.shape is distinct from jetstream.capture_shape(root);
    regrouped boolean := known.partitions is distinct from jetstream.capture_partitions(root);
begin
    if above is not null then
        if exists (select from pg_catalog.pg_partition_ancestors(above) as a (relid) where jetstream.capture_is_root(a.relid)) then
            -- That one's triggers take the place of its own.
            return;
        end if;
        if reshaped then
            raise warning 'table % is captured, but is a partition of %, which is not: what is written through that is not captured',
                    root, above
                using hint = 'Capture the table it is a partition of.';
        end if;
    end if;
    for argument, operations in
        select jetstream.capture_argument(t.tgargs), pg_catalog.array_agg(pg_catalog.substr(t.tgname, 19))
        from pg_catalog.pg_trigger t
        where t.tgrelid = root and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
          and not (jetstream.capture_argument(t.tgargs) ->> 'partition')::boolean
        group by t.tgargs
    loop
        if condition or reshaped then
            perform jetstream.capture_check_condition(root, argument ->> 'condition');
        end if;
        named := argument;
        if reshaped then
            named := jetstream.capture_rename(root, operations, argument);
        end if;
        if regrouped or named <> argument then
            perform jetstream.capture_members(root);
        end if;
        perform jetstream.capture_describe(root, named);
    end loop;
end
$$;

comment on function jetstream.capture_follow(regclass, boolean) is
    'Keeps the capture of a table in step with its definition
root: The table
condition: Something that its condition needs may have changed';

create or replace function jetstream.capture_created(trigger oid) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- A catalog that was small when this was planned may have grown.
set enable_seqscan = off
as $$
declare
    root regclass;
    arguments bytea;
    argument jsonb;
    restored boolean;
begin
    select t.tgrelid, t.tgargs, jetstream.capture_argument(t.tgargs) into root, arguments, argument
    from pg_catalog.pg_trigger t
    where t.oid = trigger;
    if argument is null then
        return;
    end if;
    -- The triggers of a dump are those of a table that had another object id. What they name may come after them.
    restored := (argument ->> 'table')::oid <> root::oid;
    if not jetstream.connection_exists(argument ->> 'connection') then
        if not restored then
            perform jetstream.capture_check_connection(argument ->> 'connection');
        end if;
        raise warning 'table % is captured for connection "%", which does not exist', root, argument ->> 'connection'
            using hint = 'Its changes wait until it is inserted into jetstream.connections.';
    end if;
    -- The first trigger of a capture describes the table for all of them.
    if not (argument ->> 'partition')::boolean and not (
            exists (select from jetstream.capture_relations r where r.relation = root)
            and exists (select from pg_catalog.pg_trigger t
                        where t.tgrelid = root and t.oid <> trigger and t.tgargs = arguments
                          and t.tgfoid = 'jetstream.capture_changes()'::regprocedure)) then
        perform jetstream.capture_describe(root, argument);
    end if;
    if argument ->> 'condition' is not null then
        begin
            perform jetstream.capture_depend(root, argument ->> 'condition', trigger);
        exception when others then
            if not restored then
                perform jetstream.capture_check_condition(root, argument ->> 'condition');
                raise;
            end if;
            raise warning 'condition (%) of the capture of table % does not work: %', argument ->> 'condition', root, sqlerrm;
        end;
    end if;
end
$$;

create or replace function jetstream.capture_watch() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    needed boolean;
    trigger name;
begin
    needed := exists (select from jetstream.capture_relations) or exists (select from jetstream.capture_schemas);
    if needed = (select pg_catalog.bool_and(e.evtenabled = 'A') from pg_catalog.pg_event_trigger e
                 where e.evtname in ('jetstream_capture_changed', 'jetstream_capture_dropped', 'jetstream_capture_renaming')) then
        return;
    end if;
    if not needed then
        -- Waits for transactions that have begun a capture.
        lock table jetstream.capture_relations in share row exclusive mode;
    end if;
    lock table jetstream.capture_schemas in share row exclusive mode;
    needed := exists (select from jetstream.capture_relations) or exists (select from jetstream.capture_schemas);
    for trigger in
        select e.evtname from pg_catalog.pg_event_trigger e
        where e.evtname in ('jetstream_capture_changed', 'jetstream_capture_dropped', 'jetstream_capture_renaming')
          and (e.evtenabled = 'A') <> needed
    loop
        execute pg_catalog.format('alter event trigger %I %s', trigger, case when needed then 'enable always' else 'disable' end);
    end loop;
end
$$;

comment on function jetstream.capture_watch() is
    'Enables the event triggers that follow definitions while something is captured, and disables them otherwise: they cost every DDL statement';

create or replace function jetstream.capture_schemas_watch() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform jetstream.capture_watch();
    return null;
end
$$;

comment on function jetstream.capture_schemas_watch() is 'Enables or disables the event triggers of captures';

create or replace function jetstream.capture_began() returns event_trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    created oid[];
begin
    created := array(
        select t.oid from pg_catalog.pg_event_trigger_ddl_commands() c
        join pg_catalog.pg_trigger t on c.classid = 'pg_trigger'::regclass and t.oid = c.objid
        where t.tgfoid = 'jetstream.capture_changes()'::regprocedure);
    if created <> '{}' then
        perform jetstream.capture_created(t.oid) from pg_catalog.unnest(created) as t (oid);
        -- After the rows that say so: see capture_watch.
        perform jetstream.capture_watch();
    end if;
end
$$;

comment on function jetstream.capture_began() is 'Takes note of the triggers of a capture, those of a dump too';

create or replace function jetstream.capture_changed() returns event_trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
-- As in capture_concerned.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
    touched oid[];
begin
    -- It may be enabled although nothing is captured: see capture_watch.
    if not exists (select from jetstream.capture_relations) and not exists (select from jetstream.capture_schemas) then
        return;
    end if;
    touched := (select pg_catalog.array_agg(c.objid) from pg_catalog.pg_event_trigger_ddl_commands() c);
    if tg_tag = 'ALTER SCHEMA' then
        -- The one that is not there, as there was none before the command: see capture_renaming.
        update jetstream.capture_schemas s set schema = n.nspname
        from pg_catalog.pg_namespace n
        where n.oid = any (touched) and not exists (select from pg_catalog.pg_namespace o where o.nspname = s.schema);
    elsif tg_tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE SCHEMA') then
        perform jetstream.capture_new_table(c.oid) from pg_catalog.pg_class c
        where c.oid = any (touched) and c.relkind in ('r', 'p')
          and exists (select from jetstream.capture_schemas s
                      join pg_catalog.pg_namespace n on n.nspname = s.schema where n.oid = c.relnamespace);
        if not exists (select from pg_catalog.pg_class c where c.oid = any (touched) and c.relispartition) then
            -- Nothing that is captured already.
            return;
        end if;
    end if;
    perform jetstream.capture_follow(t.root, t.condition) from jetstream.capture_concerned(touched, tg_tag) as t;
end
$$;

create or replace function jetstream.capture_rename(relation regclass, operations text[], inout argument jsonb)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    list text;
    -- The numbers in the argument are of this table unless it was restored, when it may have others.
    numbers jsonb := case when (argument ->> 'table')::oid <> relation::oid
        then (select r.numbers from jetstream.capture_relations r where r.relation = relation) end;
    restored boolean := numbers is not null;
    named jsonb := argument || jsonb_build_object('table', relation::oid::bigint);
begin
    foreach list in array '{columns,key}'::text[] loop
        if argument -> list <> 'null' then
            named := jsonb_set(named, array[list], (
                select coalesce(jsonb_agg(jsonb_build_array(a.attname, a.attnum) order by e.n), '[]')
                from jsonb_array_elements(argument -> list) with ordinality as e (v, n)
                join pg_catalog.pg_attribute a on a.attrelid = relation and not a.attisdropped
                    and a.attnum = (case when restored then numbers ->> (e.v ->> 0) else e.v ->> 1 end)::smallint));
            if named -> list = '[]' and argument -> list <> '[]' then
                raise exception 'the last column of the capture of table % would be gone (%)', relation, list
                    using errcode = 'dependent_objects_still_exist',
                          hint = 'Capture the table with other columns first, or end the capture with jetstream.uncapture.';
            end if;
        end if;
    end loop;
    if named <> argument then
        perform jetstream.capture_triggers(relation, operations, named);
        argument := named;
    end if;
end
$$;

create or replace function jetstream.capture_dropped() returns event_trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    touched oid[];
    ended oid[];
    schemas name[];
begin
    -- The extension itself may be what goes.
    if pg_catalog.to_regproc('jetstream.capture_changes') is null then
        return;
    end if;
    -- Columns that went with their type; tables; and tables whose triggers went.
    select pg_catalog.array_agg(d.objid) filter (where d.object_type = 'table column'),
           pg_catalog.array_agg(case d.object_type when 'trigger' then pg_catalog.to_regclass(
               pg_catalog.format('%I.%I', d.address_names[1], d.address_names[2]))::oid else d.objid end)
               filter (where d.object_type in ('table', 'trigger')),
           pg_catalog.array_agg(d.object_name) filter (where d.object_type = 'schema')
    into touched, ended, schemas
    from pg_catalog.pg_event_trigger_dropped_objects() d;
    if ended is not null then
        delete from jetstream.capture_relations r
        where r.relation = any (ended) and not exists (
            select from pg_catalog.pg_trigger t
            where t.tgrelid = r.relation and t.tgfoid = 'jetstream.capture_changes()'::regprocedure);
    end if;
    if schemas is not null then
        delete from jetstream.capture_schemas s where s.schema = any (schemas);
    end if;
    -- A capture that is changed drops its triggers and creates them again; capture_remove ends one.
    if tg_tag <> 'DROP TRIGGER' and (ended is not null or schemas is not null) then
        perform jetstream.capture_watch();
    end if;
    if touched is not null then
        perform jetstream.capture_follow(t.root, t.condition) from jetstream.capture_concerned(touched, tg_tag) as t;
    end if;
end
$$;

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
    if tg_op = 'UPDATE' then
        new.updated_at := now();
    end if;
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

comment on column jetstream.history.error is 'Why it was not stored; of a duplicate, that another message has used its id';

comment on index jetstream.history_webhook is 'Messages of one webhook; other messages have no entry';

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

create or replace function jetstream.rule_webhook_enable_nats(
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

create or replace function jetstream.rule_webhook_publish_nats(webhook_id integer, payload jsonb, message_id text default null)
returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ begin return jetstream.webhook_call($1, $2, $3, publish_mode => 'nats'); end $$;

create or replace function jetstream.rule_webhook_call_unified(
    webhook_id integer, payload jsonb, message_id text default null, scheduled_at timestamptz default null
) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ begin return jetstream.webhook_call($1, $2, $3, $4); end $$;

create or replace function jetstream.rule_webhook_enqueue(
    p_webhook_id integer, p_payload jsonb, p_scheduled_at timestamptz default null, p_message_id text default null
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ begin return jetstream.webhook_call($1, $2, $4, $3, 'queue') ->> 'call_id'; end $$;

create or replace function jetstream.rule_webhook_call(p_webhook_id integer, p_payload jsonb) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ begin return jetstream.webhook_call($1, $2, publish_mode => 'queue'); end $$;

create or replace view jetstream.outbox_summary as
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

comment on column jetstream.outbox_summary.owed is 'Pending messages that are due or failing';

comment on column jetstream.outbox_summary.scheduled is 'Pending messages that are not due yet, as their producer asked; not among owed';

create or replace view jetstream.publish_summary as
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

comment on column jetstream.publish_summary.reused_ids is 'Of the duplicates, those the stream had from another message with the same id';

create or replace function jetstream.backlog(connection text) returns table (
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

create or replace function jetstream.outbox_lag(connection text default null) returns interval
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

create or replace function jetstream.verdict(connection text default null) returns table (verdict text, reasons jsonb)
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

create or replace function jetstream.status() returns table (
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

create or replace function jetstream.health(connection text default null) returns jsonb
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

create or replace function jetstream.retry(subject_pattern text default '>', connection text default null) returns bigint
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

create or replace function jetstream.measure() returns table (name text, labels jsonb, value double precision, kind text, help text)
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

comment on column jetstream.metrics.labels is 'Object of labels to strings: database, and connection, stream, consumer, status, verdict or le where there are several';

create or replace function jetstream.rule_nats_configure(
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

create or replace function jetstream.rule_nats_stream_create(
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

create or replace view jetstream.nats_recent_failures as
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

comment on function jetstream.worker_reused_ids() is 'Duplicates that the stream had from another message with the same id, since the worker started; use status()';

comment on function jetstream.worker_role() is 'Role whose rights the worker of this database has; null if none has begun; use status()';

revoke all on schema jetstream from public;

revoke all on all tables in schema jetstream from public;

revoke all on all functions in schema jetstream from public;

grant select (id, name, url, cluster_urls, auth_type, username, credentials_file, tls_required, tls_ca_file, tls_cert_file,
    tls_key_file, connection_timeout_ms, reconnect_delay_ms, max_reconnect_attempts, max_connections, default_stream,
    subject_prefix, domain, api_prefix, tls_handshake_first, webhook_stream, webhook_prefix, jetstream_enabled, enabled,
    description, created_at, updated_at)
    on jetstream.connections to jetstream_reader, jetstream_admin;

grant select (txid, id, connection, subject, message_id, key, deliver_at, ttl, webhook, traceparent, attempts,
    last_error, failed_at, unsure_since, created_at, due_at) on jetstream.outbox to jetstream_reader;

grant execute on function jetstream.status(), jetstream.health(text), jetstream.outbox_lag(text), jetstream.verdict(text),
    jetstream.backlog(text), jetstream.worker_status(), jetstream.worker_role(), jetstream.worker_reused_ids()
    to jetstream_reader, jetstream_admin;

grant execute on function
    jetstream.create_stream(text, text[], text, text, text, bigint, bigint, interval, integer, integer, interval, boolean,
        boolean, text, text),
    jetstream.pause(), jetstream.resume(), jetstream.reload(text), jetstream.retry(text, text),
    jetstream.redrive(bigint, boolean), jetstream.redrive_all(text, boolean), jetstream.discard(bigint)
    to jetstream_admin;

grant update (synced_at, sync_error, origin, applied) on jetstream.streams to jetstream_worker;

grant select on jetstream.consumers, jetstream.rule_nats_config, jetstream.rule_nats_streams,
    jetstream.rule_nats_consumer_stats, jetstream.nats_publish_summary, jetstream.nats_performance_stats,
    jetstream.nats_recent_failures, jetstream.webhook_status_summary, jetstream.webhook_recent_failures,
    jetstream.webhook_performance_stats, jetstream.webhook_dead_letters to jetstream_reader, jetstream_admin;

grant execute on function
    jetstream.check_webhook_url(text), jetstream.check_call_status(text),
    jetstream.await_connection(text, integer),
    jetstream.webhook_retry(bigint), jetstream.webhook_cleanup(interval, boolean), jetstream.webhook_reclaim(),
    jetstream.rule_nats_configure(text, text, text, boolean, text, text, text, text, text, text, text, text[], boolean, text,
        text, text, integer, integer, integer, integer),
    jetstream.rule_nats_stream_create(text, text[], text, text, text, bigint, text, bigint, bigint, integer, integer),
    jetstream.rule_nats_init(text), jetstream.rule_nats_test_connection(text),
    jetstream.rule_nats_cleanup_old_history(interval, boolean), jetstream.rule_nats_cleanup_expired(),
    jetstream.rule_webhook_register(text, text, text, jsonb, text, integer, integer, boolean, text, text, text, text[]),
    jetstream.rule_webhook_update(integer, text, text, jsonb, integer, boolean, integer, text, boolean, text, text, text[]),
    jetstream.rule_webhook_delete(integer), jetstream.rule_webhook_get(text),
    jetstream.rule_webhook_secret_set(integer, text, text), jetstream.rule_webhook_secret_delete(integer, text),
    jetstream.rule_webhook_enable_nats(integer, text, text, text), jetstream.rule_webhook_disable_nats(integer),
    jetstream.rule_webhook_retry(bigint), jetstream.rule_webhook_call_status(bigint),
    jetstream.rule_webhook_cleanup_old_calls(interval, boolean)
    to jetstream_admin;

grant execute on function
    jetstream.webhook_complete(bigint, integer, text, double precision, text, integer),
    jetstream.webhook_fail(bigint, text, boolean, interval, integer, text, double precision, text, integer),
    jetstream.rule_nats_consumer_update_stats(text, text, bigint, bigint, bigint, numeric, bigint, boolean, text, text, integer),
    jetstream.webhook_dead_letter(text, bigint, text, text, integer, text, integer, text, integer)
    to jetstream_webhook_worker, jetstream_admin;

grant execute on function
    jetstream.capture(regclass, text[], text, text, text[], text, text[], text, boolean, text), jetstream.uncapture(regclass),
    jetstream.capture_schema(regnamespace, text[], text, text, text, boolean, text), jetstream.uncapture_schema(regnamespace),
    jetstream.capture_changes(), jetstream.capture_argument(bytea), jetstream.subject_token(text),
    jetstream.capture_triggers(regclass, text[], jsonb), jetstream.capture_drop_triggers(regclass),
    jetstream.capture_must_own(regclass), jetstream.capture_remove(regclass), jetstream.capture_enable(regclass),
    jetstream.capture_as(regclass, jsonb), jetstream.capture_must_own_schema(regnamespace),
    jetstream.capture_check_condition(regclass, text), jetstream.capture_analyze(oid, text), jetstream.connection_exists(text),
    jetstream.capture_check_options(text[], text, text, text), jetstream.capture_may_restore(), jetstream.capture_check_connection(text),
    jetstream.capture_is_root(oid), jetstream.capture_partitions(regclass), jetstream.capture_watch(),
    jetstream.capture_stream(regclass), jetstream.capture_members(regclass),
    jetstream.capture_columns(regclass, text[])
    to jetstream_publisher, jetstream_admin;

grant select on jetstream.capture_relations, jetstream.capture_schemas, jetstream.capture_epochs to jetstream_reader, jetstream_admin;

grant execute on function jetstream.capture_epoch(bigint, integer, bigint, integer) to jetstream_worker;

-- The functions that it calls are there now.
alter table jetstream.webhook_calls
    drop constraint webhook_calls_status_known,
    add constraint webhook_calls_status_known
        check (status in ('pending', 'claimed', 'succeeded', 'failed', 'dead') or jetstream.check_call_status(status));

create trigger streams_connection_exists before insert or update on jetstream.streams
    for each row execute function jetstream.connection_must_exist();
create trigger webhooks_connection_exists before insert or update on jetstream.webhooks
    for each row execute function jetstream.connection_must_exist();
create trigger connections_after_write after update or delete on jetstream.connections
    for each row execute function jetstream.connections_after_write();
create trigger connections_after_truncate after truncate on jetstream.connections
    for each statement execute function jetstream.connections_after_write();
create trigger webhook_secrets_webhook_exists before insert or update on jetstream.webhook_secrets
    for each row execute function jetstream.webhook_must_exist();
create trigger webhook_calls_webhook_exists before insert or update on jetstream.webhook_calls
    for each row execute function jetstream.webhook_must_exist();
create trigger webhooks_after_write after update or delete on jetstream.webhooks
    for each row execute function jetstream.webhooks_after_write();
create trigger webhooks_after_truncate after truncate on jetstream.webhooks
    for each statement execute function jetstream.webhooks_after_write();

drop function jetstream.capture_restoring();
update jetstream.capture_relations r
set shape = jetstream.capture_shape(r.relation), partitions = jetstream.capture_partitions(r.relation)
from pg_catalog.pg_class c where c.oid = r.relation;
create trigger capture_epochs_before_insert before insert on jetstream.capture_epochs
    for each row execute function jetstream.capture_epochs_before_insert();
create trigger capture_schemas_watch after insert or delete or truncate on jetstream.capture_schemas
    for each statement execute function jetstream.capture_schemas_watch();
create event trigger jetstream_capture_began on ddl_command_end
    when tag in ('CREATE TRIGGER', 'CREATE SCHEMA')
    execute function jetstream.capture_began();
alter event trigger jetstream_capture_began enable always;
create event trigger jetstream_capture_changed on ddl_command_end
    when tag in ('ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE SCHEMA', 'ALTER SCHEMA',
                 'ALTER TYPE', 'ALTER DOMAIN', 'ALTER FUNCTION', 'ALTER ROUTINE', 'ALTER OPERATOR')
    execute function jetstream.capture_changed();
alter event trigger jetstream_capture_changed disable;
create event trigger jetstream_capture_dropped on sql_drop
    when tag in ('DROP TABLE', 'DROP SCHEMA', 'DROP TRIGGER', 'DROP OWNED', 'DROP TYPE', 'DROP DOMAIN', 'DROP FUNCTION',
                 'DROP ROUTINE', 'DROP OPERATOR', 'DROP EXTENSION', 'DROP VIEW')
    execute function jetstream.capture_dropped();
alter event trigger jetstream_capture_dropped disable;
create event trigger jetstream_capture_renaming on ddl_command_start
    when tag in ('ALTER SCHEMA')
    execute function jetstream.capture_renaming();
alter event trigger jetstream_capture_renaming disable;
select jetstream.capture_watch();

-- Connections and streams: what the server would refuse is refused when it is written.
create trigger streams_before_write
    before insert or update of name, connection, subjects, storage, retention, discard, max_messages,
        max_messages_per_subject, max_bytes, max_age, max_message_size, replicas, duplicate_window, allow_message_ttl,
        allow_atomic, accept_other
    on jetstream.streams
    for each row execute function jetstream.streams_before_write();
drop trigger streams_reload on jetstream.streams;
create trigger streams_reload
    after insert or delete or truncate or update of name, connection, subjects, storage, retention, discard,
        max_messages, max_messages_per_subject, max_bytes, max_age, max_message_size, replicas, duplicate_window,
        allow_message_ttl, allow_atomic, description, accept_other, origin, applied
    on jetstream.streams
    for each statement execute function jetstream.reload_worker();
