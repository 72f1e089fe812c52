-- Fan-out: one event, many receivers. Run basic_setup.sql first.
--
--   psql -f examples/fan_out.sql shop
--
-- Two ways. To programs: every durable consumer of a stream gets every message, so one `orders.paid` reaches all of
-- them, and another receiver is another consumer; nothing changes here. To HTTP endpoints: one call for each webhook
-- that has subscribed, below. The calls are separate messages: one endpoint that fails holds up no other.
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

-- Publishes the event, and stores a call for each subscriber, in the transaction of the caller: all of it or nothing.
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
