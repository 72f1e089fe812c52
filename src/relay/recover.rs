//! Recovery: the tail of the streams is read, headers only, so that what is stored already is not sent again.
//!
//! A duplicate window drops what was sent twice within it. A crash or an outage may last longer; then only the stream
//! itself knows what it holds.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::jetstream::{self, consumer::DeliverPolicy, consumer::pull::OrderedConfig};
use futures_util::StreamExt;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tracing::debug;

use super::barrier;
use super::doubt::texts;
use super::jsapi::{self, Api, ApiError};
use super::positions::{Plan, first, silent, start, text};
use super::wire;
use crate::message::Message;
use crate::subject;

/// How long the next message of a tail may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages that a server with a copy of a stream may be behind its leader and be read all the same.
const FAR_BEHIND: u64 = 20_000;

/// Most pages of the list of streams; a page has 256, or fewer where streams of a cluster do not answer.
const MAX_PAGES: usize = 1_000;

/// Most message ids kept.
const MAX_FOUND: usize = 5_000_000;

/// The message ids found in the tails, by a 128-bit hash.
#[derive(Debug, Default)]
pub(super) struct Tail {
    found: HashMap<u128, (Arc<str>, u64)>,
    up_to: i64,
    /// See [`Plan::message_ids`].
    wanted: Option<Arc<HashSet<String>>>,
    /// Subjects asked for that no stream takes, with the prefix.
    untaken: HashSet<String>,
}

impl Tail {
    /// Where a message is stored, if it was found; it is not found a second time.
    pub(super) fn take(&mut self, id: i64, message_id: &str) -> Option<(Arc<str>, u64)> {
        if self.found.is_empty() || id > self.up_to {
            return None;
        }
        self.found.remove(&hash(message_id.trim()))
    }

    /// Whether no stream takes the subject, so that nothing is known of what was sent there.
    pub(super) fn is_untaken(&self, subject: &str) -> bool {
        self.untaken.contains(subject)
    }

    /// Number of message ids.
    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    /// `message_id` is as the client reads it: without white space around it. Messages of earlier versions may have ids
    /// with some.
    fn insert(&mut self, message_id: &str, stream: &Arc<str>, sequence: u64) {
        if self.wanted.as_ref().is_some_and(|wanted| !wanted.contains(message_id)) {
            return;
        }
        // The first copy is the one that counts.
        self.found
            .entry(hash(message_id))
            .and_modify(|found| {
                if found.0 == *stream {
                    found.1 = found.1.min(sequence);
                }
            })
            .or_insert_with(|| (stream.clone(), sequence));
    }
}

fn hash(message_id: &str) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, message_id).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// Whether a request with this subject is one without which tails cannot be read.
pub(super) fn needs(apis: &[Api], subject: &str) -> bool {
    const REQUESTS: [&str; 5] = [
        "STREAM.LIST",
        "STREAM.INFO.",
        "STREAM.MSG.GET.",
        "CONSUMER.CREATE.",
        "CONSUMER.MSG.NEXT.",
    ];
    apis.iter()
        .filter_map(|api| api.request(subject))
        .any(|request| REQUESTS.iter().any(|needed| request.starts_with(needed)))
}

/// The subjects of messages, each once.
pub(super) fn subjects(messages: &[Arc<Message>]) -> Vec<String> {
    let distinct: BTreeSet<&str> = messages.iter().map(|message| message.subject.as_str()).collect();
    distinct.into_iter().map(str::to_owned).collect()
}

/// The ids of messages.
pub(super) fn message_ids(messages: &[Arc<Message>]) -> Option<Arc<HashSet<String>>> {
    let ids = messages.iter().map(|message| message.message_id.trim().to_owned());
    Some(Arc::new(ids.collect()))
}

/// Reads the tails that `plan` asks for, in all these domains.
///
/// Errors: the server's reason; nothing may then be sent again, or it might be stored twice.
pub(super) async fn read(apis: &[Api], prefix: Option<&str>, plan: &Plan) -> Result<Tail, String> {
    let mut plan = plan.clone();
    for subject in &mut plan.subjects {
        *subject = wire::subject(prefix, subject).into_owned();
    }
    let mut tail = Tail {
        found: HashMap::new(),
        up_to: plan.up_to,
        wanted: plan.message_ids.clone(),
        untaken: plan.subjects.iter().cloned().collect(),
    };
    for api in apis {
        read_domain(api, &plan, &mut tail).await?;
    }
    tail.wanted = None;
    Ok(tail)
}

