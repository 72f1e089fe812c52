//! From a captured change to the message that is published. Free of PostgreSQL.

use std::time::{Duration, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::batch::{Change, Op};
use super::head::{Format, Head, segment};
use super::json;
use crate::micros;

/// When and in which transaction a statement was made; the same for all its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Transaction id.
    pub xid: u64,
    /// Place in the write-ahead log when the statement ended.
    pub lsn: u64,
    /// Microseconds since 1970.
    pub at: i64,
    /// Random: ids of a restored or promoted copy of the database differ from those of the original.
    pub salt: String,
    /// Grows when the cluster changes: see [`super::epoch`].
    pub epoch: i64,
}

/// A message for the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Subject.
    pub subject: String,
    /// Body.
    pub body: Vec<u8>,
    /// Headers as a JSON object.
    pub headers: Option<String>,
    /// `Nats-Msg-Id`.
    pub message_id: String,
}

impl Stamp {
    /// `{epoch}-{position}-{number}-{transaction}-{salt}`: the first three order the changes of a row, and of a table with
    /// its truncations.
    fn message_id(&self, number: u32) -> String {
        format!("{}-{:016X}-{number}-{}-{}", self.epoch, self.lsn, self.xid, self.salt)
    }

    fn lsn_text(&self) -> String {
        format!("{:X}/{:X}", self.lsn >> 32, self.lsn & 0xFFFF_FFFF)
    }

    fn rfc3339(&self) -> String {
        let since = Duration::from_micros(self.at.max(0) as u64);
        OffsetDateTime::from(UNIX_EPOCH + since)
            .format(&Rfc3339)
            .unwrap_or_default()
    }
}

/// Makes the message of the change that is number `number` of its statement.
pub fn message(head: &Head, stamp: &Stamp, number: u32, change: &Change<'_>) -> Outgoing {
    let subject = match change.op {
        Op::Begin | Op::Commit => head.transaction_subject(change.op.name()),
        op => head.subject(op.name()),
    };
    let message_id = stamp.message_id(number);
    let mut body = Body(Vec::with_capacity(
        256 + change.new.map_or(0, <[u8]>::len) + change.old.map_or(0, <[u8]>::len),
    ));
    let mut headers = None;
    match head.format {
        Format::Pgoutput => pgoutput(&mut body, head, stamp, change),
        Format::Row => row(&mut body, head, stamp, number, change),
        Format::Debezium => debezium(&mut body, head, stamp, change),
        Format::Cloudevents => headers = Some(cloudevents(&mut body, head, stamp, number, change, &message_id)),
    }
    Outgoing {
        subject,
        body: body.0,
        headers,
        message_id,
    }
}

struct Body(Vec<u8>);

