-- Captures as the catalog shows them, what is refused, and what stands in the queue.
\pset format unaligned
\pset tuples_only on
create table regress_users (id int primary key, name text, b int);
create table regress_plain (n int);
create view regress_view as select * from regress_users;
-- Refused
select failure(c) from unnest(array[
    $$select jetstream.capture('regress_view')$$,
    $$select jetstream.capture('jetstream.outbox')$$,
    $$select jetstream.capture('regress_users', '{}')$$,
    $$select jetstream.capture('regress_users', '{insert,merge}')$$,
    $$select jetstream.capture('regress_users', format => 'avro')$$,
    $$select jetstream.capture('regress_users', subject_prefix => 'a.*')$$,
    $$select jetstream.capture('regress_users', subject_prefix => null)$$,
    $$select jetstream.capture('regress_users', connection => 'nowhere')$$,
    $$select jetstream.capture('regress_users', columns => '{nope}')$$,
    $$select jetstream.capture('regress_users', columns => '{}')$$,
    $$select jetstream.capture('regress_users', key => '{nope}')$$,
    $$select jetstream.capture('regress_users', condition => 'nope > 1')$$,
    $$select jetstream.capture('regress_users', subject_prefix => repeat('x', 250))$$]) with ordinality as t (c, n) order by n;
select count(*) from jetstream.captures;
-- Accepted
select jetstream.capture('regress_users', '{insert,delete}', columns => '{id,name}', condition => 'id > 0', key => '{name}',
    transactions => true, format => 'debezium', subject_prefix => 'cdc.one');
select * from jetstream.captures;
-- Again, otherwise
select jetstream.capture('regress_users');
select * from jetstream.captures;
select tgname, pg_get_triggerdef(oid) ~ 'BEFORE' as before, tgoldtable, tgnewtable from pg_trigger
where tgrelid = 'regress_users'::regclass order by 1;
-- Streams are asked for once for a prefix.
select name, subjects, storage, retention, discard, max_messages, max_bytes from jetstream.streams order by name;
-- One statement is one row of the queue, as long as it fits a page; none for nothing and for what was rolled back.
create function queued(statement text) returns text language plpgsql as $$
declare
    result text;
begin
    truncate jetstream.capture_queue;
    execute statement;
    select string_agg(format('%s %s', number, (head::jsonb ->> 3)), ', ' order by lsn, number) into result
    from jetstream.capture_queue;
    return coalesce(result, 'nothing');
end $$;
select queued('insert into regress_users select n, n from generate_series(1, 10) n');
select queued('insert into regress_users select n, n from generate_series(1, 10) n on conflict do nothing');
select queued('insert into regress_users select n, n from generate_series(9, 11) n on conflict (id) do update set b = 1');
select queued('update regress_users set b = 2');
select queued('update regress_users set b = 2 where id = -1');
select queued('truncate regress_users');
select queued('do $x$ begin insert into regress_users values (1); raise exception ''no''; exception when others then null; end $x$');
select queued('alter table regress_users add column c int');
select queued('alter table regress_users set (fillfactor = 90)');
select queued('alter table regress_users alter column c type bigint');
select queued('alter table regress_users drop constraint regress_users_pkey');
select queued('insert into regress_users values (1)');
-- Partitions, now and later
create table regress_parts (id int primary key) partition by range (id);
create table regress_parts1 partition of regress_parts for values from (0) to (10);
select jetstream.capture('regress_parts', '{insert,truncate}');
create table regress_parts2 partition of regress_parts for values from (10) to (20);
select tgrelid::regclass, tgname from pg_trigger where tgname like 'jetstream%' and tgrelid::regclass::text like 'regress_parts%' order by 1::text, 2;
select failure('select jetstream.capture(''regress_parts2'')');
select queued('insert into regress_parts2 values (11)');
select queued('truncate regress_parts2');
alter table regress_parts detach partition regress_parts1;
select count(*) from pg_trigger where tgrelid = 'regress_parts1'::regclass;
select jetstream.uncapture('regress_parts'), jetstream.uncapture('regress_parts');
-- Schemas, and tables that come later
create schema regress_schema;
create table regress_schema.a (id int primary key);
select jetstream.capture_schema('regress_schema', '{insert}');
create table regress_schema.b (id int primary key);
select "table", operations from jetstream.captures order by 1::text;
select jetstream.uncapture_schema('regress_schema');
-- Names as tokens
select jetstream.subject_token(n) from unnest(array['users', 'a.b', 'Ta ble', '50%', 'ä*>']) n;
-- Nothing is left of a table that goes.
select count(*) from jetstream.capture_relations;
drop table regress_parts, regress_parts1, regress_plain;
drop view regress_view;
drop table regress_users;
drop schema regress_schema cascade;
select count(*) from jetstream.captures;
select count(*) from jetstream.capture_relations;
select count(*) from jetstream.capture_schemas;
drop function queued;
truncate jetstream.capture_queue;
delete from jetstream.streams;