async fn read_domain(api: &Api, plan: &Plan, tail: &mut Tail) -> Result<(), String> {
    for info in streams(api, plan)
        .await
        .map_err(|error| format!("streams cannot be listed: {error}"))?
    {
        let name: Arc<str> = text(&info["config"]["name"]).into();
        let unread = |error: String| format!("stream \"{name}\" cannot be read: {error}");
        let mut info = info;
        let ours = plan.positions.contains_key(&name) || start(plan, &name, &info).is_some();
        if ours && replicated(&info) {
            info = barrier::pass(api, &name, info, &plan.subjects).await.map_err(unread)?;
        }
        let patterns = info["config"]["subjects"].as_array().into_iter().flatten();
        for pattern in patterns.filter_map(Value::as_str) {
            tail.untaken.retain(|subject| !subject::matches(subject, pattern));
        }
        if let Some(from) = start(plan, &name, &info) {
            let before = tail.len();
            read_stream(api, &name, &info, from, plan, tail).await.map_err(unread)?;
            debug!(target: "pg_jetstream", stream = &*name, found = tail.len() - before, "tail read");
        }
    }
    Ok(())
}

/// All streams of the account, as the server describes them.
///
/// In a cluster the list leaves out streams whose leader does not answer, and names them. That is an error if we have
/// published to one of them: what it holds is not known.
async fn streams(api: &Api, plan: &Plan) -> Result<Vec<Value>, ApiError> {
    let mut all = Vec::new();
    for _ in 0..MAX_PAGES {
        let mut page = jsapi::call(api, "STREAM.LIST", &json!({ "offset": all.len() })).await?;
        if let Some(silent) = silent(plan, &page) {
            return Err(ApiError::Other(format!("stream \"{silent}\" does not answer")));
        }
        let total = page["total"].as_u64().unwrap_or(0);
        match page["streams"].take() {
            Value::Array(streams) if !streams.is_empty() => all.extend(streams.iter().map(essence)),
            _ => return Ok(all),
        }
        if all.len() as u64 >= total {
            return Ok(all);
        }
    }
    Err(ApiError::Other(format!("the list has no end after {MAX_PAGES} pages")))
}

/// What is needed of a stream's description: the rest may be long.
fn essence(info: &Value) -> Value {
    let config = &info["config"];
    let state = &info["state"];
    json!({
        "config": {
            "name": config["name"],
            "subjects": config["subjects"],
            "retention": config["retention"],
            "num_replicas": config["num_replicas"],
        },
        "created": info["created"],
        "state": {
            "messages": state["messages"],
            "first_seq": state["first_seq"],
            "last_seq": state["last_seq"],
        },
        "cluster": info["cluster"],
    })
}

/// Patterns of the subjects that the streams of all these domains take.
pub(super) async fn all_patterns(apis: &[Api]) -> Result<Vec<String>, ApiError> {
    if apis.is_empty() {
        return Err(ApiError::NoResponders);
    }
    let mut patterns = Vec::new();
    for api in apis {
        for info in streams(api, &Plan::default()).await? {
            patterns.extend(texts(&info["config"]["subjects"]));
        }
    }
    Ok(patterns)
}

/// Whether the stream has a message with this id there.
pub(super) async fn holds(api: &Api, stream: &str, sequence: u64, message_id: &str) -> bool {
    let Ok(stream) = api.context().get_stream(stream).await else {
        return false;
    };
    let message = stream.get_raw_message(sequence).await;
    message.is_ok_and(|message| {
        let id = message.headers.get(async_nats::header::NATS_MESSAGE_ID);
        id.is_some_and(|id| id.as_str() == message_id.trim())
    })
}

/// Whether the stream is kept by several servers.
fn replicated(info: &Value) -> bool {
    info["config"]["num_replicas"].as_u64() > Some(1)
}

