//! The streams that should exist: created where missing, changed where the row has changed, never deleted. A stream that
//! others have made is used as it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::Report;
use super::jsapi::{self, Api, ApiError};
use super::publish::Note;
use super::wake::Reporter;
use crate::message::{Origin, StreamSpec, StreamSynced};
use crate::subject;

/// How often streams are compared with what was asked, and what could not be done is tried again ...
const CHECK: Duration = Duration::from_secs(20);
/// ... though a stream is not asked about more often than so many times their number.
const CHECK_EACH: Duration = Duration::from_millis(10);

/// JetStream's error number for subjects that another stream takes.
const OVERLAP: u64 = 10065;

/// In the metadata of a stream: which row of `jetstream.streams` it was made for.
const MARK: &str = "pg_jetstream";

/// Looks after the streams of one connected client.
pub(super) struct Keeper {
    pub(super) api: Api,
    pub(super) specs: Vec<StreamSpec>,
    pub(super) default_stream: Option<String>,
    pub(super) reporter: Reporter,
    pub(super) note: UnboundedSender<Note>,
    /// A subject that one of them should take found no stream.
    pub(super) missed: Arc<Notify>,
}

impl Keeper {
    /// Runs as long as the session. Each stream is reported once, and again when its outcome changes.
    pub(super) async fn run(mut self) {
        let mut reported: HashMap<i64, StreamSynced> = HashMap::new();
        let mut noted = None;
        loop {
            for spec in &mut self.specs {
                let synced = sync(&self.api, spec).await;
                spec.origin = synced.origin.or(spec.origin);
                spec.applied = synced.applied.clone().or(spec.applied.take());
                if reported.get(&spec.id) != Some(&synced) {
                    if let Some(reason) = &synced.error
                        && reported.get(&spec.id).is_none_or(|before| before.error != synced.error)
                    {
                        warn!(target: "pg_jetstream", stream = %spec.name, "stream is not as asked: {reason}");
                    }
                    reported.insert(spec.id, synced.clone());
                    self.reporter.send(Report::StreamSynced(synced));
                }
            }
            let unmade: HashMap<i64, String> = reported
                .iter()
                .filter_map(|(id, synced)| Some((*id, synced.error.clone()?)))
                .collect();
            let seen = (unmade, self.default_missing().await);
            let (unmade, default_missing) = seen.clone();
            let note = Note::StreamsSeen {
                unmade,
                default_missing,
                changed: noted.as_ref() != Some(&seen),
            };
            noted = Some(seen);
            if self.note.send(note).is_err() {
                return;
            }
            let pause = CHECK.max(CHECK_EACH * self.specs.len() as u32);
            let _ = timeout_at(Instant::now() + pause, self.missed.notified()).await;
        }
    }

    async fn default_missing(&self) -> bool {
        match &self.default_stream {
            Some(stream) => matches!(jsapi::stream_config(&self.api, stream).await, Ok(None)),
            None => false,
        }
    }
}

/// Makes the stream what it should be, as far as it is ours.
async fn sync(api: &Api, spec: &StreamSpec) -> StreamSynced {
    let mut synced = StreamSynced {
        id: spec.id,
        ..StreamSynced::default()
    };
    if let Err(reason) = try_sync(api, spec, &mut synced).await {
        synced.error = Some(reason);
    }
    synced
}

/// Errors: a readable reason.
async fn try_sync(api: &Api, spec: &StreamSpec, synced: &mut StreamSynced) -> Result<(), String> {
    let name = &spec.name;
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || matches!(c, '.' | '*' | '>' | '/' | '\\')) {
        return Err(format!("invalid stream name {name:?}"));
    }
    let wanted = config(spec);
    let found = jsapi::stream_config(api, name)
        .await
        .map_err(|error| error.to_string())?;
    let Some(found) = found else {
        return create(api, spec, wanted, synced).await;
    };
    if spec.origin != Some(Origin::Created) && found["metadata"][MARK].as_str() != Some(&*spec.mark) {
        synced.origin = Some(Origin::Found);
        return match untaken(&found, spec) {
            None => Ok(()),
            Some(subject) => Err(format!(
                "it exists, does not take subject \"{subject}\", and was not created by pg_jetstream, which leaves it as it is"
            )),
        };
    }
    synced.origin = Some(Origin::Created);
    let Merged { body, drift } = merge(found, &wanted, spec.applied.as_ref())?;
    if let Some(body) = body {
        jsapi::call(api, &format!("STREAM.UPDATE.{name}"), &body)
            .await
            .map_err(|error| error.to_string())?;
        info!(target: "pg_jetstream", stream = name, "stream changed");
    }
    synced.applied = Some(Value::Object(wanted));
    match drift.is_empty() {
        true => Ok(()),
        false => Err(format!("changed on the server: {}", drift.join(", "))),
    }
}

