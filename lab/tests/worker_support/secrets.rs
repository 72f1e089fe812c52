//! Where secrets are sent, and where they are not. A database that cannot provide them costs no attempt.

use std::time::Duration;

use lab::lab::DATABASE;

use super::answers::{end, publish};
use super::endpoint::Answer::Redirect;
use super::endpoint::{Endpoint, Seen};
use super::{Kind, LONG, Place, Worker, header};
use crate::e2e_support::{drained, eventually};

/// Both addresses of the endpoint may be called, so that only the secrets distinguish them.
const BOTH: (&str, &str) = ("ALLOW_PRIVATE_ADDRESSES", "127.0.0.0/8");

/// A webhook with a secret for the endpoint at 127.0.0.1.
fn place(kind: &Kind) -> (Place<'_>, i32) {
    let place = Place::new(
        kind,
        Endpoint::start([
            ("moved", &[Redirect(307)][..]),
            ("moved for good", &[Redirect(308)][..]),
        ]),
    );
    let webhook = place.webhook(
        "own",
        None,
        r#"headers = '{"X-Api-Key": "{{secret:token}}", "Authorization": "Bearer {{secret:token}}", "X-Kind": "test"}'"#,
    );
    let secret = format!("select jetstream.rule_webhook_secret_set({webhook}, 'token', 's3cret')");
    place.lab.sql(&secret).unwrap();
    (place, webhook)
}

fn value<'s>(seen: &'s Seen, name: &str) -> &'s str {
    seen.headers.get(name).map_or("", String::as_str)
}

/// Requests to 127.0.0.1, and requests to another address.
fn by_address(place: &Place) -> (Vec<Seen>, Vec<Seen>) {
    let seen = place.endpoint.seen().clone();
    seen.into_iter().partition(|seen| seen.host.starts_with("127.0.0.1:"))
}

