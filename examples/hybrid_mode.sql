-- Hybrid mode: from the queue in PostgreSQL to NATS, webhook by webhook, without a gap. Run basic_setup.sql first.
--
--   psql -f examples/hybrid_mode.sql shop
\set ON_ERROR_STOP on

-- Today: the queue, which a worker of yours drains by SQL.
insert into jetstream.webhooks (name, url, publish_mode) values ('payments', 'https://example.com/payments', 'queue');
select jetstream.webhook_call(id, '{"payment": 1}', message_id => 'payment-1') from jetstream.webhooks where name = 'payments';

-- In between: both. One call stores a row in the queue and a message for NATS, with one message id. Both kinds of
-- workers make the call, and the endpoint sees by Idempotency-Key that it is the same.
update jetstream.webhooks set publish_mode = 'both' where name = 'payments';
select jetstream.webhook_call(id, '{"payment": 2}', message_id => 'payment-2') from jetstream.webhooks where name = 'payments';

-- A single call can go another way than its webhook.
select jetstream.webhook_call(id, '{"payment": 3}', message_id => 'payment-3', publish_mode => 'queue')
from jetstream.webhooks where name = 'payments';

-- At last: NATS alone. What stands in the queue stays there until it is made.
update jetstream.webhooks set publish_mode = 'nats' where name = 'payments';
select jetstream.webhook_call(id, '{"payment": 4}', message_id => 'payment-4') from jetstream.webhooks where name = 'payments';

select message_id, status from jetstream.webhook_calls order by id;
