//! Reads schema `jetstream` from the catalog.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Lab;

/// Everything the page describes.
pub(super) struct Catalog {
    pub functions: Vec<Function>,
    pub relations: Vec<Relation>,
    pub settings: Vec<Setting>,
    pub raised: Vec<Raised>,
}

#[derive(Deserialize)]
pub(super) struct Function {
    pub name: String,
    pub identity: String,
    pub returns: String,
    pub trigger: bool,
    pub comment: Option<String>,
    pub arguments: Vec<Argument>,
    /// Roles that may execute the function.
    pub roles: Vec<String>,
}

/// An argument, or a column of the result.
#[derive(Deserialize)]
pub(super) struct Argument {
    pub name: Option<String>,
    pub kind: String,
    pub mode: String,
    pub default: Option<String>,
}

/// A table or a view.
#[derive(Deserialize)]
pub(super) struct Relation {
    pub name: String,
    pub kind: String,
    pub comment: Option<String>,
    pub columns: Vec<Column>,
    pub constraints: Vec<Constraint>,
    pub grants: Vec<Grant>,
}

#[derive(Deserialize)]
pub(super) struct Column {
    pub name: String,
    pub kind: String,
    pub default: Option<String>,
    pub required: bool,
    pub comment: Option<String>,
}

/// A constraint as PostgreSQL prints it.
#[derive(Deserialize)]
pub(super) struct Constraint {
    pub name: String,
    pub definition: String,
}

/// A privilege of a role, on some columns or on all.
#[derive(Deserialize)]
pub(super) struct Grant {
    pub role: String,
    pub right: String,
    pub columns: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub(super) struct Setting {
    pub name: String,
    pub about: String,
    pub default: String,
    pub unit: Option<String>,
    pub least: Option<String>,
    pub most: Option<String>,
    pub values: Option<Vec<String>>,
    pub context: String,
}

/// An error that a PL/pgSQL function raises.
#[derive(Deserialize)]
pub(super) struct Raised {
    pub function: String,
    pub message: String,
    pub condition: String,
}

const FUNCTIONS: &str = "
select p.proname as name, pg_get_function_identity_arguments(p.oid) as identity, pg_get_function_result(p.oid) as returns,
       p.prorettype in ('trigger'::regtype, 'event_trigger'::regtype) as trigger,
       obj_description(p.oid, 'pg_proc') as comment,
       coalesce((select jsonb_agg(jsonb_build_object('name', nullif(a.name, ''), 'kind', format_type(a.type, null),
               'mode', coalesce(a.mode, 'i'),
               'default', case when coalesce(a.mode, 'i') in ('i', 'b') then pg_get_function_arg_default(p.oid, a.n::integer) end)
               order by a.n)
           from rows from (unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])), unnest(p.proargnames), unnest(p.proargmodes))
               with ordinality as a (type, name, mode, n)), '[]') as arguments,
       array(select r.rolname from pg_roles r where r.rolname like 'jetstream\\_%' and has_function_privilege(r.oid, p.oid, 'execute')
             order by r.rolname) as roles
from pg_proc p where p.pronamespace = 'jetstream'::regnamespace order by p.proname, 2";

