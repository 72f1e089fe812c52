-- What has to happen when captured tables change their definition, and whole schemas.

create function jetstream.capture_as(relation regclass, options jsonb) returns text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select jetstream.capture(relation,
        array(select pg_catalog.jsonb_array_elements_text(options -> 'operations')), options ->> 'prefix',
        options ->> 'format', connection => options ->> 'connection',
        transactions => (options ->> 'transactions')::boolean)
$$;
comment on function jetstream.capture_as(regclass, jsonb) is 'Captures a table as capture_schema was told; returns its subjects
relation: The table
options: What capture_schema was given: operations, prefix, format, connection, transactions';

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

create function jetstream.capture_new_table(relation regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    options jsonb;
begin
    select s.options into options
    from jetstream.capture_schemas s
    join pg_catalog.pg_namespace n on n.nspname = s.schema
    join pg_catalog.pg_class c on c.relnamespace = n.oid
    where c.oid = relation and not c.relispartition and pg_catalog.pg_has_role(n.nspowner, c.relowner, 'USAGE');
    if found then
        perform jetstream.capture_as(relation, options);
    end if;
end
$$;
comment on function jetstream.capture_new_table(regclass) is 'Captures a table that was created in a captured schema';

create function jetstream.capture_describe(root regclass, argument jsonb) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    known text := (select r.described from jetstream.capture_relations r where r.relation = root);
    described text := jetstream.capture_relation(root, argument::text, known);
begin
    if described is distinct from known then
        insert into jetstream.capture_relations as r (relation, described) select root, described
        on conflict on constraint capture_relations_pkey do update set described = excluded.described;
    end if;
end
$$;
comment on function jetstream.capture_describe(regclass, jsonb) is 'Publishes the columns of a captured table if they changed';

create function jetstream.capture_members(root regclass) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    member regclass;
    argument jsonb;
    operations text[];
begin
    select jetstream.capture_argument(t.tgargs), pg_catalog.array_agg(pg_catalog.substr(t.tgname, 19) order by t.tgname)
    into argument, operations
    from pg_catalog.pg_trigger t
    where t.tgrelid = root and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
    group by t.tgargs limit 1;
    argument := argument || '{"partition": true}';
    for member in
        select p.relid from pg_catalog.pg_partition_tree(root) p
        where p.level > 0 and operations is distinct from (
            select pg_catalog.array_agg(pg_catalog.substr(t.tgname, 19) order by t.tgname) from pg_catalog.pg_trigger t
            where t.tgrelid = p.relid and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
              and jetstream.capture_argument(t.tgargs) = argument)
    loop
        perform jetstream.capture_triggers(member, operations, argument);
    end loop;
    -- Partitions that were detached are captured no more.
    for member in
        select distinct t.tgrelid from pg_catalog.pg_trigger t
        where t.tgfoid = 'jetstream.capture_changes()'::regprocedure and jetstream.capture_argument(t.tgargs) = argument
          and t.tgrelid not in (select p.relid from pg_catalog.pg_partition_tree(root) p)
    loop
        perform jetstream.capture_drop_triggers(member);
    end loop;
end
$$;
comment on function jetstream.capture_members(regclass) is
    'Gives a captured table''s partitions their triggers, and takes those of detached ones';

create function jetstream.capture_changed() returns event_trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    -- A table, one of its indexes, constraints or triggers, or a schema.
    touched oid[] := (select pg_catalog.array_agg(c.objid) from pg_catalog.pg_event_trigger_ddl_commands() c);
    relation oid;
    root regclass;
    argument jsonb;
    operations text[];
    -- As pg_dump sets both for what it writes, which brings one trigger after the other, those of partitions too.
    restoring boolean := not (current_setting('check_function_bodies')::boolean or current_setting('row_security')::boolean);
begin
    if tg_tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO') then
        perform jetstream.capture_new_table(c.oid) from pg_catalog.pg_class c
        where c.oid = any (touched) and c.relkind in ('r', 'p')
          and exists (select from jetstream.capture_schemas s
                      join pg_catalog.pg_namespace n on n.nspname = s.schema where n.oid = c.relnamespace);
    end if;
    for root, argument, operations in
        select t.tgrelid, jetstream.capture_argument(t.tgargs), pg_catalog.array_agg(pg_catalog.substr(t.tgname, 19))
        from pg_catalog.pg_trigger t
        join pg_catalog.pg_class c on c.oid = t.tgrelid
        where t.tgfoid = 'jetstream.capture_changes()'::regprocedure
          and not (jetstream.capture_argument(t.tgargs) ->> 'partition')::boolean
          and (c.relnamespace = any (touched) or exists (
              select from (
                  select unnest(touched) as oid
                  union select i.indrelid from pg_catalog.pg_index i where i.indexrelid = any (touched)
                  union select g.tgrelid from pg_catalog.pg_trigger g where g.oid = any (touched)
                  union select n.conrelid from pg_catalog.pg_constraint n where n.oid = any (touched)) r
              where r.oid = c.oid or c.relkind = 'p' and c.oid in (
                  select a.relid from pg_catalog.pg_partition_ancestors(r.oid::regclass) as a (relid))))
        group by t.tgrelid, t.tgargs
    loop
        if tg_tag <> 'CREATE TRIGGER' and not restoring then
            argument := jetstream.capture_rename(root, operations, argument);
            perform jetstream.capture_check_condition(root, argument ->> 'condition');
            perform jetstream.capture_members(root);
        end if;
        perform jetstream.capture_describe(root, argument);
    end loop;
end
$$;
comment on function jetstream.capture_changed() is 'Keeps captures in step with the definitions of their tables';

create function jetstream.capture_rename(relation regclass, operations text[], inout argument jsonb)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    list text;
    named jsonb := argument;
begin
    -- By number only while the numbers are of this table: a restored one may have others.
    if (argument ->> 'table')::oid = relation::oid then
        foreach list in array '{columns,key}'::text[] loop
            if argument -> list <> 'null' then
                named := jsonb_set(named, array[list], (
                    select coalesce(jsonb_agg(jsonb_build_array(a.attname, a.attnum) order by e.n), '[]')
                    from jsonb_array_elements(argument -> list) with ordinality as e (v, n)
                    join pg_catalog.pg_attribute a on a.attrelid = relation and a.attnum = (e.v ->> 1)::smallint
                        and not a.attisdropped));
            end if;
        end loop;
    end if;
    if named <> argument then
        perform jetstream.capture_triggers(relation, operations, named);
        argument := named;
    end if;
end
$$;
comment on function jetstream.capture_rename(regclass, text[], jsonb) is
    'Gives the columns that a capture names their present names';

create function jetstream.capture_dropped() returns event_trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    -- The extension itself may be what goes.
    if pg_catalog.to_regproc('jetstream.capture_changes') is not null then
        delete from jetstream.capture_relations r
        where not exists (select from pg_catalog.pg_trigger t where t.tgrelid = r.relation
                          and t.tgfoid = 'jetstream.capture_changes()'::regprocedure);
        delete from jetstream.capture_schemas s
        where not exists (select from pg_catalog.pg_namespace n where n.nspname = s.schema);
    end if;
end
$$;
comment on function jetstream.capture_dropped() is 'Forgets tables and schemas that are gone, and tables whose capture ended';

create event trigger jetstream_capture_changed on ddl_command_end
    when tag in ('ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE TRIGGER', 'ALTER SCHEMA')
    execute function jetstream.capture_changed();
create event trigger jetstream_capture_dropped on sql_drop
    when tag in ('DROP TABLE', 'DROP SCHEMA', 'DROP TRIGGER', 'DROP OWNED')
    execute function jetstream.capture_dropped();

create function jetstream.capture_schemas_must_own() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    schema name := case tg_op when 'DELETE' then old.schema else new.schema end;
begin
    perform jetstream.capture_must_own_schema(n.oid) from pg_catalog.pg_namespace n where n.nspname = schema;
    return case tg_op when 'DELETE' then old else new end;
end
$$;
comment on function jetstream.capture_schemas_must_own() is 'Refuses changes by anybody but the owner of the schema';
create trigger capture_schemas_must_own before insert or update or delete on jetstream.capture_schemas
    for each row execute function jetstream.capture_schemas_must_own();

create function jetstream.capture_schema(
    schema regnamespace,
    operations text[] default '{insert,update,delete,truncate}',
    subject_prefix text default 'postgres',
    format text default 'pgoutput',
    connection text default 'default',
    transactions boolean default false
) returns setof text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    relation regclass;
    options jsonb := pg_catalog.jsonb_build_object('operations', operations, 'prefix', subject_prefix, 'format', format,
        'connection', connection, 'transactions', transactions);
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
comment on function jetstream.capture_schema(regnamespace, text[], text, text, text, boolean) is
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
        select c."table" from jetstream.captures c join pg_catalog.pg_class r on r.oid = c."table"
        where r.relnamespace = uncapture_schema.schema
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
