//! How the rows of one table are written: looked up once in a session, and anew when the table changes.

use std::cell::RefCell;
use std::rc::Rc;

use pgrx::pg_sys::Oid;
use pgrx::prelude::*;
use pgrx::spi::SpiResult;
use rustc_hash::FxHashMap;
use serde::Deserialize;

use super::head::{Format, Head};
use super::value::Value;
use super::{json, queue};
use crate::{pg, subject};

/// The argument of a capture trigger, as `jetstream.capture` writes it.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Shape of the body.
    pub format: Format,
    /// First tokens of the subject.
    pub prefix: String,
    /// Connection it goes to.
    pub connection: String,
    /// SQL condition on a row.
    pub condition: Option<String>,
    /// Begin and commit are published too.
    pub transactions: bool,
    /// Columns of the key; none: the primary key. Empty: the table is one order.
    pub key: Option<Vec<serde_json::Value>>,
    /// The trigger stands on a partition of the table that is captured.
    pub partition: bool,
}

/// A captured column.
pub struct Column {
    /// Place in the row, from 0.
    pub at: usize,
    /// Name of the column.
    pub name: String,
    /// `"name":`
    pub label: Vec<u8>,
    /// How it is written; its row holds it mutably.
    pub value: RefCell<Value>,
}

/// A column of the key.
pub struct KeyColumn {
    /// Place in the row, from 0.
    pub at: usize,
    /// Its text.
    pub value: RefCell<Value>,
}

/// How to write a table's rows.
pub struct Plan {
    /// The trigger's argument.
    pub config: Config,
    /// What all messages have in common.
    pub head: Head,
    /// The same as it is stored.
    pub head_text: String,
    /// Captured columns in the order of the table.
    pub columns: Vec<Column>,
    /// Columns of the key in its order; none if the table has no key or is one order.
    pub key: Vec<KeyColumn>,
    /// Changes of rows have a key, if one without values.
    pub keyed: bool,
    /// What the keys of messages begin with.
    pub key_prefix: String,
    /// Updates carry the whole row before.
    pub full_old: bool,
    /// How many columns a row must be taken apart to.
    pub width: usize,
    /// The text of some column depends on the session's time zone.
    pub zoned: bool,
    /// The columns as a relation message has them.
    pub described: String,
}

/// Of the table or, for a partition, of the captured table above it: its name and columns, with their places in the
/// row of `$1`. `$2` is the trigger's argument. Columns of a capture are known by number; by name after a restore,
/// when the numbers are others.
const LOOK_UP: &str = "
with arg as (select $2::jsonb as a),
root as (
    select coalesce((
        select t.tgrelid
        from arg cross join pg_catalog.pg_partition_ancestors($1) with ordinality as p (relid, n)
        join pg_catalog.pg_trigger t on t.tgrelid = p.relid
        join pg_catalog.pg_proc f on f.oid = t.tgfoid and f.proname = 'capture_changes'
            and f.pronamespace = 'jetstream'::pg_catalog.regnamespace
        where (a ->> 'partition')::boolean and p.relid <> $1
          and pg_catalog.strpos(pg_catalog.encode(t.tgargs, 'escape'), '\"partition\": false') > 0
        order by p.n limit 1), $1) as oid
),
named as (
    select k.list, k.n, a.attnum
    from arg cross join root cross join lateral (
        select 'columns' as list, c.v, c.n from jsonb_array_elements(nullif(a -> 'columns', 'null')) with ordinality c (v, n)
        union all
        select 'key', c.v, c.n from jsonb_array_elements(nullif(a -> 'key', 'null')) with ordinality c (v, n)) k
    join pg_catalog.pg_attribute a on a.attrelid = root.oid and not a.attisdropped and a.attnum > 0
        and case when (arg.a ->> 'table')::oid = root.oid then a.attnum = (k.v ->> 1)::smallint
                 else a.attname = k.v ->> 0 end
),
key as (
    select attnum, n from named where list = 'key'
    union all
    select k.attnum, k.n
    from arg cross join root cross join lateral (
        select i.indkey from pg_catalog.pg_index i join pg_catalog.pg_class r on r.oid = i.indrelid
        where i.indrelid = root.oid and i.indisvalid and (i.indisprimary or i.indisreplident and r.relreplident = 'i')
        order by i.indisprimary desc limit 1) i
    cross join lateral unnest(i.indkey::smallint[]) with ordinality k (attnum, n)
    where coalesce(a -> 'key', 'null') = 'null'
)
select n.nspname::text as schema, c.relname::text as name, c.oid as relation, c.relreplident::text as identity,
       pg_catalog.current_database()::text as database,
       a.attname::text as column, own.attnum::int as place, a.atttypid as type, key.n::int as key_place,
       pg_catalog.format_type(a.atttypid, a.atttypmod) as type_name,
       (coalesce(arg.a -> 'columns', 'null') = 'null' or exists (
           select from named where list = 'columns' and named.attnum = a.attnum)) as captured
from arg cross join root
join pg_catalog.pg_class c on c.oid = root.oid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    and a.attgenerated <> 'v'
left join pg_catalog.pg_attribute own on own.attrelid = $1 and own.attname = a.attname and not own.attisdropped
left join key on key.attnum = a.attnum
order by a.attnum";

