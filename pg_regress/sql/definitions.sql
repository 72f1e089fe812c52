-- Definitions of connections and streams: what cannot work is refused where it is written, in one sentence with the value
-- and a hint, and never with a password or the row.
\pset format unaligned
\pset tuples_only on
create function full_failure(statement text) returns text
language plpgsql as $$
declare
    code text; message text; detail text; hint text;
begin
    execute statement;
    return 'accepted';
exception when others then
    get stacked diagnostics code = returned_sqlstate, message = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
    return concat_ws(E'\n    ', code || ': ' || message, nullif(detail, ''), coalesce(nullif(hint, ''), 'NO HINT'));
end $$;
-- Addresses
select u, full_failure(format('insert into jetstream.connections (name, url, auth_type, username, password) values (''u'', %L, ''password'', ''app'', ''sesame'')', u))
from unnest(array['http://x', 'ws://h', 'nats://', 'nats://h:0', 'nats://h:70000', 'nats://h:x', 'h h', 'nats://app:sesame@h', 'nats://h,http://i',
    'nats://h,,i', 'nats://h/path', null]) with ordinality as t (u, n) order by n;
begin;
select full_failure(format('insert into jetstream.connections (name, url) values (%L, %L)', 'u' || n, u))
from unnest(array['nats://h', 'tls://h:1', 'h', 'h:4222', 'nats://a:1, nats://b:2,tls://c', 'nats://[::1]:4222', '127.0.0.1', 'nats://h:4222/'])
     with ordinality as t (u, n) order by n;
rollback;
select full_failure('update jetstream.connections set cluster_urls = ''{nats://a,ftp://b}''');
select full_failure('select jetstream.rule_nats_configure(''u'', ''http://x'', p_auth_password => ''sesame'')');
select full_failure('insert into jetstream.rule_nats_config (config_name, nats_url) values (''u'', ''http://x'')');
-- Logins and domains
select full_failure(format('update jetstream.connections set password = ''sesame'', %s', c)) from unnest(array[
    'auth_type = ''password'', username = ''''', 'auth_type = ''token''', 'auth_type = null', 'max_connections = null',
    'default_stream = ''a.b''', 'subject_prefix = ''a..b''', 'domain = ''a.b''', 'domain = ''''', 'api_prefix = ''JS.API.''', 'api_prefix = ''a.*''',
    'domain = ''hub'', api_prefix = ''JS.hub.API''', 'created_at = null']) c;
begin;
select full_failure('update jetstream.connections set domain = ''hub'', tls_handshake_first = true');
select full_failure('update jetstream.connections set domain = null, api_prefix = ''JS.hub.API''');
rollback;
-- Streams
select full_failure('select jetstream.create_stream(' || c || ')') from unnest(array[
    '''a/b'', array[''a'']', 'null, array[''a'']', '''S''', '''S'', array[''s5..x'']', '''S'', array[''s.>.x'']', '''S'', array[''s x'']', '''S'', array[''$JS.x'']',
    '''S'', array[''>'']', '''S'', array[''s'', null]', '''S'', array[''s.*'', ''s.a'']', '''S'', array[''s''], storage => ''disk''',
    '''S'', array[''s''], retention => ''forever''', '''S'', array[''s''], discard => ''oldest''', '''S'', array[''s''], max_messages => -2',
    '''S'', array[''s''], max_bytes => -5', '''S'', array[''s''], max_age => ''1 ms''', '''S'', array[''s''], max_age => ''1000 years''',
    '''S'', array[''s''], replicas => 0', '''S'', array[''s''], duplicate_window => ''1 ms''', '''S'', array[''s''], connection => ''nowhere''']) c;
select full_failure('insert into jetstream.streams (name, subjects, replicas) values (''S'', ''{s}'', null)');
select full_failure('insert into jetstream.rule_nats_streams (stream_name, subjects, retention_policy) values (''S'', ''{s}'', ''forever'')');
select jetstream.create_stream('ONE', array['one.>', 'uno.*']) > 0;
select full_failure('select jetstream.create_stream(''TWO'', array[' || c || '])')
from unnest(array['''one.a''', '''*.a''', '''uno.>''', '''x'', ''one.*.b''']) c;
begin;
select full_failure('select jetstream.create_stream(''TWO'', array[''one'', ''uno.a.b'', ''due.>''])');
select full_failure('update jetstream.streams set subjects = ''{due.a}'' where name = ''ONE''');
rollback;
-- What is left out stays as it is.
select jetstream.create_stream('ONE', max_age => '30 days', max_messages => 5, description => 'first') > 0;
update jetstream.streams set applied = '{"max_age": 1, "max_msgs": 1, "subjects": []}' where name = 'ONE';
select jetstream.create_stream('ONE', storage => 'memory', max_messages => 5) > 0;
select subjects, storage, max_age, max_messages, duplicate_window, replicas, description, applied from jetstream.streams where name = 'ONE';
select jetstream.rule_nats_stream_create('ONE', p_max_bytes => 7) > 0;
select subjects, storage, max_age, max_bytes, description from jetstream.streams where name = 'ONE';
-- A max_age below the duplicate window shrinks it.
select jetstream.create_stream('ONE', max_age => '1 minute') > 0;
select max_age, duplicate_window from jetstream.streams where name = 'ONE';
-- One of others is left alone.
update jetstream.streams set origin = 'found' where name = 'ONE';
select jetstream.create_stream('ONE', max_messages => 6) > 0;
delete from jetstream.streams where name = 'ONE';
select jetstream.rule_nats_configure('left', 'nats://h:1', 'token', p_auth_token => 'abc');
select jetstream.rule_nats_configure('left', p_tls_enabled => true);
select url, auth_type, token, tls_required from jetstream.connections where name = 'left';
delete from jetstream.connections where name = 'left';
insert into jetstream.webhooks (name, url, publish_mode, subject) values ('left', 'https://h/', 'nats', 'left.a');
select jetstream.rule_webhook_enable_nats(id) from jetstream.webhooks where name = 'left';
select publish_mode, subject, connection, nats_enabled from jetstream.webhooks where name = 'left';
delete from jetstream.webhooks where name = 'left';
drop function full_failure(text);
