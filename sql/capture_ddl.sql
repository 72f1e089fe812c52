-- What has to happen when captured tables change their definition.

create function jetstream.capture_shape(root regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select md5(concat_ws(' ', c.relnamespace, c.relname, c.relowner, c.relispartition, (
        select string_agg(format('%s %s %s %s', a.attnum, a.attname, a.atttypid, a.atttypmod), ', ' order by a.attnum)
        from pg_attribute a where a.attrelid = root and a.attnum > 0 and not a.attisdropped)))
    from pg_class c where c.oid = root
$$;
comment on function jetstream.capture_shape(regclass) is 'What a condition and the names of columns depend on in a table''s definition, as a digest';

create function jetstream.capture_partitions(root regclass) returns oid[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array(select p.relid::oid from pg_partition_tree(root) p where p.level > 0 order by p.relid::oid)
$$;
comment on function jetstream.capture_partitions(regclass) is 'The partitions of a table, those of partitions too';

create function jetstream.capture_describe(root regclass, argument jsonb) returns void
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

create function jetstream.capture_members(root regclass) returns void
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
comment on function jetstream.capture_members(regclass) is
    'Gives a captured table''s partitions their triggers, and takes those of detached ones';

create function jetstream.capture_concerned(touched oid[], tag text) returns table (root regclass, condition boolean)
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

create function jetstream.capture_follow(root regclass, condition boolean) returns void
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

create function jetstream.capture_created(trigger oid) returns void
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
comment on function jetstream.capture_created(oid) is 'Publishes the columns of a table that is captured by a trigger, and notes what its condition needs';

create function jetstream.capture_watch() returns void
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

create function jetstream.capture_schemas_watch() returns trigger
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
create trigger capture_schemas_watch after insert or delete or truncate on jetstream.capture_schemas
    for each statement execute function jetstream.capture_schemas_watch();

create function jetstream.capture_began() returns event_trigger
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

create function jetstream.capture_changed() returns event_trigger
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
comment on function jetstream.capture_changed() is 'Keeps captures in step with the definitions of their tables';

create function jetstream.capture_rename(relation regclass, operations text[], inout argument jsonb)
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
comment on function jetstream.capture_rename(regclass, text[], jsonb) is
    'Gives the columns that a capture names their present names';

create function jetstream.capture_dropped() returns event_trigger
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
comment on function jetstream.capture_dropped() is
    'Forgets tables and schemas that are gone, and tables whose capture ended; follows tables whose columns are gone';

create function jetstream.capture_renaming() returns event_trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from jetstream.capture_schemas s
    where not exists (select from pg_catalog.pg_namespace n where n.nspname = s.schema);
end
$$;
comment on function jetstream.capture_renaming() is
    'Forgets schemas that are gone, so that after a schema was renamed the one that is not there is that one';

-- Also under session_replication_role = replica, where the capture of a table may be enabled too.
create event trigger jetstream_capture_began on ddl_command_end
    when tag in ('CREATE TRIGGER', 'CREATE SCHEMA')
    execute function jetstream.capture_began();
alter event trigger jetstream_capture_began enable always;
-- These are enabled while something is captured: see capture_watch.
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
