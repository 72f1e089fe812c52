//! From the transition tables of a trigger to changes.

use std::cell::Cell;
use std::rc::Rc;

use pgrx::pg_sys::TriggerData;

use super::batch::{Change, Op};
use super::head::Format;
use super::plan::Plan;
use super::{KEPT, Statement, condition, json, settings, truncate};
use crate::pg::rows::{Memory, Row, Transition};
use crate::pg::trigger;

/// Captures what the statement did; false if that was nothing.
pub fn capture(plan: &Rc<Plan>, data: &TriggerData) -> bool {
    if trigger::truncates(data) {
        return truncate::capture(plan, data);
    }
    let mut old = Transition::old(data);
    let mut new = Transition::new(data);
    let first = (
        old.as_mut().is_some_and(|rows| rows.next(plan.width)),
        new.as_mut().is_some_and(|rows| rows.next(plan.width)),
    );
    if !first.0 && !first.1 {
        return false;
    }
    truncate::forget();
    let settings = settings::fix(
        plan.zoned || plan.config.condition.is_some(),
        plan.config.condition.is_some(),
    );
    let wanted = Wanted::of(plan, data);
    let mut memory = Memory::of_rows();
    let mut statement = Statement::new(plan.clone());
    let mut texts = TEXTS.take();
    let mut number = 0;
    loop {
        let (before, after) = (old.as_ref().map(Transition::row), new.as_ref().map(Transition::row));
        memory.run(|| one(&mut statement, &mut texts, &wanted, number, before, after));
        number += 1;
        let more_old = old.as_mut().is_some_and(|rows| rows.next(plan.width));
        let more_new = new.as_mut().is_some_and(|rows| rows.next(plan.width));
        if !more_old && !more_new {
            break;
        }
        pgrx::check_for_interrupts!();
    }
    statement.end();
    texts.keep();
    settings.undo();
    true
}

thread_local! {
    /// With the room that the last statement had made.
    static TEXTS: Cell<Texts> = Cell::default();
}

/// What a row's texts are put together in, again and again.
#[derive(Default)]
pub(super) struct Texts {
    pub(super) old: Vec<u8>,
    new: Vec<u8>,
    pub(super) old_key: Vec<u8>,
    new_key: Vec<u8>,
    changed: Vec<u8>,
}

impl Texts {
    /// Keeps the room for the next statement of the session.
    fn keep(self) {
        let all = [&self.old, &self.new, &self.old_key, &self.new_key, &self.changed];
        if all.iter().all(|text| text.capacity() <= KEPT) {
            TEXTS.set(self);
        }
    }
}

fn one(
    statement: &mut Statement,
    texts: &mut Texts,
    wanted: &Wanted,
    number: usize,
    old: Option<&Row>,
    new: Option<&Row>,
) {
    let plan = statement.plan.clone();
    let old = old.filter(|_| wanted.before(number));
    let new = new.filter(|_| wanted.after(number));
    if let Some(row) = old {
        key(row, &plan, &mut texts.old_key);
    }
    if let Some(row) = new {
        key(row, &plan, &mut texts.new_key);
    }
    let stays = old.is_some() && new.is_some() && texts.old_key == texts.new_key;
    if let Some(row) = new {
        object(row, &plan, &mut texts.new);
    }
    if let Some(row) = old
        && (!stays || plan.full_old)
    {
        object(row, &plan, &mut texts.old);
    }
    if stays {
        let typed = plan.head.format == Format::Row || plan.head.format == Format::Cloudevents;
        if typed && let (Some(old), Some(new)) = (old, new) {
            changed(&plan, old, new, &mut texts.changed);
        }
        statement.add(&Change {
            op: Op::Update,
            key: plan.keyed.then_some(&texts.new_key),
            old: plan.full_old.then_some(&texts.old),
            new: Some(&texts.new),
            changed: typed.then_some(&texts.changed),
        });
        return;
    }
    // An update of the key is the end of one row and the beginning of another: each has its place in the order of its
    // own key.
    if old.is_some() {
        statement.add(&Change {
            key: plan.keyed.then_some(&texts.old_key),
            old: Some(&texts.old),
            ..Change::bare(Op::Delete)
        });
    }
    if new.is_some() {
        statement.add(&Change {
            key: plan.keyed.then_some(&texts.new_key),
            new: Some(&texts.new),
            ..Change::bare(Op::Insert)
        });
    }
}

/// Names of the columns whose values differ, as a JSON array.
fn changed(plan: &Plan, old: &Row, new: &Row, out: &mut Vec<u8>) {
    out.clear();
    out.push(b'[');
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for column in &plan.columns {
        before.clear();
        after.clear();
        let mut value = column.value.borrow_mut();
        if let Some(field) = old.field(column.at) {
            value.write(&mut before, field);
        }
        if let Some(field) = new.field(column.at) {
            value.write(&mut after, field);
        }
        if before != after {
            if out.len() > 1 {
                out.push(b',');
            }
            json::string(out, column.name.as_bytes());
        }
    }
    out.push(b']');
}

/// The row as a JSON object.
pub(super) fn object(row: &Row, plan: &Plan, out: &mut Vec<u8>) {
    out.clear();
    out.push(b'{');
    for (n, column) in plan.columns.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&column.label);
        match row.field(column.at) {
            Some(value) => column.value.borrow_mut().write(out, value),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
}

/// The key of a row within its table: the values as JSON strings.
pub(super) fn key(row: &Row, plan: &Plan, out: &mut Vec<u8>) {
    const LONG: usize = 512;
    out.clear();
    for (n, column) in plan.key.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        match row.field(column.at) {
            Some(value) => column.value.borrow_mut().write(out, value),
            None => out.extend_from_slice(b"null"),
        }
    }
    // An index takes a third of a page at most. Keys that share their hash share their order, which is no harm.
    if plan.key_prefix.len() + out.len() > LONG {
        let all = plan.key_prefix.bytes().chain(out.iter().copied());
        let hash = all.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        out.clear();
        out.extend_from_slice(format!("#{hash:016x}").as_bytes());
    }
}

/// Which rows the condition wants; all if there is none.
struct Wanted {
    old: Option<Vec<bool>>,
    new: Option<Vec<bool>>,
}

impl Wanted {
    fn of(plan: &Plan, data: &TriggerData) -> Wanted {
        let Some(condition) = &plan.config.condition else {
            return Wanted { old: None, new: None };
        };
        let judge = |there: bool, name: &str| there.then(|| condition::judge(&plan.name(), condition, data, name));
        Wanted {
            old: judge(!data.tg_oldtable.is_null(), "old_rows"),
            new: judge(!data.tg_newtable.is_null(), "new_rows"),
        }
    }

    fn before(&self, number: usize) -> bool {
        self.old.as_ref().is_none_or(|wanted| wanted.get(number) == Some(&true))
    }

    fn after(&self, number: usize) -> bool {
        self.new.as_ref().is_none_or(|wanted| wanted.get(number) == Some(&true))
    }
}
