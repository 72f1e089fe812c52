-- Table changes to JetStream. A captured table has one statement trigger for each operation, whose argument says all
-- there is to know of the capture: a dump carries it, and a table that is dropped takes it along.

create table jetstream.capture_queue (
    txid xid8 not null default pg_current_xact_id(),
    lsn pg_lsn not null default pg_current_wal_insert_lsn(),
    number integer not null,
    changes integer not null,
    at timestamptz not null default clock_timestamp(),
    salt text not null,
    connection text collate "C" not null,
    head text not null,
    body bytea not null
) with (toast_tuple_target = 8160);
-- Compressing costs the writer more than it saves.
alter table jetstream.capture_queue alter column body set storage external;
-- What is in it goes by transaction, and has no key of its own.
alter table jetstream.capture_queue replica identity full;
create index capture_queue_txid on jetstream.capture_queue (txid);

comment on table jetstream.capture_queue is 'Captured changes that are not messages of the outbox yet; the worker makes them so at once';
comment on column jetstream.capture_queue.txid is 'Transaction that made the changes';
comment on column jetstream.capture_queue.lsn is 'Place in the write-ahead log when the statement ended';
comment on column jetstream.capture_queue.number is 'Number of the first change in body within its statement, from 1';
comment on column jetstream.capture_queue.changes is 'Changes in body';
comment on column jetstream.capture_queue.at is 'When the statement ended';
comment on column jetstream.capture_queue.salt is 'Random, for the message ids, and the same for all changes of a statement: 12 digits; behind it the cluster that wrote it, system identifier and timeline in hexadecimal';
comment on column jetstream.capture_queue.connection is 'connections.name they go to';
comment on column jetstream.capture_queue.head is 'What the messages have in common, as a JSON array: format, prefix, schema, table, its object id, and the database where the format names it';
comment on column jetstream.capture_queue.body is 'The changes, packed';
comment on index jetstream.capture_queue_txid is 'What became visible since the last look';

comment on function jetstream.capture_changes() is 'Captures the changes of a statement; its argument is what capture was given';
comment on function jetstream.capture_relation(oid, text, text) is
    'Describes a captured table and publishes that unless it is known; returns the description';
comment on function jetstream.subject_token(text) is
    'A name as one token of a subject: what cannot stand there becomes % and two hexadecimal digits for each byte
name: A name of any kind';

create table jetstream.capture_relations (
    relation oid not null,
    described text not null,
    numbers jsonb not null,
    shape text,
    partitions oid[],
    constraint capture_relations_pkey primary key (relation)
);
comment on table jetstream.capture_relations is 'Captured tables as their last relation message described them';
comment on column jetstream.capture_relations.relation is 'The table';
comment on column jetstream.capture_relations.described is 'Its name and columns';
comment on column jetstream.capture_relations.numbers is 'The numbers of its columns by their names, as {"id": 1}';
comment on column jetstream.capture_relations.shape is 'Its definition as a digest: see capture_shape';
comment on column jetstream.capture_relations.partitions is 'Its partitions';

select pg_catalog.pg_extension_config_dump('jetstream.capture_queue', '');

create function jetstream.capture_argument(arguments bytea) returns jsonb
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
comment on function jetstream.capture_argument(bytea) is 'The argument of a capture trigger, from pg_trigger.tgargs; null if it is none';

create view jetstream.captures as
select t.tgrelid::regclass as "table",
       array_agg(o.operation order by t.tgname) as operations,
       (a.argument ->> 'prefix') || '.' || jetstream.subject_token(n.nspname) || '.' || jetstream.subject_token(c.relname)
           || '.*' as subjects,
       a.argument ->> 'format' as format,
       (select array_agg(e ->> 0 order by i) from jsonb_array_elements(nullif(a.argument -> 'columns', 'null'))
           with ordinality as x (e, i)) as columns,
       a.argument ->> 'condition' as condition,
       case when a.argument -> 'key' <> 'null' then array(
           select e ->> 0 from jsonb_array_elements(a.argument -> 'key') with ordinality as x (e, i) order by i) end as key,
       a.argument ->> 'connection' as connection,
       (a.argument ->> 'transactions')::boolean as transactions,
       bool_and(t.tgenabled <> 'D') as enabled,
       a.argument ->> 'stream' as stream
