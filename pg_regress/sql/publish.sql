-- jetstream.publish stores its row without a statement, unless somebody has added to the outbox.
\pset format unaligned
\pset tuples_only on
create view stored as
select subject, coalesce(payload::text, encode(raw, 'escape')) as body, message_id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-4' as random,
    case when message_id !~ '-4' then message_id end as message_id, headers, key, deliver_at, connection, ttl, webhook, traceparent,
    attempts, txid = pg_current_xact_id() as of_this, created_at between now() and clock_timestamp() as just_now
from jetstream.outbox order by id;
begin;
-- The same columns as a statement
select jetstream.publish('a', '1') < jetstream.publish_raw('b', '\x78');
insert into jetstream.outbox (subject, payload) values ('c', '1');
select jetstream.publish('a', '{"n":2}', 'mine', '{"h":"v"}', 'k', '2100-01-01 00:00+00', 'default', '1 hour') > 0;
set local jetstream.traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
select jetstream.publish_raw('b', '', 'other', key => 'k') is not null;
set local jetstream.traceparent = '';
select jetstream.publish('d', to_jsonb(repeat('x', 10000))) is not null;
select subject, length(body) from stored where subject = 'd';
delete from jetstream.outbox where subject = 'd';
\pset tuples_only off
select * from stored;
\pset tuples_only on
-- Seen by what follows in the transaction, found by each index, gone with its savepoint
savepoint here;
select jetstream.publish('late', '1', key => 'late') is not null;
set local enable_seqscan = off;
select count(*) from jetstream.outbox where connection = 'default' and key = 'late' and id > 0;
select count(*) from jetstream.outbox where txid = pg_current_xact_id();
rollback to here;
select count(*) from jetstream.outbox where subject = 'late';
rollback;
-- A batch: one transaction, ids in the order of the payloads, everything else as one message has it
begin;
create temp table ids as select i, n from jetstream.publish_batch('b', array['1', '2', '3']::jsonb[],
    array['m1', null, 'm3'], '{"h":"v"}', 'k', '2100-01-01 00:00+00', 'default', '1 hour') with ordinality b (i, n);
select string_agg(o.payload::text, ' ' order by n) from ids join jetstream.outbox o on o.id = ids.i;
\pset tuples_only off
select * from stored;
\pset tuples_only on
select count(*) from jetstream.publish_batch('large', array(select to_jsonb(repeat('x', 5000) || n) from generate_series(1, 500) n));
select count(*), count(distinct message_id), min(length(payload::text)), max(length(payload::text))
from jetstream.outbox where subject = 'large';
set local enable_seqscan = off;
select count(*) from jetstream.outbox where connection = 'default' and key = 'k' and id > 0;
select count(*) from jetstream.outbox where connection = 'default' and deliver_at is null and id > 0;
rollback;
-- One that is refused stores none
select failure('select jetstream.publish_batch(''b'', array[''1'', null]::jsonb[])');
select count(*) from stored;
select failure('select jetstream.publish_batch(''a'', array[''1'']::jsonb[], connection => ''nowhere'')');
select failure('select jetstream.publish_batch(null, array[''1'']::jsonb[])');
-- Refused as a statement would be
begin read only;
select failure('select jetstream.publish_batch(''a'', array[''1'']::jsonb[])');
select failure('select jetstream.publish(''a'', ''1'')');
rollback;
select failure('select jetstream.publish(null, ''1'')');
select failure('select jetstream.publish(''a'', null)');
select failure('select jetstream.publish(''a'', ''1'', connection => null)');
select failure('select jetstream.publish(''a..b'', ''1'')');
select failure('select jetstream.publish(''a'', ''1'', connection => ''nowhere'')');
-- What others have added to the outbox works
create table seen (what text);
create function note() returns trigger language plpgsql as $$
begin
    insert into seen values (tg_name || ' ' || coalesce(new.subject, ''));
    return new;
end $$;
begin;
create trigger after_row after insert on jetstream.outbox for each row execute function note();
select jetstream.publish('a', '1') > 0;
drop trigger after_row on jetstream.outbox;
create trigger before_row before insert on jetstream.outbox for each row execute function note();
select jetstream.publish_raw('b', '1') > 0;
drop trigger before_row on jetstream.outbox;
create trigger statement after insert on jetstream.outbox for each statement execute function note();
select jetstream.publish('c', '1') > 0;
select count(*) from jetstream.publish_batch('batch', array['1', '2']::jsonb[]);
drop trigger statement on jetstream.outbox;
select jetstream.publish('d', '1') > 0;
select what from seen;
select count(*) from stored;
rollback;
begin;
alter table jetstream.outbox add column tenant text not null default 'none';
select jetstream.publish('a', '1') > 0;
select tenant from jetstream.outbox;
rollback;
begin;
alter table jetstream.outbox alter column last_error set default 'none yet';
select count(*) from jetstream.publish_batch('batch', array['1', '2']::jsonb[]);
select distinct last_error from jetstream.outbox where subject = 'batch';
rollback;
begin;
alter table jetstream.outbox add constraint no_b check (subject <> 'b');
select jetstream.publish('a', '1') > 0;
select failure('select jetstream.publish(''b'', ''1'')');
rollback;
begin;
create rule elsewhere as on insert to jetstream.outbox do also insert into seen values ('rule ' || new.subject);
select jetstream.publish('a', '1') > 0;
select what from seen;
rollback;
begin;
create role regress_tenant in role jetstream_publisher;
alter table jetstream.outbox enable row level security;
create policy tenant on jetstream.outbox to regress_tenant using (true) with check (subject like 'mine.%');
set local role regress_tenant;
select jetstream.publish('mine.a', '1') > 0;
reset role;
create function as_tenant() returns text language plpgsql as $$
begin
    set local role regress_tenant;
    perform jetstream.publish('other', '1');
    return 'allowed';
exception when insufficient_privilege then
    return sqlerrm;
end $$;
select as_tenant();
rollback;
drop table seen cascade;
drop view stored;
drop function note;
