-- The outbox: what is still owed. A plain insert is a first-class way in.

create table jetstream.outbox (
    -- txid stands before id so that it is assigned first: an id is then never older than its transaction id, which
    -- the worker's bounded claim relies on.
    txid xid8 not null default pg_current_xact_id(),
    id bigint generated always as identity,
    connection text collate "C" not null default 'default',
    subject text not null,
    payload jsonb,
    raw bytea,
    headers jsonb,
    message_id text not null default gen_random_uuid()::text,
    key text collate "C",
    deliver_at timestamptz,
    ttl interval,
    webhook integer,
    traceparent text default nullif(current_setting('jetstream.traceparent', true), ''),
    attempts integer not null default 0,
    last_error text,
    failed_at timestamptz,
    unsure_since timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    due_at timestamptz,
    -- Further rules: the trigger outbox_check.
    constraint outbox_pkey primary key (id)
);

comment on table jetstream.outbox is 'Messages owed to JetStream; a row leaves when it is stored there or moved to dead_letters';
comment on column jetstream.outbox.txid is 'Transaction that inserted it; leave it to its default';
comment on column jetstream.outbox.id is 'Insert order';
comment on column jetstream.outbox.connection is 'connections.name it goes to';
comment on column jetstream.outbox.subject is 'NATS subject: tokens of printable ASCII separated by dots, no wildcards, at most 255 bytes';
comment on column jetstream.outbox.payload is 'Body as JSON; either this or raw';
comment on column jetstream.outbox.raw is 'Body as bytes; either this or payload';
comment on column jetstream.outbox.headers is 'Object of header names to a string, number, boolean, or an array of these';
comment on column jetstream.outbox.message_id is 'Nats-Msg-Id by which JetStream drops duplicates; 1 to 255 bytes without white space at the ends, random by default';
comment on column jetstream.outbox.key is 'Messages with the same key arrive in insert order; null: no order asked for';
comment on column jetstream.outbox.deliver_at is 'Not before this time; also set by the worker to the time of the next attempt';
comment on column jetstream.outbox.ttl is 'How long the stream keeps it (Nats-TTL, whole seconds); the stream must allow it';
comment on column jetstream.outbox.webhook is 'Webhook it belongs to; null for a plain message';
comment on column jetstream.outbox.traceparent is 'W3C trace context, sent as the header of that name unless headers has one; the setting jetstream.traceparent by default. One that is not valid is not sent';
comment on column jetstream.outbox.attempts is 'Attempts that failed';
comment on column jetstream.outbox.last_error is 'Why the last attempt failed';
comment on column jetstream.outbox.failed_at is 'When the last attempt failed';
comment on column jetstream.outbox.unsure_since is 'An attempt went unanswered and may have been stored, though not before this time: it is looked for before it is sent again';
comment on column jetstream.outbox.created_at is 'When it was inserted; of a captured change, when the statement ended that made it';
comment on column jetstream.outbox.due_at is 'When it was due for the first time; set by the worker as soon as deliver_at says something else, null until then';

-- Without a condition, which each insert would read and plan anew: rows to be sent at once are those whose deliver_at is
-- null, in the order of their ids.
create index outbox_due on jetstream.outbox (connection, deliver_at, id);
-- By attempts before id: those of a key that fail are found without the others.
create index outbox_key on jetstream.outbox (connection, key, attempts, id) where key is not null;
create index outbox_failing on jetstream.outbox (connection, due_at) where attempts > 0;
comment on index jetstream.outbox_due is 'Claim in insert order where deliver_at is null, otherwise of delayed messages and of further attempts';
comment on index jetstream.outbox_key is 'Claim of the messages that waited behind a failing one of their key, and whether a key has a failing one';
comment on index jetstream.outbox_failing is 'Failing messages, the oldest first';

create function jetstream.check_connection(name text) returns boolean
language plpgsql stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from jetstream.connections c where c.name = check_connection.name) then
        raise exception 'connection "%" does not exist', name
            using errcode = 'foreign_key_violation',
                  hint = 'Insert it into jetstream.connections first, or leave connection out to use "default".';
    end if;
    return true;
end
$$;
comment on function jetstream.check_connection(text) is 'True for a connection that exists; an ERROR for any other';

create function jetstream.outbox_check() returns trigger
language c
as 'MODULE_PATHNAME', 'outbox_check';
comment on function jetstream.outbox_check() is
    'Refuses a message that could not be sent, and wakes the worker when the transaction commits';

create trigger outbox_check before insert or update on jetstream.outbox
    for each row execute function jetstream.outbox_check();
-- Also for what logical replication brings.
alter table jetstream.outbox enable always trigger outbox_check;

-- Rows that somebody changed may lie below the ids already claimed, and one removed may have held its key: the worker
-- looks through all of them.
create trigger outbox_changed after update or delete or truncate on jetstream.outbox
    for each statement execute function jetstream.reload_worker();

select pg_catalog.pg_extension_config_dump('jetstream.outbox', '');
select pg_catalog.pg_extension_config_dump('jetstream.outbox_id_seq', '');

create function jetstream.publish(
    subject text,
    payload jsonb,
    message_id text default null,
    headers jsonb default null,
    key text default null,
    deliver_at timestamptz default null,
    connection text default 'default',
    ttl interval default null
) returns bigint
language c volatile
as 'MODULE_PATHNAME', 'jetstream_publish';
comment on function jetstream.publish(text, jsonb, text, jsonb, text, timestamptz, text, interval) is
    'Stores one JSON message for JetStream in this transaction; returns outbox.id
Arguments as the columns of jetstream.outbox';

create function jetstream.publish_raw(
    subject text,
    payload bytea,
    message_id text default null,
    headers jsonb default null,
    key text default null,
    deliver_at timestamptz default null,
    connection text default 'default',
    ttl interval default null
) returns bigint
language c volatile
as 'MODULE_PATHNAME', 'jetstream_publish_raw';
comment on function jetstream.publish_raw(text, bytea, text, jsonb, text, timestamptz, text, interval) is
    'Stores one message of bytes for JetStream in this transaction; returns outbox.id
payload: Body as bytes
Arguments as the columns of jetstream.outbox';

create function jetstream.publish_batch(
    subject text,
    payloads jsonb[],
    message_ids text[] default null,
    headers jsonb default null,
    key text default null,
    deliver_at timestamptz default null,
    connection text default 'default',
    ttl interval default null
) returns setof bigint
language c volatile
as 'MODULE_PATHNAME', 'jetstream_publish_batch';
comment on function jetstream.publish_batch(text, jsonb[], text[], jsonb, text, timestamptz, text, interval) is
    'Stores many JSON messages for one subject in one statement; returns their outbox ids in order
payloads: Bodies as JSON, one message each
message_ids: One Nats-Msg-Id for each payload; null: random ones
Arguments as the columns of jetstream.outbox';
