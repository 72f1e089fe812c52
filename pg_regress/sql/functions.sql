-- What the functions return and store.
\pset format unaligned
\pset tuples_only on
truncate jetstream.outbox restart identity;
select jetstream.publish('a.b', '{"x": 1}', 'id', '{"h": "v"}', 'key', '2100-01-01 00:00+00', 'default', '90 s');
select jetstream.publish('a.b', '{}');
select jetstream.publish_raw('a.raw', '\x00ff', key => 'k');
select jetstream.publish_batch('a.batch', array['1', '"two"', 'null']::jsonb[], array['i1', null, 'i3'], key => 'k');
select jetstream.publish_batch('a.batch', array[]::jsonb[]);
select jetstream.publish_batch('a.batch', null);
select jetstream.publish_batch('a.bounds', '[0:1]={7,8}'::jsonb[], '[5:6]={x,y}'::text[]);
insert into jetstream.outbox (subject, payload) values ('a.plain', '3') returning id;
select id, connection, subject, payload, raw, headers, case when length(message_id) = 36 then 'uuid' else message_id end,
       key, deliver_at at time zone 'UTC', ttl, webhook, attempts, last_error
from jetstream.outbox order by id;
select count(distinct message_id) = count(*), bool_and(txid = pg_current_xact_id_if_assigned()) is null,
       bool_and(created_at <= clock_timestamp()) from jetstream.outbox;
-- In a rolled-back subtransaction nothing stays.
begin;
savepoint s;
select jetstream.publish('a.gone', '1') is not null;
rollback to s;
select count(*) from jetstream.outbox where subject = 'a.gone';
commit;
-- A transaction's rows carry its id, also from within a subtransaction.
begin;
savepoint s;
select jetstream.publish('a.sub', '1') is not null;
release s;
select txid = pg_current_xact_id() from jetstream.outbox where subject = 'a.sub';
rollback;
-- Patterns
select jetstream.subject_matches(s, p) from (values ('a.b', 'a.*'), ('a.b', '>'), ('a', 'a.>'), ('a.b.c', 'a.*')) v (s, p);
-- Dead letters and back
truncate jetstream.outbox;
insert into jetstream.dead_letters (outbox_id, connection, subject, payload, message_id, key, attempts, reason, created_at)
select n, 'default', 'd.' || n, to_jsonb(n), 'id' || n, 'k', 5, 'because', '2020-01-01' from generate_series(1, 4) n;
select jetstream.redrive(1) > 0, jetstream.redrive(2, true) > 0;
select jetstream.discard(3);
select jetstream.redrive_all('x.>'), jetstream.redrive_all('d.*'), jetstream.redrive_all();
select subject, payload, message_id like 'id_' as same_id, key, attempts, last_error, deliver_at from jetstream.outbox order by id;
select count(*) from jetstream.dead_letters;
select subject, success, attempts, error from jetstream.history;
-- A dead letter of a connection that is gone cannot go back, and stays.
insert into jetstream.dead_letters (outbox_id, connection, subject, payload, message_id, attempts, reason, created_at)
values (9, 'gone', 'd.9', '9', 'id9', 5, 'because', '2020-01-01');
select failure('select jetstream.redrive(5)');
select failure('select jetstream.redrive_all()');
select count(*) from jetstream.dead_letters;
truncate jetstream.dead_letters, jetstream.outbox;
-- Streams: asked for once, changed by asking again
select jetstream.create_stream('ORDERS', array['orders.>']) = jetstream.create_stream('ORDERS', array['o.>'], max_messages => 7);
select name, connection, subjects, storage, retention, discard, max_messages, max_age, replicas, duplicate_window, synced_at, sync_error
from jetstream.streams;
delete from jetstream.streams;
-- Pause and resume
select jetstream.pause(), jetstream.pause(), jetstream.resume(), jetstream.resume(), jetstream.pause();
select paused, paused_by = session_user from jetstream.control;
-- The default row of a fresh extension gives way to one of a dump; one that was changed does not.
insert into jetstream.connections (id, name, url) values (1, 'default', 'nats://restored:4222');
select id, url, updated_at is null from jetstream.connections;
update jetstream.connections set url = 'nats://changed:4222';
select failure('insert into jetstream.connections (name) values (''default'')');
select url, updated_at is not null from jetstream.connections;
-- History: partitions of the days to come, and none of those gone by
select jetstream.history_maintain('7 days', 3) >= 0;
select jetstream.history_maintain('7 days', 3);
select count(*) >= 5, bool_and(relname ~ '^history_[0-9]{8}$') from pg_inherits join pg_class on oid = inhrelid
where inhparent = 'jetstream.history'::regclass;
set client_min_messages = error;
create table jetstream.history_20200101 (like jetstream.history including defaults);
alter table jetstream.history attach partition jetstream.history_20200101 for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00');
alter extension pg_jetstream add table jetstream.history_20200101;
select jetstream.history_maintain('7 days', 3);
select to_regclass('jetstream.history_20200101') is null;
