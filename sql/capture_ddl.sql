-- What has to happen when captured tables change their definition.

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
begin
    if (described, numbers) is distinct from (known.described, known.numbers) then
        insert into jetstream.capture_relations as r (relation, described, numbers) select root, described, numbers
        on conflict on constraint capture_relations_pkey
            do update set described = excluded.described, numbers = excluded.numbers;
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
        -- Foreign tables have no such triggers.
        join pg_catalog.pg_class c on c.oid = p.relid and c.relkind <> 'f'
        where p.level > 0 and operations is distinct from (
            select pg_catalog.array_agg(pg_catalog.substr(t.tgname, 19) order by t.tgname) from pg_catalog.pg_trigger t
            where t.tgrelid = p.relid and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
              and jetstream.capture_argument(t.tgargs) = argument)
    loop
        perform jetstream.capture_triggers(member, operations, argument);
    end loop;
    -- Partitions that were detached are captured no more. Others may have copied the argument, or a restored table have it.
    for member in
        select distinct c.oid from pg_catalog.pg_trigger t
        join pg_catalog.pg_class c on c.oid = t.tgrelid
        join pg_catalog.pg_class r on r.oid = root and pg_catalog.pg_has_role(r.relowner, c.relowner, 'USAGE')
        where t.tgfoid = 'jetstream.capture_changes()'::regprocedure and jetstream.capture_argument(t.tgargs) = argument
          and not exists (
              select from pg_catalog.pg_partition_ancestors(c.oid) as a (relid)
              join pg_catalog.pg_trigger u on u.tgrelid = a.relid and u.tgfoid = t.tgfoid
              where jetstream.capture_argument(u.tgargs) || '{"partition": true}' = argument
                and not (jetstream.capture_argument(u.tgargs) ->> 'partition')::boolean)
    loop
        perform jetstream.capture_drop_triggers(member);
    end loop;
end
$$;
comment on function jetstream.capture_members(regclass) is
    'Gives a captured table''s partitions their triggers, and takes those of detached ones';

create function jetstream.capture_touched(touched oid[]) returns setof regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with part as (
        select unnest(touched) as oid
        union select i.indrelid from pg_index i where i.indexrelid = any (touched)
        union select g.tgrelid from pg_trigger g where g.oid = any (touched)
        union select n.conrelid from pg_constraint n where n.oid = any (touched)
    )
    select distinct t.tgrelid::regclass
    from pg_trigger t
    join pg_class c on c.oid = t.tgrelid
    where t.tgfoid = 'jetstream.capture_changes()'::regprocedure
      and not (jetstream.capture_argument(t.tgargs) ->> 'partition')::boolean
      and (c.relnamespace = any (touched)
           or exists (
               select from part r
               where r.oid = c.oid
                  or c.relkind = 'p' and c.oid in (select a.relid from pg_partition_ancestors(r.oid::regclass) as a (relid))
                  or c.relispartition and c.oid in (select p.relid from pg_partition_tree(r.oid::regclass) p))
           -- What a condition needs; see capture_depend.
           or exists (
               select from pg_depend d
               left join pg_proc f on d.refclassid = 'pg_proc'::regclass and f.oid = d.refobjid
               left join pg_type y on d.refclassid = 'pg_type'::regclass and y.oid = d.refobjid
               left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
               where d.classid = 'pg_trigger'::regclass and d.objid = t.oid and d.refobjid <> t.tgfoid
                 and (d.refobjid = any (touched) or f.pronamespace = any (touched) or y.typnamespace = any (touched)
                      or o.oprnamespace = any (touched))))
$$;
comment on function jetstream.capture_touched(oid[]) is
    'Captured tables that a change of these objects may concern: tables, what is a table''s, schemas, and what conditions need';

