//! The changes of one statement, packed into the bytes that `jetstream.capture_queue.body` holds. Free of PostgreSQL.

use thiserror::Error;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A row came.
    Insert,
    /// A row changed, its key did not.
    Update,
    /// A row went.
    Delete,
    /// All rows went.
    Truncate,
    /// The table's columns, on first capture and after they change.
    Relation,
    /// Before a transaction's first change.
    Begin,
    /// After its last.
    Commit,
}

const OPS: [(u8, Op, &str); 7] = [
    (b'I', Op::Insert, "insert"),
    (b'U', Op::Update, "update"),
    (b'D', Op::Delete, "delete"),
    (b'T', Op::Truncate, "truncate"),
    (b'R', Op::Relation, "relation"),
    (b'B', Op::Begin, "begin"),
    (b'C', Op::Commit, "commit"),
];

impl Op {
    /// The token of the subject, and the word in messages.
    pub fn name(self) -> &'static str {
        OPS.iter()
            .find(|(_, op, _)| *op == self)
            .map_or("", |(_, _, name)| name)
    }

    /// First byte of a change, which `jetstream.outbox_summary` looks at too.
    fn code(self) -> u8 {
        OPS.iter()
            .find(|(_, op, _)| *op == self)
            .map_or(0, |(code, _, _)| *code)
    }

    fn of(code: u8) -> Option<Op> {
        OPS.iter().find(|(known, _, _)| *known == code).map(|(_, op, _)| *op)
    }
}

/// One change. Rows are JSON objects in UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// What happened.
    pub op: Op,
    /// Values of the row's key, for the order within its table.
    pub key: Option<&'a [u8]>,
    /// The row before.
    pub old: Option<&'a [u8]>,
    /// The row after; of a relation message, its columns as a JSON array.
    pub new: Option<&'a [u8]>,
    /// Names of the columns an update changed, as a JSON array.
    pub changed: Option<&'a [u8]>,
}

impl Change<'_> {
    /// A change without a row.
    pub fn bare(op: Op) -> Change<'static> {
        Change {
            op,
            key: None,
            old: None,
            new: None,
            changed: None,
        }
    }
}

/// What a row of the queue holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    /// In order.
    pub changes: Vec<Change<'a>>,
    /// Whether keys begin with the table they belong to, as 0.1.0 stored them.
    pub whole_keys: bool,
}

/// Bytes that are no batch.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("a batch of changes is damaged at byte {0}")]
pub struct Damaged(usize);

/// Appends a change: its operation, then for each field its length and one more as a LEB128 number, and its bytes; of a
/// field that is not there, 0.
pub fn push(out: &mut Vec<u8>, change: &Change<'_>) {
    out.push(change.op.code());
    for field in [change.key, change.old, change.new, change.changed] {
        let mut number = field.map_or(0, |bytes| bytes.len() + 1);
        while number > 0x7f {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
        out.extend_from_slice(field.unwrap_or_default());
    }
}

/// The changes of a batch.
///
/// Errors: it is damaged.
pub fn unpack(body: &[u8]) -> Result<Batch<'_>, Damaged> {
    let whole_keys = body.first().is_some_and(u8::is_ascii_lowercase);
    let mut rest = Rest { body, at: 0 };
    let mut changes = Vec::new();
    while rest.at < body.len() {
        let begin = rest.at;
        let code = rest.take(1)?[0];
        let code = if whole_keys { code.to_ascii_uppercase() } else { code };
        let op = Op::of(code).ok_or(Damaged(begin))?;
        let mut field = || if whole_keys { rest.fixed() } else { rest.field() };
        changes.push(Change {
            op,
            key: field()?,
            old: field()?,
            new: field()?,
            changed: field()?,
        });
    }
    Ok(Batch { changes, whole_keys })
}

/// What is not read yet.
struct Rest<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Damaged> {
        let end = self.at.checked_add(length).ok_or(Damaged(self.at))?;
        let bytes = self.body.get(self.at..end).ok_or(Damaged(self.at))?;
        self.at = end;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<Option<&'a [u8]>, Damaged> {
        let mut number = 0;
        // A value is below 1 GB, as every value of PostgreSQL: five times seven bits.
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.take(1)?[0];
            number |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return number.checked_sub(1).map(|length| self.take(length)).transpose();
            }
        }
        Err(Damaged(self.at))
    }

    /// As 0.1.0 stored it: a length of four bytes, all ones of a field that is not there.
    fn fixed(&mut self) -> Result<Option<&'a [u8]>, Damaged> {
        let length = self.take(4)?;
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
        (length != u32::MAX).then(|| self.take(length as usize)).transpose()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let changes = [
            Change::bare(Op::Truncate),
            Change {
                op: Op::Update,
                key: Some(b"k"),
                old: None,
                new: Some(b"{}"),
                changed: Some(b""),
            },
        ];
        let mut body = Vec::new();
        changes.iter().for_each(|change| push(&mut body, change));
        let batch = unpack(&body).unwrap();
        assert_eq!(batch.changes, changes);
        assert!(!batch.whole_keys);
        assert_eq!(unpack(b"").unwrap().changes, []);
    }

    #[test]
    fn fields_of_any_length_come_back() {
        for length in [0, 1, 126, 127, 128, 16_382, 16_383, 2_097_151, 3_000_000] {
            let long = vec![b'x'; length];
            let change = Change {
                key: Some(b""),
                new: Some(&long),
                ..Change::bare(Op::Insert)
            };
            let mut body = Vec::new();
            push(&mut body, &change);
            assert_eq!(unpack(&body).unwrap().changes, [change], "{length}");
        }
    }

    #[test]
    fn what_an_earlier_version_packed_is_unpacked() {
        let mut body = b"u".to_vec();
        for field in [Some("public.t:\"1\""), None, Some("{\"a\":1}"), Some("")] {
            let length = field.map_or(u32::MAX, |field| field.len() as u32);
            body.extend_from_slice(&length.to_le_bytes());
            body.extend_from_slice(field.unwrap_or_default().as_bytes());
        }
        let batch = unpack(&body).unwrap();
        assert!(batch.whole_keys);
        let change = Change {
            op: Op::Update,
            key: Some(b"public.t:\"1\""),
            old: None,
            new: Some(b"{\"a\":1}"),
            changed: Some(b""),
        };
        assert_eq!(batch.changes, [change]);
        for cut in 1..body.len() {
            assert!(unpack(&body[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn damage_is_seen() {
        let mut body = Vec::new();
        push(
            &mut body,
            &Change {
                new: Some(b"{\"a\": 1}"),
                ..Change::bare(Op::Insert)
            },
        );
        for cut in 1..body.len() {
            assert!(unpack(&body[..cut]).is_err(), "{cut}");
        }
        body[0] = b'x';
        assert_eq!(unpack(&body), Err(Damaged(0)));
        assert_eq!(unpack(b"I\xff\xff\xff\xff\xff"), Err(Damaged(6)));
    }
}
