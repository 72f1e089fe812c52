-- Who may do what with every object: each of the five roles, and one that can connect and nothing else. A new object adds its
-- line here; what has no role behind it is for the owner alone.
\pset format unaligned
\pset tuples_only on
create role regress_connect;
create temporary table roles (n serial, role name);
insert into roles (role) values ('jetstream_publisher'), ('jetstream_reader'), ('jetstream_admin'), ('jetstream_worker'),
    ('jetstream_webhook_worker'), ('regress_connect');
-- The schema
select r.role, has_schema_privilege(r.role, 'jetstream', 'usage'), has_schema_privilege(r.role, 'jetstream', 'create')
from roles r order by r.n;
-- Functions: who can execute them
select p.oid::regprocedure::text || ': ' || coalesce((
    select string_agg(replace(r.role, 'jetstream_', ''), ', ' order by r.n) from roles r
    where has_function_privilege(r.role, p.oid, 'execute')), '')
from pg_proc p where p.pronamespace = 'jetstream'::regnamespace order by p.oid::regprocedure::text collate "C";
-- Tables, views and sequences: rights on the whole of them
select c.relname || ': ' || coalesce((
    select string_agg(format('%s %s', replace(r.role, 'jetstream_', ''), granted.privileges), ', ' order by r.n)
    from roles r cross join lateral (
        select string_agg(p, '/' order by n) as privileges
        from unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) with ordinality as x (p, n)
        where case when c.relkind = 'S' then p in ('select', 'update') and has_sequence_privilege(r.role, c.oid, p)
                   else has_table_privilege(r.role, c.oid, p) end) granted
    where granted.privileges is not null), '')
from pg_class c where c.relnamespace = 'jetstream'::regnamespace and c.relkind in ('r', 'p', 'v', 'S') and not c.relispartition
order by c.relname collate "C";
-- Columns: rights on some of them alone
select format('%s %s %s: %s', c.relname, replace(r.role, 'jetstream_', ''), p.privilege,
              string_agg(a.attname, ', ' order by a.attnum))
from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
cross join roles r cross join unnest(array['select', 'insert', 'update', 'references']) as p (privilege)
where c.relnamespace = 'jetstream'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
  and has_column_privilege(r.role, c.oid, a.attnum, p.privilege) and not has_table_privilege(r.role, c.oid, p.privilege)
group by c.relname, r.role, r.n, p.privilege order by c.relname collate "C", r.n, p.privilege;
-- Secrets: who can read them, by whatever right. The worker alone reads those it logs in with.
select format('%s.%s: %s', c.relname, a.attname, (
    select string_agg(r.role, ', ' order by r.n) from roles r where has_column_privilege(r.role, c.oid, a.attnum, 'select')))
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'jetstream'::regnamespace and col_description(c.oid, a.attnum) like 'Secret%' order by 1;
-- Bodies and headers: neither those who publish nor those who look at figures.
select c.relname, a.attname, r.role
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
cross join roles r
where c.relnamespace = 'jetstream'::regnamespace and c.relkind in ('r', 'p', 'v')
  and a.attname in ('payload', 'raw', 'headers', 'body', 'response_body')
  and r.role in ('jetstream_publisher', 'jetstream_reader', 'regress_connect')
  and has_column_privilege(r.role, c.oid, a.attnum, 'select') order by 1, 2, 3;
-- One that can connect: nothing at all, also in what it may see of others' rights.
set role regress_connect;
select count(*) from information_schema.role_table_grants where table_schema = 'jetstream';
select count(*) from information_schema.columns where table_schema = 'jetstream';
select count(*) from pg_stats where schemaname = 'jetstream';
reset role;
drop role regress_connect;