/// A publisher can name any webhook and any URL. The secrets of the webhook are sent to its own server, whatever the
/// path, and to no other server.
pub fn secrets_go_to_the_webhooks_own_server(kind: &Kind) {
    let (place, webhook) = place(kind);
    let port = place.endpoint.url("").rsplit(':').next().unwrap().to_owned();
    let ask = |id: &str, url: &str, value: &str| {
        let url = url.replace("PORT", &port);
        let envelope =
            format!(r#"{{"webhook_url": "{url}", "webhook_id": {webhook}, "headers": {{"X-Api-Key": "{value}"}}}}"#);
        publish(&place, id, &envelope, "{}");
    };
    let secret = "{{secret:token}}";
    ask("own", "http://127.0.0.1:PORT/another/path?and=more", secret);
    ask("plain", "http://127.0.0.2:PORT/", "no secret");
    let strange = [
        "http://127.0.0.2:PORT/",
        "http://127.0.0.1:1/",
        "http://127.0.0.1:PORT@127.0.0.2:PORT/",
        r"http://127.0.0.1:PORT\\@127.0.0.2:PORT/",
        r"http://127.0.0.2:PORT\\@127.0.0.1:PORT/",
        "http://127.0.0.2:PORT#@127.0.0.1:PORT/",
        "http://127.0.0.2:PORT?@127.0.0.1:PORT/",
    ];
    for (n, url) in strange.iter().enumerate() {
        ask(&format!("strange-{n}"), url, secret);
    }
    let worker = place.worker("w", &[BOTH]);
    let (calls, dead) = end(&place, worker, strange.len() as u64 + 2);
    assert_eq!(value(&calls["own"][0], "x-api-key"), "s3cret");
    assert_eq!(value(&calls["plain"][0], "x-api-key"), "no secret");
    let (_, others) = by_address(&place);
    let others: Vec<_> = others.iter().map(Seen::key).collect();
    assert_eq!(others, ["plain"], "calls to another server");
    for n in 0..strange.len() {
        let id = format!("strange-{n}");
        // A URL that one parser refuses is a path on the webhook's own server for another parser.
        match dead.get(&id) {
            Some(message) => assert_eq!(header(message, "Dead-Letter-Attempts"), "1", "{message:?}"),
            None => assert_eq!(calls[&id].len(), 1),
        }
    }
    let reason = header(&dead["strange-0"], "Dead-Letter-Reason");
    let refused = format!("secrets of webhook {webhook} are not sent to ");
    assert!(reason.contains(&format!("//127.0.0.2:{port}")), "{reason}");
    assert!(reason.contains(&refused), "{reason}");
}

/// A redirect to another server takes none of the webhook's headers along, and a redirect to the same server takes all
/// of them. Neither sends a referrer, which may also contain a secret.
pub fn a_redirect_takes_no_secrets_to_another_server(kind: &Kind) {
    let (place, webhook) = place(kind);
    for (id, plan, to) in [
        ("away", "moved", place.endpoint.url_at("127.0.0.2", "/followed")),
        (
            "away-for-good",
            "moved for good",
            place.endpoint.url_at("127.0.0.2", "/followed"),
        ),
        ("here", "moved", place.endpoint.url("/followed")),
        ("relative", "moved", "/followed?relative".to_owned()),
    ] {
        let call = format!(
            "select jetstream.webhook_call({webhook}, '{{\"plan\": \"{plan}\", \"to\": \"{to}\"}}', message_id => '{id}')"
        );
        place.lab.sql(&call).unwrap();
    }
    let worker = place.worker("w", &[BOTH]);
    let (calls, dead) = end(&place, worker, 4);
    assert!(dead.is_empty(), "{dead:?}");
    let (own, others) = by_address(&place);
    assert_eq!((own.len(), others.len()), (6, 2));
    for seen in &own {
        assert_eq!(value(seen, "x-api-key"), "s3cret");
        assert_eq!(value(seen, "authorization"), "Bearer s3cret");
    }
    for seen in &others {
        assert_eq!(value(seen, "content-type"), "application/json", "{seen:?}");
        assert!(calls.contains_key(seen.key()), "{seen:?}");
        for name in ["x-api-key", "authorization", "x-kind"] {
            assert_eq!(value(seen, name), "", "{name} was sent to another server");
        }
    }
    for seen in own.iter().chain(&others) {
        assert_eq!(value(seen, "referer"), "", "{seen:?}");
    }
    assert_eq!(calls["relative"][1].path, "/followed?relative");
}

/// Waits until the worker has logged this text twice since `from`, which means that it has asked again. Returns the
/// length of the log.
fn told(place: &Place, worker: &Worker, from: usize, text: &str) -> usize {
    eventually(&place.lab, LONG, text, || {
        Ok(worker.log()[from..].matches(text).count() >= 2)
    });
    assert_eq!(
        place.owed(),
        Some((0, 1)),
        "{text}: the message does not wait in its only attempt"
    );
    worker.log().len()
}

/// Without a right, a function or a login, the message waits in its only attempt until an operator fixes the cause.
pub fn a_database_that_refuses_costs_no_attempt(kind: &Kind) {
    let (place, webhook) = place(kind);
    let run = |text: &str| place.lab.sql(text).unwrap();
    run("revoke jetstream_webhook_worker from hooks");
    run(&format!(
        "select jetstream.webhook_call({webhook}, '{{}}', message_id => 'held')"
    ));
    drained(&place.lab, LONG);
    let mut worker = place.worker("w", &[("MAX_DELIVER", "1"), ("ACK_WAIT_MS", "2000")]);
    let at = told(&place, &worker, 0, "permission denied");
    let signature = run("select oid::regprocedure::text from pg_proc where proname = 'webhook_headers'")
        .concat()
        .concat();
    run(&format!("alter function {signature} rename to hidden"));
    run("grant jetstream_webhook_worker to hooks");
    let at = told(&place, &worker, at, "does not exist");
    run("alter role hooks nologin");
    run("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'hooks'");
    told(&place, &worker, at, "not permitted to log in");
    run(&format!(
        "alter function {} rename to webhook_headers",
        signature.replace("webhook_headers", "hidden")
    ));
    run("alter role hooks login");
    place.finished(1);
    worker.terminate();
    worker.ended(Duration::from_secs(20));
    assert_eq!(
        place.dead().keys().collect::<Vec<_>>(),
        [""; 0],
        "{DATABASE} could not answer, and the message became a dead letter"
    );
    let calls = place.endpoint.by_key();
    assert_eq!((calls.len(), calls["held"].len()), (1, 1));
    assert_eq!(value(&calls["held"][0], "x-api-key"), "s3cret");
}