from pg_trigger t
join pg_class c on c.oid = t.tgrelid
join pg_namespace n on n.oid = c.relnamespace
cross join lateral (select jetstream.capture_argument(t.tgargs) as argument) a
cross join lateral (select substr(t.tgname, 19) as operation) o
where t.tgfoid = 'jetstream.capture_changes()'::regprocedure and not (a.argument ->> 'partition')::boolean
group by t.tgrelid, n.nspname, c.relname, a.argument;
comment on view jetstream.captures is 'Tables whose changes are captured';
comment on column jetstream.captures."table" is 'The table; changes of its partitions appear under it';
comment on column jetstream.captures.operations is 'Of insert, update, delete, truncate';
comment on column jetstream.captures.subjects is 'Subjects its messages have';
comment on column jetstream.captures.format is 'pgoutput, row, debezium or cloudevents';
comment on column jetstream.captures.columns is 'Columns that are captured; null: all';
comment on column jetstream.captures.condition is 'Condition on a row; null: every row';
comment on column jetstream.captures.key is 'Columns whose values order messages; null: the primary key; empty: the whole table is one order';
comment on column jetstream.captures.connection is 'Connection the messages go to';
comment on column jetstream.captures.transactions is 'Whether begin and commit are published too';
comment on column jetstream.captures.stream is 'Stream that was asked for by name; null: one that takes the subjects, else {prefix}_replication';
comment on column jetstream.captures.enabled is 'Whether all its triggers are enabled';

create function jetstream.capture_is_root(relation oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(bool_or(not (jetstream.capture_argument(t.tgargs) ->> 'partition')::boolean), false) from pg_trigger t
    where t.tgrelid = capture_is_root.relation and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
$$;
comment on function jetstream.capture_is_root(oid) is 'Whether a table is captured itself, and not only a table that it is a partition of';

create function jetstream.capture_drop_triggers(relation regclass) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    trigger name;
    dropped integer := 0;
begin
    for trigger in
        select t.tgname from pg_catalog.pg_trigger t
        where t.tgrelid = relation and t.tgfoid = 'jetstream.capture_changes()'::regprocedure
    loop
        execute pg_catalog.format('drop trigger %I on %s', trigger, relation);
        dropped := dropped + 1;
    end loop;
    return dropped;
end
$$;
comment on function jetstream.capture_drop_triggers(regclass) is 'Drops the triggers of a capture from one table; returns how many';

create function jetstream.capture_triggers(relation regclass, operations text[], argument jsonb) returns void
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
          and t.tgrelid = any (root::oid || jetstream.capture_partitions(root))
    loop
        execute pg_catalog.format('alter table %s enable trigger %I', relation, trigger);
    end loop;
end
$$;
comment on function jetstream.capture_enable(regclass) is 'Enables the triggers of a capture that are disabled, those of partitions too';

create function jetstream.capture_must_own(relation regclass) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if not (select pg_catalog.pg_has_role(c.relowner, 'USAGE') from pg_catalog.pg_class c where c.oid = relation) then
        raise exception 'must be owner of table %', relation
            using errcode = 'insufficient_privilege', hint = 'Only a table''s owner can have its changes captured.';
    end if;
end
$$;
comment on function jetstream.capture_must_own(regclass) is 'Raises an ERROR unless the current user owns the table';

create function jetstream.capture_columns(relation regclass, names text[]) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    name text;
    number smallint;
    columns jsonb := '[]';
begin
    if names is null then
        return null;
    end if;
    foreach name in array names loop
        select a.attnum into number from pg_catalog.pg_attribute a
        where a.attrelid = relation and a.attname = name and a.attnum > 0 and not a.attisdropped;
        if not found then
            raise exception 'column "%" of table % does not exist', name, relation using errcode = 'undefined_column';
        end if;
        columns := columns || pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_array(name, number));
    end loop;
    return columns;
