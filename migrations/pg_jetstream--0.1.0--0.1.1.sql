comment on column jetstream.capture_queue.head is 'What the messages have in common, as a JSON array: format, prefix, schema, table, its object id, and the database where the format names it';

-- Of a range, autovacuum is asked for a summary. It keeps 256 such requests and writes each further one to the server's log:
-- ranges of 128 pages are 2,000,000 rows of the history between two of its rounds.
drop index jetstream.history_outbox_id;
create index history_outbox_id on jetstream.history using brin (outbox_id)
    with (pages_per_range = 128, autosummarize = on);
comment on index jetstream.history_outbox_id is 'What became of one message; by block ranges, as ids come nearly in order: a tree would cost a third of the insert';

create or replace view jetstream.outbox_summary as
select connection, subject,
       count(*) as owed,
       count(*) filter (where attempts > 0) as failing,
       min(created_at) as oldest,
       min(deliver_at) as next_attempt,
       max(last_error) as last_error
from jetstream.outbox
group by connection, subject
union all
-- Of a transaction's begin and commit, and of changes.
select q.connection::text, case when q.boundary then concat(q.prefix, '.transactions.*.event')
           else concat_ws('.', q.prefix, jetstream.subject_token(q.schema), jetstream.subject_token(q."table"), '*') end,
       sum(q.changes), 0, min(q.at), null, null
from (select c.connection, c.changes, c.at,
             -- In this order, or by name, as 0.1.0 stored it.
             coalesce(h.head ->> 1, h.head ->> 'prefix') as prefix,
             coalesce(h.head ->> 2, h.head ->> 'schema') as schema,
             coalesce(h.head ->> 3, h.head ->> 'table') as "table",
             get_byte(substring(c.body for 1), 0) in (ascii('B'), ascii('C'), ascii('b'), ascii('c')) as boundary
      from jetstream.capture_queue c
      cross join lateral (select c.head::jsonb as head) h) q
group by 1, 2;

-- Captures.
drop event trigger jetstream_capture_changed;
drop event trigger jetstream_capture_dropped;
drop trigger capture_schemas_must_own on jetstream.capture_schemas;
drop function jetstream.capture_schemas_must_own();
drop function jetstream.capture_stream(text, text);

alter table jetstream.capture_relations add column numbers jsonb;
update jetstream.capture_relations r
set numbers = (select coalesce(jsonb_object_agg(a.attname, a.attnum), '{}') from pg_catalog.pg_attribute a
               where a.attrelid = r.relation and a.attnum > 0 and not a.attisdropped);
alter table jetstream.capture_relations alter column numbers set not null;
comment on column jetstream.capture_relations.numbers is 'The numbers of its columns by their names, as {"id": 1}';

-- Schemas that somebody may create later.
delete from jetstream.capture_schemas s
where not exists (select from pg_catalog.pg_namespace n where n.nspname = s.schema);

-- CREATE FUNCTION looks for the symbol in the library, which is the old one until the server is restarted.
create function jetstream.capture_analyze(relation oid, condition text) returns void
language c volatile strict as 'MODULE_PATHNAME', 'capture_relation_wrapper';
create function jetstream.capture_depend(relation oid, condition text, trigger oid) returns void
language c volatile strict as 'MODULE_PATHNAME', 'capture_relation_wrapper';
update pg_catalog.pg_proc set prosrc = proname || '_wrapper'
where oid in ('jetstream.capture_analyze(oid, text)'::regprocedure, 'jetstream.capture_depend(oid, text, oid)'::regprocedure);
comment on function jetstream.capture_analyze(oid, text) is
    'Analyzes a condition on a table''s rows with the rights of the table''s owner, and does not plan it; an ERROR if it does not work';
comment on function jetstream.capture_depend(oid, text, oid) is
    'Makes a trigger of a table depend on what a condition on the table''s rows needs: that is not dropped without the trigger';

create or replace function jetstream.capture_argument(arguments bytea) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    argument jsonb;
    usable boolean;
begin
    argument := convert_from(substr(arguments, 1, octet_length(arguments) - 1), getdatabaseencoding())::jsonb;
    -- What others read in it can be read.
    usable := (argument ->> 'table')::oid is not null and (argument ->> 'partition')::boolean is not null
        and (argument ->> 'transactions')::boolean is not null
        and (select count((e ->> 1)::smallint) = count(*) from jsonb_array_elements(
                coalesce(nullif(argument -> 'columns', 'null'), '[]') || coalesce(nullif(argument -> 'key', 'null'), '[]')) e);
    return case when usable then argument end;
