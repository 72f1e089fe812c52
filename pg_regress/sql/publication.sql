-- A publication may cover all tables: what updates or deletes still does.
\pset format unaligned
\pset tuples_only on
set client_min_messages = error;
create publication regress_all for all tables;
select jetstream.history_maintain('7 days') >= 0;
-- Tables whose rows could not be changed. Nothing is expected.
select c.oid::regclass from pg_class c
where c.relnamespace = 'jetstream'::regnamespace and c.relkind = 'r' and c.relreplident <> 'f'
  and not exists (select from pg_index i where i.indrelid = c.oid
                  and case c.relreplident when 'i' then i.indisreplident when 'd' then i.indisprimary end) order by 1::text;
-- Every table: an update and a delete of a row, should there be one.
create function touch(relation regclass) returns text language plpgsql as $$
declare
    name name := (select a.attname from pg_attribute a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
                  and a.attidentity <> 'a' and a.attgenerated = '' order by a.attnum limit 1);
begin
    execute format('update %s set %I = %I where false', relation, name, name);
    execute format('delete from %s where false', relation);
    return null;
exception when others then
    return format('%s: %s', relation, sqlerrm);
end $$;
select touch(c.oid) from pg_class c where c.relnamespace = 'jetstream'::regnamespace and c.relkind in ('r', 'p')
  and touch(c.oid) is not null order by 1;
-- What people call.
insert into jetstream.dead_letters (outbox_id, connection, subject, payload, message_id, attempts, reason, created_at)
select n, 'default', 'd.' || n, to_jsonb(n), 'id' || n, 5, 'because', now() from generate_series(1, 4) n;
insert into jetstream.history (published_at, outbox_id, attempts, success, connection, subject, message_id)
select now(), n, 5, false, 'default', 'd.' || n, 'id' || n from generate_series(1, 2) n;
select count(jetstream.discard(id)) from jetstream.dead_letters where outbox_id <= 2;
select error like 'discarded by %' from jetstream.history where outbox_id <= 2 and connection = 'default' and subject like 'd.%';
select jetstream.redrive(id) > 0 from jetstream.dead_letters where outbox_id = 3;
select jetstream.redrive_all('d.>');
update jetstream.outbox set deliver_at = now();
delete from jetstream.outbox;
insert into jetstream.webhooks (id, name, url) values (2001, 'published', 'https://a/');
select jetstream.rule_webhook_secret_set(2001, 'key', 'one'), jetstream.rule_webhook_secret_set(2001, 'key', 'two');
select jetstream.webhook_call(2001, '1', 'id-1') ->> 'success';
select count(jetstream.webhook_complete(c.call_id, 200)) from jetstream.webhook_claim('w', 10) c;
select jetstream.webhook_cleanup('-1 hour');
select jetstream.rule_webhook_secret_delete(2001, 'key'), jetstream.rule_webhook_secret_set(2001, 'other', 'x');
select jetstream.rule_webhook_delete(2001);
select jetstream.rule_nats_consumer_update_stats('S', 'c', 1, 1), jetstream.rule_nats_consumer_update_stats('S', 'c', 1, 1);
delete from jetstream.consumers;
select jetstream.create_stream('PUBLISHED', array['p.>']) > 0, jetstream.create_stream('PUBLISHED', array['q.>']) > 0;
delete from jetstream.streams;
select jetstream.pause() is not null, jetstream.resume(), jetstream.pause();
create table regress_captured (id integer primary key);
select jetstream.capture('regress_captured');
insert into regress_captured values (1);
select jetstream.uncapture('regress_captured');
drop table regress_captured;
delete from jetstream.streams;
delete from jetstream.positions;
select jetstream.rule_nats_cleanup_old_history('-1 hour', false) >= 2;
delete from jetstream.capture_queue;
truncate jetstream.outbox, jetstream.history, jetstream.dead_letters;
drop publication regress_all;
drop function touch;
