-- What bad input gets at enqueue: an ERROR with a hint that names the value.
\pset format unaligned
\pset tuples_only on
-- Subjects
select failure(format('select jetstream.publish(%L, ''1'')', s))
from unnest(array['', 'a..b', '.a', 'a.', 'a.*', 'a.>', 'a b', E'a\nb', 'ä.b', '$JS.API.INFO', '_INBOX.x', '$SYS.x', repeat('x', 256)])
     with ordinality as t (s, n) order by n;
select failure(format('select jetstream.publish(%L, ''1'')', s))
from unnest(array['a', '$KV.bucket.key', 'a.b-c_d.~!', repeat('x', 255)]) with ordinality as t (s, n) order by n;
select failure('select jetstream.publish(null, ''1'')');
select failure('insert into jetstream.outbox (payload) values (''1'')');
-- Headers
select failure(format('select jetstream.publish(''a'', ''1'', headers => %L)', h))
from unnest(array['[]', '"x"', '1', '{"a": "x\ny"}', '{"a": "x\r"}', '{"a b": "x"}', '{"": "x"}', '{"a:b": "x"}',
    '{"a": null}', '{"a": {"b": 1}}', '{"a": ["x", null]}', '{"a": [["x"]]}', '{"Nats-Msg-Id": "x"}', '{"nats-msg-id": "x"}',
    '{"ä": "x"}', '{"a\nb": "x"}', 'no json']) with ordinality as t (h, n) order by n;
select failure(format('select jetstream.publish(''a'', ''1'', headers => %L)', h))
from unnest(array['{}', 'null', '{"a": "x", "b": ["x", 1, true], "c": 1.5, "d": false, "e": [], "f": ""}', '{"a": "ä"}'])
     with ordinality as t (h, n) order by n;
-- Numbers of any size, and any depth, are no worse than others; wherever headers are given.
select statement, failure(statement || format('%L)', headers)) from unnest(array['select jetstream.check_headers(',
    'select jetstream.publish(''a'', ''1'', headers => ', 'select * from jetstream.publish_batch(''a'', array[''1'']::jsonb[], headers => ',
    'insert into jetstream.outbox (subject, payload, headers) values (''a'', ''1'', ',
    'insert into jetstream.webhooks (name, url, headers) values (clock_timestamp(), ''https://a'', ']) with ordinality as s (statement, n)
cross join unnest(array['{"a": 1e400, "b": -1e-400, "c": 12345678901234567890123, "d": [1e5000]}',
    '{"a": ' || repeat('[', 2000) || repeat(']', 2000) || '}',
    repeat('{"a": ', 2000) || '1' || repeat('}', 2000)]) with ordinality as t (headers, m) order by n, m;
delete from jetstream.webhooks;
-- Message ids
select failure(format('select jetstream.publish(''a'', ''1'', %L)', i))
from unnest(array['', repeat('i', 256), E'a\nb', E'a\x01', to_char(7, '999'), 'trail ', U&'\00A0i', U&'i\2003'])
     with ordinality as t (i, n) order by n;
select failure(format('select jetstream.publish(''a'', ''1'', %L)', repeat('i', 255)));
select failure('insert into jetstream.outbox (subject, payload, message_id) values (''a'', ''1'', null)');
-- Nulls, and keys that no index has room for
select failure(format('insert into jetstream.outbox (subject, payload, %s) values (''a'', ''1'', null)', c))
from unnest(array['connection', 'message_id', 'txid', 'attempts', 'created_at']) c;
create function long(bytes integer) returns text language sql as $$
    select left(string_agg(md5(n::text), ''), bytes) from generate_series(1, 90) n $$;
