-- From nothing to a first message: a stream, a table whose rows are published, a webhook.
--
--   psql -v nats_url=nats://localhost:4222 -f examples/basic_setup.sql shop
--
-- The server needs shared_preload_libraries = 'pg_jetstream', and pg_jetstream.databases must list the database.
\set ON_ERROR_STOP on

create extension if not exists pg_jetstream;

-- Where NATS is. Takes effect when it commits.
update jetstream.connections set url = :'nats_url' where name = 'default';

-- The streams that should exist: the worker inside PostgreSQL makes them. Messages that no stream takes are kept, and
-- tried again.
select jetstream.create_stream('ORDERS', array['orders.>']);
select jetstream.create_stream('WEBHOOKS', array['webhooks.>']);

-- Each new order is published by the transaction that inserts it. Orders of one customer arrive in their order.
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

-- What is rolled back is never published.
begin;
insert into orders (customer, total) values ('nobody', 0);
rollback;

-- An HTTP endpoint: this stores the call, a worker (see examples/README.md) makes it.
insert into jetstream.webhooks (name, url, publish_mode) values ('accounting', 'https://example.com/orders', 'nats');
select jetstream.webhook_call(id, '{"order": 1}') from jetstream.webhooks where name = 'accounting';

-- What is still owed (nothing, after a moment), what was published, and whether the streams are as asked.
select subject, count(*) from jetstream.outbox group by subject;
select subject, stream, sequence, error from jetstream.history order by published_at desc limit 5;
select name, synced_at, sync_error from jetstream.streams;
