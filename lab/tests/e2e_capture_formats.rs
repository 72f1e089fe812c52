//! The formats `row`, `debezium` and `cloudevents`. Tables can be rebuilt from them with typed values, and each
//! envelope has the fields of its specification.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use capture_support::zoo::ZOO;
use capture_support::{capture_lab, position, settled};
use e2e_support::SOON;
use lab::{Lab, StoredMessage};
use serde_json::{Map, Value, json};

type Row = Map<String, Value>;

/// A change in any envelope.
struct Change {
    op: String,
    old: Option<Row>,
    new: Option<Row>,
}

/// A lab, and the messages of a zoo captured in this format, in the order of their positions.
fn zoo(format: &str) -> (Lab, Vec<StoredMessage>) {
    let lab = capture_lab();
    lab.sql(ZOO).unwrap();
    lab.sql(&format!(
        "alter table zoo add column huge bigint, add column dates date[], add column bytes bytea[], add column pairs pair[];
         insert into zoo (id) values (1);
         select jetstream.capture('zoo', format => '{format}', transactions => true)"
    ))
    .unwrap();
    for statement in [
        "truncate zoo",
        "insert into zoo select (b).* from generate_series(0, 59) n, beast(n) b",
        "update zoo set huge = 9223372036854775807 - id, dates = array[day, null, 'infinity'], bytes = array[raw, ''], \
             pairs = array[two, null, (null, '')::pair], grid = array[[1.5, f8], [null, -1e300]] where id < 30",
        "update zoo set txt = 'changed', f8 = 'NaN', num = num, yes = not yes where id between 20 and 40",
        "update zoo set id = id + 1000 where id % 7 = 0",
        "delete from zoo where id % 5 = 1",
        "update zoo set texts = '{}', list = null, j = '[]' where id = 12",
    ] {
        lab.sql(statement).unwrap();
    }
    settled(&lab, SOON);
    let mut messages = lab.stream_messages("postgres_replication").unwrap();
    messages.sort_by_key(position);
    (lab, messages)
}

fn operation(message: &StoredMessage) -> &str {
    match message.subject.rsplit('.').next().unwrap() {
        "event" => message.subject.split('.').nth(2).unwrap(),
        operation => operation,
    }
}

/// Messages about rows of the table.
fn of_rows(messages: &[StoredMessage]) -> Vec<&StoredMessage> {
    let rows = ["insert", "update", "delete", "truncate"];
    let found: Vec<_> = messages
        .iter()
        .filter(|message| rows.contains(&operation(message)))
        .collect();
    for row in rows {
        assert!(found.iter().any(|message| operation(message) == row), "no {row}");
    }
    found
}

fn row(value: &Value) -> Option<Row> {
    value.as_object().cloned()
}

/// Normalizes numbers, so that `-0` equals `0`, and `2.0` equals `2`.
fn worth(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.as_i64().is_none() => json!({ "float": number.as_f64().unwrap() + 0.0 }),
        Value::Number(number) if number.as_i64().unwrap().unsigned_abs() < 1 << 53 => {
            json!({ "float": number.as_f64().unwrap() })
        }
        Value::Array(values) => values.iter().map(worth).collect(),
        Value::Object(row) => Value::Object(row.iter().map(|(name, value)| (name.clone(), worth(value))).collect()),
        other => other.clone(),
    }
}