impl Plan {
    /// Looks up a table; `argument` is the trigger's.
    pub fn look_up(relation: Oid, argument: &str) -> Result<Plan, String> {
        let config: Config = serde_json::from_str(argument).map_err(|e| format!("its trigger's argument: {e}"))?;
        let plan = Plan::read(relation, argument, config).map_err(|e| e.to_string())?;
        // Here, where the writer hears of it: the worker could not put such a message into the outbox. The longest
        // subject there is.
        for subject in [plan.head.subject("relation"), plan.head.transaction_subject("commit")] {
            subject::check(&subject).map_err(|e| e.to_string())?;
        }
        Ok(plan)
    }

    /// `schema.table`
    pub fn name(&self) -> String {
        format!("{}.{}", self.head.schema, self.head.table)
    }

    /// The key of what concerns the whole table: that of its rows, if the table is one order.
    pub fn whole(&self) -> Option<&'static [u8]> {
        (self.keyed && self.key.is_empty()).then_some(b"")
    }

    fn read(relation: Oid, argument: &str, config: Config) -> SpiResult<Plan> {
        Spi::connect_mut(|client| {
            let rows = client.update(LOOK_UP, None, &[relation.into(), argument.into()])?;
            let mut plan = Plan {
                head: Head {
                    format: config.format,
                    prefix: config.prefix.clone(),
                    database: String::new(),
                    schema: String::new(),
                    table: String::new(),
                    relation_id: 0,
                },
                config,
                head_text: String::new(),
                columns: Vec::new(),
                key: Vec::new(),
                keyed: false,
                key_prefix: String::new(),
                full_old: false,
                width: 0,
                zoned: false,
                described: String::new(),
            };
            let mut key = Vec::new();
            let mut described = Vec::new();
            for row in rows {
                let text = |name: &str| row.get_by_name::<String, _>(name).map(Option::unwrap_or_default);
                plan.head.schema = text("schema")?;
                plan.head.table = text("name")?;
                if plan.head.format.names_database() {
                    plan.head.database = text("database")?;
                }
                plan.head.relation_id = row.get_by_name::<Oid, _>("relation")?.map_or(0, Oid::to_u32);
                plan.full_old = text("identity")? == "f" || plan.head.format != Format::Pgoutput;
                let (Some(place), Some(oid)) =
                    (row.get_by_name::<i32, _>("place")?, row.get_by_name::<Oid, _>("type")?)
                else {
                    continue;
                };
                let at = place.max(1) as usize - 1;
                let name = text("column")?;
                let key_place = row.get_by_name::<i32, _>("key_place")?;
                if let Some(key_place) = key_place {
                    let value = Value::text(oid);
                    plan.zoned |= value.is_zoned();
                    let value = RefCell::new(value);
                    key.push((key_place, KeyColumn { at, value }));
                    plan.width = plan.width.max(at + 1);
                }
                if !row.get_by_name::<bool, _>("captured")?.unwrap_or(true) {
                    continue;
                }
                plan.width = plan.width.max(at + 1);
                described.push(format!(
                    "{{\"name\":{},\"type_id\":{},\"flags\":{},\"type\":{}}}",
                    json::quoted(&name),
                    oid.to_u32(),
                    u8::from(key_place.is_some()),
                    json::quoted(&text("type_name")?)
                ));
                let value = match plan.head.format {
                    Format::Pgoutput => Value::text(oid),
                    _ => Value::typed(oid),
                };
                plan.zoned |= value.is_zoned();
                plan.columns.push(Column {
                    at,
                    label: format!("{}:", json::quoted(&name)).into_bytes(),
                    name,
                    value: RefCell::new(value),
                });
            }
            key.sort_by_key(|(place, _)| *place);
            plan.key = key.into_iter().map(|(_, column)| column).collect();
            plan.keyed = !plan.key.is_empty() || plan.config.key.is_some();
            plan.key_prefix = plan.head.key_prefix();
            plan.head_text = plan.head.stored();
            plan.described = format!("[{}]", described.join(","));
            Ok(plan)
        })
    }
}

thread_local! {
    /// By trigger.
    static PLANS: RefCell<FxHashMap<u32, Rc<Plan>>> = RefCell::default();
    static WATCHING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The plan of a trigger's table.
pub fn of(trigger: Oid, relation: Oid, argument: impl FnOnce() -> String) -> Result<Rc<Plan>, String> {
    watch();
    if let Some(plan) = PLANS.with_borrow(|plans| plans.get(&trigger.to_u32()).cloned()) {
        return Ok(plan);
    }
    let plan = Rc::new(Plan::look_up(relation, &argument())?);
    PLANS.with_borrow_mut(|plans| plans.insert(trigger.to_u32(), plan.clone()));
    Ok(plan)
}

/// Makes any change of a table's definition forget the plans, which also depend on tables above and on types, and the
/// queue.
pub fn watch() {
    if WATCHING.replace(true) {
        return;
    }
    pg::at_definition_change(forget);
}

fn forget() {
    queue::forget();
    // While a plan is being looked up nothing is borrowed.
    PLANS.with(|plans| {
        if let Ok(mut plans) = plans.try_borrow_mut() {
            plans.clear();
        }
    });
}
