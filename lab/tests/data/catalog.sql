-- Every member of the extension as one reads it back from the catalogs, a line each; but for the partitions that the
-- worker makes, which have the names of days.
with member as (
    select d.classid, d.objid, i.type, i.identity
    from pg_depend d
    join pg_extension e on e.oid = d.refobjid and d.refclassid = 'pg_extension'::regclass
    cross join lateral pg_identify_object(d.classid, d.objid, 0) i
    where d.deptype = 'e' and e.extname = 'pg_jetstream'
      and not exists (select from pg_class c
                      where d.classid = 'pg_class'::regclass and c.oid = d.objid and c.relispartition)
), relation as (
    select c.*, m.identity from member m join pg_class c on m.classid = 'pg_class'::regclass and c.oid = m.objid
), rights as (
    select identity, relacl as acl from relation
    union all
    select r.identity || '.' || a.attname, a.attacl from relation r join pg_attribute a on a.attrelid = r.oid
    union all
    select m.identity, p.proacl from member m join pg_proc p on m.classid = 'pg_proc'::regclass and p.oid = m.objid
)
select concat_ws(' ', m.type, m.identity, obj_description(m.objid, c.relname))
from member m join pg_class c on c.oid = m.classid
union all
select concat_ws(' ', 'column', r.identity, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
                 a.attgenerated, pg_get_expr(d.adbin, d.adrelid), col_description(r.oid, a.attnum))
from relation r
join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = r.oid and d.adnum = a.attnum
union all
select concat_ws(' ', 'constraint', r.identity, k.conname, pg_get_constraintdef(k.oid))
from relation r join pg_constraint k on k.conrelid = r.oid
union all
select concat_ws(' ', 'index', r.identity, pg_get_indexdef(x.indexrelid))
from relation r join pg_index x on x.indrelid = r.oid
union all
select concat_ws(' ', 'trigger', r.identity, t.tgenabled, pg_get_triggerdef(t.oid))
from relation r join pg_trigger t on t.tgrelid = r.oid and not t.tgisinternal
union all
select concat_ws(' ', 'view', r.identity, pg_get_viewdef(r.oid)) from relation r where r.relkind = 'v'
union all
select concat_ws(' ', 'options', r.identity, r.relkind, r.relrowsecurity, r.reloptions::text) from relation r
union all
select concat_ws(' ', 'function', m.identity, pg_get_functiondef(m.objid))
from member m join pg_proc p on m.classid = 'pg_proc'::regclass and p.oid = m.objid and p.prokind in ('f', 'p')
union all
select concat_ws(' ', 'right', r.identity, a.grantee::regrole, a.privilege_type, a.is_grantable)
from rights r cross join lateral aclexplode(r.acl) a
union all
select concat_ws(' ', 'dumped', c.oid::regclass, d.condition)
from pg_extension e
cross join lateral unnest(e.extconfig, e.extcondition) d (oid, condition)
join pg_class c on c.oid = d.oid
where e.extname = 'pg_jetstream' and not c.relispartition
order by 1
