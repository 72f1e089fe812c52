//! Recovery: the tail of the streams is read, headers only, so that what is stored already is not sent again.
//!
//! A duplicate window drops what was sent twice within it. A crash or an outage may last longer; then only the stream
//! itself knows what it holds.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::Client;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::jetstream::{self, consumer::DeliverPolicy, consumer::pull::OrderedConfig};
use futures_util::StreamExt;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::debug;

use super::barrier;
use super::jsapi::{self, ApiError};
use super::wire;
use crate::message::Message;
use crate::subject;

/// How long the next message of a tail may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages that a server with a copy of a stream may be behind its leader and be read all the same.
const FAR_BEHIND: u64 = 20_000;

/// How far a time of ours may be off the server's clock.
const CLOCK_MARGIN: Duration = Duration::from_secs(60);

/// Up to where everything in a stream has been settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Sequence in the stream.
    pub sequence: u64,
    /// When that was known: of a stream made since then it says nothing.
    pub at: SystemTime,
}

/// What to look for, and from where on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Streams of which is known up to which sequence everything has been settled.
    pub positions: HashMap<Arc<str>, Position>,
    /// Subjects, as stored, that messages of unknown outcome were sent to: streams that take one of these are read
    /// too, from `since` on.
    pub subjects: Vec<String>,
    /// No message of unknown outcome was sent before.
    pub since: Option<SystemTime>,
    /// Read only messages with these subjects, where it says so: for a few messages in a busy stream.
    pub filtered: bool,
    /// Highest `outbox.id` whose outcome may be unknown.
    pub up_to: i64,
}

/// The message ids found in the tails, by a 128-bit hash.
#[derive(Debug, Default)]
pub(super) struct Tail {
    found: HashMap<u128, (Arc<str>, u64)>,
    up_to: i64,
}

impl Tail {
    /// Where a message is stored, if it was found; it is not found a second time.
    pub(super) fn take(&mut self, id: i64, message_id: &str) -> Option<(Arc<str>, u64)> {
        if self.found.is_empty() || id > self.up_to {
            return None;
        }
        self.found.remove(&hash(message_id))
    }

    /// Number of message ids.
    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    fn insert(&mut self, message_id: &str, stream: &Arc<str>, sequence: u64) {
        // The first copy is the one that counts.
        self.found
            .entry(hash(message_id))
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

/// The subjects of messages, each once.
pub(super) fn subjects(messages: &[Arc<Message>]) -> Vec<String> {
    let distinct: BTreeSet<&str> = messages.iter().map(|message| message.subject.as_str()).collect();
    distinct.into_iter().map(str::to_owned).collect()
}

/// Reads the tails that `plan` asks for.
///
/// Errors: the server's reason; nothing may then be sent again, or it might be stored twice.
pub(super) async fn read(client: &Client, prefix: Option<&str>, plan: &Plan) -> Result<Tail, String> {
    let mut plan = plan.clone();
    for subject in &mut plan.subjects {
        *subject = wire::subject(prefix, subject).into_owned();
    }
    let plan = &plan;
    let mut tail = Tail {
        found: HashMap::new(),
        up_to: plan.up_to,
    };
    for info in streams(client, plan)
        .await
        .map_err(|error| format!("streams cannot be listed: {error}"))?
    {
        let name: Arc<str> = text(&info["config"]["name"]).into();
        let unread = |error: String| format!("stream \"{name}\" cannot be read: {error}");
        let mut info = info;
        let ours = plan.positions.contains_key(&name) || start(plan, &name, &info).is_some();
        if ours && replicated(&info) {
            info = barrier::pass(client, &name, info, &plan.subjects)
                .await
                .map_err(unread)?;
        }
        if let Some(from) = start(plan, &name, &info) {
            let before = tail.len();
            read_stream(client, &name, &info, from, plan, &mut tail)
                .await
                .map_err(unread)?;
            debug!(target: "pg_jetstream", stream = &*name, found = tail.len() - before, "tail read");
        }
    }
    Ok(tail)
}

/// All streams of the account, as the server describes them.
///
/// In a cluster the list leaves out streams whose leader does not answer, and names them. That is an error if we have
/// published to one of them: what it holds is not known.
async fn streams(client: &Client, plan: &Plan) -> Result<Vec<Value>, ApiError> {
    let mut all = Vec::new();
    loop {
        let mut page = jsapi::call(client, "STREAM.LIST", &json!({ "offset": all.len() })).await?;
        if let Some(silent) = silent(plan, &page) {
            return Err(ApiError::Other(format!("stream \"{silent}\" does not answer")));
        }
        let total = page["total"].as_u64().unwrap_or(0);
        match page["streams"].take() {
            Value::Array(streams) if !streams.is_empty() => all.extend(streams),
            _ => return Ok(all),
        }
        if all.len() as u64 >= total {
            return Ok(all);
        }
    }
}

/// A stream we have published to and that a page of the list names as missing.
fn silent<'a>(plan: &Plan, page: &'a Value) -> Option<&'a str> {
    let missing = page["missing"].as_array().into_iter().flatten();
    missing
        .filter_map(Value::as_str)
        .find(|name| plan.positions.contains_key(*name))
}