impl Body {
    fn add(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn string(&mut self, text: &str) -> &mut Self {
        json::string(&mut self.0, text.as_bytes());
        self
    }

    /// JSON as it was captured; `null` if there is none.
    fn json(&mut self, value: Option<&[u8]>) -> &mut Self {
        self.0.extend_from_slice(value.unwrap_or(b"null"));
        self
    }

    fn number(&mut self, number: impl std::fmt::Display) -> &mut Self {
        self.add(&number.to_string())
    }
}

/// As the change streamer pgoutput-stream writes them; `Truncate` and `Commit.xid` are more.
fn pgoutput(body: &mut Body, head: &Head, stamp: &Stamp, change: &Change<'_>) {
    // pgoutput counts from 2000.
    let timestamp = micros::from_unix(stamp.at);
    let name = match change.op {
        Op::Insert => "Insert",
        Op::Update => "Update",
        Op::Delete => "Delete",
        Op::Truncate => "Truncate",
        Op::Relation => "Relation",
        Op::Begin => "Begin",
        Op::Commit => "Commit",
    };
    body.add("{\"").add(name).add("\":{");
    if matches!(change.op, Op::Begin | Op::Commit) {
        body.add("\"lsn\":\"")
            .add(&stamp.lsn_text())
            .add("\",\"timestamp\":")
            .number(timestamp);
        body.add(",\"xid\":").number(stamp.xid);
        body.add(",\"epoch\":").number(stamp.epoch).add("}}");
        return;
    }
    body.add("\"relation_id\":")
        .number(head.relation_id)
        .add(",\"schema\":")
        .string(&head.schema);
    body.add(",\"table\":").string(&head.table);
    if matches!(change.op, Op::Update | Op::Delete) {
        body.add(",\"old_tuple\":").json(change.old);
    }
    if matches!(change.op, Op::Insert | Op::Update) {
        body.add(",\"new_tuple\":").json(change.new);
    }
    if change.op == Op::Relation {
        body.add(",\"columns\":").json(change.new);
    }
    body.add(",\"epoch\":").number(stamp.epoch).add("}}");
}

fn row(body: &mut Body, head: &Head, stamp: &Stamp, number: u32, change: &Change<'_>) {
    body.add("{\"op\":\"").add(change.op.name()).add("\"");
    if !matches!(change.op, Op::Begin | Op::Commit) {
        body.add(",\"schema\":")
            .string(&head.schema)
            .add(",\"table\":")
            .string(&head.table);
        body.add(",\"relation_id\":").number(head.relation_id);
    }
    match change.op {
        Op::Insert | Op::Update | Op::Delete => {
            body.add(",\"old\":").json(change.old).add(",\"new\":").json(change.new);
            body.add(",\"changed\":").json(change.changed);
        }
        Op::Relation => {
            body.add(",\"columns\":").json(change.new);
        }
        Op::Truncate | Op::Begin | Op::Commit => {}
    }
    body.add(",\"xid\":")
        .number(stamp.xid)
        .add(",\"epoch\":")
        .number(stamp.epoch)
        .add(",\"lsn\":\"")
        .add(&stamp.lsn_text());
    body.add("\",\"number\":")
        .number(number)
        .add(",\"time\":\"")
        .add(&stamp.rfc3339())
        .add("\"}");
}

fn debezium(body: &mut Body, head: &Head, stamp: &Stamp, change: &Change<'_>) {
    let millis = stamp.at.div_euclid(1000);
    if matches!(change.op, Op::Begin | Op::Commit) {
        let status = if change.op == Op::Begin { "BEGIN" } else { "END" };
        body.add("{\"status\":\"")
            .add(status)
            .add("\",\"id\":\"")
            .number(stamp.xid)
            .add(":")
            .number(stamp.lsn)
            .add("\",\"epoch\":")
            .number(stamp.epoch);
        body.add(",\"event_count\":null,\"data_collections\":null,\"ts_ms\":")
            .number(millis)
            .add("}");
        return;
    }
    let op = match change.op {
        Op::Insert => Some("c"),
        Op::Update => Some("u"),
        Op::Delete => Some("d"),
        Op::Truncate => Some("t"),
        _ => None,
    };
    body.add("{");
    if op.is_some() {
        body.add("\"before\":")
            .json(change.old)
            .add(",\"after\":")
            .json(change.new)
            .add(",");
    }
    body.add("\"source\":{\"version\":").string(env!("CARGO_PKG_VERSION"));
    body.add(",\"connector\":\"postgresql\",\"name\":")
        .string(&head.prefix)
        .add(",\"ts_ms\":")
        .number(millis);
    body.add(",\"snapshot\":\"false\",\"db\":")
        .string(&head.database)
        .add(",\"sequence\":null,\"schema\":");
    body.string(&head.schema)
        .add(",\"table\":")
        .string(&head.table)
        .add(",\"txId\":")
        .number(stamp.xid);
    body.add(",\"epoch\":").number(stamp.epoch);
    body.add(",\"lsn\":").number(stamp.lsn).add(",\"xmin\":null},");
    match op {
        Some(op) => {
            body.add("\"op\":\"").add(op).add("\",\"transaction\":null,");
        }
        None => {
            body.add("\"relation_id\":")
                .number(head.relation_id)
                .add(",\"columns\":")
                .json(change.new)
                .add(",");
        }
    }
    body.add("\"ts_ms\":").number(millis).add("}");
}

/// Writes the body and returns the headers.
fn cloudevents(
    body: &mut Body,
    head: &Head,
    stamp: &Stamp,
    number: u32,
    change: &Change<'_>,
    message_id: &str,
) -> String {
    let source = match change.op {
        Op::Begin | Op::Commit => format!("/{}/transactions", segment(&head.database)),
        _ => format!(
            "/{}/{}/{}",
            segment(&head.database),
            segment(&head.schema),
            segment(&head.table)
        ),
    };
    let (kind, at) = (format!("pg_jetstream.{}", change.op.name()), stamp.rfc3339());
    body.add("{\"specversion\":\"1.0\",\"id\":\"")
        .add(message_id)
        .add("\",\"source\":")
        .string(&source);
    body.add(",\"type\":\"").add(&kind).add("\",\"time\":\"").add(&at);
    body.add("\",\"datacontenttype\":\"application/json\",\"data\":");
    row(body, head, stamp, number, change);
    body.add("}");
    format!(
        "{{\"ce-specversion\":\"1.0\",\"ce-id\":\"{message_id}\",\"ce-source\":{},\"ce-type\":\"{kind}\",\
         \"ce-time\":\"{at}\",\"content-type\":\"application/cloudevents+json\"}}",
        json::quoted(&source)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn head(format: Format) -> Head {
        Head {
            format,
            prefix: "postgres".into(),
            database: "shop".into(),
            schema: "public".into(),
            table: "us\"ers".into(),
            relation_id: 7,
        }
    }

    fn made(format: Format, change: &Change<'_>) -> (Outgoing, Value) {
        let stamp = Stamp {
            xid: 9,
            lsn: 0x1_0000_00AB,
            at: 1_700_000_000_123_456,
            salt: "ff".into(),
            epoch: 1_700_000_000,
        };
        let made = message(&head(format), &stamp, 3, change);
        let body = serde_json::from_slice(&made.body).unwrap();
        (made, body)
    }

    const UPDATE: Change<'static> = Change {
        op: Op::Update,
        key: None,
        old: Some(b"{\"id\":\"1\"}"),
        new: Some(b"{\"id\":\"2\"}"),
        changed: Some(b"[\"id\"]"),
    };

    #[test]
    fn pgoutput_is_as_the_change_streamer_writes_it() {
        let (message, body) = made(Format::Pgoutput, &UPDATE);
        assert_eq!(message.subject, "postgres.public.us\"ers.update");
        assert_eq!(message.message_id, "1700000000-00000001000000AB-3-9-ff");
        let expected = json!({"Update": {"relation_id": 7, "schema": "public", "table": "us\"ers",
            "old_tuple": {"id": "1"}, "new_tuple": {"id": "2"}, "epoch": 1_700_000_000}});
        assert_eq!(body, expected);
        let (message, body) = made(Format::Pgoutput, &Change::bare(Op::Begin));
        assert_eq!(message.subject, "postgres.transactions.begin.event");
        let expected =
            json!({"Begin": {"lsn": "1/AB", "timestamp": 753_315_200_123_456_i64, "xid": 9, "epoch": 1_700_000_000}});
        assert_eq!(body, expected);
    }

    #[test]
    fn every_format_of_every_change_is_json() {
        for format in [Format::Pgoutput, Format::Row, Format::Debezium, Format::Cloudevents] {
            for op in [
                Op::Insert,
                Op::Update,
                Op::Delete,
                Op::Truncate,
                Op::Relation,
                Op::Begin,
                Op::Commit,
            ] {
                made(format, &Change::bare(op));
                let (message, _) = made(format, &Change { op, ..UPDATE });
                let headers = message
                    .headers
                    .map(|headers| serde_json::from_str::<Value>(&headers).unwrap());
                assert_eq!(headers.is_some(), format == Format::Cloudevents);
            }
        }
    }

    #[test]
    fn rows_debezium_and_cloudevents() {
        let (_, body) = made(Format::Row, &UPDATE);
        assert_eq!(body["op"], "update");
        assert_eq!(body["changed"], json!(["id"]));
        assert_eq!(body["time"], "2023-11-14T22:13:20.123456Z");
        let (_, body) = made(Format::Debezium, &UPDATE);
        assert_eq!(
            (&body["op"], &body["before"]["id"], &body["source"]["txId"]),
            (&json!("u"), &json!("1"), &json!(9))
        );
        assert_eq!(body["ts_ms"], 1_700_000_000_123_i64);
        let (_, body) = made(Format::Cloudevents, &UPDATE);
        assert_eq!(
            (&body["type"], &body["data"]["new"]["id"]),
            (&json!("pg_jetstream.update"), &json!("2"))
        );
    }
}
