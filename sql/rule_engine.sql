-- The rule engine's own names: its tables as views, its functions over the core. Put jetstream on the search path and
-- its statements run as written.

-- Configuration. A plain view, so that INSERT ... ON CONFLICT works. Credentials are not shown: rule_nats_configure
-- takes them, or jetstream.connections.
create view jetstream.rule_nats_config as
select id as config_id, name as config_name, url as nats_url, cluster_urls as nats_cluster_urls, auth_type,
       credentials_file as auth_credentials_file, tls_required as tls_enabled, tls_cert_file, tls_key_file, tls_ca_file,
       max_connections, connection_timeout_ms, reconnect_delay_ms, max_reconnect_attempts, jetstream_enabled,
       webhook_stream as stream_name, webhook_prefix as subject_prefix, enabled, created_at, updated_at
from jetstream.connections;
alter view jetstream.rule_nats_config alter column max_connections set default 10;
alter view jetstream.rule_nats_config alter column reconnect_delay_ms set default 2000;
comment on view jetstream.rule_nats_config is 'NATS configurations: jetstream.connections under the rule engine''s names';
comment on column jetstream.rule_nats_config.config_id is 'connections.id';
comment on column jetstream.rule_nats_config.config_name is 'Unique name';
comment on column jetstream.rule_nats_config.nats_url is 'Server URL; several separated by commas are tried in order';
comment on column jetstream.rule_nats_config.nats_cluster_urls is 'Further servers of the same cluster';
comment on column jetstream.rule_nats_config.auth_type is 'none, token, password, credentials or nkey';
comment on column jetstream.rule_nats_config.auth_credentials_file is 'Path of a .creds file on the server';
comment on column jetstream.rule_nats_config.tls_enabled is 'Refuse a server that does not offer TLS';
comment on column jetstream.rule_nats_config.tls_cert_file is 'PEM file with the client certificate';
comment on column jetstream.rule_nats_config.tls_key_file is 'PEM file with its key';
comment on column jetstream.rule_nats_config.tls_ca_file is 'PEM file with the certificate authority';
comment on column jetstream.rule_nats_config.max_connections is 'Upper bound of client connections; one is used';
comment on column jetstream.rule_nats_config.connection_timeout_ms is 'Limit for one attempt to connect, milliseconds';
comment on column jetstream.rule_nats_config.reconnect_delay_ms is 'First delay between attempts to connect, milliseconds';
comment on column jetstream.rule_nats_config.max_reconnect_attempts is 'Failed attempts in a row before it is marked failed; -1 for no limit';
comment on column jetstream.rule_nats_config.jetstream_enabled is 'Always true';
comment on column jetstream.rule_nats_config.stream_name is 'Stream of the webhooks, made by rule_nats_init';
comment on column jetstream.rule_nats_config.subject_prefix is 'Begins the subject of a webhook that has none of its own';
comment on column jetstream.rule_nats_config.enabled is 'false: closed, its messages wait in the outbox';
comment on column jetstream.rule_nats_config.created_at is 'When it was made';
comment on column jetstream.rule_nats_config.updated_at is 'When it was last changed';

-- Streams.
create view jetstream.rule_nats_streams as
select s.id as stream_id, c.id as config_id, s.name as stream_name, s.subjects, s.description, s.storage as storage_type,
       s.max_messages, s.max_bytes, extract(epoch from s.max_age)::bigint as max_age_seconds,
       s.retention as retention_policy, s.discard as discard_policy, s.replicas,
       extract(epoch from s.duplicate_window)::integer as duplicate_window_seconds, s.synced_at, s.sync_error, s.created_at
from jetstream.streams s join jetstream.connections c on c.name = s.connection;
comment on view jetstream.rule_nats_streams is 'Streams: jetstream.streams under the rule engine''s names; sync_error says what JetStream refuses';
comment on column jetstream.rule_nats_streams.stream_id is 'streams.id';
comment on column jetstream.rule_nats_streams.config_id is 'rule_nats_config.config_id; "default" if left out';
comment on column jetstream.rule_nats_streams.stream_name is 'Name of the stream';
comment on column jetstream.rule_nats_streams.subjects is 'Subjects it takes, wildcards allowed';
comment on column jetstream.rule_nats_streams.description is 'Free text';
comment on column jetstream.rule_nats_streams.storage_type is 'file or memory; JetStream cannot change it later';
comment on column jetstream.rule_nats_streams.max_messages is 'Most messages, -1 for no limit';
comment on column jetstream.rule_nats_streams.max_bytes is 'Most bytes, -1 for no limit';
comment on column jetstream.rule_nats_streams.max_age_seconds is 'Oldest age of a message, 0 for no limit';
comment on column jetstream.rule_nats_streams.retention_policy is 'limits, interest or workqueue';
comment on column jetstream.rule_nats_streams.discard_policy is 'old or new';
comment on column jetstream.rule_nats_streams.replicas is 'Copies in a cluster';
comment on column jetstream.rule_nats_streams.duplicate_window_seconds is 'How long the server remembers message ids';
comment on column jetstream.rule_nats_streams.synced_at is 'When the server was last seen to have it as asked';
comment on column jetstream.rule_nats_streams.sync_error is 'Why the server does not have it as asked';
comment on column jetstream.rule_nats_streams.created_at is 'When it was asked for';

