-- The extension goes without a trace but its roles, and comes again.
\pset format unaligned
\pset tuples_only on
set client_min_messages = error;
drop extension pg_jetstream;
select count(*) from pg_class where relnamespace = 'jetstream'::regnamespace;
drop schema if exists jetstream;
create extension pg_jetstream;
select name, url from jetstream.connections;
select rolname, rolcanlogin, rolsuper from pg_roles where rolname like 'jetstream\_%' order by 1;
drop extension pg_jetstream;
