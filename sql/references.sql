-- What rows of one table say of another. These are triggers and not foreign keys, because pg_restore -j restores the tables
-- of an extension in any order: a row that a dump brings may name what comes after it.

create function jetstream.is_restored(created_at timestamptz) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select created_at not between now() and clock_timestamp()
$$;
comment on function jetstream.is_restored(timestamptz) is
    'Whether a row was created before this transaction, so that a dump or another server brings it
created_at: Its time, by default that of the insert';

create function jetstream.connection_must_exist() returns trigger
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
create trigger streams_connection_exists before insert or update on jetstream.streams
    for each row execute function jetstream.connection_must_exist();
create trigger webhooks_connection_exists before insert or update on jetstream.webhooks
    for each row execute function jetstream.connection_must_exist();

create function jetstream.connections_after_write() returns trigger
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
create trigger connections_after_write after update or delete on jetstream.connections
    for each row execute function jetstream.connections_after_write();
create trigger connections_after_truncate after truncate on jetstream.connections
    for each statement execute function jetstream.connections_after_write();

create function jetstream.webhook_must_exist() returns trigger
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
create trigger webhook_secrets_webhook_exists before insert or update on jetstream.webhook_secrets
    for each row execute function jetstream.webhook_must_exist();
create trigger webhook_calls_webhook_exists before insert or update on jetstream.webhook_calls
    for each row execute function jetstream.webhook_must_exist();

create function jetstream.webhooks_after_write() returns trigger
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
create trigger webhooks_after_write after update or delete on jetstream.webhooks
    for each row execute function jetstream.webhooks_after_write();
create trigger webhooks_after_truncate after truncate on jetstream.webhooks
    for each statement execute function jetstream.webhooks_after_write();

create function jetstream.triggers_switched("table" name, enabled boolean) returns void
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
