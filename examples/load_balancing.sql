-- Load balancing: many workers share the calls of one stream. Run basic_setup.sql first.
--
--   psql -f examples/load_balancing.sql shop
--
-- Workers with the same QUEUE_GROUP share one durable consumer of the stream, and each call goes to one of them. Start as
-- many as you like, with different names. If a worker stops or dies, the others take over its calls:
--
--   CONSUMER_NAME=worker-1 QUEUE_GROUP=webhook-workers npm start
--   CONSUMER_NAME=worker-2 QUEUE_GROUP=webhook-workers npm start
\set ON_ERROR_STOP on

insert into jetstream.webhooks (name, url, publish_mode) values ('thumbnails', 'https://example.com/thumbnails', 'nats');

-- A hundred calls. Their message ids make them idempotent: a repeated call with the same id is stored in the stream only
-- once (within its duplicate window), and the endpoint gets the id as Idempotency-Key.
select count(jetstream.webhook_call(w.id, jsonb_build_object('picture', n), message_id => 'picture-' || n))
from jetstream.webhooks w, generate_series(1, 100) n
where w.name = 'thumbnails';
select count(jetstream.webhook_call(w.id, '{"picture": 7}', message_id => 'picture-7'))
from jetstream.webhooks w where w.name = 'thumbnails';

-- The queue works the same way without NATS: any number of workers claim from it, and each call goes to one of them.
select count(jetstream.webhook_call(w.id, jsonb_build_object('picture', n), publish_mode => 'queue'))
from jetstream.webhooks w, generate_series(1, 6) n
where w.name = 'thumbnails';
select 'worker-1' as worker, call_id, payload from jetstream.webhook_claim('worker-1', 3);
select 'worker-2' as worker, call_id, payload from jetstream.webhook_claim('worker-2', 10);

-- The statistics that workers report show how they share the work.
select consumer_name, messages_delivered, messages_acknowledged, avg_processing_time_ms, active, last_active_at
from jetstream.rule_nats_consumer_stats where stream_name = 'WEBHOOKS' order by consumer_name;
