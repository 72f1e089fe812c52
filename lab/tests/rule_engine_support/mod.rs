//! A session of a user of the rule engine's names.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use lab::Lab;
use lab::lab::DATABASE;
use postgres::Client;
use serde_json::Value;

pub fn session(lab: &Lab) -> Client {
    let mut client = lab.postgres.client(DATABASE).unwrap();
    client.simple_query("set search_path = public, jetstream").unwrap();
    client
}

pub fn json(lab: &Lab, query: &str) -> Value {
    serde_json::from_str(&lab.value(query).unwrap()).unwrap()
}
