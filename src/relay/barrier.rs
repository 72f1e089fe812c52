//! What the leader of a replicated stream has accepted, before its tail is read.
//!
//! A leader shows what a majority has stored. What it has accepted and cannot store yet, because a majority stands still
//! or has just come back, becomes visible later: taken for lost, it would be sent again and be stored twice once the
//! duplicate window is over. The leader compares `Nats-Expected-Last-Sequence` with what it has accepted, and its refusal
//! names that sequence: a message that expects an impossible one is never stored and tells how far the tail must be read.

use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::header::{HeaderMap, NATS_EXPECTED_LAST_SEQUENCE};
use futures_util::StreamExt;
use serde_json::Value;
use tracing::debug;

use super::answer::{Answer, answer};
use super::jsapi::{self, Api};
use crate::subject;

/// How long the leader may take to show what it has accepted.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked.
const STEP: Duration = Duration::from_millis(100);
/// A replica that its leader has not heard of for longer is gone: they speak every second.
const SILENCE: Duration = Duration::from_secs(3);
/// JetStream's error number for an unexpected last sequence.
const WRONG_LAST_SEQUENCE: u64 = 10071;

/// Waits until the leader shows all it has accepted; returns the description of the stream from then on.
///
/// Errors: there is no majority, or it takes too long: nothing may be sent again.
pub(super) async fn pass(api: &Api, name: &str, info: Value, subjects: &[String]) -> Result<Value, String> {
    if !has_majority(&info) {
        return Err("its leader has no majority".to_owned());
    }
    let Some(subject) = subject_of(&info, subjects) else {
        return Ok(info);
    };
    let Some(accepted) = accepted(&api.client, &subject).await? else {
        return Ok(info);
    };
    let deadline = Instant::now() + PATIENCE;
    let mut info = info;
    while shown(&info) < accepted {
        debug!(target: "pg_jetstream", stream = name, accepted, shown = shown(&info), "waiting for the leader");
        if Instant::now() > deadline {
            return Err(format!(
                "its leader has accepted {accepted} messages and shows {}",
                shown(&info)
            ));
        }
        tokio::time::sleep(STEP).await;
        info = jsapi::call(api, &format!("STREAM.INFO.{name}"), &Value::Null)
            .await
            .map_err(|error| error.to_string())?;
    }
    Ok(info)
}

fn shown(info: &Value) -> u64 {
    info["state"]["last_seq"].as_u64().unwrap_or(0)
}

/// A subject the stream takes: one of ours, or one made of its pattern.
fn subject_of(info: &Value, ours: &[String]) -> Option<String> {
    let patterns = || {
        info["config"]["subjects"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    };
    let taken = ours
        .iter()
        .find(|subject| patterns().any(|pattern| subject::matches(subject, pattern)));
    taken
        .cloned()
        .or_else(|| patterns().next().map(|pattern| pattern.replace(['*', '>'], "x")))
}

/// The last sequence that the leader has accepted; none if it refuses for another reason.
async fn accepted(client: &Client, subject: &str) -> Result<Option<u64>, String> {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_EXPECTED_LAST_SEQUENCE, i64::MAX.to_string().as_str());
    let silent = |reason: &str| format!("its leader does not answer for subject \"{subject}\": {reason}");
    let inbox = client.new_inbox();
    let mut replies = client
        .subscribe(inbox.clone())
        .await
        .map_err(|error| silent(&error.to_string()))?;
    client
        .publish_with_reply_and_headers(subject.to_owned(), inbox, headers, Default::default())
        .await
        .map_err(|error| silent(&error.to_string()))?;
    let answered = async {
        while let Some(reply) = replies.next().await {
            match answer(&reply) {
                Answer::NoStream => return Err("nobody answers for it".to_owned()),
                Answer::Refused {
                    err_code, description, ..
                } => return Ok(named(err_code, &description)),
                Answer::Stored { .. } => return Ok(None),
                // Not the leader's.
                Answer::Foreign => {}
            }
        }
        Err(silent("the connection is lost"))
    };
    match tokio::time::timeout(PATIENCE, answered).await {
        Ok(answered) => answered,
        Err(_) => Err(silent("request timed out")),
    }
}

/// The sequence in `wrong last sequence: 42`.
fn named(err_code: u64, description: &str) -> Option<u64> {
    let number = description.rsplit(' ').next()?;
    (err_code == WRONG_LAST_SEQUENCE).then(|| number.parse().ok()).flatten()
}

/// Whether the leader of a stream heard of a majority a moment ago.
fn has_majority(info: &Value) -> bool {
    let Some(replicas) = info["cluster"]["replicas"].as_array() else {
        return true;
    };
    let heard = |replica: &&Value| {
        let silence = replica["active"].as_u64().map(Duration::from_nanos);
        silence.is_some_and(|silence| silence < SILENCE) && replica["offline"].as_bool() != Some(true)
    };
    let heard = replicas.iter().filter(heard).count();
    2 * (heard + 1) > replicas.len() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_leader_without_a_majority_is_not_believed() {
        let info = |replicas: Value| json!({"cluster": {"leader": "a", "replicas": replicas}});
        let (near, far) = (json!({"active": 900_000_000}), json!({"active": 4_000_000_000_u64}));
        let offline = json!({"active": 900_000_000, "offline": true});
        assert!(has_majority(&info(json!([near, far]))));
        assert!(!has_majority(&info(json!([far, far]))));
        assert!(!has_majority(&info(json!([offline, far]))));
        assert!(!has_majority(&info(json!([near, far, far, far]))));
        assert!(has_majority(&json!({"state": {}})));
    }

    #[test]
    fn the_refusal_names_what_was_accepted() {
        assert_eq!(named(10071, "wrong last sequence: 1234"), Some(1234));
        assert_eq!(named(10077, "maximum messages exceeded 5"), None);
        assert_eq!(named(10071, ""), None);
    }

    #[test]
    fn the_question_goes_to_a_subject_of_the_stream() {
        let info = json!({"config": {"subjects": ["a.*.c", "b.>"]}});
        assert_eq!(subject_of(&info, &["x".into(), "b.1".into()]).as_deref(), Some("b.1"));
        assert_eq!(subject_of(&info, &[]).as_deref(), Some("a.x.c"));
        assert_eq!(subject_of(&json!({"config": {}}), &["b.1".into()]), None);
    }
}