create function jetstream.rule_nats_streams_write() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    target text := 'default';
begin
    if tg_op = 'DELETE' then
        delete from jetstream.streams s where s.id = old.stream_id;
        return old;
    end if;
    if new.config_id is not null then
        select c.name into target from jetstream.connections c where c.id = new.config_id;
        if not found then
            raise exception 'NATS configuration % does not exist', new.config_id
                using errcode = 'foreign_key_violation', hint = 'See rule_nats_config.';
        end if;
    end if;
    if tg_op = 'UPDATE' then
        if new.storage_type <> old.storage_type and old.synced_at is not null and old.sync_error is null then
            raise warning 'JetStream does not change the storage of stream "%": it stays as it is there', old.stream_name
                using hint = 'See rule_nats_streams.sync_error once this is committed. To change it, delete the stream '
                    'on the server (its messages go with it); the worker makes it anew.';
        end if;
        update jetstream.streams s
        set connection = target, name = new.stream_name, subjects = new.subjects,
            description = new.description, storage = new.storage_type, max_messages = new.max_messages,
            max_bytes = new.max_bytes, max_age = make_interval(secs => new.max_age_seconds),
            retention = new.retention_policy, discard = new.discard_policy, replicas = new.replicas,
            duplicate_window = make_interval(secs => new.duplicate_window_seconds)
        where s.id = old.stream_id;
    else
        insert into jetstream.streams as s (id, connection, name, subjects, description, storage, max_messages, max_bytes,
            max_age, retention, discard, replicas, duplicate_window)
        values (coalesce(new.stream_id, nextval('jetstream.streams_id_seq')), target, new.stream_name, new.subjects,
            new.description, coalesce(new.storage_type, 'file'), coalesce(new.max_messages, -1),
            coalesce(new.max_bytes, -1), make_interval(secs => coalesce(new.max_age_seconds, 604800)),
            coalesce(new.retention_policy, 'limits'), coalesce(new.discard_policy, 'old'), coalesce(new.replicas, 1),
            make_interval(secs => coalesce(new.duplicate_window_seconds, 120)))
        returning s.id into new.stream_id;
        select v.* into new from jetstream.rule_nats_streams v where v.stream_id = new.stream_id;
    end if;
    return new;
end
$$;
comment on function jetstream.rule_nats_streams_write() is 'Writes a change of rule_nats_streams to jetstream.streams';
create trigger rule_nats_streams_write instead of insert or update or delete on jetstream.rule_nats_streams
    for each row execute function jetstream.rule_nats_streams_write();

-- Webhooks.
create view jetstream.rule_webhooks as
select w.id as webhook_id, w.name as webhook_name, w.description, w.url as webhook_url, w.method as http_method, w.headers,
       w.timeout_ms, w.max_attempts > 1 as retry_enabled, w.max_attempts - 1 as max_retries,
       w.retry_base_ms as retry_delay_ms, w.retry_multiplier as retry_backoff_multiplier, w.enabled, w.tags,
       w.publish_mode, w.nats_enabled, w.subject as nats_subject, c.id as nats_config_id, w.created_at, w.updated_at
from jetstream.webhooks w join jetstream.connections c on c.name = w.connection;
comment on view jetstream.rule_webhooks is 'Webhooks: jetstream.webhooks under the rule engine''s names';
comment on column jetstream.rule_webhooks.webhook_id is 'webhooks.id';
comment on column jetstream.rule_webhooks.webhook_name is 'Unique name';
comment on column jetstream.rule_webhooks.description is 'Free text';
comment on column jetstream.rule_webhooks.webhook_url is 'Endpoint, http or https, without credentials';
comment on column jetstream.rule_webhooks.http_method is 'HTTP method';
comment on column jetstream.rule_webhooks.headers is 'HTTP headers; {{secret:NAME}} stands for a secret';
comment on column jetstream.rule_webhooks.timeout_ms is 'Limit for one HTTP call, milliseconds';
comment on column jetstream.rule_webhooks.retry_enabled is 'Whether a failed call is tried again';
comment on column jetstream.rule_webhooks.max_retries is 'Attempts after the first';
comment on column jetstream.rule_webhooks.retry_delay_ms is 'Delay after the first failed attempt, milliseconds';
comment on column jetstream.rule_webhooks.retry_backoff_multiplier is 'By how much the delay grows with each failed attempt';
comment on column jetstream.rule_webhooks.enabled is 'false: calling it is an error';
comment on column jetstream.rule_webhooks.tags is 'Free words to find it by';
comment on column jetstream.rule_webhooks.publish_mode is 'queue, nats or both';
comment on column jetstream.rule_webhooks.nats_enabled is 'May be published to NATS; always true for modes nats and both';
comment on column jetstream.rule_webhooks.nats_subject is 'Subject; null: <subject_prefix>.<webhook_name>';
comment on column jetstream.rule_webhooks.nats_config_id is 'rule_nats_config.config_id; "default" if left out';
comment on column jetstream.rule_webhooks.created_at is 'When it was registered';
comment on column jetstream.rule_webhooks.updated_at is 'When it was last changed';