/// Applies the changes and compares the result with PostgreSQL's own JSON of the table. The old row in each change must
/// equal the current row.
fn rebuilt(lab: &Lab, changes: &[Change]) {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let key = |row: &Row| row["id"].to_string();
    // Row 1 is older than the capture.
    rows.insert("1".into(), Row::new());
    for change in changes {
        let old = change
            .old
            .as_ref()
            .map(|old| rows.remove(&key(old)).map(|row| (row, old)));
        if let Some(known) = old {
            let (row, old) = known.expect("a change of a row that does not exist");
            assert_eq!(worth(&Value::Object(row)), worth(&Value::Object(old.clone())));
        }
        if let Some(new) = &change.new {
            assert!(rows.insert(key(new), new.clone()).is_none(), "the row already exists");
        }
        if change.op == "truncate" {
            rows.clear();
        }
        assert_eq!(
            (change.old.is_some(), change.new.is_some()),
            match change.op.as_str() {
                "insert" => (false, true),
                "update" => (true, true),
                "delete" => (true, false),
                _ => (false, false),
            },
            "{}",
            change.op
        );
    }
    // to_jsonb loses the lower bounds of arrays, and turns a numeric into a number that few readers can represent.
    let table = lab
        .sql(
            "set timezone = 'UTC'; set datestyle = iso; set intervalstyle = postgres; set extra_float_digits = 1;
             set bytea_output = hex;
             select to_jsonb(z) || jsonb_build_object('num', num::text,
                 'grid', case when array_lower(grid, 1) = 0 then to_jsonb(grid::text) else to_jsonb(grid) end)
             from zoo z",
        )
        .unwrap();
    let table: BTreeMap<String, Row> = table
        .concat()
        .iter()
        .map(|text| serde_json::from_str::<Row>(text).unwrap())
        .map(|row| (key(&row), row))
        .collect();
    assert!(table.len() > 40, "{} rows", table.len());
    assert_eq!(
        table.keys().collect::<BTreeSet<_>>(),
        rows.keys().collect::<BTreeSet<_>>()
    );
    for (id, row) in &table {
        for (column, value) in row {
            assert_eq!(worth(&rows[id][column]), worth(value), "{column} of {id}");
        }
        assert_eq!(row.len(), rows[id].len(), "{id}");
    }
}

/// Checks that each transaction has exactly one begin and one commit.
fn transactions(messages: &[StoredMessage], id: impl Fn(&Value) -> Value) {
    let of = |name: &str| -> Vec<String> {
        let found = messages.iter().filter(|message| operation(message) == name);
        let mut ids: Vec<_> = found.map(|message| id(&message.json().unwrap()).to_string()).collect();
        ids.sort();
        ids.dedup();
        ids
    };
    assert_eq!(of("begin"), of("commit"));
    // One transaction for `capture`, which publishes the relation message, and seven for the statements.
    assert_eq!(of("begin").len(), 8);
}

fn check_row(body: &Value, message: &StoredMessage) -> Change {
    let keys: BTreeSet<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = BTreeSet::from([
        "op",
        "schema",
        "table",
        "relation_id",
        "xid",
        "epoch",
        "lsn",
        "number",
        "time",
    ]);
    if body["op"] != "truncate" {
        expected.extend(["old", "new", "changed"]);
    }
    assert_eq!(keys, expected);
    assert_eq!(body["op"], operation(message));
    assert_eq!((&body["schema"], &body["table"]), (&json!("public"), &json!("zoo")));
    let (high, low) = body["lsn"].as_str().unwrap().split_once('/').unwrap();
    let id = message.id().unwrap();
    let number = &body["number"];
    assert!(
        id.starts_with(&format!(
            "{}-{high:0>8}{low:0>8}-{number}-{}-",
            body["epoch"], body["xid"]
        )),
        "{id} of {body}"
    );
    let change = Change {
        op: body["op"].as_str().unwrap().to_owned(),
        old: row(&body["old"]),
        new: row(&body["new"]),
    };
    if let (Some(old), Some(new)) = (&change.old, &change.new) {
        let differ = new.keys().filter(|name| old[*name] != new[*name]);
        let changed = body["changed"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap());
        assert_eq!(
            changed.collect::<BTreeSet<_>>(),
            differ.map(String::as_str).collect::<BTreeSet<_>>()
        );
    } else {
        assert!(body["changed"].is_null());
    }
    change
}

#[test]
fn rows_are_typed() {
    let (lab, messages) = zoo("row");
    let changes: Vec<Change> = of_rows(&messages)
        .into_iter()
        .map(|message| check_row(&message.json().unwrap(), message))
        .collect();
    rebuilt(&lab, &changes);
    transactions(&messages, |body| body["xid"].clone());
    assert!(messages.iter().all(|message| message.headers.len() == 1), "only the id");
}

