//! The content of a request, the addresses that are refused, and what happens to messages that cannot be called.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::StoredMessage;

use super::endpoint::Answer::{Endless, Redirect};
use super::endpoint::{Endpoint, Seen};
use super::{Kind, LONG, Place, Worker, get, header};
use crate::e2e_support::eventually;

fn place(kind: &Kind) -> Place<'_> {
    Place::new(
        kind,
        Endpoint::start([
            ("endless", &[Endless][..]),
            ("moved", &[Redirect(302)][..]),
            ("elsewhere", &[Redirect(307)][..]),
        ]),
    )
}

/// Publishes an envelope with this message id and these headers, which any publisher can do.
pub fn publish(place: &Place, id: &str, envelope: &str, headers: &str) {
    let envelope = envelope.replace('\'', "''");
    place
        .lab
        .sql(&format!(
            "select jetstream.publish('webhooks.by.hand', '{envelope}', headers => '{headers}', message_id => '{id}')"
        ))
        .unwrap();
}

/// Waits until all messages have ended, stops the worker, and returns the requests and the dead letters.
pub fn end(
    place: &Place,
    mut worker: Worker,
    count: u64,
) -> (BTreeMap<String, Vec<Seen>>, BTreeMap<String, StoredMessage>) {
    place.finished(count);
    worker.terminate();
    worker.ended(Duration::from_secs(20));
    (place.endpoint.by_key(), place.dead())
}

/// How long the dead letter stream keeps its messages.
fn dead_letters_last(place: &Place) -> Duration {
    let age = place.lab.jetstream(async |context| {
        let mut stream = context.get_stream("WEBHOOKS_DEAD").await?;
        Ok(stream.info().await?.config.max_age)
    });
    age.unwrap()
}

