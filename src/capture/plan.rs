//! How the rows of one table are written: looked up once in a session, and anew when the table changes.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys::{Oid, TriggerData};
use rustc_hash::FxHashMap;
use serde::Deserialize;

use super::head::{Format, Head};
use super::settings::{self, Needs};
use super::value::Value;
use super::{json, queue};
use crate::pg::trigger;
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
    /// Its type.
    pub kind: Oid,
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
    /// Its type.
    pub kind: Oid,
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
    /// What the text of some column depends on.
    pub needs: Needs,
    /// The columns as a relation message has them.
    pub described: String,
}

/// Of the table or, for a partition, of the captured table above it: its name and columns, with their places in the
/// row of `$1`. `$2` is the trigger's argument. Columns of a capture are known by number; by name after a restore,
/// when the numbers are others. It is read by what the catalogs say at this moment, as the rows at hand are of the
/// table's present definition, and with the system's own functions and operators alone.
const LOOK_UP_SQL: &CStr = c"
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
        select i.indkey, i.indnkeyatts from pg_catalog.pg_index i join pg_catalog.pg_class r on r.oid = i.indrelid
        where i.indrelid = root.oid and i.indisvalid and (i.indisprimary or i.indisreplident and r.relreplident = 'i')
        order by i.indisprimary desc limit 1) i
    cross join lateral unnest(i.indkey::smallint[]) with ordinality k (attnum, n)
    where coalesce(a -> 'key', 'null') = 'null' and k.n <= i.indnkeyatts
)
select jsonb_build_object('schema', n.nspname, 'name', c.relname, 'relation', c.oid::bigint, 'identity', c.relreplident,
           'database', current_database(), 'columns', coalesce(jsonb_agg(jsonb_build_object(
               'name', a.attname, 'place', own.attnum, 'kind', a.atttypid::bigint, 'key_place', key.n,
               'type_name', format_type(a.atttypid, a.atttypmod),
               'captured', coalesce(arg.a -> 'columns', 'null') = 'null' or exists (
                   select from named where list = 'columns' and named.attnum = a.attnum)) order by a.attnum)
               filter (where own.attnum is not null), '[]'))
from arg cross join root
join pg_catalog.pg_class c on c.oid = root.oid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    and a.attgenerated <> 'v'
left join pg_catalog.pg_attribute own on own.attrelid = $1 and own.attname = a.attname and not own.attisdropped
left join key on key.attnum = a.attnum
group by n.nspname, c.relname, c.oid, c.relreplident";

thread_local! {
    static LOOK_UP: pg::Lookup = const { pg::Lookup::new(LOOK_UP_SQL) };
}

/// What [`LOOK_UP_SQL`] returns.
#[derive(Deserialize)]
struct Found {
    schema: String,
    name: String,
    relation: u32,
    identity: String,
    database: String,
    columns: Vec<FoundColumn>,
}

#[derive(Deserialize)]
struct FoundColumn {
    name: String,
    /// From 1.
    place: usize,
    kind: u32,
    key_place: Option<i64>,
    type_name: String,
    captured: bool,
}

impl Plan {
    /// Looks up a table; `argument` is the trigger's.
    pub fn look_up(relation: Oid, argument: &str) -> Result<Plan, String> {
        let config: Config = serde_json::from_str(argument).map_err(|e| format!("its trigger's argument: {e}"))?;
        let settings = settings::fix(Needs::PATH);
        let found = LOOK_UP.with(|query| query.latest(relation, argument));
        settings.undo();
        let found = found.ok_or("there is no such table")?;
        let found = serde_json::from_str(&found).map_err(|e| format!("its definition: {e}"))?;
        let plan = Plan::of(config, found);
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

    /// Whether the columns of the trigger's table are those that are planned for.
    fn fits(&self, data: &TriggerData) -> bool {
        let columns = self.columns.iter().map(|column| (column.at, column.kind));
        let key = self.key.iter().map(|column| (column.at, column.kind));
        trigger::has_columns(data, columns.chain(key))
    }

    fn of(config: Config, found: Found) -> Plan {
        let format = config.format;
        let head = Head {
            format,
            prefix: config.prefix.clone(),
            database: if format.names_database() {
                found.database
            } else {
                String::new()
            },
            schema: found.schema,
            table: found.name,
            relation_id: found.relation,
        };
        let (mut columns, mut key, mut described) = (Vec::new(), Vec::new(), Vec::new());
        let (mut width, mut needs) = (0, Needs::default());
        for column in found.columns {
            let (at, kind) = (column.place.max(1) - 1, Oid::from(column.kind));
            let mut planned = |value: Value| {
                width = width.max(at + 1);
                needs = needs.and(value.needs());
                RefCell::new(value)
            };
            if let Some(place) = column.key_place {
                let value = planned(Value::text(kind));
                key.push((place, KeyColumn { at, kind, value }));
            }
            if !column.captured {
                continue;
            }
            described.push(format!(
                "{{\"name\":{},\"type_id\":{},\"flags\":{},\"type\":{}}}",
                json::quoted(&column.name),
                column.kind,
                u8::from(column.key_place.is_some()),
                json::quoted(&column.type_name)
            ));
            columns.push(Column {
                at,
                kind,
                label: format!("{}:", json::quoted(&column.name)).into_bytes(),
                name: column.name,
                value: planned(match format {
                    Format::Pgoutput => Value::text(kind),
                    _ => Value::typed(kind),
                }),
            });
        }
        key.sort_by_key(|(place, _)| *place);
        let key: Vec<_> = key.into_iter().map(|(_, column)| column).collect();
        Plan {
            head_text: head.stored(),
            key_prefix: head.key_prefix(),
            head,
            keyed: !key.is_empty() || config.key.is_some(),
            config,
            columns,
            key,
            full_old: found.identity == "f" || format != Format::Pgoutput,
            width,
            needs,
            described: format!("[{}]", described.join(",")),
        }
    }
}

thread_local! {
    /// By trigger.
    static PLANS: RefCell<FxHashMap<u32, Rc<Plan>>> = RefCell::default();
    static WATCHING: Cell<bool> = const { Cell::new(false) };
    /// How often the plans were forgotten.
    static FORGOTTEN: Cell<u64> = const { Cell::new(0) };
}

/// The plan of a trigger's table.
pub fn of(trigger: Oid, data: &TriggerData, argument: impl FnOnce() -> String) -> Result<Rc<Plan>, String> {
    watch();
    let known = PLANS.with_borrow(|plans| plans.get(&trigger.to_u32()).cloned());
    // No row is read as what it is not, even if a change of the table went unheard.
    if let Some(plan) = known.filter(|plan| plan.fits(data)) {
        return Ok(plan);
    }
    let forgotten = FORGOTTEN.get();
    let plan = Rc::new(Plan::look_up(trigger::relation(data), &argument())?);
    if !plan.fits(data) {
        return Err("its columns are not those that the catalogs tell of".to_owned());
    }
    if forgotten == FORGOTTEN.get() {
        PLANS.with_borrow_mut(|plans| plans.insert(trigger.to_u32(), plan.clone()));
    }
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
    FORGOTTEN.set(FORGOTTEN.get().wrapping_add(1));
    // While a plan is being looked up nothing is borrowed.
    PLANS.with(|plans| {
        if let Ok(mut plans) = plans.try_borrow_mut() {
            plans.clear();
        }
    });
}