create function jetstream.rule_webhooks_write() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    target text := 'default';
    tries integer;
begin
    if tg_op = 'DELETE' then
        delete from jetstream.webhooks w where w.id = old.webhook_id;
        return old;
    end if;
    tries := case when new.retry_enabled = false then 1 else coalesce(new.max_retries, 3) + 1 end;
    if new.nats_config_id is not null then
        select c.name into target from jetstream.connections c where c.id = new.nats_config_id;
        if not found then
            raise exception 'NATS configuration % does not exist', new.nats_config_id
                using errcode = 'foreign_key_violation', hint = 'See rule_nats_config.';
        end if;
    end if;
    if tg_op = 'UPDATE' then
        update jetstream.webhooks w
        set name = new.webhook_name, description = new.description, url = new.webhook_url, method = new.http_method,
            headers = coalesce(new.headers, '{}'), timeout_ms = new.timeout_ms,
            -- Switched on again, it gets the usual number of attempts.
            max_attempts = case when new.retry_enabled and not old.retry_enabled and new.max_retries = 0 then 4
                                else tries end,
            retry_base_ms = new.retry_delay_ms, retry_multiplier = new.retry_backoff_multiplier, enabled = new.enabled,
            tags = coalesce(new.tags, '{}'), publish_mode = new.publish_mode, nats_enabled = new.nats_enabled,
            subject = new.nats_subject, connection = target
        where w.id = old.webhook_id;
    else
        insert into jetstream.webhooks as w (id, name, description, url, method, headers, timeout_ms, max_attempts,
            retry_base_ms, retry_multiplier, enabled, tags, publish_mode, nats_enabled, subject, connection, created_at)
        values (coalesce(new.webhook_id, nextval('jetstream.webhooks_id_seq')), new.webhook_name, new.description,
            new.webhook_url, coalesce(new.http_method, 'POST'), coalesce(new.headers, '{}'),
            coalesce(new.timeout_ms, 5000), tries, coalesce(new.retry_delay_ms, 1000),
            coalesce(new.retry_backoff_multiplier, 2), coalesce(new.enabled, true), coalesce(new.tags, '{}'),
            coalesce(new.publish_mode, 'queue'), coalesce(new.nats_enabled, false), new.nats_subject, target,
            coalesce(new.created_at, now()))
        returning w.id into new.webhook_id;
    end if;
    select v.* into new from jetstream.rule_webhooks v where v.webhook_id = new.webhook_id;
    return new;
end
$$;
comment on function jetstream.rule_webhooks_write() is 'Writes a change of rule_webhooks to jetstream.webhooks';
create trigger rule_webhooks_write instead of insert or update or delete on jetstream.rule_webhooks
    for each row execute function jetstream.rule_webhooks_write();

-- History.
create view jetstream.rule_nats_publish_history as
select h.outbox_id as publish_id, h.webhook as webhook_id, h.subject, h.payload, h.headers, h.published_at, h.message_id,
       h.stream as stream_name, h.sequence as sequence_number, h.success, h.duplicate, h.error as error_message,
       round(h.latency_ms::numeric, 2) as latency_ms, h.attempts,
       h.published_at + current_setting('pg_jetstream.history_retention')::interval as expires_at
