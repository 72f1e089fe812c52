//! The streams that should exist: created where missing, changed where different, never deleted.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::Client;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedSender;
use tracing::{info, warn};

use super::Report;
use super::jsapi;
use super::publish::Note;
use super::wake::Reporter;
use crate::message::StreamSpec;

/// Delay before what could not be done is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Looks after the streams of one connected client.
pub(super) struct Keeper {
    pub(super) client: Client,
    pub(super) specs: Vec<StreamSpec>,
    pub(super) default_stream: Option<String>,
    pub(super) reporter: Reporter,
    pub(super) note: UnboundedSender<Note>,
}

impl Keeper {
    /// Ends when every stream is as it should be and the default stream exists. Each stream is reported once, and
    /// again when its outcome changes.
    pub(super) async fn run(self) {
        let mut told: HashMap<i64, Option<String>> = HashMap::new();
        loop {
            for spec in &self.specs {
                let error = sync(&self.client, spec).await.err();
                if told.get(&spec.id) != Some(&error) {
                    if let Some(reason) = &error {
                        warn!(target: "pg_jetstream", stream = %spec.name, "stream could not be made or changed: {reason}");
                    }
                    told.insert(spec.id, error.clone());
                    self.reporter.send(Report::StreamSynced { id: spec.id, error });
                }
            }
            let unmade: HashMap<i64, String> = told
                .iter()
                .filter_map(|(id, error)| Some((*id, error.clone()?)))
                .collect();
            let default_missing = self.default_missing().await;
            let done = unmade.is_empty() && !default_missing;
            let seen = Note::StreamsSeen {
                unmade,
                default_missing,
            };
            if self.note.send(seen).is_err() || done {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn default_missing(&self) -> bool {
        match &self.default_stream {
            Some(stream) => matches!(jsapi::stream_config(&self.client, stream).await, Ok(None)),
            None => false,
        }
    }
}

/// Makes the stream what it should be.
///
/// Errors: a readable reason.
async fn sync(client: &Client, spec: &StreamSpec) -> Result<(), String> {
    let name = &spec.name;
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || matches!(c, '.' | '*' | '>' | '/' | '\\')) {
        return Err(format!("invalid stream name {name:?}"));
    }
    let wanted = config(spec);
    let Some(found) = jsapi::stream_config(client, name)
        .await
        .map_err(|error| error.to_string())?
    else {
        let body = Value::Object(wanted);
        jsapi::call(client, &format!("STREAM.CREATE.{name}"), &body)
            .await
            .map_err(|error| error.to_string())?;
        info!(target: "pg_jetstream", stream = name, "stream created");
        return Ok(());
    };
    let Some(body) = merge(found, wanted)? else {
        return Ok(());
    };
    jsapi::call(client, &format!("STREAM.UPDATE.{name}"), &body)
        .await
        .map_err(|error| error.to_string())?;
    info!(target: "pg_jetstream", stream = name, "stream changed");
    Ok(())
}

/// The managed fields, as JetStream's configuration names them. Left out: a duplicate window of zero and no
/// description, for which the server has its own.
fn config(spec: &StreamSpec) -> Map<String, Value> {
    let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    let fields = json!({
        "name": spec.name,
        "subjects": spec.subjects,
        "storage": spec.storage,
        "retention": spec.retention,
        "discard": spec.discard,
        "max_msgs": limit(spec.max_messages),
        "max_msgs_per_subject": limit(spec.max_messages_per_subject),
        "max_bytes": limit(spec.max_bytes),
        "max_age": nanos(spec.max_age),
        "max_msg_size": limit(spec.max_message_size.into()),
        "num_replicas": spec.replicas,
        "duplicate_window": (!spec.duplicate_window.is_zero()).then(|| nanos(spec.duplicate_window)),
        "allow_msg_ttl": spec.allow_message_ttl,
        "allow_atomic": spec.allow_atomic,
        "description": spec.description,
    });
    match fields {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    }
}

fn limit(value: i64) -> i64 {
    if value <= 0 { -1 } else { value }
}

/// The server's configuration with the managed fields as wanted; none if that changes nothing.
///
/// Errors: a change that JetStream cannot make, with both values.
fn merge(found: Value, wanted: Map<String, Value>) -> Result<Option<Value>, String> {
    let Value::Object(mut merged) = found else {
        return Err("the server's configuration is not understood".to_owned());
    };
    let mut changed = false;
    for (field, value) in wanted {
        let old = merged.get(&field).cloned().unwrap_or(Value::Null);
        if same(&old, &value) {
            continue;
        }
        let fixed = match field.as_str() {
            "storage" => true,
            "retention" => [&old, &value].iter().any(|retention| *retention == "workqueue"),
            _ => false,
        };
        if fixed {
            return Err(format!(
                "{field} is {old} on the server and {value} here: JetStream cannot change it"
            ));
        }
        merged.insert(field, value);
        changed = true;
    }
    Ok(changed.then_some(Value::Object(merged)))
}

/// Whether two values mean the same: the server leaves out what is off, and says 0 or -1 for no limit.
fn same(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Null, Value::Bool(on)) => !on,
        (Value::Null, Value::Number(number)) => number.as_i64().is_some_and(|number| number <= 0),
        (Value::Number(found), Value::Number(wanted)) => {
            let plain = |number: &serde_json::Number| number.as_i64().map(limit);
            plain(found) == plain(wanted)
        }
        _ => found == wanted,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn spec() -> StreamSpec {
        StreamSpec {
            id: 1,
            connection: "default".into(),
            name: "S".to_owned(),
            subjects: vec!["s.>".to_owned()],
            storage: "file".to_owned(),
            retention: "limits".to_owned(),
            discard: "old".to_owned(),
            max_messages: -1,
            max_messages_per_subject: -1,
            max_bytes: -1,
            max_age: Duration::ZERO,
            max_message_size: -1,
            replicas: 1,
            duplicate_window: Duration::from_secs(120),
            allow_message_ttl: false,
            allow_atomic: false,
            description: None,
        }
    }

    fn on_server(spec: &StreamSpec) -> Value {
        let mut config = config(spec);
        // As a server has it: what is off is left out, and there is more than we manage.
        config.retain(|_, value| value != &Value::Bool(false));
        config.insert("new_in_some_version".to_owned(), json!(true));
        Value::Object(config)
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        let mut wanted = spec();
        wanted.max_messages = 0;
        assert_eq!(merge(on_server(&spec()), config(&wanted)).unwrap(), None);
    }

    #[test]
    fn a_change_keeps_what_is_not_managed() {
        let mut wanted = spec();
        wanted.max_age = Duration::from_secs(60);
        wanted.allow_message_ttl = true;
        let merged = merge(on_server(&spec()), config(&wanted)).unwrap().unwrap();
        assert_eq!(merged["max_age"], 60_000_000_000_i64);
        assert_eq!(merged["allow_msg_ttl"], true);
        assert_eq!(merged["new_in_some_version"], true);
    }

    #[test]
    fn what_jetstream_cannot_change_names_both_values() {
        let mut wanted = spec();
        wanted.storage = "memory".to_owned();
        let error = merge(on_server(&spec()), config(&wanted)).unwrap_err();
        assert!(error.contains("file") && error.contains("memory"), "{error}");
        let mut wanted = spec();
        wanted.retention = "workqueue".to_owned();
        assert!(merge(on_server(&spec()), config(&wanted)).is_err());
        wanted.retention = "interest".to_owned();
        assert!(merge(on_server(&spec()), config(&wanted)).unwrap().is_some());
    }
}
