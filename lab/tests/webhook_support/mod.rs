//! Webhooks of each mode, and their calls.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use lab::Lab;
use serde_json::Value;

use crate::e2e_support::{lab, stream};

/// A lab with a stream for webhooks, and one webhook for each mode: 1 is `queue`, 2 is `nats`, 3 is `both`.
pub fn webhooks() -> Lab {
    let lab = lab(&[]);
    stream(&lab, "WEBHOOKS", "webhooks.>");
    lab.sql(
        "insert into jetstream.webhooks (name, url, publish_mode, headers, timeout_ms, retry_base_ms)
         select mode, 'https://example.com/' || mode, mode, '{\"X-Kind\": \"test\"}', 2500, 1
         from unnest(array['queue', 'nats', 'both']) mode",
    )
    .unwrap();
    lab
}

pub fn call(lab: &Lab, webhook: i32, more: &str) -> Value {
    let text = lab.value(&format!(
        "select jetstream.webhook_call({webhook}, '{{\"n\": {webhook}}}'{more})"
    ));
    serde_json::from_str(&text.unwrap()).unwrap()
}

pub fn claim(lab: &Lab, worker: &str, n: i32, lease: &str) -> Vec<i64> {
    let rows = lab.sql(&format!(
        "select call_id from jetstream.webhook_claim('{worker}', {n}, '{lease}')"
    ));
    rows.unwrap().concat().iter().map(|id| id.parse().unwrap()).collect()
}

pub fn status(lab: &Lab, call: i64) -> Vec<String> {
    let query = format!(
        "select status, attempts, coalesce(error, ''), coalesce(response_status, 0)
         from jetstream.webhook_calls where id = {call}"
    );
    lab.sql(&query).unwrap().concat()
}

pub fn count(lab: &Lab, table: &str) -> String {
    lab.value(&format!("select count(*) from jetstream.{table}")).unwrap()
}
