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
    (b'i', Op::Insert, "insert"),
    (b'u', Op::Update, "update"),
    (b'd', Op::Delete, "delete"),
    (b't', Op::Truncate, "truncate"),
    (b'r', Op::Relation, "relation"),
    (b'b', Op::Begin, "begin"),
    (b'c', Op::Commit, "commit"),
];

impl Op {
    /// The token of the subject, and the word in messages.
    pub fn name(self) -> &'static str {
        OPS.iter()
            .find(|(_, op, _)| *op == self)
            .map_or("", |(_, _, name)| name)
    }

    fn code(self) -> u8 {
        OPS.iter()
            .find(|(_, op, _)| *op == self)
            .map_or(0, |(code, _, _)| *code)
    }
}

/// One change. Rows are JSON objects in UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// What happened.
    pub op: Op,
    /// Key of the row, for the order.
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

/// Bytes that are no batch.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("a batch of changes is damaged at byte {0}")]
pub struct Damaged(usize);

const NONE: u32 = u32::MAX;

/// Appends a change.
pub fn push(out: &mut Vec<u8>, change: &Change<'_>) {
    out.push(change.op.code());
    for field in [change.key, change.old, change.new, change.changed] {
        match field {
            // A value is below 1 GB, as every value of PostgreSQL.
            Some(bytes) => {
                out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                out.extend_from_slice(bytes);
            }
            None => out.extend_from_slice(&NONE.to_le_bytes()),
        }
    }
}

/// The changes of a batch, in order.
pub fn unpack(body: &[u8]) -> Result<Vec<Change<'_>>, Damaged> {
    let mut at = 0;
    let mut changes = Vec::new();
    while at < body.len() {
        let Some((_, op, _)) = OPS.iter().find(|(code, _, _)| *code == body[at]) else {
            return Err(Damaged(at));
        };
        at += 1;
        let mut field = || -> Result<Option<&[u8]>, Damaged> {
            let length = body.get(at..at + 4).ok_or(Damaged(at))?;
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
            at += 4;
            if length == NONE {
                return Ok(None);
            }
            let bytes = body.get(at..at + length as usize).ok_or(Damaged(at))?;
            at += length as usize;
            Ok(Some(bytes))
        };
        changes.push(Change {
            op: *op,
            key: field()?,
            old: field()?,
            new: field()?,
            changed: field()?,
        });
    }
    Ok(changes)
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
        assert_eq!(unpack(&body).unwrap(), changes);
        assert_eq!(unpack(b"").unwrap(), []);
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
    }
}
