//! Runs the SQL of `examples/` with psql as its comments describe, and checks streams, outbox and queue.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::path::Path;

use e2e_support::{LATER, drained, program};
use lab::Lab;
use lab::lab::DATABASE;
use serde_json::json;

/// Runs one file and waits until its messages are published. Returns the output.
fn run(lab: &Lab, file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(file);
    let url = format!("nats_url={}", lab.nats.url());
    let output = program(lab, "psql", &["-X", "-v", &url, "-f", path.to_str().unwrap(), DATABASE]);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success() && !text.contains("ERROR"), "{file}: {text}");
    drained(lab, LATER);
    text
}

/// A lab in which `basic_setup.sql` has run.
fn basic() -> Lab {
    let lab = Lab::start().unwrap();
    run(&lab, "basic_setup.sql");
    lab
}

/// Subjects of a stream's messages with one field of each, sorted.
fn stream(lab: &Lab, name: &str, field: &str) -> Vec<(String, serde_json::Value)> {
    let messages = lab.stream_messages(name).unwrap();
    let mut found: Vec<_> = messages
        .iter()
        .map(|message| (message.subject.clone(), message.json().unwrap()[field].clone()))
        .collect();
    found.sort_by_key(|(subject, value)| (subject.clone(), value.to_string()));
    found
}

#[test]
fn basic_setup() {
    let lab = basic();
    let orders = stream(&lab, "ORDERS", "customer");
    let created = |customer: &str| ("orders.created".to_owned(), json!(customer));
    assert_eq!(
        orders,
        [created("ann"), created("bob")],
        "a message that was rolled back is in the stream"
    );
    let calls = stream(&lab, "WEBHOOKS", "data");
    assert_eq!(calls, [("webhooks.accounting".to_owned(), json!({"order": 1}))]);
    assert_eq!(
        lab.value("select count(*) from jetstream.history where success")
            .unwrap(),
        "3"
    );
}

#[test]
fn fan_out() {
    let lab = basic();
    run(&lab, "fan_out.sql");
    let events = lab.stream_messages("ORDERS").unwrap();
    let subjects: Vec<_> = events.iter().map(|message| message.subject.as_str()).skip(2).collect();
    assert_eq!(subjects, ["orders.paid", "orders.cancelled"]);
    let calls = stream(&lab, "WEBHOOKS", "data");
    let expected = [
        ("webhooks.accounting", 1),
        ("webhooks.orders.chat", 1),
        ("webhooks.orders.invoices", 1),
        ("webhooks.orders.warehouse", 1),
        ("webhooks.orders.warehouse", 2),
    ];
    assert_eq!(
        calls,
        expected.map(|(subject, order)| (subject.to_owned(), json!({"order": order})))
    );
    // All messages are published, or none.
    lab.sql("begin; select announce('order.paid', '{\"order\": 3}'); rollback")
        .unwrap();
    drained(&lab, LATER);
    assert_eq!(lab.message_count("WEBHOOKS").unwrap(), 5);
}

#[test]
fn load_balancing() {
    let lab = basic();
    run(&lab, "load_balancing.sql");
    let calls = stream(&lab, "WEBHOOKS", "data");
    let mut pictures: Vec<_> = calls
        .iter()
        .filter(|(subject, _)| subject == "webhooks.thumbnails")
        .map(|(_, data)| data["picture"].as_i64().unwrap())
        .collect();
    pictures.sort();
    assert_eq!(
        pictures,
        (1..=100).collect::<Vec<_>>(),
        "each message once, including the repeated one"
    );
    let duplicates = lab.value("select count(*) from jetstream.history where duplicate");
    assert_eq!(duplicates.unwrap(), "1");
    let shares =
        lab.sql("select worker, count(*) from jetstream.webhook_calls where status = 'claimed' group by 1 order by 1");
    assert_eq!(shares.unwrap(), [["worker-1", "3"], ["worker-2", "3"]]);
}

#[test]
fn hybrid_mode() {
    let lab = basic();
    run(&lab, "hybrid_mode.sql");
    let queued = lab
        .sql("select message_id, status from jetstream.webhook_calls order by id")
        .unwrap();
    assert_eq!(
        queued,
        [
            ["payment-1", "pending"],
            ["payment-2", "pending"],
            ["payment-3", "pending"]
        ]
    );
    let messages = lab.stream_messages("WEBHOOKS").unwrap();
    let published: Vec<_> = messages
        .iter()
        .filter(|message| message.subject == "webhooks.payments")
        .map(|message| {
            (
                message.id().unwrap(),
                message.json().unwrap()["data"]["payment"].clone(),
            )
        })
        .collect();
    assert_eq!(published, [("payment-2", json!(2)), ("payment-4", json!(4))]);
    // Both workers of mode `both` send the endpoint the same id.
    let claimed = lab
        .sql("select message_id from jetstream.webhook_claim('w') order by call_id")
        .unwrap();
    assert_eq!(claimed.concat(), ["payment-1", "payment-2", "payment-3"]);
}
