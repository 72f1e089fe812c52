-- The first messages: a stream, a table whose rows are published, and a webhook.
--
--   psql -v nats_url=nats://localhost:4222 -f examples/basic_setup.sql shop
--
-- The server must have shared_preload_libraries = 'pg_jetstream', and pg_jetstream.databases must list the database.
\set ON_ERROR_STOP on

create extension if not exists pg_jetstream;

-- The address of NATS. The change takes effect when it commits.
update jetstream.connections set url = :'nats_url' where name = 'default';

-- The worker inside PostgreSQL creates these streams in NATS. Messages that no stream takes stay pending and are retried.
select jetstream.create_stream('ORDERS', array['orders.>']);
select jetstream.create_stream('WEBHOOKS', array['webhooks.>']);

-- The transaction that inserts an order also publishes it. Orders of the same customer arrive in order.
create table orders (
    id bigint generated always as identity primary key,
    customer text not null,
    total numeric not null
);

create function orders_publish() returns trigger
language plpgsql
as $$
begin
    perform jetstream.publish('orders.created', to_jsonb(new), key => new.customer);
    return null;
end
$$;
create trigger orders_publish after insert on orders for each row execute function orders_publish();

insert into orders (customer, total) values ('ann', 12.50), ('bob', 8.00);

-- A message that is rolled back is never published.
begin;
insert into orders (customer, total) values ('nobody', 0);
rollback;

-- An HTTP endpoint. These statements store the call, and a worker (see examples/README.md) makes it.
insert into jetstream.webhooks (name, url, publish_mode) values ('accounting', 'https://example.com/orders', 'nats');
select jetstream.webhook_call(id, '{"order": 1}') from jetstream.webhooks where name = 'accounting';

-- The pending messages (none after a moment), the published ones, and whether the streams are synchronized.
select subject, count(*) from jetstream.outbox group by subject;
select subject, stream, sequence, error from jetstream.history order by published_at desc limit 5;
select name, synced_at, sync_error from jetstream.streams;
