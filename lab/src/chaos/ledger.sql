-- The ledger of what the producers of `lab chaos` committed. This schema uses only the public interface of the extension.

create schema chaos;

create sequence chaos.number;

-- One row per message, written in the transaction that enqueues it. Within a key, n is the order of the commits.
create table chaos.ledger (
    n bigint not null,
    message_id text not null,
    key text,
    tag text not null,
    at timestamptz not null default clock_timestamp()
);

-- Enqueues `count` messages in the given way and records them in the ledger. Only one transaction at a time uses a key.
-- If another transaction uses the key, the messages are enqueued without one, so that nothing waits.
create function chaos.put(way text, keyed integer, tag text, count integer) returns void
language plpgsql as $$
declare
    the_key text;
    the_subject text;
    the_id text := gen_random_uuid()::text;
    number bigint;
    outbox_id bigint;
    ids text[];
    numbers bigint[];
begin
    if keyed is not null and pg_try_advisory_xact_lock(4711, keyed) then
        the_key := 'key' || keyed;
    end if;
    the_subject := 'chaos.' || coalesce(the_key, 'free');
    if way in ('bulk', 'batch') then
        select array_agg(nextval('chaos.number')), array_agg(gen_random_uuid()::text) into numbers, ids
        from generate_series(1, count);
        if way = 'bulk' then
            insert into jetstream.outbox (subject, payload, message_id, key)
            select the_subject, jsonb_build_object('n', u.n, 'tag', tag), u.id, the_key
            from unnest(numbers, ids) as u (n, id) order by u.n;
        else
            perform jetstream.publish_batch(the_subject,
                array(select jsonb_build_object('n', u.n, 'tag', tag) from unnest(numbers) as u (n) order by u.n),
                ids, key => the_key);
        end if;
        insert into chaos.ledger (n, message_id, key, tag)
        select u.n, u.id, the_key, tag from unnest(numbers, ids) as u (n, id);
        return;
    end if;
    number := nextval('chaos.number');
    if way = 'publish' then
        outbox_id := jetstream.publish(the_subject, jsonb_build_object('n', number, 'tag', tag), key => the_key);
        select o.message_id into strict the_id from jetstream.outbox o where o.id = outbox_id;
    elsif way = 'raw' then
        perform jetstream.publish_raw(the_subject,
            convert_to(jsonb_build_object('n', number, 'tag', tag)::text, 'UTF8'), the_id, key => the_key);
    else
        insert into jetstream.outbox (subject, payload, headers, message_id, key, deliver_at)
        values (the_subject, jsonb_build_object('n', number, 'tag', tag), '{"Chaos": "yes"}', the_id, the_key,
            case when way = 'delayed' and the_key is null then clock_timestamp() + random() * interval '3 s' end);
    end if;
    insert into chaos.ledger (n, message_id, key, tag) values (number, the_id, the_key, tag);
end
$$;
