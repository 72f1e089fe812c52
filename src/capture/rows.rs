//! From the transition tables of a trigger to changes.

use std::cell::Cell;
use std::rc::Rc;

use pgrx::pg_sys::TriggerData;

use super::batch::{Change, Op};
use super::head::Format;
use super::plan::Plan;
use super::settings::Needs;
use super::{KEPT, Statement, condition, json, settings, truncate};
use crate::pg::rows::{Memory, Row, Transition};
use crate::pg::trigger;

/// Captures what the statement did; false if that was nothing.
pub fn capture(plan: &Rc<Plan>, data: &TriggerData) -> bool {
    if trigger::truncates(data) {
        return truncate::capture(plan, data);
    }
    let some = changes(plan, data);
    if some {
        truncate::forget();
    }
    some
}

/// Captures what the transition tables hold; false if that is nothing.
pub(super) fn changes(plan: &Rc<Plan>, data: &TriggerData) -> bool {
    let mut old = Transition::old(data);
    let mut new = Transition::new(data);
    let count = |rows: &Option<Transition>| rows.as_ref().map_or(0, Transition::count);
    if count(&old) + count(&new) == 0 {
        return false;
    }
    let settings = settings::fix(match plan.config.condition {
        Some(_) => Needs::ALL,
        None => plan.needs,
    });
    let mut writer = Writer {
        wanted: Wanted::of(plan, data),
        statement: Statement::new(plan.clone(), Some(data)),
        texts: TEXTS.take(),
        plan,
    };
    match (&mut old, &mut new) {
        (Some(old), Some(new)) if old.count() == new.count() => writer.pairs(old, new),
        // Of an update, a row that was to move to a partition whose triggers refused it is gone.
        (old, new) => {
            old.iter_mut().for_each(|old| writer.each(old, Writer::leaves));
            new.iter_mut().for_each(|new| writer.each(new, Writer::comes));
        }
    }
    writer.statement.end();
    writer.texts.keep();
    settings.undo();
    true
}

thread_local! {
    /// With the room that the last statement had made.
    static TEXTS: Cell<Texts> = Cell::default();
}

/// What a row's texts are put together in, again and again.
#[derive(Default)]
struct Texts {
    old: Vec<u8>,
    new: Vec<u8>,
    old_key: Vec<u8>,
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

/// Writes the rows of one statement.
struct Writer<'a> {
    plan: &'a Plan,
    statement: Statement,
    texts: Texts,
    wanted: Wanted,
}

impl Writer<'_> {
    /// Rows that were updated, before and after. What leaves a key or the condition is told before what comes to it: two
    /// rows may have exchanged their keys.
    fn pairs(&mut self, old: &mut Transition, new: &mut Transition) {
        let mut some_come = false;
        self.each_pair(old, new, |writer, number, old, new| {
            if writer.stays(number, old, new) {
                writer.update(old, new);
            } else {
                writer.leaves(number, old);
                some_come |= writer.wanted.after(number);
            }
        });
        if some_come {
            old.restart();
            new.restart();
            self.each_pair(old, new, |writer, number, old, new| {
                if !writer.stays(number, old, new) {
                    writer.comes(number, new);
                }
            });
        }
    }

    /// Calls `write` with the number of each pair of rows and with both.
    fn each_pair(
        &mut self,
        old: &mut Transition,
        new: &mut Transition,
        mut write: impl FnMut(&mut Self, usize, &Row, &Row),
    ) {
        let (width, mut memory, mut number) = (self.plan.width, Memory::of_rows(), 0);
        while old.next(width) && new.next(width) {
            memory.run(|| write(self, number, old.row(), new.row()));
            number += 1;
            pgrx::check_for_interrupts!();
        }
    }

    /// Calls `write` with the number of each row and with the row.
    fn each(&mut self, rows: &mut Transition, write: fn(&mut Self, usize, &Row)) {
        let (width, mut memory, mut number) = (self.plan.width, Memory::of_rows(), 0);
        while rows.next(width) {
            memory.run(|| write(self, number, rows.row()));
            number += 1;
            pgrx::check_for_interrupts!();
        }
    }

    /// Whether the row is wanted before and after, and of the same key, which is left in `new_key`.
    fn stays(&mut self, number: usize, old: &Row, new: &Row) -> bool {
        if !self.wanted.before(number) || !self.wanted.after(number) {
            return false;
        }
        key(old, self.plan, &mut self.texts.old_key);
        key(new, self.plan, &mut self.texts.new_key);
        self.texts.old_key == self.texts.new_key
    }

    fn update(&mut self, old: &Row, new: &Row) {
        let (plan, texts) = (self.plan, &mut self.texts);
        object(new, plan, &mut texts.new);
        if plan.full_old {
            object(old, plan, &mut texts.old);
        }
        let typed = plan.head.format == Format::Row || plan.head.format == Format::Cloudevents;
        if typed {
            changed(plan, old, new, &mut texts.changed);
        }
        self.statement.add(&Change {
            op: Op::Update,
            key: plan.keyed.then_some(&texts.new_key),
            old: plan.full_old.then_some(&texts.old),
            new: Some(&texts.new),
            changed: typed.then_some(&texts.changed),
        });
    }

    fn leaves(&mut self, number: usize, row: &Row) {
        if !self.wanted.before(number) {
            return;
        }
        key(row, self.plan, &mut self.texts.old_key);
        object(row, self.plan, &mut self.texts.old);
        self.statement.add(&Change {
            key: self.plan.keyed.then_some(&self.texts.old_key),
            old: Some(&self.texts.old),
            ..Change::bare(Op::Delete)
        });
    }

    fn comes(&mut self, number: usize, row: &Row) {
        if !self.wanted.after(number) {
            return;
        }
        key(row, self.plan, &mut self.texts.new_key);
        object(row, self.plan, &mut self.texts.new);
        self.statement.add(&Change {
            key: self.plan.keyed.then_some(&self.texts.new_key),
            new: Some(&self.texts.new),
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
fn object(row: &Row, plan: &Plan, out: &mut Vec<u8>) {
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
fn key(row: &Row, plan: &Plan, out: &mut Vec<u8>) {
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