async fn read_stream(
    api: &Api,
    name: &Arc<str>,
    info: &Value,
    from: DeliverPolicy,
    plan: &Plan,
    tail: &mut Tail,
) -> Result<(), String> {
    // A consumer on any other kind of stream would take part in its retention.
    if text(&info["config"]["retention"]) != "limits" {
        return read_one_by_one(api, name, info, from, tail).await;
    }
    let stream = api
        .context()
        .get_stream(&**name)
        .await
        .map_err(|error| error.to_string())?;
    let config = OrderedConfig {
        deliver_policy: from,
        headers_only: true,
        filter_subjects: if plan.filtered {
            plan.subjects.clone()
        } else {
            Vec::new()
        },
        ..OrderedConfig::default()
    };
    let consumer = stream
        .create_consumer(config)
        .await
        .map_err(|error| error.to_string())?;
    let mut left = consumer.cached_info().num_pending;
    let mut reached = 0;
    let mut messages = consumer.messages().await.map_err(|error| error.to_string())?;
    while left > 0 {
        let next = tokio::time::timeout(PATIENCE, messages.next()).await;
        let message = match next {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return Err(error.to_string()),
            Ok(None) => return Err("the server ended the delivery".to_owned()),
            Err(_) => return Err(format!("nothing came for {} s", PATIENCE.as_secs())),
        };
        let place = message.info().map_err(|error| error.to_string())?;
        if place.stream_sequence <= reached {
            return Err("messages come out of order".to_owned());
        }
        if tail.len() > MAX_FOUND {
            return Err(format!("it holds more than {MAX_FOUND} messages to look through"));
        }
        left = place.pending;
        reached = place.stream_sequence;
        let id = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(async_nats::header::NATS_MESSAGE_ID));
        if let Some(id) = id {
            tail.insert(id.as_str(), name, place.stream_sequence);
        }
    }
    if !replicated(info) {
        return Ok(());
    }
    // The consumer may live on a server that is behind; single messages are asked of the leader.
    let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
    let begin = (reached + 1)
        .max(first(info, &from))
        .max(last.saturating_sub(FAR_BEHIND));
    read_range(&api.client, &stream, name, begin..=last, None, tail).await
}

/// Reads messages by sequence, which takes nothing from a work queue. What was consumed already cannot be found.
async fn read_one_by_one(
    api: &Api,
    name: &Arc<str>,
    info: &Value,
    from: DeliverPolicy,
    tail: &mut Tail,
) -> Result<(), String> {
    let stream = api
        .context()
        .get_stream(&**name)
        .await
        .map_err(|error| error.to_string())?;
    let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
    let since = match &from {
        DeliverPolicy::ByStartTime { start_time } => Some(*start_time),
        _ => None,
    };
    read_range(&api.client, &stream, name, first(info, &from)..=last, since, tail).await
}

/// Single messages read at the same time: they come whole, and may be as large as the server takes them.
fn reads_at_once(client: &Client) -> usize {
    const BYTES: usize = 32 * 1024 * 1024;
    (BYTES / client.server_info().max_payload.max(1)).clamp(1, 64)
}

/// Reads backwards: the sequence of the first message stored since a time is not known.
async fn read_range(
    client: &Client,
    stream: &jetstream::stream::Stream,
    name: &Arc<str>,
    range: RangeInclusive<u64>,
    since: Option<OffsetDateTime>,
    tail: &mut Tail,
) -> Result<(), String> {
    let mut reads = futures_util::stream::iter(range.rev())
        .map(|sequence| async move { stream.get_raw_message(sequence).await })
        .buffered(reads_at_once(client));
    while let Some(read) = reads.next().await {
        if tail.len() > MAX_FOUND {
            return Err(format!("it holds more than {MAX_FOUND} messages to look through"));
        }
        let message = match read {
            Ok(message) => message,
            // Gone in the meantime, or deleted before.
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => continue,
            Err(error) => return Err(error.to_string()),
        };
        if since.is_some_and(|since| message.time < since) {
            break;
        }
        if let Some(id) = message.headers.get(async_nats::header::NATS_MESSAGE_ID) {
            tail.insert(id.as_str(), name, message.sequence);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_once_and_only_for_older_messages() {
        let mut tail = Tail {
            up_to: 5,
            ..Tail::default()
        };
        for (stream, sequence) in [("S", 4), ("S", 3), ("S", 5), ("T", 1)] {
            tail.insert("m", &stream.into(), sequence);
        }
        assert_eq!(tail.take(6, "m"), None);
        assert_eq!(tail.take(5, "other"), None);
        assert_eq!(tail.take(5, "m"), Some(("S".into(), 3)));
        assert_eq!(tail.take(5, "m"), None);
        // An id of an earlier version, and as it comes back.
        tail.insert("42", &"S".into(), 7);
        assert_eq!(tail.take(5, " 42"), Some(("S".into(), 7)));
    }

    #[test]
    fn only_what_is_asked_for_is_kept() {
        let mut tail = Tail {
            up_to: 5,
            wanted: Some(Arc::new(HashSet::from(["m1".to_owned()]))),
            ..Tail::default()
        };
        for id in ["m1", "m2", "m3"] {
            tail.insert(id, &"S".into(), 1);
        }
        assert_eq!(tail.len(), 1);
        assert!(tail.take(1, "m1").is_some());
    }
}
