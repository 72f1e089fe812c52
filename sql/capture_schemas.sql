-- Whole schemas: their tables, and those that are created in them later.

create table jetstream.capture_schemas (
    schema name not null,
    options jsonb not null,
    constraint capture_schemas_pkey primary key (schema)
);
comment on table jetstream.capture_schemas is 'Schemas whose new tables are captured too';
comment on column jetstream.capture_schemas.schema is 'The schema';
comment on column jetstream.capture_schemas.options is 'What capture_schema was given';

select pg_catalog.pg_extension_config_dump('jetstream.capture_schemas', '');

create function jetstream.capture_as(relation regclass, options jsonb) returns text
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

create function jetstream.capture_must_own_schema(schema regnamespace) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from pg_catalog.pg_namespace n
               where n.oid = schema and not pg_catalog.pg_has_role(n.nspowner, 'USAGE')) then
        raise exception 'must be owner of schema %', schema
            using errcode = 'insufficient_privilege', hint = 'Only a schema''s owner can have its tables captured.';
    end if;
end
$$;
comment on function jetstream.capture_must_own_schema(regnamespace) is 'Raises an ERROR unless the current user owns the schema
schema: The schema';

create function jetstream.capture_may_restore() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.pg_has_role(c.relowner, 'USAGE') from pg_catalog.pg_class c
    where c.oid = 'jetstream.capture_schemas'::regclass
$$;
comment on function jetstream.capture_may_restore() is
    'Whether the current user may add a schema or a connection later than what names it, as a restore does: it has the rights of the extension''s owner';

create function jetstream.capture_schemas_check() returns trigger
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
comment on function jetstream.capture_schemas_check() is
    'Refuses schemas that are not there, changes by anybody but the owner of the schema, and what no table can be captured with';
create trigger capture_schemas_check before insert or update or delete on jetstream.capture_schemas
    for each row execute function jetstream.capture_schemas_check();

create function jetstream.capture_new_table(relation regclass) returns void
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
comment on function jetstream.capture_new_table(regclass) is 'Captures a table that was created in a captured schema';

create function jetstream.capture_schema(
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

create function jetstream.uncapture_schema(schema regnamespace) returns integer
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
comment on function jetstream.uncapture_schema(regnamespace) is 'Ends the capture of a schema''s tables; returns how many there were
schema: The schema';