/// Checks method, body, headers, secrets and trace, an envelope of three fields, and a GET without a body.
pub fn a_request_is_what_the_envelope_says(kind: &Kind) {
    let place = place(kind);
    let webhook = place.webhook(
        "secret",
        Some("webhooks.team.eu"),
        r#"method = 'PUT', headers = '{"Authorization": "Bearer {{secret:token}}", "X-Kind": "test"}'"#,
    );
    place
        .lab
        .sql(&format!(
            "select jetstream.rule_webhook_secret_set({webhook}, 'token', 's3cret');
             select jetstream.webhook_call({webhook}, '{{\"deep\": [1, 2.50, 9007199254740993, \"é\"]}}', message_id => 'secret');
             insert into jetstream.webhooks (name, url, publish_mode, method)
             values ('get', '{}', 'nats', 'GET');
             select jetstream.webhook_call(id, '{{\"n\": 1}}', message_id => 'get') from jetstream.webhooks where name = 'get'",
            place.endpoint.url("/get")
        ))
        .unwrap();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let url = place.endpoint.url("/three");
    publish(
        &place,
        "three",
        &format!(r#"{{"webhook_url": "{url}", "data": {{"a": 1}}, "headers": {{"X-Event-Type": "user.created"}}}}"#),
        &format!(r#"{{"traceparent": "{trace}", "tracestate": "a=b"}}"#),
    );
    publish(
        &place,
        "bare",
        &format!(r#"{{"webhook_url": "{}"}}"#, place.endpoint.url("/bare")),
        "{}",
    );
    let values = r#"{"X-Number": 1.50, "X-Large": 9007199254740993, "X-Boolean": true, "X-List": ["a", 2.0, false]}"#;
    publish(
        &place,
        "values",
        &format!(r#"{{"webhook_url": "{url}", "headers": {values}}}"#),
        "{}",
    );
    let worker = place.worker("w", &[]);
    let (calls, dead) = end(&place, worker, 5);
    assert_eq!(dead.keys().collect::<Vec<_>>(), [""; 0]);
    let one = |key: &str| {
        assert_eq!(calls[key].len(), 1, "{key}");
        calls[key][0].clone()
    };
    let header = |seen: &Seen, name: &str| seen.headers.get(name).cloned().unwrap_or_default();
    let put = one("secret");
    assert_eq!((put.method.as_str(), put.path.as_str()), ("PUT", "/secret"));
    assert_eq!(
        put.json(),
        serde_json::json!({"deep": [1, 2.5, 9007199254740993_u64, "é"]})
    );
    assert_eq!(header(&put, "authorization"), "Bearer s3cret");
    assert_eq!(header(&put, "x-kind"), "test");
    assert_eq!(header(&put, "content-type"), "application/json");
    let three = one("three");
    assert_eq!(
        (three.method.as_str(), three.json()),
        ("POST", serde_json::json!({"a": 1}))
    );
    assert_eq!(header(&three, "traceparent"), trace);
    assert_eq!(header(&three, "tracestate"), "a=b");
    assert_eq!(header(&three, "x-event-type"), "user.created");
    let values = one("values");
    assert_eq!(
        ["x-number", "x-large", "x-boolean", "x-list"].map(|name| header(&values, name)),
        ["1.50", "9007199254740993", "true", "a, 2.0, false"]
    );
    let get = one("get");
    assert_eq!((get.method.as_str(), get.body.len()), ("GET", 0));
    assert_eq!(one("bare").method, "POST");
    assert_eq!(dead_letters_last(&place), Duration::from_secs(30 * 86_400));
}

/// Private addresses are refused by number, by name and after a redirect. Responses are read only up to a limit.
pub fn private_addresses_and_endless_answers_are_refused(kind: &Kind) {
    let place = place(kind);
    let refused = [
        "http://127.0.0.2:PORT/",
        "http://[::1]:PORT/",
        "http://[::ffff:127.0.0.2]:PORT/",
        "http://2130706434:PORT/",
        "http://0.0.0.0:PORT/",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/",
        "http://100.64.0.1/",
        "http://[fd00::1]/",
        "http://[fe80::1]/",
        "http://224.0.0.1/",
        "http://[64:ff9b::7f00:1]/",
    ];
    let port = place.endpoint.url("").rsplit(':').next().unwrap().to_owned();
    for (n, url) in refused.iter().enumerate() {
        let url = url.replace("PORT", &port);
        publish(
            &place,
            &format!("refused-{n}"),
            &format!(r#"{{"webhook_url": "{url}"}}"#),
            "{}",
        );
    }
    let moving = |id: &str, plan: &str, to: String| {
        let url = place.endpoint.url("/hook");
        let envelope = format!(r#"{{"webhook_url": "{url}", "data": {{"plan": "{plan}", "to": "{to}"}}}}"#);
        publish(&place, id, &envelope, "{}");
    };
    moving("inside", "elsewhere", place.endpoint.url_at("127.0.0.2", "/followed"));
    moving("allowed", "elsewhere", place.endpoint.url("/followed"));
    moving("loop", "elsewhere", place.endpoint.url("/hook"));
    moving("moved", "moved", place.endpoint.url("/followed"));
    moving("endless", "endless", String::new());
    let worker = place.worker("w", &[("MAX_RESPONSE_BYTES", "20000")]);
    let (calls, dead) = end(&place, worker, refused.len() as u64 + 5);

    for (n, url) in refused.iter().enumerate() {
        let id = format!("refused-{n}");
        assert!(!calls.contains_key(&id), "{url} was called");
        assert_eq!(header(&dead[&id], "Dead-Letter-Attempts"), "1", "{url}");
        let reason = header(&dead[&id], "Dead-Letter-Reason");
        assert!(reason.contains("may not be called"), "{url}: {reason}");
    }
    let allowed: Vec<_> = calls["allowed"]
        .iter()
        .map(|seen| (seen.method.as_str(), seen.path.as_str()))
        .collect();
    assert_eq!(allowed, [("POST", "/hook"), ("POST", "/followed")]);
    assert_eq!(
        calls["allowed"][1].json()["plan"],
        "elsewhere",
        "the body is sent again"
    );
    assert_eq!(calls["inside"].len(), 1, "{:?}", calls["inside"]);
    assert!(header(&dead["inside"], "Dead-Letter-Reason").contains("may not be called"));
    assert!(
        calls["loop"].len() <= 6,
        "{} requests in a redirect loop",
        calls["loop"].len()
    );
    assert!(dead.contains_key("loop"));
    assert_eq!(
        (calls["moved"].len(), header(&dead["moved"], "Dead-Letter-Status")),
        (1, "302")
    );
    // The part of the response that was not read is still in the buffers of both sockets.
    assert!(!dead.contains_key("endless") && calls["endless"].len() == 1);
    assert!(
        place.endpoint.endless_bytes() < 16 << 20,
        "{} bytes",
        place.endpoint.endless_bytes()
    );
    assert_eq!(dead.len(), refused.len() + 3);

    // By name. This worker allows no private address.
    let url = place.endpoint.url_at("localhost", "/name");
    publish(&place, "by-name", &format!(r#"{{"webhook_url": "{url}"}}"#), "{}");
    let worker = place.worker("w", &[("ALLOW_PRIVATE_ADDRESSES", "false")]);
    let (calls, dead) = end(&place, worker, refused.len() as u64 + 6);
    assert!(!calls.contains_key("by-name"));
    assert!(header(&dead["by-name"], "Dead-Letter-Reason").contains("may not be called"));
    // This worker allows all private addresses.
    publish(&place, "by-name-2", &format!(r#"{{"webhook_url": "{url}"}}"#), "{}");
    let worker = place.worker("w", &[("ALLOW_PRIVATE_ADDRESSES", "true")]);
    let (calls, _) = end(&place, worker, refused.len() as u64 + 7);
    assert_eq!(calls["by-name-2"].len(), 1);
}

/// A message that cannot be called becomes a dead letter immediately, with the reason. If nothing listens at the
/// address, the call is retried first.
pub fn what_cannot_be_called_is_dead_with_its_reason(kind: &Kind) {
    let place = place(kind);
    let secret = place.webhook("nosecret", None, r#"headers = '{"X": "{{secret:nothere}}"}'"#);
    place
        .lab
        .sql(&format!(
            "select jetstream.webhook_call({secret}, '{{}}', message_id => 'nosecret')"
        ))
        .unwrap();
    let url = place.endpoint.url("/x");
    let unreadable = [
        ("text", "\"not an envelope\"".to_owned()),
        ("list", "[1]".to_owned()),
        ("nourl", r#"{"data": {}}"#.to_owned()),
        ("scheme", r#"{"webhook_url": "ftp://example.com/"}"#.to_owned()),
        ("relative", r#"{"webhook_url": "/hook"}"#.to_owned()),
        ("method", format!(r#"{{"webhook_url": "{url}", "method": "BREW IT"}}"#)),
        (
            "header",
            format!(r#"{{"webhook_url": "{url}", "headers": {{"X": "a\r\nB: c"}}}}"#),
        ),
        ("headers", format!(r#"{{"webhook_url": "{url}", "headers": [1]}}"#)),
        (
            "object",
            format!(r#"{{"webhook_url": "{url}", "headers": {{"X": {{}}}}}}"#),
        ),
        (
            "null",
            format!(r#"{{"webhook_url": "{url}", "headers": {{"X": null}}}}"#),
        ),
        (
            "nested",
            format!(r#"{{"webhook_url": "{url}", "headers": {{"X": [["a"]]}}}}"#),
        ),
        (
            "id",
            format!(r#"{{"webhook_url": "{url}", "webhook_id": 3000000000, "headers": {{"X": "{{{{secret:a}}}}"}}}}"#),
        ),
    ];
    for (id, envelope) in &unreadable {
        publish(&place, id, envelope, "{}");
    }
    // A value that the database cannot read must not be sent to it again and again.
    let nul = format!(r#"{{"webhook_url": "{url}", "headers": {{"X": "{{{{secret:a}}}}\u0000"}}}}"#);
    let nul = format!("convert_to('{nul}', 'UTF8')");
    for (id, bytes) in [("bytes", r"'\xff00fe'"), ("nul", &nul)] {
        let publish = format!("select jetstream.publish_raw('webhooks.by.hand', {bytes}, message_id => '{id}')");
        place.lab.sql(&publish).unwrap();
    }
    publish(&place, "nobody", r#"{"webhook_url": "http://127.0.0.1:1/"}"#, "{}");
    publish(&place, "fine", &format!(r#"{{"webhook_url": "{url}"}}"#), "{}");
    let worker = place.worker("w", &[("BACKOFF_BASE_MS", "200"), ("DEAD_LETTER_MAX_AGE_MS", "90000")]);
    let (calls, dead) = end(&place, worker, unreadable.len() as u64 + 5);
    assert_eq!(calls.keys().collect::<Vec<_>>(), ["fine"]);
    let reasons: Vec<_> = dead
        .iter()
        .map(|(id, message)| (id, header(message, "Dead-Letter-Reason")))
        .collect();
    println!("{reasons:#?}");
    assert_eq!(dead.len(), unreadable.len() + 4);
    for (id, message) in &dead {
        let attempts = if id == "nobody" { "3" } else { "1" };
        assert_eq!(header(message, "Dead-Letter-Attempts"), attempts, "{id}");
        assert!(!header(message, "Dead-Letter-Reason").is_empty(), "{id}");
    }
    assert_eq!(
        dead["bytes"].payload.as_ref(),
        [0xff, 0, 0xfe],
        "the payload was changed"
    );
    assert!(header(&dead["nosecret"], "Dead-Letter-Reason").contains("nothere"));
    let view = place.lab.value(
        "select webhook_name || ' ' || attempts || ' ' || (error_message like '%nothere%')
         from jetstream.nats_recent_failures where message_id = 'nosecret'",
    );
    assert_eq!(view.unwrap(), "nosecret 1 true");
    assert_eq!(place.shown_as_dead().len(), dead.len());
    assert_eq!(dead_letters_last(&place), Duration::from_secs(90));
}

/// Checks `/health`, `/ready` and `/metrics`. The worker is not ready while NATS or the database is unavailable.
pub fn health_readiness_and_metrics(kind: &Kind) {
    let mut place = place(kind);
    let address = format!("127.0.0.1:{}", lab::nats::free_port().unwrap());
    let webhook = place.webhook("metrics", None, "");
    let mut worker = place.worker("w", &[("HTTP_LISTEN", &address), ("STATS_INTERVAL_MS", "300")]);
    let status = |path: &str| get(&address, path).map(|(status, _)| status);
    let ready = |place: &Place, wanted: u16| {
        eventually(&place.lab, LONG, &format!("/ready is {wanted}"), || {
            Ok(status("/ready") == Some(wanted))
        });
        assert_eq!(status("/health"), Some(200));
    };
    ready(&place, 200);
    let call = format!("select jetstream.webhook_call({webhook}, '{{}}') from generate_series(1, 7)");
    place.lab.sql(&call).unwrap();
    place.finished(7);
    let counted = "webhook_worker_calls_total{source=\"nats\",outcome=\"succeeded\"} 7";
    eventually(&place.lab, LONG, counted, || {
        Ok(get(&address, "/metrics").is_some_and(|(status, text)| status == 200 && text.contains(counted)))
    });
    // The interval triggers the report, because there are far fewer than 100 calls.
    super::shows(
        &place.lab,
        "statistics",
        "select sum(messages_acknowledged) from jetstream.rule_nats_consumer_stats",
        "7",
    );
    assert_eq!(status("/nothing"), Some(404));
    place.lab.nats.kill9().unwrap();
    ready(&place, 503);
    place.lab.nats.restart().unwrap();
    ready(&place, 200);
    place.lab.postgres.stop(lab::postgres::Stop::Fast).unwrap();
    let away = std::time::Instant::now();
    while status("/ready") != Some(503) {
        assert!(away.elapsed() < LONG, "the worker is ready without a database");
        std::thread::sleep(Duration::from_millis(20));
    }
    place.lab.postgres.start_again().unwrap();
    ready(&place, 200);
    place.lab.sql(&call).unwrap();
    place.finished(14);
    worker.terminate();
    worker.ended(Duration::from_secs(20));
    assert_eq!(place.endpoint.count(), 14);
    assert_eq!(
        place.sum("messages_acknowledged"),
        14,
        "calls made while the database was down were not reported"
    );
}