/// Whether the stream is kept by several servers.
fn replicated(info: &Value) -> bool {
    info["config"]["num_replicas"].as_u64() > Some(1)
}

/// Where to begin in a stream; none if nothing of ours can be there.
fn start(plan: &Plan, name: &str, info: &Value) -> Option<DeliverPolicy> {
    let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
    if info["state"]["messages"].as_u64() == Some(0) {
        return None;
    }
    match plan.positions.get(name) {
        // A stream made anew counts from 1 again, and may have come as far since.
        Some(position) if position.sequence > last || made_since(info, position.at) => Some(DeliverPolicy::All),
        Some(position) if position.sequence == last => None,
        Some(position) => Some(DeliverPolicy::ByStartSequence {
            start_sequence: position.sequence + 1,
        }),
        None => {
            let takes = |subject: &String| {
                let patterns = info["config"]["subjects"].as_array().into_iter().flatten();
                patterns
                    .filter_map(Value::as_str)
                    .any(|pattern| subject::matches(subject, pattern))
            };
            if !plan.subjects.iter().any(takes) {
                return None;
            }
            let since = plan.since.and_then(|since| since.checked_sub(CLOCK_MARGIN));
            Some(match since {
                Some(since) => DeliverPolicy::ByStartTime {
                    start_time: since.into(),
                },
                None => DeliverPolicy::All,
            })
        }
    }
}

/// Whether the stream may have been made after that time; one of unknown age may.
fn made_since(info: &Value, at: SystemTime) -> bool {
    OffsetDateTime::parse(text(&info["created"]), &Rfc3339)
        .map_or(true, |created| SystemTime::from(created) + CLOCK_MARGIN > at)
}

async fn read_stream(
    client: &Client,
    name: &Arc<str>,
    info: &Value,
    from: DeliverPolicy,
    plan: &Plan,
    tail: &mut Tail,
) -> Result<(), String> {
    // A consumer on any other kind of stream would take part in its retention.
    if text(&info["config"]["retention"]) != "limits" {
        return read_one_by_one(client, name, info, from, tail).await;
    }
    let stream = jetstream::new(client.clone())
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
    read_range(&stream, name, begin..=last, tail).await
}

/// Reads messages by sequence, which takes nothing from a work queue. What was consumed already cannot be found.
async fn read_one_by_one(
    client: &Client,
    name: &Arc<str>,
    info: &Value,
    from: DeliverPolicy,
    tail: &mut Tail,
) -> Result<(), String> {
    let stream = jetstream::new(client.clone())
        .get_stream(&**name)
        .await
        .map_err(|error| error.to_string())?;
    let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
    read_range(&stream, name, first(info, &from)..=last, tail).await
}

/// First sequence to read, as far as it is known.
fn first(info: &Value, from: &DeliverPolicy) -> u64 {
    let first = info["state"]["first_seq"].as_u64().unwrap_or(1);
    match from {
        DeliverPolicy::ByStartSequence { start_sequence } => first.max(*start_sequence),
        _ => first,
    }
}

