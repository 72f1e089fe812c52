-- Fan-out: one event for many receivers. Run basic_setup.sql first.
--
--   psql -f examples/fan_out.sql shop
--
-- For programs, nothing changes here. Every durable consumer of a stream gets every message, so one `orders.paid` reaches
-- all of them. To add a receiver, add a consumer.
--
-- For HTTP endpoints, this example stores one call for each webhook that has subscribed. The calls are separate messages,
-- so a failing endpoint does not delay the others.
\set ON_ERROR_STOP on

insert into jetstream.webhooks (name, url, publish_mode, subject) values
    ('warehouse', 'https://warehouse.example.com/hook', 'nats', 'webhooks.orders.warehouse'),
    ('invoices', 'https://invoices.example.com/hook', 'nats', 'webhooks.orders.invoices'),
    ('chat', 'https://chat.example.com/hook', 'nats', 'webhooks.orders.chat');

create table subscriptions (
    event text not null,
    webhook integer not null references jetstream.webhooks (id) on delete cascade,
    primary key (event, webhook)
);
insert into subscriptions select 'order.paid', id from jetstream.webhooks where name in ('warehouse', 'invoices', 'chat');
insert into subscriptions select 'order.cancelled', id from jetstream.webhooks where name = 'warehouse';

-- Publishes the event and stores a call for each subscriber. All of it commits or rolls back with the caller's transaction.
create function announce(event text, data jsonb) returns bigint
language plpgsql
as $$
declare
    calls bigint;
begin
    perform jetstream.publish('orders.' || split_part(announce.event, '.', 2), announce.data);
    select count(jetstream.webhook_call(s.webhook, announce.data)) into calls
    from subscriptions s where s.event = announce.event;
    return calls;
end
$$;

select announce('order.paid', '{"order": 1}');         -- 3
select announce('order.cancelled', '{"order": 2}');    -- 1