/// Checks the field names and types of <https://debezium.io/documentation/reference/stable/connectors/postgresql.html>.
#[test]
fn debezium_has_its_envelope() {
    let millis = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let began = millis();
    let (lab, messages) = zoo("debezium");
    let mut changes = Vec::new();
    for message in of_rows(&messages) {
        let body = message.json().unwrap();
        let keys: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["after", "before", "op", "source", "transaction", "ts_ms"]);
        let source = &body["source"];
        let keys: BTreeSet<&str> = source.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            BTreeSet::from([
                "version",
                "connector",
                "name",
                "ts_ms",
                "snapshot",
                "db",
                "sequence",
                "schema",
                "table",
                "txId",
                "epoch",
                "lsn",
                "xmin"
            ])
        );
        for (name, value) in [
            ("connector", json!("postgresql")),
            ("name", json!("postgres")),
            ("snapshot", json!("false")),
            ("db", json!("postgres")),
            ("schema", json!("public")),
            ("table", json!("zoo")),
            ("xmin", Value::Null),
        ] {
            assert_eq!(source[name], value, "{name}");
        }
        let mut id = message.id().unwrap().split('-');
        assert_eq!(source["epoch"].to_string(), id.next().unwrap());
        let lsn = u64::from_str_radix(id.next().unwrap(), 16).unwrap();
        assert_eq!(source["lsn"].as_u64(), Some(lsn));
        assert_eq!(source["txId"].to_string(), id.nth(1).unwrap());
        for time in [&body["ts_ms"], &source["ts_ms"]] {
            let time = time.as_u64().unwrap();
            assert!((began..=millis()).contains(&time), "{time}");
        }
        let op = match body["op"].as_str().unwrap() {
            "c" => "insert",
            "u" => "update",
            "d" => "delete",
            "t" => "truncate",
            other => panic!("{other}"),
        };
        assert_eq!(op, operation(message));
        changes.push(Change {
            op: op.to_owned(),
            old: row(&body["before"]),
            new: row(&body["after"]),
        });
    }
    rebuilt(&lab, &changes);
    for message in messages.iter().filter(|message| message.subject.ends_with("event")) {
        let body = message.json().unwrap();
        let keys: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["data_collections", "epoch", "event_count", "id", "status", "ts_ms"]
        );
        let status = if operation(message) == "begin" { "BEGIN" } else { "END" };
        assert_eq!(body["status"], status);
    }
    transactions(&messages, |body| {
        let id = body["id"].as_str().unwrap();
        id.split(':').next().unwrap().into()
    });
}

/// Checks <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md> and its JSON format. The headers are
/// those of the protocol binding for NATS.
#[test]
fn cloudevents_have_the_attributes_they_must() {
    let (lab, messages) = zoo("cloudevents");
    let mut seen = BTreeSet::new();
    for message in &messages {
        let event = message.json().unwrap();
        let keys: Vec<&str> = event.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["data", "datacontenttype", "id", "source", "specversion", "time", "type"]
        );
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["datacontenttype"], "application/json");
        assert_eq!(event["type"], format!("pg_jetstream.{}", operation(message)));
        assert_eq!(event["id"], message.id().unwrap());
        let source = event["source"].as_str().unwrap();
        let expected = if message.subject.ends_with("event") {
            "/postgres/transactions"
        } else {
            "/postgres/public/zoo"
        };
        assert_eq!(source, expected);
        assert!(
            seen.insert((source.to_owned(), event["id"].to_string())),
            "source and id identify one event"
        );
        for name in ["id", "source", "specversion", "type", "time"] {
            assert_eq!(message.header(&format!("ce-{name}")), event[name].as_str(), "{name}");
        }
        assert_eq!(message.header("content-type"), Some("application/cloudevents+json"));
        assert_eq!(message.headers.len(), 7, "{:?}", message.headers);
        assert_eq!(event["time"], event["data"]["time"]);
        let valid = lab.value(&format!(
            "select '{}'::timestamptz <= now()",
            event["time"].as_str().unwrap()
        ));
        assert_eq!(valid.unwrap(), "t");
    }
    let changes: Vec<Change> = of_rows(&messages)
        .into_iter()
        .map(|message| check_row(&message.json().unwrap()["data"], message))
        .collect();
    rebuilt(&lab, &changes);
    transactions(&messages, |event| event["data"]["xid"].clone());
}
