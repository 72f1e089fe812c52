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

-- generated statements

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