async fn create(
    api: &Api,
    spec: &StreamSpec,
    wanted: Map<String, Value>,
    synced: &mut StreamSynced,
) -> Result<(), String> {
    let name = &spec.name;
    // With `accept_other` it may be one of another name. Otherwise it is gone, and nobody's options are lost by creating it.
    if spec.origin == Some(Origin::Found) && spec.accept_other && takes_all(api, spec).await? {
        return Ok(());
    }
    let mut body = wanted.clone();
    body.insert("metadata".to_owned(), json!({ MARK: spec.mark }));
    match jsapi::call(api, &format!("STREAM.CREATE.{name}"), &Value::Object(body)).await {
        Ok(_) => {
            info!(target: "pg_jetstream", stream = name, "stream created");
            synced.origin = Some(Origin::Created);
            synced.applied = Some(Value::Object(wanted));
            Ok(())
        }
        Err(ApiError::Refused { err_code: OVERLAP, .. }) if spec.accept_other && takes_all(api, spec).await? => {
            synced.origin = Some(Origin::Found);
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Whether one stream of the server takes all subjects.
async fn takes_all(api: &Api, spec: &StreamSpec) -> Result<bool, String> {
    let Some(subject) = spec.subjects.first() else {
        return Ok(false);
    };
    let page = jsapi::call(api, "STREAM.LIST", &json!({ "subject": subject }))
        .await
        .map_err(|error| error.to_string())?;
    let streams = page["streams"].as_array();
    Ok(streams.is_some_and(|streams| streams.iter().any(|info| untaken(&info["config"], spec).is_none())))
}

/// A subject of the row that the stream does not take.
fn untaken<'a>(found: &Value, spec: &'a StreamSpec) -> Option<&'a str> {
    let patterns: Vec<&str> = found["subjects"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let wanted = spec.subjects.iter().map(String::as_str);
    let mut untaken = wanted.filter(|wanted| !patterns.iter().any(|pattern| subject::covers(pattern, wanted)));
    untaken.next()
}

/// The managed fields, as JetStream's configuration names them. Left out: a duplicate window of zero and no
/// description, for which the server has its own.
fn config(spec: &StreamSpec) -> Map<String, Value> {
    let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    // The server refuses a longer one.
    let window = match spec.max_age.is_zero() {
        true => spec.duplicate_window,
        false => spec.duplicate_window.min(spec.max_age),
    };
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
        "duplicate_window": (!window.is_zero()).then(|| nanos(window)),
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

/// What is to be sent to the server, and what others have changed there.
#[derive(Debug, Default)]
struct Merged {
    /// The server's configuration with what has been asked for since; none if that changes nothing.
    body: Option<Value>,
    drift: Vec<String>,
}

/// Sets the fields of which the row has changed since they were applied, all if nothing was. The others stay as they are
/// on the server.
///
/// Errors: a change that JetStream cannot make, with both values.
fn merge(found: Value, wanted: &Map<String, Value>, applied: Option<&Value>) -> Result<Merged, String> {
    let Value::Object(mut body) = found else {
        return Err("the server's configuration is not understood".to_owned());
    };
    let mut changed = false;
    let mut drift = Vec::new();
    for (field, value) in wanted {
        let old = body.get(field).cloned().unwrap_or(Value::Null);
        if same(&old, value) {
            continue;
        }
        if applied
            .and_then(|applied| applied.get(field))
            .is_some_and(|applied| same(applied, value))
        {
            let (column, there, here) = (column(field), shown(field, &old), shown(field, value));
            drift.push(format!("{column} is {there} there and {here} here"));
            continue;
        }
        let fixed = match field.as_str() {
            "storage" => true,
            "retention" => [&old, value].iter().any(|retention| *retention == "workqueue"),
            _ => false,
        };
        if fixed {
            return Err(format!(
                "{field} is {old} on the server and {value} here: JetStream cannot change it"
            ));
        }
        body.insert(field.clone(), value.clone());
        changed = true;
    }
    Ok(Merged {
        body: changed.then_some(Value::Object(body)),
        drift,
    })
}

/// The column of `jetstream.streams` for a field of the server's.
fn column(field: &str) -> &str {
    match field {
        "max_msgs" => "max_messages",
        "max_msgs_per_subject" => "max_messages_per_subject",
        "max_msg_size" => "max_message_size",
        "num_replicas" => "replicas",
        "allow_msg_ttl" => "allow_message_ttl",
        field => field,
    }
}

/// A value as a person reads it: times in seconds.
fn shown(field: &str, value: &Value) -> String {
    match (field, value.as_i64()) {
        ("max_age" | "duplicate_window", Some(nanos)) => format!("{} s", nanos as f64 / 1e9),
        ("max_age", None) if value.is_null() => "0 s".to_owned(),
        _ => match value {
            Value::Null => "not set".to_owned(),
            Value::String(text) => format!("\"{text}\""),
            value => value.to_string(),
        },
    }
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
            accept_other: false,
            origin: None,
            applied: None,
            mark: "1.0".to_owned(),
        }
    }

    fn on_server(spec: &StreamSpec) -> Value {
        let mut config = config(spec);
        // As a server has it: what is off is left out, and there is more than we manage.
        config.retain(|_, value| value != &Value::Bool(false));
        config.insert("new_in_some_version".to_owned(), json!(true));
        Value::Object(config)
    }

    fn merged(wanted: &StreamSpec, applied: Option<&StreamSpec>) -> Result<Merged, String> {
        let applied = applied.map(|applied| Value::Object(config(applied)));
        merge(on_server(&spec()), &config(wanted), applied.as_ref())
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        let mut wanted = spec();
        wanted.max_messages = 0;
        let merged = merged(&wanted, None).unwrap();
        assert!(merged.body.is_none() && merged.drift.is_empty(), "{merged:?}");
    }

    #[test]
    fn a_change_keeps_what_is_not_managed() {
        let mut wanted = spec();
        wanted.max_age = Duration::from_secs(3600);
        wanted.allow_message_ttl = true;
        let body = merged(&wanted, None).unwrap().body.unwrap();
        assert_eq!(body["max_age"], 3_600_000_000_000_i64);
        assert_eq!(body["allow_msg_ttl"], true);
        assert_eq!(body["new_in_some_version"], true);
    }

    #[test]
    fn only_what_the_row_has_changed_is_sent_and_the_rest_is_named() {
        let mut applied = spec();
        applied.max_age = Duration::from_secs(3600);
        applied.max_messages = 10;
        let mut wanted = applied.clone();
        wanted.subjects = vec!["s.>".to_owned(), "t.>".to_owned()];
        let merged = merged(&wanted, Some(&applied)).unwrap();
        let body = merged.body.unwrap();
        assert_eq!(body["subjects"], json!(["s.>", "t.>"]));
        assert_eq!((&body["max_age"], &body["max_msgs"]), (&json!(0), &json!(-1)));
        let drift = merged.drift.join(", ");
        assert!(drift.contains("max_age is 0 s there and 3600 s here"), "{drift}");
        assert!(drift.contains("max_messages is -1 there and 10 here"), "{drift}");
    }

    #[test]
    fn a_max_age_below_the_duplicate_window_shrinks_it() {
        let mut wanted = spec();
        wanted.max_age = Duration::from_secs(60);
        assert_eq!(config(&wanted)["duplicate_window"], 60_000_000_000_i64);
    }

    #[test]
    fn what_jetstream_cannot_change_names_both_values() {
        let mut wanted = spec();
        wanted.storage = "memory".to_owned();
        let error = merged(&wanted, None).unwrap_err();
        assert!(error.contains("file") && error.contains("memory"), "{error}");
        let mut wanted = spec();
        wanted.retention = "workqueue".to_owned();
        assert!(merged(&wanted, None).is_err());
        wanted.retention = "interest".to_owned();
        assert!(merged(&wanted, None).unwrap().body.is_some());
    }
}