end
$$;
comment on function jetstream.capture_columns(regclass, text[]) is 'Names and numbers of columns, as a capture keeps them';

create function jetstream.capture_check_connection(connection text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if connection is null or not jetstream.connection_exists(connection) then
        raise exception 'connection "%" does not exist', connection
            using errcode = 'foreign_key_violation', hint = 'Insert it into jetstream.connections first.';
    end if;
end
$$;
comment on function jetstream.capture_check_connection(text) is 'Raises an ERROR if there is no connection of this name';

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
    perform jetstream.capture_check_connection(connection);
end
$$;
comment on function jetstream.capture_check_options(text[], text, text, text) is
    'Raises an ERROR if this is not how a table can be captured';

create function jetstream.capture(
    "table" regclass,
    operations text[] default '{insert,update,delete,truncate}',
    subject_prefix text default 'postgres',
    format text default 'pgoutput',
    columns text[] default null,
    condition text default null,
    key text[] default null,
    connection text default 'default',
    transactions boolean default false,
    stream text default null
) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    relation regclass := "table";
    kind "char";
    partition boolean;
    schema oid;
    argument jsonb;
    above regclass;
    subjects text;
begin
    select c.relkind, c.relispartition, c.relnamespace into kind, partition, schema from pg_class c where c.oid = relation;
    if kind is null or kind not in ('r', 'p') then
        raise exception 'cannot capture %: it is no table', relation
            using errcode = 'wrong_object_type', hint = 'Capture ordinary and partitioned tables.';
    end if;
    perform jetstream.capture_must_own(relation);
    if schema = 'jetstream'::regnamespace then
        raise exception 'cannot capture %: it is a table of pg_jetstream', relation using errcode = 'wrong_object_type';
    end if;
    select p.relid into above from pg_partition_ancestors(relation) as p (relid)
    where p.relid <> relation and jetstream.capture_is_root(p.relid);
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
    select subject_prefix || '.' || jetstream.subject_token(n.nspname) || '.' || jetstream.subject_token(c.relname) || '.'
    into subjects
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation;
    perform jetstream.check_subject(subjects || 'relation');
    perform jetstream.capture_check_options(operations, subject_prefix, format, connection);
    if columns is not null and cardinality(columns) = 0 then
        raise exception 'no columns to capture' using errcode = 'invalid_parameter_value', hint = 'Leave columns out for all.';
    end if;
    argument := jsonb_build_object('columns', jetstream.capture_columns(relation, columns),
        'key', jetstream.capture_columns(relation, key), 'table', relation::oid::bigint, 'format', format, 'prefix', subject_prefix,
        'connection', connection, 'condition', condition, 'transactions', coalesce(transactions, false), 'partition', false, 'stream', stream);
    perform jetstream.capture_check_condition(relation, condition);
    perform jetstream.capture_enable(relation);
    perform jetstream.capture_triggers(relation, operations, argument);
    perform jetstream.capture_stream(relation);
    if kind = 'p' then
        perform jetstream.capture_members(relation);
    end if;
    return subjects || '*';
end
$$;
comment on function jetstream.capture(regclass, text[], text, text, text[], text, text[], text, boolean, text) is
    'Publishes a table''s changes from the end of this transaction on; returns their subjects. Called again, it changes how
subject_prefix: First tokens of the subject
Arguments as the columns of jetstream.captures';

create function jetstream.capture_remove(relation regclass) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    partition regclass;
    dropped integer := 0;
begin
    -- Partitions have triggers of their own, for statements that name them.
    for partition in
        select p.relid from pg_catalog.pg_partition_tree(relation) p where p.level > 0
        union all select relation
    loop
        dropped := dropped + jetstream.capture_drop_triggers(partition);
    end loop;
    perform jetstream.capture_watch();
    return dropped;
end
$$;
comment on function jetstream.capture_remove(regclass) is 'Drops the triggers of a capture from a table and its partitions; returns how many';

create function jetstream.uncapture("table" regclass) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform jetstream.capture_must_own("table");
    return jetstream.capture_remove("table") > 0;
end
$$;
comment on function jetstream.uncapture(regclass) is 'Ends the capture of a table; false if it was not captured. What is captured already is still published
Arguments as the columns of jetstream.captures';

create function jetstream.capture_check_condition(relation regclass, condition text) returns void
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
comment on function jetstream.capture_check_condition(regclass, text) is 'Raises an ERROR if a condition on a table''s rows does not work';
comment on function jetstream.capture_analyze(oid, text) is
    'Analyzes a condition on a table''s rows with the rights of the table''s owner, and does not plan it; an ERROR if it does not work';
comment on function jetstream.capture_depend(oid, text, oid) is
    'Makes a trigger of a table depend on what a condition on the table''s rows needs: that is not dropped without the trigger';

create function jetstream.connection_exists(name text) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select exists (select from jetstream.connections c where c.name = $1)
$$;
comment on function jetstream.connection_exists(text) is 'Whether there is a connection of this name';

-- With the owner's rights: the table's capture asks for this stream and no other.
create function jetstream.capture_stream(relation regclass) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    argument jsonb := (
        select jetstream.capture_argument(t.tgargs) from pg_catalog.pg_trigger t
        where t.tgrelid = relation and t.tgfoid = 'jetstream.capture_changes()'::regprocedure limit 1);
    prefix text := argument ->> 'prefix';
    connection text := argument ->> 'connection';
    asked text := argument ->> 'stream';
    -- What a subject may hold and the name of a stream may not.
    token text := pg_catalog.replace(pg_catalog.replace(jetstream.subject_token(prefix), '/', '%2F'), '\', '%5C');
    stream text := coalesce(asked, pg_catalog.replace(token, '%2E', '_') || '_replication');
    subjects text[];
begin
    if prefix is null or (argument ->> 'partition')::boolean then
        return;
    end if;
    select array[s.subject || 'insert', s.subject || 'relation']
           || case when (argument ->> 'transactions')::boolean then array[prefix || '.transactions.begin.event'] else '{}' end
    into subjects
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    cross join lateral (select prefix || '.' || jetstream.subject_token(n.nspname) || '.'
                               || jetstream.subject_token(c.relname) || '.' as subject) s
    where c.oid = relation;
    if not exists (
            select from pg_catalog.unnest(subjects) as o (subject) where not exists (
                select from jetstream.streams s, pg_catalog.unnest(s.subjects) p
                where s.connection = connection and (asked is null or s.name = asked)
                  and jetstream.subject_matches(o.subject, p))) then
        return;
    end if;
    -- That of another prefix, such as x.y and x_y.
    if asked is null and exists (select from jetstream.streams s where s.connection = connection and s.name = stream) then
        stream := pg_catalog.replace(token, '_', '%5F') || '_replication';
    end if;
    if exists (select from jetstream.streams s where s.connection = connection and s.name = stream) then
        raise exception 'stream "%" does not take %.>', stream, prefix
            using errcode = 'invalid_parameter_value',
                  hint = 'Give jetstream.capture the name of another stream, or add the subject to jetstream.streams.';
    end if;
    -- One stream of a prefix for all: what does not fit takes the oldest away. One that exists is used as it is.
    insert into jetstream.streams (name, connection, subjects, max_messages, max_bytes, description, accept_other)
    values (stream, connection, array[prefix || '.>'], 1000000, 1073741824, 'Table changes captured by pg_jetstream',
            asked is null);
end
$$;
comment on function jetstream.capture_stream(regclass) is
    'Asks for the stream that a capture names, else for {prefix}_replication, unless one in jetstream.streams takes the subjects';
