-- What became of each message, and how far each stream has been settled.

create table jetstream.history (
    published_at timestamptz not null,
    outbox_id bigint not null,
    sequence bigint,
    webhook integer,
    attempts integer not null,
    latency_ms real,
    success boolean not null,
    duplicate boolean not null default false,
    connection text not null,
    subject text not null,
    message_id text not null,
    stream text,
    key text,
    error text,
    payload jsonb,
    raw bytea,
    headers jsonb
) partition by range (published_at);

-- Rows have no key, and discard() and clean-up change them, which a publication of all tables would refuse. A partition
-- does not inherit this.
alter table jetstream.history replica identity full;

comment on table jetstream.history is 'One row for each settled message, by day, for pg_jetstream.history_retention; see pg_jetstream.history for which';
comment on column jetstream.history.published_at is 'When JetStream acknowledged it, or when it became a dead letter';
comment on column jetstream.history.outbox_id is 'outbox.id it had';
comment on column jetstream.history.sequence is 'Sequence in the stream';
comment on column jetstream.history.webhook is 'Webhook it belonged to';
comment on column jetstream.history.attempts is 'Attempts made, the last one included';
comment on column jetstream.history.latency_ms is 'From the insert (or deliver_at, if later) to the acknowledgement, milliseconds';
comment on column jetstream.history.success is 'Stored in the stream';
comment on column jetstream.history.duplicate is 'The stream had its message id already';
comment on column jetstream.history.connection is 'Connection it went to';
comment on column jetstream.history.subject is 'Subject as stored in the outbox';
comment on column jetstream.history.message_id is 'Nats-Msg-Id';
comment on column jetstream.history.stream is 'Stream that stored it';
comment on column jetstream.history.key is 'Its key';
comment on column jetstream.history.error is 'Why it was not stored; of a duplicate, that another message has used its id';
comment on column jetstream.history.payload is 'Body, if pg_jetstream.history_payload is on';
comment on column jetstream.history.raw is 'Body of bytes, if pg_jetstream.history_payload is on';
comment on column jetstream.history.headers is 'Headers, if pg_jetstream.history_payload is on';

-- Of a range, autovacuum is asked for a summary. It keeps 256 such requests and writes each further one to the server's log:
-- ranges of 128 pages are 2,000,000 rows of the history between two of its rounds.
create index history_outbox_id on jetstream.history using brin (outbox_id)
    with (pages_per_range = 128, autosummarize = on);
create index history_failed on jetstream.history (published_at) where not success;
create index history_webhook on jetstream.history (webhook, published_at) where webhook is not null;
comment on index jetstream.history_outbox_id is 'What became of one message; by block ranges, as ids come nearly in order: a tree would cost a third of the insert';
comment on index jetstream.history_failed is 'Recent failures';
comment on index jetstream.history_webhook is 'Messages of one webhook; other messages have no entry';

-- Made by ATTACH rather than PARTITION OF: that takes a lock which a long reader of the history does not hold up.
create function jetstream.history_maintain(retention interval, days_ahead integer default 7) returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '500ms'
as $$
declare
    today date := (now() at time zone 'UTC')::date;
    day date;
    partition text;
    changed integer := 0;
begin
    for day in select d::date from generate_series(today - 1, today + days_ahead, interval '1 day') d loop
        partition := 'history_' || to_char(day, 'YYYYMMDD');
        continue when to_regclass('jetstream.' || partition) is not null;
        execute format('create table jetstream.%I (like jetstream.history including defaults)', partition);
        execute format('alter table jetstream.%I replica identity full', partition);
        execute format('alter table jetstream.history attach partition jetstream.%I for values from (%L) to (%L)',
            partition, day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC');
        execute format('alter extension pg_jetstream add table jetstream.%I', partition);
        changed := changed + 1;
    end loop;
    begin
        for partition in
            select c.relname
            from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent = 'jetstream.history'::regclass
              and c.relname ~ '^history_[0-9]{8}$'
              and to_date(substr(c.relname, 9), 'YYYYMMDD') + 1 < (now() at time zone 'UTC') - retention
        loop
            execute format('alter extension pg_jetstream drop table jetstream.%I', partition);
            execute format('drop table jetstream.%I', partition);
            changed := changed + 1;
        end loop;
    exception when lock_not_available then
        -- A reader holds the oldest day; the next round drops it.
        null;
    end;
    return changed;
end
$$;
comment on function jetstream.history_maintain(interval, integer) is
    'Makes the history partitions of the coming days and drops those older than the retention; called by the worker. Returns how many changed
retention: How long the history is kept
days_ahead: For how many days partitions are made';

create table jetstream.positions (
    connection text not null,
    stream text not null,
    last_sequence bigint not null,
    updated_at timestamptz not null default now(),
    constraint positions_pkey primary key (connection, stream)
);
comment on table jetstream.positions is 'For each stream the last sequence settled: where recovery starts to read';
comment on column jetstream.positions.connection is 'Connection the stream lives on';
comment on column jetstream.positions.stream is 'Name of the stream';
comment on column jetstream.positions.last_sequence is 'Everything up to here has been settled';
comment on column jetstream.positions.updated_at is 'When it last advanced';