exception when others then
    -- A trigger that somebody made otherwise must not be in anybody's way.
    return null;
end
$$;

create or replace function jetstream.capture_triggers(relation regclass, operations text[], argument jsonb) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    operation text;
    name text;
    firing jsonb := (select pg_catalog.jsonb_object_agg(t.tgname, t.tgenabled) from pg_catalog.pg_trigger t
                     where t.tgrelid = relation and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
                       and t.tgenabled <> 'O');
begin
    perform jetstream.capture_drop_triggers(relation);
    foreach operation in array operations loop
        continue when operation not in ('insert', 'update', 'delete', 'truncate');
        -- Of a partition that is truncated, the rows are published as deleted: they are read before they go.
        execute pg_catalog.format('create trigger %I %s %s on %s%s for each statement execute function '
            'jetstream.capture_changes(%L)', 'jetstream_capture_' || operation,
            case operation when 'truncate' then 'before' else 'after' end, operation, relation,
            case operation
                when 'insert' then ' referencing new table as new_rows'
                when 'update' then ' referencing old table as old_rows new table as new_rows'
                when 'delete' then ' referencing old table as old_rows'
                else '' end,
            argument::text);
    end loop;
    -- Only now, as the event trigger on ALTER TABLE looks at all of them.
    foreach operation in array operations loop
        name := 'jetstream_capture_' || operation;
        if firing ? name then
            execute pg_catalog.format('alter table %s %s trigger %I', relation,
                case firing ->> name when 'A' then 'enable always' when 'R' then 'enable replica' else 'disable' end, name);
        end if;
    end loop;
end
$$;

comment on function jetstream.capture_triggers(regclass, text[], jsonb) is
    'Creates the triggers of a capture on one table, in place of those that are there; they fire as those did';

create function jetstream.capture_enable(root regclass) returns void
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
          and (t.tgrelid = root or t.tgrelid in (select p.relid from pg_catalog.pg_partition_tree(root) p))
    loop
        execute pg_catalog.format('alter table %s enable trigger %I', relation, trigger);
    end loop;
end
$$;

comment on function jetstream.capture_enable(regclass) is 'Enables the triggers of a capture that are disabled, those of partitions too';

create function jetstream.capture_check_options(operations text[], subject_prefix text, format text, connection text) returns void
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
    if not jetstream.connection_exists(connection) then
        raise exception 'connection "%" does not exist', connection
            using errcode = 'foreign_key_violation', hint = 'Insert it into jetstream.connections first.';
    end if;
end
$$;

comment on function jetstream.capture_check_options(text[], text, text, text) is
    'Raises an ERROR if this is not how a table can be captured';

create or replace function jetstream.capture(
    "table" regclass,
    operations text[] default '{insert,update,delete,truncate}',
    subject_prefix text default 'postgres',
    format text default 'pgoutput',
    columns text[] default null,
    condition text default null,
    key text[] default null,
    connection text default 'default',
    transactions boolean default false
) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    relation regclass := "table";
    kind "char";
    partition boolean;
    argument jsonb;
    above regclass;
begin
    select c.relkind, c.relispartition into kind, partition from pg_class c where c.oid = relation;
    if kind is null or kind not in ('r', 'p') then
        raise exception 'cannot capture %: it is no table', relation
            using errcode = 'wrong_object_type', hint = 'Capture ordinary and partitioned tables.';
    end if;
    perform jetstream.capture_must_own(relation);
    if relation in (select c.oid from pg_class c where c.relnamespace = 'jetstream'::regnamespace) then
        raise exception 'cannot capture %: it is a table of pg_jetstream', relation using errcode = 'wrong_object_type';
    end if;
    select c."table" into above from jetstream.captures c
    where c."table" in (select p.relid from pg_partition_ancestors(relation) as p (relid)) and c."table" <> relation;
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
    perform jetstream.check_subject(subject_prefix || '.' || jetstream.subject_token(n.nspname) || '.'
                                    || jetstream.subject_token(c.relname) || '.relation')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation;
    perform jetstream.capture_check_options(operations, subject_prefix, format, connection);
    if columns is not null and cardinality(columns) = 0 then
        raise exception 'no columns to capture' using errcode = 'invalid_parameter_value', hint = 'Leave columns out for all.';
    end if;
    argument := jsonb_build_object('columns', jetstream.capture_columns(relation, columns),
        'key', jetstream.capture_columns(relation, key), 'table', relation::oid::bigint, 'format', format, 'prefix', subject_prefix,
        'connection', connection, 'condition', condition, 'transactions', coalesce(transactions, false), 'partition', false);
    perform jetstream.capture_check_condition(relation, condition);
    perform jetstream.capture_enable(relation);
    perform jetstream.capture_triggers(relation, operations, argument);
    perform jetstream.capture_stream(relation);
    perform jetstream.capture_members(relation);
    return (select c.subjects from jetstream.captures c where c."table" = relation);