from jetstream.history h;
comment on view jetstream.rule_nats_publish_history is 'What became of each message: jetstream.history under the rule engine''s names';
comment on column jetstream.rule_nats_publish_history.publish_id is 'outbox.id it had; 0 for a row that was inserted here';
comment on column jetstream.rule_nats_publish_history.webhook_id is 'Webhook it belonged to';
comment on column jetstream.rule_nats_publish_history.subject is 'Subject';
comment on column jetstream.rule_nats_publish_history.payload is 'Body, if pg_jetstream.history_payload is on';
comment on column jetstream.rule_nats_publish_history.headers is 'Headers, if pg_jetstream.history_payload is on';
comment on column jetstream.rule_nats_publish_history.published_at is 'When JetStream acknowledged it, or when it was given up';
comment on column jetstream.rule_nats_publish_history.message_id is 'Nats-Msg-Id';
comment on column jetstream.rule_nats_publish_history.stream_name is 'Stream that stored it';
comment on column jetstream.rule_nats_publish_history.sequence_number is 'Sequence in the stream';
comment on column jetstream.rule_nats_publish_history.success is 'Stored in the stream';
comment on column jetstream.rule_nats_publish_history.duplicate is 'The stream had its message id already';
comment on column jetstream.rule_nats_publish_history.error_message is 'Why it was not stored';
comment on column jetstream.rule_nats_publish_history.latency_ms is 'From the insert to the acknowledgement, milliseconds';
comment on column jetstream.rule_nats_publish_history.attempts is 'Attempts made';
comment on column jetstream.rule_nats_publish_history.expires_at is 'When pg_jetstream.history_retention is over; it goes with the rest of its day';

create function jetstream.rule_nats_publish_history_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    at timestamptz := coalesce(new.published_at, now());
begin
    if new.subject is null or new.success is null then
        raise exception '% of a published message is null', case when new.subject is null then 'subject' else 'success' end
            using errcode = 'null_value_not_allowed', hint = 'Give the subject, and whether a stream stored the message.';
    elsif not isfinite(at) or to_regclass('jetstream.history_' || to_char(at at time zone 'UTC', 'YYYYMMDD')) is null then
        raise exception 'the history has no day for published_at %', at
            using errcode = 'invalid_parameter_value',
                  hint = 'It holds the days since pg_jetstream.history_retention, and the coming week.';
    end if;
    insert into jetstream.history as h (outbox_id, webhook, subject, payload, headers, published_at, message_id, stream,
        sequence, success, duplicate, error, latency_ms, attempts, connection)
    values (coalesce(new.publish_id, 0), new.webhook_id, new.subject, new.payload, new.headers,
        at, coalesce(new.message_id, gen_random_uuid()::text), new.stream_name,
        new.sequence_number, new.success, coalesce(new.duplicate, false), new.error_message, new.latency_ms,
        coalesce(new.attempts, 1),
        coalesce((select w.connection from jetstream.webhooks w where w.id = new.webhook_id), 'default'))
    returning h.outbox_id, h.published_at, h.message_id into new.publish_id, new.published_at, new.message_id;
    return new;
end
$$;
comment on function jetstream.rule_nats_publish_history_insert() is 'Writes a row inserted into rule_nats_publish_history to jetstream.history';
create trigger rule_nats_publish_history_insert instead of insert on jetstream.rule_nats_publish_history
    for each row execute function jetstream.rule_nats_publish_history_insert();

-- Workers. A plain view, so that INSERT ... ON CONFLICT (stream_name, consumer_name) works.
create view jetstream.rule_nats_consumer_stats as
select id as consumer_id, stream as stream_name, consumer as consumer_name, queue_group, ack_policy, max_deliver,
       delivered as messages_delivered, acknowledged as messages_acknowledged, pending as messages_pending,
       redelivered as messages_redelivered, avg_processing_ms as avg_processing_time_ms, last_active_at, active,
       created_at, updated_at
from jetstream.consumers;
comment on view jetstream.rule_nats_consumer_stats is 'Statistics of workers: jetstream.consumers under the rule engine''s names';
comment on column jetstream.rule_nats_consumer_stats.consumer_id is 'consumers.id';
comment on column jetstream.rule_nats_consumer_stats.stream_name is 'Stream consumed';
comment on column jetstream.rule_nats_consumer_stats.consumer_name is 'Name of the worker';
comment on column jetstream.rule_nats_consumer_stats.queue_group is 'Queue group for load balancing';
comment on column jetstream.rule_nats_consumer_stats.ack_policy is 'none, all or explicit';
comment on column jetstream.rule_nats_consumer_stats.max_deliver is 'Most deliveries of one message';
comment on column jetstream.rule_nats_consumer_stats.messages_delivered is 'Messages delivered to it';
comment on column jetstream.rule_nats_consumer_stats.messages_acknowledged is 'Of these, those that succeeded';
comment on column jetstream.rule_nats_consumer_stats.messages_pending is 'Messages waiting for it when it last reported';
comment on column jetstream.rule_nats_consumer_stats.messages_redelivered is 'Of these, those delivered again';
comment on column jetstream.rule_nats_consumer_stats.avg_processing_time_ms is 'Average time for one message, milliseconds';
comment on column jetstream.rule_nats_consumer_stats.last_active_at is 'When it last reported';
comment on column jetstream.rule_nats_consumer_stats.active is 'false once it has ended';
comment on column jetstream.rule_nats_consumer_stats.created_at is 'When it first reported';
comment on column jetstream.rule_nats_consumer_stats.updated_at is 'When the row was last changed';
