//! Rebuilds tables from a stream of captured changes.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod zoo;

use std::collections::BTreeMap;
use std::time::Duration;

use lab::{Lab, StoredMessage};
use serde_json::{Map, Value};

use crate::e2e_support::{SOON, account, eventually};

/// Order of a change among those of its table: epoch, position in the log, and number in the statement.
type Position = (u64, String, u32);

/// The tables that a stream describes.
pub struct Rebuilt {
    pub messages: Vec<StoredMessage>,
    pub subjects: BTreeMap<String, usize>,
    tables: BTreeMap<String, Table>,
}

#[derive(Default)]
struct Table {
    /// Rows by key. Rows of a table without a key are stored by message id.
    rows: BTreeMap<String, Map<String, Value>>,
    key: Vec<String>,
}

/// A lab with a fast worker. The stream is the one that capture creates.
pub fn capture_lab() -> Lab {
    let lab = Lab::builder()
        .set("pg_jetstream.retry_backoff_base", "50ms")
        .set("pg_jetstream.retry_backoff_max", "500ms")
        // Deliberately not the settings under which text is exact.
        .set("datestyle", "SQL, DMY")
        .set("intervalstyle", "sql_standard")
        .set("extra_float_digits", "-3")
        .set("bytea_output", "escape")
        .set("timezone", "Asia/Kathmandu")
        .start()
        .unwrap();
    lab.sql("update jetstream.connections set reconnect_delay_ms = 50")
        .unwrap();
    lab
}

/// Waits until every captured change has been delivered.
pub fn settled(lab: &Lab, limit: Duration) {
    eventually(lab, limit, "every captured change is delivered", || {
        let owed = "select (select count(*) from jetstream.capture_queue) + (select count(*) from jetstream.outbox)";
        Ok(lab.value(owed)? == "0")
    });
}

/// The operation and row of each change in the order of positions, such as `D1 I2`.
pub fn told(lab: &Lab) -> String {
    settled(lab, SOON);
    let mut messages = lab.stream_messages("postgres_replication").unwrap();
    messages.sort_by_key(position);
    let line = |message: &StoredMessage| {
        let body = message.json().unwrap();
        let (kind, change) = body.as_object().unwrap().iter().next().unwrap();
        let row = [&change["new_tuple"], &change["old_tuple"]];
        let id = row.into_iter().find_map(|row| row["id"].as_str().map(str::to_owned));
        format!("{}{}", &kind[..1], id.unwrap_or_default())
    };
    messages.iter().map(line).collect::<Vec<_>>().join(" ")
}

pub fn position(message: &StoredMessage) -> Position {
    let mut parts = message.id().unwrap().split('-');
    let mut next = || parts.next().unwrap();
    (next().parse().unwrap(), next().to_owned(), next().parse().unwrap())
}

impl Rebuilt {
    /// Reads the whole stream. Changes are applied in the order of their positions, as the documentation recommends.
    pub fn read(lab: &Lab, stream: &str) -> Rebuilt {
        let messages = lab.stream_messages(stream).unwrap();
        let mut rebuilt = Rebuilt {
            messages,
            subjects: BTreeMap::new(),
            tables: BTreeMap::new(),
        };
        for message in &rebuilt.messages {
            *rebuilt.subjects.entry(message.subject.clone()).or_default() += 1;
        }
        let mut ordered = rebuilt.messages.clone();
        ordered.sort_by_key(position);
        for message in &ordered {
            rebuilt.apply(message);
        }
        rebuilt
    }