const RELATIONS: &str = "
select c.relname as name, c.relkind as kind, obj_description(c.oid, 'pg_class') as comment,
       (select jsonb_agg(jsonb_build_object('name', a.attname, 'kind', format_type(a.atttypid, a.atttypmod),
               'default', case when a.attidentity <> '' then 'identity' else pg_get_expr(d.adbin, d.adrelid) end,
               'required', a.attnotnull, 'comment', col_description(c.oid, a.attnum)) order by a.attnum)
           from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
           where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
       coalesce((select jsonb_agg(jsonb_build_object('name', k.conname, 'definition', pg_get_constraintdef(k.oid))
               order by k.contype <> 'p', k.conname)
           from pg_constraint k where k.conrelid = c.oid and k.contype <> 'n'), '[]') as constraints,
       coalesce((select jsonb_agg(to_jsonb(g) order by g.role, g.right) from (
           select r.rolname as role, lower(x.privilege_type) as right, null::text[] as columns
           from aclexplode(c.relacl) x join pg_roles r on r.oid = x.grantee where r.rolname like 'jetstream\\_%'
           union all
           select r.rolname, lower(x.privilege_type), array_agg(a.attname::text order by a.attnum)
           from pg_attribute a, aclexplode(a.attacl) x join pg_roles r on r.oid = x.grantee
           where a.attrelid = c.oid and r.rolname like 'jetstream\\_%' group by 1, 2) g), '[]') as grants
from pg_class c
where c.relnamespace = 'jetstream'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') and not c.relispartition
order by c.relname";

const SETTINGS: &str = "
select name, short_desc as about, case vartype when 'string' then boot_val else current_setting(name) end as default, unit,
       min_val as least, max_val as most, enumvals as values, context
from pg_settings where name like 'pg\\_jetstream.%' or name like 'jetstream.%' order by context <> 'sighup', name";

const RAISED: &str = "
select p.proname as function, replace(m[1], '''''', '''') as message, m[2] as condition
from pg_proc p, regexp_matches(p.prosrc, 'raise exception ''((?:[^'']|'''')*)''[^;]*?errcode = ''(\\w+)''', 'g') m
where p.pronamespace = 'jetstream'::regnamespace
union
select p.proname, replace(m[1], '''''', ''''), 'raise_exception'
from pg_proc p, regexp_matches(p.prosrc, 'raise exception ''((?:[^'']|'''')*)''([^;]*);', 'g') m
where p.pronamespace = 'jetstream'::regnamespace and m[2] !~ 'errcode' order by 1, 2";

fn rows<T: DeserializeOwned>(lab: &Lab, query: &str) -> Result<Vec<T>> {
    let json = lab.value(&format!(
        "select coalesce(jsonb_agg(to_jsonb(q)), '[]') from ({query}) q"
    ))?;
    serde_json::from_str(&json).with_context(|| format!("in {query}"))
}

pub(super) fn read(lab: &Lab) -> Result<Catalog> {
    Ok(Catalog {
        functions: rows(lab, FUNCTIONS)?,
        relations: rows(lab, RELATIONS)?,
        settings: rows(lab, SETTINGS)?,
        raised: rows(lab, RAISED)?,
    })
}

/// Functions that roles may execute because those they call need it, not to be called.
const USED_BY_OTHERS: [&str; 20] = [
    "capture_analyze",
    "capture_argument",
    "capture_changes",
    "capture_check_condition",
    "capture_check_connection",
    "capture_check_options",
    "capture_columns",
    "capture_drop_triggers",
    "capture_enable",
    "capture_is_root",
    "capture_may_restore",
    "capture_members",
    "capture_must_own",
    "capture_partitions",
    "capture_remove",
    "capture_stream",
    "capture_triggers",
    "capture_watch",
    "check_connection",
    "connection_exists",
];

/// Begins the line of a function's comment that names the tables whose columns explain its arguments.
const AS_COLUMNS: &str = "Arguments as the columns of ";

impl Function {
    /// Whether users call the function, rather than only other functions or the worker.
    pub fn is_called(&self) -> bool {
        !self.roles.is_empty() && !self.trigger && !USED_BY_OTHERS.contains(&self.name.as_str())
    }

    /// The comment without the lines that explain arguments.
    pub fn about(&self) -> String {
        let explains = |line: &&str| !line.starts_with(AS_COLUMNS) && self.own_line(line).is_none();
        let comment = self.comment.as_deref().unwrap_or_default();
        comment.lines().filter(explains).collect::<Vec<_>>().join("\n")
    }

    /// The argument that a line of the comment explains, and the explanation.
    fn own_line<'a>(&self, line: &'a str) -> Option<(&'a str, &'a str)> {
        let (name, meaning) = line.split_once(": ")?;
        let known = |argument: &Argument| argument.name.as_deref() == Some(name);
        self.arguments.iter().any(known).then_some((name, meaning))
    }
}

impl Catalog {
    /// The meaning of an argument or result column. It comes from the function's comment, or else from the column of
    /// the same name in a table that the comment refers to.
    pub fn meaning(&self, function: &Function, argument: &str) -> Option<String> {
        let comment = function.comment.as_deref()?;
        let own = comment.lines().filter_map(|line| function.own_line(line));
        if let Some((_, meaning)) = own.into_iter().find(|(name, _)| *name == argument) {
            return Some(meaning.to_owned());
        }
        let tables = comment.lines().find_map(|line| line.strip_prefix(AS_COLUMNS))?;
        let column = argument.strip_prefix("p_").unwrap_or(argument);
        tables.split(", ").find_map(|table| {
            let name = table.trim().strip_prefix("jetstream.")?;
            let relation = self.relations.iter().find(|relation| relation.name == name)?;
            let column = relation.columns.iter().find(|known| known.name == column)?;
            column.comment.clone()
        })
    }

    /// Objects, columns and arguments without a comment.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for function in &self.functions {
            let name = format!("function jetstream.{}({})", function.name, function.identity);
            if function.comment.is_none() {
                missing.push(name.clone());
            }
            for argument in function.arguments.iter().filter(|_| function.is_called()) {
                let argument = argument.name.as_deref().unwrap_or("an argument without a name");
                if self.meaning(function, argument).is_none() {
                    missing.push(format!("{name}: {argument}"));
                }
            }
        }
        for relation in &self.relations {
            if relation.comment.is_none() {
                missing.push(format!("jetstream.{}", relation.name));
            }
            let columns = relation.columns.iter().filter(|column| column.comment.is_none());
            missing.extend(columns.map(|column| format!("jetstream.{}.{}", relation.name, column.name)));
        }
        let names: BTreeMap<&str, ()> = self
            .functions
            .iter()
            .map(|function| (function.name.as_str(), ()))
            .collect();
        let stale = USED_BY_OTHERS.iter().filter(|name| !names.contains_key(*name));
        missing.extend(stale.map(|name| format!("{name} is in USED_BY_OTHERS but is not a function")));
        missing
    }
}
