//! Every message id and header that is accepted is found again in the stream, also when its ack is lost and the stream has
//! forgotten it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::collections::BTreeMap;
use std::time::Duration;

use e2e_support::{SOON, arrived, drained, eventually, lab};
use lab::chaos::proxy::{Mode, Proxy};
use lab::lab::DATABASE;
use serde_json::json;

/// Longer than the duplicate window of the stream.
const FORGOTTEN: Duration = Duration::from_millis(900);

#[test]
fn each_id_and_header_that_is_accepted_is_stored_once() {
    let lab = lab(&[("pg_jetstream.ack_timeout", "2s")]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = Proxy::start(runtime.handle(), &[lab.nats.port()]).unwrap();
    lab.sql("update jetstream.streams set duplicate_window = '300ms'")
        .unwrap();
    eventually(&lab, SOON, "a short window", || {
        lab.jetstream(async |js| Ok(js.get_stream("S").await?.cached_info().config.duplicate_window))
            .map(|window| window == Duration::from_millis(300))
    });
    let mut client = lab.postgres.client(DATABASE).unwrap();
    client
        .execute("update jetstream.connections set url = $1", &[&proxy.urls()[0]])
        .unwrap();
    e2e_support::becomes(
        &lab,
        "the way through the proxy",
        "select jetstream.await_connection('default', 5000) ->> 'connected'",
        "true",
    );
    let long = "i".repeat(255);
    let ids = [
        "inner space",
        "inner\u{a0}nbsp",
        "nel\u{85}inside",
        "\u{200b}zero width",
        "\u{feff}bom",
        "a:b",
        ": a",
        "Nats-Msg-Id: x",
        "\"quoted\"",
        "back\\slash",
        "%20",
        "NATS/1.0",
        "käse",
        "日本",
        "🦀",
        "-",
        "0",
        "null",
        long.as_str(),
        // Refused: what is around a value does not come back.
        " lead",
        "trail ",
        "\ttab",
        "tab\t",
        "\u{b}vt",
        "ff\u{c}",
        "\u{a0}nbsp",
        "nbsp\u{a0}",
        "\u{85}nel",
        "em\u{2003}",
        "\u{3000}wide",
        "ls\u{2028}",
        "cr\r",
        "lf\n",
        "inner\nlf",
        "\u{7f}del",
        "del\u{7f}",
        "\u{1}soh",
        "",
        " ",
    ];
    let headers = [
        json!({}),
        json!({"X-Nats-Msg-Id": "other", "A": "Nats-Msg-Id: other", "Nats-Msg-Id-X": "other"}),
        json!({"Space": " around ", "Tab": "\taround\t", "Empty": "", "Nbsp": "\u{a0}x", "Nel": "\u{85}", "Vt": "\u{b}x\u{c}"}),
        json!({"!#$%&'*+-.^_`|~": "a:b", "Many": ["1", "", " 3"], "Del": "\u{7f}", "C1": "\u{9f}", "Long": "v".repeat(5000)}),
    ];
    proxy.set(Mode::DropAcks);
    let mut accepted = Vec::new();
    for (n, id) in ids.iter().enumerate() {
        for (m, headers) in headers.iter().enumerate() {
            // One of a kind for each id, and all kinds for the first.
            if n > 0 && m != n % 4 {
                continue;
            }
            let id = if n == 0 { format!("{id} {m}") } else { (*id).to_owned() };
            let sent = client.execute(
                "select jetstream.publish('s.a', '1', message_id => $1, headers => ($2::text)::jsonb)",
                &[&id, &headers.to_string()],
            );
            match sent {
                Ok(_) => accepted.push(id),
                Err(error) => assert_eq!(error.code().map(|code| code.code()), Some("22023"), "{id:?}: {error:?}"),
            }
        }
    }
    assert_eq!(accepted.len(), 19 + 3, "{accepted:?}");
    arrived(&lab, "S", accepted.len() as u64);
    std::thread::sleep(FORGOTTEN);
    proxy.renew();
    drained(&lab, SOON);
    let mut copies: BTreeMap<String, u32> = BTreeMap::new();
    for message in lab.stream_messages("S").unwrap() {
        *copies.entry(message.id().unwrap().to_owned()).or_default() += 1;
    }
    accepted.sort();
    let once: BTreeMap<String, u32> = accepted.into_iter().map(|id| (id, 1)).collect();
    assert_eq!(copies, once);
}
