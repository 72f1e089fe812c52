comment on column jetstream.capture_queue.head is 'What the messages have in common, as a JSON array: format, prefix, schema, table, its object id, and the database where the format names it';

-- Of a range, autovacuum is asked for a summary. It keeps 256 such requests and writes each further one to the server's log:
-- ranges of 128 pages are 2,000,000 rows of the history between two of its rounds.
drop index jetstream.history_outbox_id;
create index history_outbox_id on jetstream.history using brin (outbox_id)
    with (pages_per_range = 128, autosummarize = on);
comment on index jetstream.history_outbox_id is 'What became of one message; by block ranges, as ids come nearly in order: a tree would cost a third of the insert';

drop index jetstream.outbox_txid;

create or replace function jetstream.publish_batch(
    subject text,
    payloads jsonb[],
    message_ids text[] default null,
    headers jsonb default null,
    key text default null,
    deliver_at timestamptz default null,
    connection text default 'default',
    ttl interval default null
) returns setof bigint
language c volatile
as 'MODULE_PATHNAME', 'jetstream_publish_batch';

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

-- A dead letter whose last attempt went unanswered is looked for before it is sent again.
alter table jetstream.dead_letters add column unsure_since timestamptz;
comment on column jetstream.dead_letters.unsure_since is 'An attempt went unanswered and may have been stored, though not before this time: redrive() has it looked for first';
grant select (unsure_since) on jetstream.dead_letters to jetstream_reader;

create or replace function jetstream.redrive(id bigint, new_message_id boolean default false) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    d jetstream.dead_letters;
    outbox_id bigint;
begin
    delete from jetstream.dead_letters l where l.id = redrive.id returning l.* into d;
    if not found then
        raise exception 'dead letter % does not exist', redrive.id
            using errcode = 'no_data_found', hint = 'See jetstream.dead_letters for those there are.';
    end if;
    insert into jetstream.outbox as o
        (connection, subject, payload, raw, headers, message_id, key, ttl, webhook, traceparent, unsure_since, created_at)
    values (d.connection, d.subject, d.payload, d.raw, d.headers,
            case when redrive.new_message_id then gen_random_uuid()::text else d.message_id end,
            d.key, d.ttl, d.webhook, d.traceparent, case when not redrive.new_message_id then d.unsure_since end,
            clock_timestamp())
    returning o.id into outbox_id;
    return outbox_id;
end
$$;

create or replace function jetstream.redrive_all(subject_pattern text default '>', new_message_id boolean default false)
returns bigint
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    with back as (
        delete from jetstream.dead_letters l
        where jetstream.subject_matches(l.subject, $1)
          and exists (select from jetstream.connections c where c.name = l.connection)
        returning l.*
    ), stored as (
        insert into jetstream.outbox (connection, subject, payload, raw, headers, message_id, key, ttl, webhook,
            traceparent, unsure_since)
        select b.connection, b.subject, b.payload, b.raw, b.headers,
               case when $2 then gen_random_uuid()::text else b.message_id end, b.key, b.ttl, b.webhook,
               b.traceparent, case when not $2 then b.unsure_since end
        from back b order by b.outbox_id, b.id
        returning 1
    )
    select count(*) from stored;
$$;
comment on function jetstream.redrive_all(text, boolean) is
    'Puts back all dead letters whose subject matches the pattern (NATS wildcards * and >), in their first order; returns how many. Those of a connection that does not exist stay
subject_pattern: Subject, or pattern of subjects
new_message_id: true: random message ids instead of their own';

create or replace function jetstream.discard(id bigint) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    d jetstream.dead_letters;
    told text;
