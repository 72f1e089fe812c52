-- Hybrid mode: moves one webhook at a time from the queue in PostgreSQL to NATS, without interruption. Run basic_setup.sql
-- first.
--
--   psql -f examples/hybrid_mode.sql shop
\set ON_ERROR_STOP on

-- Before: calls go to the queue, which your own worker drains with SQL.
insert into jetstream.webhooks (name, url, publish_mode) values ('payments', 'https://example.com/payments', 'queue');
select jetstream.webhook_call(id, '{"payment": 1}', message_id => 'payment-1') from jetstream.webhooks where name = 'payments';

-- During the move: both. One call stores a row in the queue and a message for NATS with the same message id. Both kinds of
-- workers make the call, and the endpoint recognizes the duplicate by its Idempotency-Key.
update jetstream.webhooks set publish_mode = 'both' where name = 'payments';
select jetstream.webhook_call(id, '{"payment": 2}', message_id => 'payment-2') from jetstream.webhooks where name = 'payments';

-- A single call can use a mode other than its webhook's.
select jetstream.webhook_call(id, '{"payment": 3}', message_id => 'payment-3', publish_mode => 'queue')
from jetstream.webhooks where name = 'payments';

-- After: only NATS. Calls that are in the queue stay there until a worker makes them.
update jetstream.webhooks set publish_mode = 'nats' where name = 'payments';
select jetstream.webhook_call(id, '{"payment": 4}', message_id => 'payment-4') from jetstream.webhooks where name = 'payments';

select message_id, status from jetstream.webhook_calls order by id;
