//! Where to begin in the streams: up to where each is settled, and what else may hold messages of ours.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::consumer::DeliverPolicy;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::subject;

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
    /// The message ids asked for; none if they are too many to name: then every one found is kept.
    pub message_ids: Option<Arc<HashSet<String>>>,
}

/// A stream we have published to and that a page of the list names as missing.
pub(super) fn silent<'a>(plan: &Plan, page: &'a Value) -> Option<&'a str> {
    let missing = page["missing"].as_array().into_iter().flatten();
    missing
        .filter_map(Value::as_str)
        .find(|name| plan.positions.contains_key(*name))
}

/// Where to begin in a stream; none if nothing of ours can be there.
pub(super) fn start(plan: &Plan, name: &str, info: &Value) -> Option<DeliverPolicy> {
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
            Some(match plan.since.and_then(start_time) {
                Some(start_time) => DeliverPolicy::ByStartTime { start_time },
                None => DeliverPolicy::All,
            })
        }
    }
}

/// A moment before that time; none for a time at which nothing can have been sent: then all is read.
fn start_time(since: SystemTime) -> Option<OffsetDateTime> {
    let possible = UNIX_EPOCH + CLOCK_MARGIN..=SystemTime::now() + CLOCK_MARGIN;
    possible.contains(&since).then(|| (since - CLOCK_MARGIN).into())
}

/// Whether the stream may have been made after that time; one of unknown age may.
fn made_since(info: &Value, at: SystemTime) -> bool {
    OffsetDateTime::parse(text(&info["created"]), &Rfc3339)
        .map_or(true, |created| SystemTime::from(created) + CLOCK_MARGIN > at)
}

/// First sequence to read, as far as it is known.
pub(super) fn first(info: &Value, from: &DeliverPolicy) -> u64 {
    let first = info["state"]["first_seq"].as_u64().unwrap_or(1);
    match from {
        DeliverPolicy::ByStartSequence { start_sequence } => first.max(*start_sequence),
        _ => first,
    }
}

/// A text of the server's description; empty if it is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
    fn a_time_at_which_nothing_was_sent_is_no_start() {
        let year = Duration::from_secs(31_557_600);
        let since = |since| Plan {
            since: Some(since),
            ..plan(None, "a.b")
        };
        for far in [
            UNIX_EPOCH - 290_000 * year,
            UNIX_EPOCH - 2_000 * year,
            UNIX_EPOCH,
            SystemTime::now() + year,
            UNIX_EPOCH + 10_000 * year,
            UNIX_EPOCH + 290_000 * year,
        ] {
            assert_eq!(start(&since(far), "S", &info(3)), Some(DeliverPolicy::All), "{far:?}");
        }
        let start = start(&since(SystemTime::now() - year), "S", &info(3));
        assert!(matches!(start, Some(DeliverPolicy::ByStartTime { .. })), "{start:?}");
    }

    #[test]
    fn without_a_position_reads_only_where_the_subject_goes() {
        assert_eq!(start(&plan(None, "a.b"), "S", &info(3)), Some(DeliverPolicy::All));
        assert_eq!(start(&plan(None, "b"), "S", &info(3)), None);
        assert_eq!(start(&plan(None, "a.b"), "S", &info(0)), None);
    }
}
