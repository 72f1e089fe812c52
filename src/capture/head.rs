//! Where captured changes go and what they look like: the part of a message that is the same for all rows of a table.
//! Free of PostgreSQL.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Shape of a message's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `{"Insert": {…}}`, all values text.
    Pgoutput,
    /// `{"op": "insert", …}`, typed values.
    Row,
    /// Debezium's envelope without a schema.
    Debezium,
    /// CloudEvents 1.0 in structured mode, with `ce-` headers.
    Cloudevents,
}

impl Format {
    /// Whether messages say which database they come from.
    pub fn names_database(self) -> bool {
        match self {
            Format::Pgoutput | Format::Row => false,
            Format::Debezium | Format::Cloudevents => true,
        }
    }
}

/// Stored with each batch, so that what was captured is published as it was meant, whatever becomes of the capture.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Head {
    /// Shape of the body.
    pub format: Format,
    /// First tokens of the subject.
    pub prefix: String,
    /// Schema of the table.
    pub schema: String,
    /// Name of the table.
    pub table: String,
    /// Object id of the table.
    pub relation_id: u32,
    /// Database, for the formats that name it; empty for the others.
    #[serde(default)]
    pub database: String,
}

impl Head {
    /// As it is stored: its fields in their order as a JSON array, which `jetstream.outbox_summary` reads too. It is read as
    /// an object as well, as 0.1.0 stored it.
    pub fn stored(&self) -> String {
        let mut fields = vec![
            json!(self.format),
            json!(self.prefix),
            json!(self.schema),
            json!(self.table),
            json!(self.relation_id),
        ];
        if !self.database.is_empty() {
            fields.push(json!(self.database));
        }
        Value::from(fields).to_string()
    }

    /// What the keys of its messages begin with: `{schema}.{table}:`
    pub fn key_prefix(&self) -> String {
        format!("{}.{}:", token(&self.schema), token(&self.table))
    }

    /// The subject of a change: `{prefix}.{schema}.{table}.{operation}`.
    pub fn subject(&self, operation: &str) -> String {
        format!(
            "{}.{}.{}.{operation}",
            self.prefix,
            token(&self.schema),
            token(&self.table)
        )
    }

    /// The subject of a transaction's boundary: `{prefix}.transactions.{begin|commit}.event`.
    pub fn transaction_subject(&self, event: &str) -> String {
        format!("{}.transactions.{event}.event", self.prefix)
    }
}

/// A name as one token of a subject: bytes (of UTF-8) that are not printable ASCII, and `.`, `*`, `>`, `%` and space,
/// become `%` and two hexadecimal digits, as in a URL.
pub fn token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'.' | b'*' | b'>' | b'%' => token.push_str(&format!("%{byte:02X}")),
            b'!'..=b'~' => token.push(byte as char),
            _ => token.push_str(&format!("%{byte:02X}")),
        }
    }
    token
}

/// A name as one segment of a URI's path: bytes (of UTF-8) but letters, digits and `-._~` become `%` and two
/// hexadecimal digits (RFC 3986).
pub fn segment(name: &str) -> String {
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => segment.push(byte as char),
            _ => segment.push_str(&format!("%{byte:02X}")),
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::subject;

    fn read(token: &str) -> String {
        let mut bytes = Vec::new();
        let mut rest = token.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'%' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                plain => plain,
            });
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_head_is_read_as_it_was_stored_now_and_by_earlier_versions() {
        let head = |format| Head {
            format,
            prefix: "postgres".into(),
            database: if format == Format::Debezium {
                "shop".into()
            } else {
                String::new()
            },
            schema: "public".into(),
            table: "users".into(),
            relation_id: 7,
        };
        let read = |stored: &str| serde_json::from_str::<Head>(stored).unwrap();
        for format in [Format::Pgoutput, Format::Debezium] {
            assert_eq!(read(&head(format).stored()), head(format));
        }
        assert_eq!(
            head(Format::Pgoutput).stored(),
            r#"["pgoutput","postgres","public","users",7]"#
        );
        let earlier = r#"{"format":"debezium","connection":"default","prefix":"postgres","database":"shop",
            "schema":"public","table":"users","relation_id":7}"#;
        assert_eq!(read(earlier), head(Format::Debezium));
    }

    #[test]
    fn any_name_is_a_token_and_comes_back() {
        for name in [
            "users", "a.b", "we ird", "*", ">", "100%", "%2E", "Käse", "🧀", "a\tb", "$x", "-_~",
        ] {
            let token = token(name);
            assert_eq!(read(&token), name);
            assert!(!token.contains('.'), "{token}");
            assert_eq!(subject::check(&format!("p.{token}.insert")), Ok(()), "{token}");
        }
        assert_eq!(token("a.b c"), "a%2Eb%20c");
    }

    #[test]
    fn a_segment_is_part_of_a_uri() {
        assert_eq!(segment("us\"er/s?#[ä]"), "us%22er%2Fs%3F%23%5B%C3%A4%5D");
        assert_eq!(segment("a-b.c_d~"), "a-b.c_d~");
    }
}
