-- House rules of the schema. Each query lists what breaks one, so nothing is expected.
\pset format unaligned
\pset tuples_only on
-- Every table, view, index, column, function and type has a comment.
select c.relkind, c.relname from pg_class c
where c.relnamespace = 'jetstream'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'c') and not c.relispartition
  and obj_description(c.oid, 'pg_class') is null order by 2;
select c.relname from pg_class c
where c.relnamespace = 'jetstream'::regnamespace and c.relkind in ('i', 'I') and not c.relispartition
  and not exists (select from pg_constraint where conindid = c.oid) and obj_description(c.oid, 'pg_class') is null order by 1;
select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'jetstream'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
  and col_description(c.oid, a.attnum) is null order by 1, 2;
select p.oid::regprocedure from pg_proc p
where p.pronamespace = 'jetstream'::regnamespace and obj_description(p.oid, 'pg_proc') is null order by 1::text;
select t.typname from pg_type t where t.typnamespace = 'jetstream'::regnamespace and t.typtype in ('e', 'd')
  and obj_description(t.oid, 'pg_type') is null order by 1;
-- Every constraint has a name of its own: <table>_<what>, none that PostgreSQL made up. (Not null has none before 18.)
select conrelid::regclass, conname from pg_constraint
where connamespace = 'jetstream'::regnamespace and contype <> 'n'
  and (conname not like (select relname from pg_class where oid = conrelid) || '\_%' or conname ~ '_check[0-9]*$|_fkey[0-9]+$|_key[0-9]+$');
-- PUBLIC may nothing.
select p.oid::regprocedure from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
where p.pronamespace = 'jetstream'::regnamespace and a.grantee = 0 order by 1::text;
select c.relname, a.privilege_type from pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
where c.relnamespace = 'jetstream'::regnamespace and a.grantee = 0 and c.relkind not in ('i', 'I', 'c') order by 1, 2;
select c.relname, at.attname from pg_class c join pg_attribute at on at.attrelid = c.oid, aclexplode(at.attacl) a
where c.relnamespace = 'jetstream'::regnamespace and a.grantee = 0 order by 1, 2;
select a.privilege_type from pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
where n.nspname = 'jetstream' and a.grantee = 0;
-- Functions in SQL fix their search_path, temporary tables last.
select p.oid::regprocedure, p.proconfig from pg_proc p join pg_language l on l.oid = p.prolang
where p.pronamespace = 'jetstream'::regnamespace and (p.prosecdef or l.lanname <> 'c')
  and not exists (select from unnest(p.proconfig) s where s = 'search_path=pg_catalog, pg_temp') order by 1::text;
-- Constraints, defaults, generated columns, policies, triggers, views and indexes are bound to functions and operators of
-- PostgreSQL and of the extension alone.
select distinct pg_describe_object(d.classid, d.objid, d.objsubid), pg_describe_object(d.refclassid, d.refobjid, 0)
from pg_depend d
where d.refclassid in ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass, 'pg_opclass'::regclass)
  and d.refobjid >= 16384
  and (pg_identify_object(d.classid, d.objid, d.objsubid)).identity ~ '(^|[ (])jetstream\.'
  and not exists (select from pg_depend e join pg_extension x on x.oid = e.refobjid
                  where e.classid = d.refclassid and e.objid = d.refobjid and e.refclassid = 'pg_extension'::regclass
                    and e.deptype = 'e' and x.extname = 'pg_jetstream')
  -- Row types of the extension's own tables belong to these.
  and not exists (select from pg_type t join pg_class c on c.oid = t.typrelid
                  where d.refclassid = 'pg_type'::regclass and d.refobjid in (t.oid, t.typarray)
                    and c.relnamespace = 'jetstream'::regnamespace)
order by 1, 2;
-- With the schema on the search_path, no name hides one of PostgreSQL's own.
select 'function', p.oid::regprocedure::text from pg_proc p
where p.pronamespace = 'jetstream'::regnamespace
  and exists (select from pg_proc q where q.pronamespace = 'pg_catalog'::regnamespace and q.proname = p.proname)
union all
select 'relation', c.relname from pg_class c
where c.relnamespace = 'jetstream'::regnamespace and (c.relname like 'pg\_%' or exists (select from pg_class q
    where q.relnamespace in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) and q.relname = c.relname))
union all
select 'type', t.typname from pg_type t
where t.typnamespace = 'jetstream'::regnamespace
  and exists (select from pg_type q where q.typnamespace = 'pg_catalog'::regnamespace and q.typname = t.typname)
union all
select 'operator', o.oid::regoperator::text from pg_operator o where o.oprnamespace = 'jetstream'::regnamespace
order by 1, 2;
-- Everything belongs to the extension.
select c.relname from pg_class c
where c.relnamespace = 'jetstream'::regnamespace and c.relkind in ('r', 'p', 'v', 'S')
  and not exists (select from pg_depend d join pg_extension e on e.oid = d.refobjid
                  where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.refclassid = 'pg_extension'::regclass
                    and d.deptype = 'e' and e.extname = 'pg_jetstream')
  and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i') order by 1;
-- What a dump carries
select c::regclass::text from pg_extension, unnest(extconfig) c where extname = 'pg_jetstream'
  and c::regclass::text !~ 'webhook|consumers' order by 1;
-- The order of columns the claim relies on: an id is never older than its transaction id.
select (select attnum from pg_attribute where attrelid = 'jetstream.outbox'::regclass and attname = 'txid')
     < (select attnum from pg_attribute where attrelid = 'jetstream.outbox'::regclass and attname = 'id');