async fn read_range(
    stream: &jetstream::stream::Stream,
    name: &Arc<str>,
    range: std::ops::RangeInclusive<u64>,
    tail: &mut Tail,
) -> Result<(), String> {
    let mut reads = futures_util::stream::iter(range)
        .map(|sequence| async move { stream.get_raw_message(sequence).await })
        .buffered(64);
    while let Some(read) = reads.next().await {
        let message = match read {
            Ok(message) => message,
            // Gone in the meantime, or deleted before.
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => continue,
            Err(error) => return Err(error.to_string()),
        };
        if let Some(id) = message.headers.get(async_nats::header::NATS_MESSAGE_ID) {
            tail.insert(id.as_str(), name, message.sequence);
        }
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn info(last: u64) -> Value {
        json!({
            "config": {"name": "S", "subjects": ["a.>"]},
            "created": "2026-01-02T03:04:05.678901234Z",
            "state": {"messages": last, "first_seq": 1, "last_seq": last},
        })
    }

    /// Known an hour after the stream was made.
    fn known(sequence: u64) -> Position {
        let at = UNIX_EPOCH + Duration::from_secs(1_767_326_645);
        Position { sequence, at }
    }

    fn plan(position: Option<u64>, subject: &str) -> Plan {
        Plan {
            positions: position
                .map(|sequence| (Arc::from("S"), known(sequence)))
                .into_iter()
                .collect(),
            subjects: vec![subject.to_owned()],
            ..Plan::default()
        }
    }

    #[test]
    fn reads_from_behind_the_position() {
        let start_sequence = 8;
        assert_eq!(
            start(&plan(Some(7), "x"), "S", &info(9)),
            Some(DeliverPolicy::ByStartSequence { start_sequence })
        );
        assert_eq!(start(&plan(Some(9), "a.b"), "S", &info(9)), None);
    }

    #[test]
    fn a_stream_of_ours_that_does_not_answer_is_not_taken_for_an_empty_one() {
        let page = json!({"total": 2, "streams": [], "missing": ["OTHER", "S"]});
        assert_eq!(silent(&plan(Some(7), "a.b"), &page), Some("S"));
        assert_eq!(silent(&plan(None, "a.b"), &page), None);
        assert_eq!(
            silent(&plan(Some(7), "a.b"), &json!({"total": 0, "streams": null})),
            None
        );
    }

    #[test]
    fn reads_a_stream_made_anew_from_its_beginning() {
        assert_eq!(start(&plan(Some(100), "a.b"), "S", &info(3)), Some(DeliverPolicy::All));
    }

    #[test]
    fn reads_a_stream_made_since_from_its_beginning_however_far_it_has_come() {
        let mut plan = plan(Some(7), "a.b");
        let back = |plan: &mut Plan, seconds| {
            for position in plan.positions.values_mut() {
                position.at -= Duration::from_secs(seconds);
            }
        };
        back(&mut plan, 3500);
        let start_sequence = 8;
        let behind = Some(DeliverPolicy::ByStartSequence { start_sequence });
        assert_eq!(start(&plan, "S", &info(9)), behind);
        // By less than clocks may differ.
        back(&mut plan, 50);
        assert_eq!(start(&plan, "S", &info(9)), Some(DeliverPolicy::All));
        back(&mut plan, 3600);
        assert_eq!(start(&plan, "S", &info(9)), Some(DeliverPolicy::All));
        assert_eq!(start(&plan, "S", &info(7)), Some(DeliverPolicy::All));
    }

    #[test]
    fn without_a_position_reads_only_where_the_subject_goes() {
        assert_eq!(start(&plan(None, "a.b"), "S", &info(3)), Some(DeliverPolicy::All));
        assert_eq!(start(&plan(None, "b"), "S", &info(3)), None);
        assert_eq!(start(&plan(None, "a.b"), "S", &info(0)), None);
    }

    #[test]
    fn an_id_is_found_once_and_only_for_older_messages() {
        let mut tail = Tail {
            up_to: 5,
            ..Tail::default()
        };
        tail.insert("m", &"S".into(), 3);
        tail.insert("m", &"S".into(), 4);
        assert_eq!(tail.take(6, "m"), None);
        assert_eq!(tail.take(5, "other"), None);
        assert_eq!(tail.take(5, "m"), Some(("S".into(), 3)));
        assert_eq!(tail.take(5, "m"), None);
    }
}