    fn apply(&mut self, message: &StoredMessage) {
        let body = message.json().unwrap();
        let Some((kind, change)) = body.as_object().and_then(|body| body.iter().next()) else {
            return;
        };
        let Some(table) = change["table"].as_str() else { return };
        let table = self.tables.entry(table.to_owned()).or_default();
        match kind.as_str() {
            "Relation" => {
                let columns = change["columns"].as_array().unwrap();
                let keys = columns.iter().filter(|column| column["flags"] == 1);
                table.key = keys.map(|column| column["name"].as_str().unwrap().to_owned()).collect();
            }
            "Insert" | "Update" => {
                let row = change["new_tuple"].as_object().unwrap().clone();
                let key = table.key_of(&row, message);
                let before = table.rows.insert(key, row);
                assert_eq!(before.is_some(), kind == "Update", "{message:?}");
            }
            "Delete" => {
                let key = table.key_of(change["old_tuple"].as_object().unwrap(), message);
                assert!(table.rows.remove(&key).is_some(), "no such row: {message:?}");
            }
            "Truncate" => table.rows.clear(),
            other => panic!("{other}"),
        }
    }

    pub fn count(&self, subject: &str) -> usize {
        self.subjects.get(subject).copied().unwrap_or(0)
    }

    pub fn bodies(&self, subject: &str) -> Vec<Value> {
        let of_subject = self.messages.iter().filter(|message| message.subject == subject);
        of_subject.map(|message| message.json().unwrap()).collect()
    }

    /// Checks that the stream has the changes of each row in order.
    pub fn in_order_by_key(&self) {
        let mut last: BTreeMap<String, Position> = BTreeMap::new();
        for message in &self.messages {
            let body = message.json().unwrap();
            let Some(change) = body.as_object().and_then(|body| body.values().next()) else {
                continue;
            };
            let table = change["table"].as_str().unwrap_or_default();
            let Some(known) = self.tables.get(table).filter(|known| !known.key.is_empty()) else {
                continue;
            };
            let tuple = if change["new_tuple"].is_null() {
                &change["old_tuple"]
            } else {
                &change["new_tuple"]
            };
            let Some(tuple) = tuple.as_object() else { continue };
            let (key, now) = (format!("{table} {}", known.key_of(tuple, message)), position(message));
            if let Some(before) = last.insert(key.clone(), now.clone()) {
                assert!(before < now, "{key}: {before:?} comes before {now:?} in the stream");
            }
        }
    }
}

impl Table {
    fn key_of(&self, row: &Map<String, Value>, message: &StoredMessage) -> String {
        if self.key.is_empty() {
            return message.id().unwrap().to_owned();
        }
        self.key.iter().map(|column| format!("{},", row[column])).collect()
    }
}

/// Checks that the table has exactly the rows that the stream describes.
pub fn same(lab: &Lab, rebuilt: &Rebuilt, table: &str) {
    let columns = lab
        .value(&format!(
            "select string_agg(format('%1$L, case when %1$I is null then null else format(''%%s'', %1$I) end', attname), ', ' order by attnum)
             from pg_attribute
             where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped"
        ))
        .unwrap();
    let rows = lab
        .sql(&format!(
            "set datestyle = iso; set intervalstyle = postgres; set timezone = 'UTC'; set extra_float_digits = 1; set bytea_output = hex;
             select jsonb_build_object({columns}) from {table}"
        ))
        .unwrap();
    let mut expected: Vec<String> = rows
        .concat()
        .iter()
        .map(|row| canonical(&serde_json::from_str(row).unwrap()))
        .collect();
    let empty = Table::default();
    let found = rebuilt.tables.get(table).unwrap_or(&empty);
    let mut found: Vec<String> = found
        .rows
        .values()
        .map(|row| canonical(&Value::Object(row.clone())))
        .collect();
    expected.sort();
    found.sort();
    assert!(!expected.is_empty(), "{table} is empty: nothing to compare");
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(expected, found, "{table}\n{}", account(lab));
    }
    assert_eq!(expected.len(), found.len(), "rows of {table}\n{}", account(lab));
}

/// A representation of a row that does not depend on the order of columns.
fn canonical(row: &Value) -> String {
    let sorted: BTreeMap<_, _> = row.as_object().unwrap().iter().collect();
    format!("{sorted:?}")
}
