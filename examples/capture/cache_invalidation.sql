-- Keeps a NATS key-value bucket in step with a table: a key for each row, gone when the row goes. The bucket is a
-- stream; a message on $KV.<bucket>.<key> sets the key, one with the header KV-Operation: DEL deletes it.
-- Make the bucket first: nats kv add products --history 1
-- No row trigger sees TRUNCATE: use DELETE, or empty the bucket after it with nats stream purge KV_products.
create table products (id integer primary key, name text, price numeric);

create function products_to_cache() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' and old.id is distinct from new.id then
        perform jetstream.publish_raw('$KV.products.' || old.id, '', headers => '{"KV-Operation": "DEL"}',
                                      key => 'products ' || old.id);
    end if;
    if tg_op <> 'DELETE' then
        perform jetstream.publish('$KV.products.' || new.id, to_jsonb(new), key => 'products ' || new.id);
    end if;
    return null;
end
$$;

create trigger products_to_cache after insert or update or delete on products
    for each row execute function products_to_cache();