select failure('select jetstream.publish(''a'', ''1'', key => long(2501))');
select failure('select jetstream.publish_batch(''a'', ''{1}'', key => long(2501))');
select failure('select jetstream.publish(''a'', ''1'', key => long(2500))');
-- Bodies
select failure('select jetstream.publish(''a'', null)');
select failure('select jetstream.publish_raw(''a'', null)');
select failure('insert into jetstream.outbox (subject) values (''a'')');
select failure('insert into jetstream.outbox (subject, payload, raw) values (''a'', ''1'', ''1'')');
select failure('insert into jetstream.outbox (subject, payload) values (''a'', ''no json'')');
select failure('select jetstream.publish_batch(''a'', array[''1'', null]::jsonb[])');
select failure('select jetstream.publish_raw(''a'', convert_to(repeat(''x'', 67108865), ''UTF8''))');
select failure('select jetstream.publish(''a'', (select jsonb_agg(1e131071) from generate_series(1, 600)))');
select failure('select jetstream.publish_raw(''a'', '''')');
select failure('select jetstream.publish(''a'', ''null'')');
-- Connections
select failure('select jetstream.publish(''a'', ''1'', connection => ''nowhere'')');
select failure('insert into jetstream.outbox (connection, subject, payload) values (''nowhere'', ''a'', ''1'')');
select failure('update jetstream.outbox set connection = ''nowhere''');
select failure('select jetstream.publish(''a'', ''1'', connection => null)');
-- Times
select failure(format('select jetstream.publish(''a'', ''1'', ttl => %L)', t))
from unnest(array['0', '-1 second', '999 ms', '10001 days']) with ordinality as t (t, n) order by n;
select failure(format('select jetstream.publish(''a'', ''1'', deliver_at => %L)', t))
from unnest(array['infinity', '-infinity']) with ordinality as t (t, n) order by n;
-- What the outbox gives itself (PostgreSQL 13 says it in other words)
select left(failure('insert into jetstream.outbox (id, subject, payload) values (1, ''a'', ''1'')'), 5);
select failure('insert into jetstream.outbox (subject, payload, attempts) values (''a'', ''1'', -1)');
-- Batches
select failure('select jetstream.publish_batch(''a'', array[''1'']::jsonb[], array[''x'', ''y''])');
select failure('select jetstream.publish_batch(''a.*'', array[''1'']::jsonb[])');
select failure('select jetstream.publish_batch(''a'', null, array[''x''])');
select failure('select jetstream.publish_batch(''a'', array[''1'', ''2'']::jsonb[], array[''x'', ''''])');
select failure('select jetstream.publish_batch(''a'', array[''1'', ''2'']::jsonb[], ttl => ''0 s'')');
select failure('select jetstream.publish_batch(''a'', array[''1'']::jsonb[], headers => ''{"a:b": "x"}'')');
-- The checks also stand on updates.
insert into jetstream.outbox (subject, payload) values ('a', '1');
select failure('update jetstream.outbox set subject = ''a.*''');
select failure('update jetstream.outbox set raw = ''x''');
truncate jetstream.outbox;
-- Connections and streams
select failure(format('insert into jetstream.connections (name, %s', c)) from unnest(array[
    'url) values ('''', default)',
    'url) values (''a'', '' '')',
    'url) values (''a'', ''nats://user:secret@host:4222'')',
    'cluster_urls) values (''a'', ''{nats://a,nats://token@b}'')',
    'auth_type) values (''a'', ''kerberos'')',
    'auth_type) values (''a'', ''token'')',
    'auth_type) values (''a'', ''password'')',
    'auth_type) values (''a'', ''credentials'')',
    'auth_type) values (''a'', ''nkey'')',
    'tls_cert_file) values (''a'', ''x'')',
    'connection_timeout_ms) values (''a'', 0)',
    'reconnect_delay_ms) values (''a'', 1)',
    'max_reconnect_attempts) values (''a'', -2)',
    'max_connections) values (''a'', 0)',
    'subject_prefix) values (''a'', ''a.*'')',
    'url) values (repeat(''n'', 64), default)']) with ordinality as t (c, n) order by n;
select failure('insert into jetstream.connections (name) values (''a''), (''a'')');
select failure(format('select jetstream.create_stream(%s)', c)) from unnest(array[
    '''a.b'', array[''x'']', '''a b'', array[''x'']', ''''', array[''x'']', '''a'', array[]::text[]', '''a'', null',
    '''a'', array[''x''], storage => ''tape''', '''a'', array[''x''], retention => ''ever''',
    '''a'', array[''x''], discard => ''some''', '''a'', array[''x''], replicas => 6',
    '''a'', array[''x''], max_age => ''-1 s''', '''a'', array[''x''], duplicate_window => ''-1 s''',
    '''a'', array[''x''], connection => ''nowhere''']) with ordinality as t (c, n) order by n;
select failure('delete from jetstream.connections');
select failure('update jetstream.connections set name = ''other''');
select failure('select jetstream.health(''nowhere'')');
select failure('select jetstream.reload(''nowhere'')');
select failure('select jetstream.redrive(0)');
select failure('select jetstream.discard(0)');
