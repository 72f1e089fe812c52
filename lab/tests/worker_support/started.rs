//! Workers as the documents start them: two on one machine without a port, settings in `.env`, `npm start`, and what they
//! print.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::endpoint::Answer::Status;
use super::endpoint::Endpoint;
use super::{Kind, LONG, Place, Worker, get, shows};
use crate::e2e_support::eventually;

/// Where a worker says that it can be asked.
fn address(place: &Place, worker: &Worker) -> String {
    let mut found = None;
    eventually(&place.lab, LONG, "an address in the log", || {
        let log = worker.log();
        let (_, rest) = log.split_once("/metrics are at http://").unwrap_or_default();
        found = rest.split_once('/').map(|(address, _)| address.to_owned());
        Ok(found.is_some())
    });
    found.unwrap()
}

fn write_env_file(folder: &Path, environment: &BTreeMap<String, String>) {
    let lines: String = environment
        .iter()
        .map(|(name, value)| format!("{name}=\"{value}\"\n"))
        .collect();
    std::fs::write(folder.join(".env"), format!("# settings\n{lines}")).unwrap();
}

/// Two workers, the first by `starter` and with variables, the second with `.env` if it reads one.
pub fn two_on_one_machine_report_and_stop(kind: &Kind, starter: &Kind, reads_env_file: bool) {
    let place = Place::new(kind, Endpoint::start([("bad", &[Status(404)][..])]));
    let webhook = place.webhook("hook", None, "");
    let mut environment = place.environment("first");
    environment.remove("HTTP_LISTEN");
    environment.insert("MAX_DELIVER".into(), "4".into());
    let mut first = Worker::start(&place, starter, "first", &environment);
    let one = address(&place, &first);

    environment.insert("CONSUMER_NAME".into(), "second".into());
    let folder = tempfile::tempdir().unwrap();
    let there = Kind {
        name: kind.name,
        command: kind.command.clone(),
        dir: folder.path().to_owned(),
    };
    if reads_env_file {
        write_env_file(folder.path(), &environment);
        environment.clear();
        // The environment wins.
        environment.insert("MAX_DELIVER".into(), "5".into());
    }
    let mut second = Worker::start(&place, &there, "second", &environment);
    let two = address(&place, &second);
    assert_ne!(one, two);
    for address in [&one, &two] {
        assert_eq!(
            get(address, "/health").map(|(status, _)| status),
            Some(200),
            "{address}"
        );
    }

    place
        .lab
        .sql(&format!(
            "select jetstream.webhook_call({webhook}, '{{}}') from generate_series(1, 390);
             select jetstream.webhook_call({webhook}, '{{\"plan\": \"bad\"}}') from generate_series(1, 10)"
        ))
        .unwrap();
    place.finished(400);
    let said = |worker: &Worker, what: &str| worker.log().matches(what).count();
    first.terminate();
    first.ended(Duration::from_secs(20));
    // The starter has ended; the worker itself answers no longer either.
    assert_eq!(get(&one, "/health"), None, "it still runs");
    second.terminate();
    second.ended(Duration::from_secs(20));
    let deliver = if reads_env_file { 5 } else { 4 };
    shows(
        &place.lab,
        "what a consumer is",
        "select string_agg(format('%s %s %s %s %s', consumer_name, queue_group, ack_policy, max_deliver, active), ', '
                           order by consumer_name)
         from jetstream.rule_nats_consumer_stats",
        &format!("first webhook-workers explicit 4 f, second webhook-workers explicit {deliver} f"),
    );
    if kind.name != "rust" {
        let sum = |column: &str| place.sum(column);
        let last = |worker: &Worker, what: &str| -> usize {
            let log = worker.log();
            let (_, rest) = log.rsplit_once(what).unwrap_or_else(|| panic!("no {what} in {log}"));
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        assert!(said(&first, "Statistics:") + said(&second, "Statistics:") >= 2 + 3);
        for (what, expected) in [
            ("Processed: ", sum("messages_delivered")),
            ("Succeeded: ", sum("messages_acknowledged")),
            ("Failed: ", 10),
        ] {
            assert_eq!(last(&first, what) + last(&second, what), expected, "{what}");
        }
        for what in ["Processed: 100\n", "Avg Time: ", "Uptime: "] {
            assert!(said(&first, what) + said(&second, what) > 0, "no {what}");
        }
    }
}