create function jetstream.capture_follow(root regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    argument jsonb;
    operations text[];
    above regclass := (select i.inhparent from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
                       where i.inhrelid = root and c.relispartition);
begin
    if above is not null then
        if exists (select from pg_catalog.pg_partition_ancestors(above) as a (relid)
                   join jetstream.captures c on c."table" = a.relid) then
            -- That one's triggers take the place of its own.
            return;
        end if;
        raise warning 'table % is captured, but is a partition of %, which is not: what is written through that is not captured',
                root, above
            using hint = 'Capture the table it is a partition of.';
    end if;
    for argument, operations in
        select jetstream.capture_argument(t.tgargs), pg_catalog.array_agg(pg_catalog.substr(t.tgname, 19))
        from pg_catalog.pg_trigger t
        where t.tgrelid = root and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
          and not (jetstream.capture_argument(t.tgargs) ->> 'partition')::boolean
        group by t.tgargs
    loop
        -- A dump brings one trigger after the other, those of partitions too.
        if not jetstream.capture_restoring() then
            perform jetstream.capture_check_condition(root, argument ->> 'condition');
            argument := jetstream.capture_rename(root, operations, argument);
            perform jetstream.capture_members(root);
        end if;
        perform jetstream.capture_describe(root, argument);
    end loop;
end
$$;
comment on function jetstream.capture_follow(regclass) is 'Keeps the capture of a table in step with its definition';

create function jetstream.capture_created(trigger oid) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    root regclass;
    argument jsonb;
begin
    select t.tgrelid, jetstream.capture_argument(t.tgargs) into root, argument from pg_catalog.pg_trigger t
    where t.oid = trigger and t.tgfoid = 'jetstream.capture_changes()'::regprocedure;
    if not (argument ->> 'partition')::boolean then
        perform jetstream.capture_describe(root, argument);
    end if;
    if argument ->> 'condition' is not null then
        begin
            perform jetstream.capture_depend(root, argument ->> 'condition', trigger);
        exception when others then
            if not jetstream.capture_restoring() then
                perform jetstream.capture_check_condition(root, argument ->> 'condition');
                raise;
            end if;
            raise warning 'condition (%) of the capture of table % does not work: %', argument ->> 'condition', root, sqlerrm;
        end;
    end if;
end
$$;
comment on function jetstream.capture_created(oid) is 'Publishes the columns of a table that is captured by a trigger, and notes what its condition needs';

create function jetstream.capture_changed() returns event_trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    touched oid[] := (select pg_catalog.array_agg(c.objid) from pg_catalog.pg_event_trigger_ddl_commands() c);
begin
    if tg_tag = 'CREATE TRIGGER' then
        perform jetstream.capture_created(t.oid) from pg_catalog.unnest(touched) as t (oid);
        return;
    end if;
    if tg_tag = 'ALTER SCHEMA' then
        -- The one that is not there, as there was none before the command: see capture_renaming.
        update jetstream.capture_schemas s set schema = n.nspname
        from pg_catalog.pg_namespace n
        where n.oid = any (touched) and not exists (select from pg_catalog.pg_namespace o where o.nspname = s.schema);
    elsif tg_tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO') then
        perform jetstream.capture_new_table(c.oid) from pg_catalog.pg_class c
        where c.oid = any (touched) and c.relkind in ('r', 'p')
          and exists (select from jetstream.capture_schemas s
                      join pg_catalog.pg_namespace n on n.nspname = s.schema where n.oid = c.relnamespace);
    end if;
    perform jetstream.capture_follow(t.root) from jetstream.capture_touched(touched) as t (root);
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
begin
    -- The extension itself may be what goes.
    if pg_catalog.to_regproc('jetstream.capture_changes') is not null then
        delete from jetstream.capture_relations r
        where not exists (select from pg_catalog.pg_trigger t where t.tgrelid = r.relation
                          and t.tgfoid = 'jetstream.capture_changes()'::regprocedure);
        delete from jetstream.capture_schemas s
        where not exists (select from pg_catalog.pg_namespace n where n.nspname = s.schema);
        -- Columns that went with their type.
        touched := (select pg_catalog.array_agg(d.objid) from pg_catalog.pg_event_trigger_dropped_objects() d
                    where d.object_type = 'table column');
        if touched is not null then
            perform jetstream.capture_follow(t.root) from jetstream.capture_touched(touched) as t (root);
        end if;
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

create event trigger jetstream_capture_changed on ddl_command_end
    when tag in ('ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE TRIGGER', 'ALTER SCHEMA',
                 'ALTER TYPE', 'ALTER DOMAIN', 'ALTER FUNCTION', 'ALTER ROUTINE', 'ALTER OPERATOR')
    execute function jetstream.capture_changed();
create event trigger jetstream_capture_dropped on sql_drop
    when tag in ('DROP TABLE', 'DROP SCHEMA', 'DROP TRIGGER', 'DROP OWNED', 'DROP TYPE', 'DROP DOMAIN', 'DROP FUNCTION',
                 'DROP ROUTINE', 'DROP OPERATOR', 'DROP EXTENSION', 'DROP VIEW')
    execute function jetstream.capture_dropped();
create event trigger jetstream_capture_renaming on ddl_command_start
    when tag in ('ALTER SCHEMA')
    execute function jetstream.capture_renaming();
