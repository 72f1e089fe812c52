//! Random input for what reads text and for what keeps order, a million cases in all. What fails is shrunk and shown.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod order;

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::message::{self, check_message_id};
use crate::snapshot::Snapshot;
use crate::subject;

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Text that is nearly a subject, or anything.
fn subjects() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[ab.]{0,8}",
        3 => "[a-c.*>$ \u{7f}~!é]{0,10}",
        2 => "(\\$JS|\\$SYS|_INBOX|\\$KV)(\\.[a-z]{0,3}){0,2}",
        1 => "[a-z.]{250,260}",
        1 => any::<String>(),
    ]
}

/// What a subject is, said in another way.
fn is_subject(text: &str) -> bool {
    let tokens: Vec<&str> = text.split('.').collect();
    let token = |token: &&str| !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic() && c != '*' && c != '>');
    text.len() <= 255 && tokens.iter().all(token) && !["$JS", "$SYS", "_INBOX"].contains(&tokens[0])
}

/// The rules of NATS, said in another way.
fn matching(subject: &[&str], pattern: &[&str]) -> bool {
    match (subject, pattern) {
        ([], []) => true,
        ([_, ..], [">"]) => true,
        ([_, subject @ ..], ["*", pattern @ ..]) => matching(subject, pattern),
        ([one, subject @ ..], [other, pattern @ ..]) => one == other && matching(subject, pattern),
        _ => false,
    }
}

/// JSON of any kind, more often what headers look like.
fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let text =
        prop_oneof![4 => "[a-zA-Z-]{0,6}", 1 => "[ :\r\n\u{0}é\u{7f}a]{0,4}", 1 => Just("nats-msg-id".to_owned())];
    let scalar = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
        Just(Value::Null),
    ];
    let value = prop_oneof![
        4 => scalar.clone(),
        1 => prop::collection::vec(scalar.clone(), 0..3).prop_map(Value::from),
        1 => prop::collection::vec((text.clone(), scalar.clone()), 0..2)
            .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
    ];
    prop_oneof![
        8 => prop::collection::vec((text, value.clone()), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        1 => value,
    ]
}

/// A snapshot as PostgreSQL writes it.
fn snapshots() -> impl Strategy<Value = Snapshot> {
    (1..50u64, prop::collection::vec(any::<bool>(), 0..12)).prop_map(|(oldest, open)| {
        let next = oldest + open.len() as u64;
        let in_progress: Vec<u64> = (oldest..next)
            .zip(open)
            .filter(|(_, open)| *open)
            .map(|(xid, _)| xid)
            .collect();
        // The oldest in progress is the lower bound.
        Snapshot {
            oldest: in_progress.first().copied().unwrap_or(next),
            next,
            in_progress,
        }
    })
}

proptest! {
    #![proptest_config(cases(200_000))]

    #[test]
    fn a_subject_is_accepted_exactly_if_it_is_one(text in subjects()) {
        let checked = subject::check(&text);
        prop_assert_eq!(checked.is_ok(), is_subject(&text), "{:?}", checked);
        if let Err(error) = checked {
            prop_assert!(!error.hint().is_empty() && error.to_string().len() < 2000);
        }
    }

    #[test]
    fn a_pattern_matches_as_in_nats(subject in "[ab](\\.[ab]){0,3}", pattern in "([ab*]\\.){0,3}[ab*>]") {
        let (tokens, wanted): (Vec<_>, Vec<_>) = (subject.split('.').collect(), pattern.split('.').collect());
        prop_assert_eq!(subject::matches(&subject, &pattern), matching(&tokens, &wanted));
    }
}

proptest! {
    #![proptest_config(cases(100_000))]

    #[test]
    fn headers_are_read_or_refused(json in json()) {
        let Ok(pairs) = message::headers(&json.to_string()) else { return Ok(()) };
        let values = json.as_object().into_iter().flatten().map(|(_, value)| value.as_array().map_or(1, Vec::len));
        prop_assert_eq!(pairs.len(), values.sum::<usize>());
        for (name, value) in pairs {
            prop_assert!(!name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() && c != ':'), "{:?}", name);
            prop_assert!(!value.contains(['\r', '\n', '\0']), "{:?}", value);
            prop_assert!(!name.eq_ignore_ascii_case("nats-msg-id"));
        }
    }

    #[test]
    fn a_message_id_is_accepted_exactly_if_it_is_one(id in prop_oneof![".{0,20}", "[a\r\n\u{0}\u{7f}é \u{a0}\u{85}]{0,5}", "[aé]{120,260}"]) {
        let one = !id.is_empty() && id.len() <= 255 && !id.chars().any(|c| c.is_ascii_control())
            && !id.starts_with(char::is_whitespace) && !id.ends_with(char::is_whitespace);
        prop_assert_eq!(check_message_id(&id).is_ok(), one);
    }

    #[test]
    fn a_snapshot_is_read_as_written(snapshot in snapshots(), begun in 0..20u64) {
        let list: Vec<String> = snapshot.in_progress.iter().map(u64::to_string).collect();
        let read = Snapshot::parse(&format!("{}:{}:{}", snapshot.oldest, snapshot.next, list.join(",")));
        prop_assert_eq!(&read, &snapshot);
        // Of all that have begun each has either ended or is unfinished.
        let begun = snapshot.next + begun;
        let unfinished: BTreeSet<u64> = read.unfinished(begun).collect();
        for xid in 1..begun {
            prop_assert_eq!(read.has_ended(xid), !unfinished.contains(&xid), "{}", xid);
        }
    }

    #[test]
    fn no_text_is_too_strange_for_a_snapshot(text in prop_oneof!["[0-9:,]{0,30}", any::<String>()]) {
        let read = Snapshot::parse(&text);
        prop_assert!(!read.has_ended(u64::MAX));
    }
}