begin
    delete from jetstream.dead_letters l where l.id = discard.id returning l.* into d;
    if not found then
        raise exception 'dead letter % does not exist', discard.id
            using errcode = 'no_data_found', hint = 'See jetstream.dead_letters for those there are.';
    end if;
    told := format('discarded by %s; it had failed with: %s', session_user, d.reason);
    -- It has a row already, of when it died: a second one would count it twice.
    update jetstream.history h set error = told
    where not h.success and h.outbox_id = d.outbox_id and h.message_id = d.message_id
      and h.published_at between d.died_at - interval '1 minute' and d.died_at + interval '1 minute';
    if found or current_setting('pg_jetstream.history', true) = 'none' then
        return d.outbox_id;
    end if;
    -- Where no worker has run yet, the history has no days.
    if to_regclass('jetstream.history_' || to_char(now() at time zone 'UTC', 'YYYYMMDD')) is null then
        perform jetstream.history_maintain('10 years');
    end if;
    insert into jetstream.history (published_at, outbox_id, attempts, success, connection, subject, message_id, key,
        webhook, error)
    values (clock_timestamp(), d.outbox_id, d.attempts, false, d.connection, d.subject, d.message_id, d.key,
        d.webhook, told);
    return d.outbox_id;
end
$$;

-- A connection that dead letters or captures name, or an open transaction, stays.
create or replace function jetstream.connection_must_be_free(name text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '1s'
as $$
begin
    -- A message that is being inserted names it too: its transaction is waited for, though not long, as whoever inserts
    -- waits behind this.
    begin
        lock table jetstream.outbox in share mode;
    exception when lock_not_available then
        raise exception 'whether messages are owed to connection "%" cannot be seen: transactions that write to the outbox are open', $1
            using errcode = 'lock_not_available', hint = 'Try again when they have ended.';
    end;
    if exists (select from jetstream.outbox o where o.connection = $1) then
        raise exception 'connection "%" still has messages owed', $1
            using errcode = 'foreign_key_violation',
                  hint = 'Wait until they are published, or move them: update jetstream.outbox set connection = ... .';
    elsif exists (select from jetstream.dead_letters d where d.connection = $1) then
        raise exception 'connection "%" still has dead letters', $1
            using errcode = 'foreign_key_violation', hint = 'Redrive or discard them first.';
    elsif exists (select from jetstream.captures c where c.connection = $1)
       or exists (select from jetstream.capture_queue q where q.connection = $1) then
        raise exception 'connection "%" still has captures', $1
            using errcode = 'foreign_key_violation',
                  hint = 'See jetstream.captures: capture these tables with another connection, or end it with jetstream.uncapture; what is captured is published first.';
    end if;
end
$$;
comment on function jetstream.connection_must_be_free(text) is
    'Raises an ERROR if messages, dead letters or captures name a connection';

create or replace function jetstream.connections_before_write() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        delete from jetstream.connections c
        where c.name = new.name and c.name = 'default' and c.updated_at is null
          and not exists (select from jetstream.streams s where s.connection = c.name)
          and not exists (select from jetstream.outbox o where o.connection = c.name)
          and not exists (select from jetstream.webhooks w where w.connection = c.name);
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

create or replace function jetstream.connections_before_delete() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Not for the delete in connections_before_write.
    if old.name = 'default' and pg_trigger_depth() = 1 then
        raise exception 'connection "default" cannot be removed'
            using errcode = 'foreign_key_violation',
                  hint = 'Messages that name no connection go there. Switch it off with enabled = false instead.';
    end if;
    if old.name <> 'default' then
        perform jetstream.connection_must_be_free(old.name);
    end if;
    return old;
end
$$;
comment on function jetstream.connections_before_delete() is 'Refuses to remove the default connection, or one that is in use';

-- Secrets go to the webhook's own server.
create or replace function jetstream.url_origin(url text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select lower((regexp_match(url, '^(https?://[^/?#]+)', 'i'))[1])
$$;
comment on function jetstream.url_origin(text) is 'Scheme, host and port of a url, as they are written';

drop function jetstream.webhook_headers(integer, jsonb);
create function jetstream.webhook_headers(webhook integer, headers jsonb, url text) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    r record;
begin
    -- An envelope says itself where to send it: whoever may publish one must not learn the secrets by it.
    if strpos(webhook_headers.headers::text, '{{secret:') > 0 and not exists (
            select from jetstream.webhooks w
            where w.id = webhook_headers.webhook
              and jetstream.url_origin(w.url) = jetstream.url_origin(webhook_headers.url)) then
        raise exception 'secrets of webhook % are not sent to "%"', coalesce(webhook_headers.webhook::text, 'null'),
                coalesce(webhook_headers.url, 'null')
            using errcode = 'PJ001', hint = 'They go to scheme, host and port of webhooks.url alone.';
    end if;
    select * into r from jetstream.webhook_resolve(webhook_headers.webhook, webhook_headers.headers);
    if r.missing is not null then
        raise exception 'secret "%" of webhook % does not exist', r.missing, webhook_headers.webhook
            using errcode = 'undefined_object', hint = 'Set it with jetstream.rule_webhook_secret_set.';
    end if;
    return r.resolved;
end
$$;
comment on function jetstream.webhook_headers(integer, jsonb, text) is
    'Header values of an envelope with the secrets of the webhook in their places, for the worker that makes the call. An ERROR if there are secrets among them and the url is not of the webhook''s scheme, host and port
webhook: webhooks.id
headers: Headers as the envelope has them
url: Where the call goes';

-- Calls that are due later are not looked at.
create or replace function jetstream.webhook_reclaim() returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
    with expired as (
        select c.id from jetstream.webhook_calls c
        where c.status = 'claimed' and c.lease_until < (select clock_timestamp())
        for update skip locked
    ), back as (
        update jetstream.webhook_calls c
        set status = case when c.attempts >= c.max_attempts then 'dead' else 'pending' end,
            completed_at = case when c.attempts >= c.max_attempts then clock_timestamp() end,
            error = format('worker %s did not come back within its lease', c.worker),
            lease_until = null
        from expired e where c.id = e.id
        returning 1
    )
    select count(*)::integer from back
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
        select * into r from jetstream.webhook_resolve(c.webhook, c.headers);
        if r.missing is not null then
            -- One call that cannot be made must not keep the others from the worker.
            update jetstream.webhook_calls k
            set status = 'dead', completed_at = clock_timestamp(), lease_until = null,
                error = format('secret "%s" does not exist', r.missing)
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

create or replace function jetstream.webhook_cleanup(older_than interval default '30 days', keep_dead boolean default true)
returns bigint
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    with gone as (
        delete from jetstream.webhook_calls c
        where c.completed_at < (select clock_timestamp()) - $1 and (c.status = 'succeeded' or (c.status = 'dead' and not $2))
        returning 1
    )
    , forgotten as (
        delete from jetstream.webhook_dead_letters d where d.died_at < clock_timestamp() - $1 and not $2
        returning 1
    )
    select (select count(*) from gone) + (select count(*) from forgotten)
$$;

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
         (select case when c.n < 1000 then c.n else greatest(c.n, pg_stat_get_live_tuples('jetstream.outbox'::regclass)) end
          from (select count(*) as n from (select from jetstream.outbox o order by o.id limit 1000) o) c)::double precision,
         'Messages owed: counted up to 1000, above that as PostgreSQL''s statistics have them'),
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
    from connections c cross join lateral (values
        ('connection_up', 'gauge',
         case when c.enabled and not pg_is_in_recovery() then case when c.running and c.state is null then null
              else (c.running and c.state = 'connected')::int::double precision end end,
         'Whether the worker is connected; none for a connection that is not enabled, and on a standby'),
        ('connection_lag_seconds', 'gauge', coalesce(extract(epoch from jetstream.lag(c.name))::double precision, 0),
         'Age of the oldest message owed and due; 0 if none is'),
        ('connection_failing_messages', 'gauge',
         (select count(*) from (select o.attempts from jetstream.outbox o
                                where o.connection = c.name and o.deliver_at is not null
                                order by o.deliver_at limit 10000) o where o.attempts > 0),
         'Messages that have failed and will be tried again, of the next 10000 that have a time')
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

revoke all on function jetstream.connection_must_be_free(text), jetstream.url_origin(text),
    jetstream.webhook_headers(integer, jsonb, text) from public;
grant execute on function jetstream.webhook_headers(integer, jsonb, text) to jetstream_webhook_worker;
