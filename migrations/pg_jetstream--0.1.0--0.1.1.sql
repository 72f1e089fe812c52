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

-- Captures that are made again fire as before.
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
    argument jsonb;
    above regclass;
begin
    select c.relkind into kind from pg_class c where c.oid = relation;
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
    if operations is null or cardinality(operations) = 0
        or not operations <@ '{insert,update,delete,truncate}' or array_position(operations, null) is not null then
        raise exception 'operations % are not of insert, update, delete and truncate', operations
            using errcode = 'invalid_parameter_value';
    end if;
    if format is null or format not in ('pgoutput', 'row', 'debezium', 'cloudevents') then
        raise exception 'format "%" is not known', format
            using errcode = 'invalid_parameter_value', hint = 'Use pgoutput, row, debezium or cloudevents.';
    end if;
    perform jetstream.check_subject(subject_prefix || '.' || jetstream.subject_token(n.nspname) || '.'
                                    || jetstream.subject_token(c.relname) || '.relation')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation;
    if subject_prefix is null then
        raise exception 'subject_prefix is null' using errcode = 'null_value_not_allowed';
    end if;
    if not jetstream.connection_exists(connection) then
        raise exception 'connection "%" does not exist', connection
            using errcode = 'foreign_key_violation', hint = 'Insert it into jetstream.connections first.';
    end if;
    if columns is not null and cardinality(columns) = 0 then
        raise exception 'no columns to capture' using errcode = 'invalid_parameter_value', hint = 'Leave columns out for all.';
    end if;
    argument := jsonb_build_object('columns', jetstream.capture_columns(relation, columns),
        'key', jetstream.capture_columns(relation, key), 'table', relation::oid::bigint, 'format', format, 'prefix', subject_prefix,
        'connection', connection, 'condition', condition, 'transactions', coalesce(transactions, false), 'partition', false);
    perform jetstream.capture_check_condition(relation, condition);
    perform jetstream.capture_stream(subject_prefix, connection);
    perform jetstream.capture_enable(relation);
    perform jetstream.capture_triggers(relation, operations, argument);
    perform jetstream.capture_members(relation);
    return (select c.subjects from jetstream.captures c where c."table" = relation);
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

create or replace function jetstream.capture_changed() returns event_trigger
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

create or replace function jetstream.capture_rename(relation regclass, operations text[], inout argument jsonb)
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

revoke all on function jetstream.capture_enable(regclass) from public;
grant execute on function jetstream.capture_enable(regclass) to jetstream_publisher, jetstream_admin;