end
$$;

create or replace function jetstream.capture_check_condition(relation regclass, condition text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if condition is not null then
        perform jetstream.capture_analyze(relation, condition);
    end if;
exception when others then
    raise exception 'condition (%) of the capture of table % does not work: %', condition, relation, sqlerrm
        using errcode = sqlstate, hint = 'Capture the table with another condition, or end the capture with jetstream.uncapture.';
end
$$;

create function jetstream.capture_stream(relation regclass) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    argument jsonb := (
        select jetstream.capture_argument(t.tgargs) from pg_catalog.pg_trigger t
        where t.tgrelid = capture_stream.relation and t.tgfoid = 'jetstream.capture_changes()'::regprocedure limit 1);
    prefix text := argument ->> 'prefix';
    stream text := case prefix when 'postgres' then 'postgres_replication' else prefix || '_replication' end;
begin
    if prefix is null or (argument ->> 'partition')::boolean or exists (
            select from jetstream.streams s, pg_catalog.unnest(s.subjects) p
            where s.connection = argument ->> 'connection'
              and jetstream.subject_matches(prefix || '.schema.table.operation', p)) then
        return;
    end if;
    -- One stream of a prefix for all: what does not fit takes the oldest away.
    insert into jetstream.streams (name, connection, subjects, max_messages, max_bytes, description)
    values (pg_catalog.replace(stream, '.', '_'), argument ->> 'connection', array[prefix || '.>'], 1000000, 1073741824,
            'Table changes captured by pg_jetstream')
    on conflict on constraint streams_name_key do nothing;
end
$$;

comment on function jetstream.capture_stream(regclass) is
    'Asks for the stream of a captured table''s prefix, postgres_replication or {prefix}_replication, unless there is one for its subjects';

create function jetstream.capture_restoring() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select not (current_setting('check_function_bodies')::boolean or current_setting('row_security')::boolean)
$$;

comment on function jetstream.capture_restoring() is 'Whether this session sets what pg_dump does, as one that restores its work';

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
    if not found then
        if jetstream.capture_restoring() then
            -- The dump left the schema out.
            return null;
        end if;
        raise exception 'schema "%" does not exist', new.schema using errcode = 'invalid_schema_name';
    end if;
    -- Connections may be restored later.
    if not jetstream.capture_restoring() and (tg_op = 'INSERT' or new.options <> old.options) then
        perform jetstream.capture_check_options(
            array(select pg_catalog.jsonb_array_elements_text(new.options -> 'operations')), new.options ->> 'prefix',
            new.options ->> 'format', new.options ->> 'connection');
        perform (new.options ->> 'transactions')::boolean;
    end if;
    return new;
end
$$;

comment on function jetstream.capture_schemas_check() is
    'Refuses schemas that are not there, changes by anybody but the owner of the schema, and what no table can be captured with';

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
begin
    if (described, numbers) is distinct from (known.described, known.numbers) then
        insert into jetstream.capture_relations as r (relation, described, numbers) select root, described, numbers
        on conflict on constraint capture_relations_pkey
            do update set described = excluded.described, numbers = excluded.numbers;
    end if;
end
$$;

create or replace function jetstream.capture_members(root regclass) returns void
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

create or replace function jetstream.capture_changed() returns event_trigger
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

create trigger capture_schemas_check before insert or update or delete on jetstream.capture_schemas
    for each row execute function jetstream.capture_schemas_check();

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

revoke all on function jetstream.capture_analyze(oid, text),
    jetstream.capture_check_options(text[], text, text, text),
    jetstream.capture_created(oid),
    jetstream.capture_depend(oid, text, oid),
    jetstream.capture_enable(regclass),
    jetstream.capture_follow(regclass),
    jetstream.capture_renaming(),
    jetstream.capture_restoring(),
    jetstream.capture_schemas_check(),
    jetstream.capture_stream(regclass),
    jetstream.capture_touched(oid[])
    from public;
grant execute on function jetstream.capture_analyze(oid, text),
    jetstream.capture_check_options(text[], text, text, text),
    jetstream.capture_enable(regclass),
    jetstream.capture_restoring(),
    jetstream.capture_stream(regclass)
    to jetstream_publisher, jetstream_admin;
-- End of captures.
