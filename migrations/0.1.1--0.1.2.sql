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

-- A function that returns another set of columns
drop function jetstream.status();

-- generated statements

-- The functions that it calls are there now.
alter table jetstream.webhook_calls
    drop constraint webhook_calls_status_known,
    add constraint webhook_calls_status_known
        check (status in ('pending', 'claimed', 'succeeded', 'failed', 'dead') or jetstream.check_call_status(status));
