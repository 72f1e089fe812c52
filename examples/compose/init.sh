#!/bin/sh
# Run once, by the PostgreSQL image, when the database is new.
set -eu
psql --set ON_ERROR_STOP=1 --set password="$WORKER_PASSWORD" --set nats_url="${NATS_URL:-nats://nats:4222}" \
    --username "${POSTGRES_USER:-postgres}" --dbname "${POSTGRES_DB:-postgres}" <<'SQL'
create extension if not exists pg_jetstream;
update jetstream.connections set url = :'nats_url' where name = 'default';
select jetstream.create_stream('WEBHOOKS', array['webhooks.>']);
-- The worker may claim calls, see their secrets and report; nothing else.
create role webhook_worker login password :'password' in role jetstream_webhook_worker;
SQL
