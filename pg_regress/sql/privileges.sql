-- Who may do what.
\pset format unaligned
\pset tuples_only on
create role regress_nobody;
create role regress_publisher in role jetstream_publisher;
create role regress_reader in role jetstream_reader;
create role regress_admin in role jetstream_admin;
create role regress_worker in role jetstream_worker;
-- As another role, by the statements people run
create function as_role(role text, statement text) returns text language plpgsql as $$
declare
    result text;
begin
    execute format('set local role %I', role);
    begin
        execute statement;
        result := 'allowed';
    exception when insufficient_privilege then
        result := sqlerrm;
    end;
    reset role;
    return result;
end $$;
with roles (who) as (values ('regress_nobody'), ('regress_publisher'), ('regress_reader'), ('regress_admin'), ('regress_worker')),
statements (n, what) as (select row_number() over (), * from unnest(array[
    $$select jetstream.publish('a', '1')$$,
    $$select jetstream.publish_raw('a', '1')$$,
    $$select jetstream.publish_batch('a', array['1']::jsonb[])$$,
    $$insert into jetstream.outbox (subject, payload) values ('a', '1')$$,
    $$insert into jetstream.outbox (subject, payload, txid) values ('a', '1', '5')$$,
    $$insert into jetstream.outbox (subject, payload, attempts) values ('a', '1', 5)$$,
    $$select payload from jetstream.outbox$$,
    $$select id from jetstream.outbox$$,
    $$select subject, last_error from jetstream.outbox$$,
    $$select * from jetstream.outbox_summary$$,
    $$select * from jetstream.recent_failures$$,
    $$select * from jetstream.publish_summary$$,
    $$select * from jetstream.performance$$,
    $$update jetstream.outbox set deliver_at = null$$,
    $$delete from jetstream.outbox$$,
    $$truncate jetstream.outbox$$,
    $$select payload from jetstream.history$$,
    $$select raw from jetstream.history$$,
    $$select headers from jetstream.history$$,
    $$select subject, stream, error from jetstream.history$$,
    $$insert into jetstream.history (published_at, outbox_id, attempts, success, connection, subject, message_id) values (now(), 1, 1, true, 'x', 'x', 'x')$$,
    $$delete from jetstream.history$$,
    $$select payload from jetstream.dead_letters$$,
    $$select headers from jetstream.dead_letters$$,
    $$select reason from jetstream.dead_letters$$,
    $$delete from jetstream.dead_letters$$,
    $$select name, url, auth_type from jetstream.connections$$,
    $$select password from jetstream.connections$$,
    $$select token from jetstream.connections$$,
    $$select nkey_seed from jetstream.connections$$,
    $$select c from jetstream.connections c$$,
    $$select * from jetstream.connections where password like 'a%'$$,
    $$update jetstream.connections set description = 'x'$$,
    $$update jetstream.connections set password = 'x'$$,
    $$update jetstream.connections set description = password$$,
    $$update jetstream.connections set description = 'x' returning password$$,
    $$insert into jetstream.connections (name, token) values ('mine', 'x')$$,
    $$insert into jetstream.connections (name) values ('mine') on conflict (name) do update set description = excluded.password || connections.password$$,
    $$delete from jetstream.connections where name = 'mine'$$,
    $$select * from jetstream.streams$$,
    $$select jetstream.create_stream('S', array['s'])$$,
    $$update jetstream.streams set subjects = array['t']$$,
    $$update jetstream.streams set sync_error = null$$,
    $$delete from jetstream.streams$$,
    $$select * from jetstream.positions$$,
    $$update jetstream.positions set last_sequence = 0$$,
    $$select * from jetstream.control$$,
    $$delete from jetstream.control$$,
    $$select jetstream.pause()$$,
    $$select jetstream.resume()$$,
    $$select jetstream.reload()$$,
    $$select jetstream.redrive_all()$$,
    $$select * from jetstream.status()$$,
    $$select jetstream.health()$$,
    $$select jetstream.outbox_lag()$$,
    $$select jetstream.history_maintain('1 day')$$,
    $$select last_value from jetstream.outbox_id_seq$$,
    $$create table jetstream.mine ()$$]))
select who, what, as_role(who, what) from statements cross join roles order by n, array_position(array['regress_nobody', 'regress_publisher', 'regress_reader', 'regress_admin', 'regress_worker'], who);
-- The rights of the owner are not lent to what a caller puts in the way.
create schema regress_trap;
grant all on schema regress_trap to public;
set role regress_admin;
set search_path = regress_trap, jetstream;
create function regress_trap.now() returns timestamptz language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
create function regress_trap.gen_random_uuid() returns uuid language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
create function regress_trap.format(text, text, text) returns text language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
select jetstream.pause(), jetstream.resume(), jetstream.redrive_all(), jetstream.outbox_lag() is null, jetstream.reload() is not null;
select count(*) from jetstream.status();
reset role;
reset search_path;
set client_min_messages = error;
drop schema regress_trap cascade;
drop function as_role;
truncate jetstream.outbox, jetstream.dead_letters, jetstream.history;
delete from jetstream.streams;
delete from jetstream.connections where name <> 'default';
drop role regress_nobody, regress_publisher, regress_reader, regress_admin, regress_worker;
