//! Compares what the producers committed with what the stream has held.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use time::OffsetDateTime;

use super::log::FaultLog;
use super::stream::{Copy, Deletion, Observed};
use crate::lab::{DATABASE, Lab};

/// Broken promises of each kind that are reported in full.
const TOLD: usize = 5;

/// An acknowledgement may be recorded this long after its stream was deleted.
const LATE_ACK: Duration = Duration::from_secs(10);

/// A ledger entry: one committed message.
#[derive(Clone, Debug)]
pub struct Line {
    n: i64,
    key: Option<String>,
}

/// The result of the comparison.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Messages in the ledger.
    pub committed: usize,
    /// Messages read from the stream, including duplicates.
    pub stored: usize,
    /// Committed messages in `dead_letters`.
    pub dead: usize,
    /// Messages that turned out to be in the stream already when the worker sent or looked them up again.
    pub known: i64,
    /// Messages stored twice, where an operator had removed the first copy before the second arrived.
    pub forgiven: usize,
    /// Messages that were not read. According to the history they were in a stream that an operator deleted.
    pub excused: usize,
    /// Broken promises: the message id and what is wrong.
    pub broken: Vec<(String, String)>,
}

impl Verdict {
    /// One line for the terminal.
    pub fn summary(&self) -> String {
        let count = |what: &str| self.broken.iter().filter(|(_, text)| text.starts_with(what)).count();
        format!(
            "{} committed, {} stored ({} already there), {} dead letters; missing {}, phantoms {}, twice {}, out of order {} \
             (by purge or deletion: {} stored again, {} unread)",
            self.committed,
            self.stored,
            self.known,
            self.dead,
            count("missing"),
            count("phantom"),
            count("twice"),
            count("out of order"),
            self.forgiven,
            self.excused
        )
    }
}

/// Reads the ledger and the tables of the extension, and compares them with what was observed.
pub fn check(lab: &Lab, observed: &Observed) -> Result<Verdict> {
    let mut client = lab.postgres.client(DATABASE)?;
    let mut ledger = HashMap::new();
    for row in client.query("select message_id, n, key from chaos.ledger", &[])? {
        ledger.insert(
            row.get(0),
            Line {
                n: row.get(1),
                key: row.get(2),
            },
        );
    }
    let ids = |query: &str, client: &mut postgres::Client| -> Result<HashSet<String>> {
        Ok(client.query(query, &[])?.iter().map(|row| row.get(0)).collect())
    };
    let dead = ids("select message_id from jetstream.dead_letters", &mut client)?;
    let owed = ids("select message_id from jetstream.outbox", &mut client)?;
    let mut deleted = HashSet::new();
    for deletion in &observed.deletions {
        deleted.extend(unread(&mut client, deletion)?);
    }
    let known = "select count(*) from (select duplicate from jetstream.history union all \
                 select duplicate from chaos.history) h where duplicate";
    let mut verdict = compare(&ledger, observed, &dead, &owed, &deleted);
    verdict.known = client.query_one(known, &[])?.get(0);
    Ok(verdict)
}

/// Messages that a deleted stream acknowledged after it was last read.
fn unread(client: &mut postgres::Client, deletion: &Deletion) -> Result<Vec<String>> {
    let query = "select message_id from (select * from jetstream.history union all select * from chaos.history) h \
                 where success and sequence > $1 and published_at between $2::text::timestamptz and $3::text::timestamptz";
    let (from, to) = (deletion.from.to_string(), (deletion.to + LATE_ACK).to_string());
    let rows = client.query(query, &[&i64::try_from(deletion.read_to)?, &from, &to])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Compares without any I/O.
pub fn compare(
    ledger: &HashMap<String, Line>,
    observed: &Observed,
    dead: &HashSet<String>,
    owed: &HashSet<String>,
    deleted: &HashSet<String>,
) -> Verdict {
    let copies = observed.by_id();
    let mut verdict = Verdict {
        committed: ledger.len(),
        stored: observed.copies.len(),
        dead: dead.iter().filter(|id| ledger.contains_key(*id)).count(),
        ..Verdict::default()
    };
    let mut broken = |id: &str, what: String| verdict.broken.push((id.to_owned(), what));
    for id in ledger
        .keys()
        .filter(|id| !copies.contains_key(id.as_str()) && !dead.contains(*id))
    {
        if owed.contains(id) {
            broken(id, "missing: still pending".to_owned());
        } else if deleted.contains(id) {
            verdict.excused += 1;
        } else {
            broken(
                id,
                "missing: committed, but neither in the stream, nor pending, nor a dead letter".to_owned(),
            );
        }
    }
    for (id, found) in &copies {
        if !ledger.contains_key(*id) {
            broken(id, "phantom: in the stream, but never committed".to_owned());
        }
        for pair in found.windows(2) {
            if pair[0].gone.is_some_and(|gone| gone <= pair[1].at) {
                verdict.forgiven += 1;
            } else {
                let gap = (pair[1].at - pair[0].at).as_seconds_f64();
                broken(id, format!("twice in the stream, {gap:.3} s apart"));
            }
        }
    }
    for (id, what) in out_of_order(ledger, &observed.copies) {
        broken(&id, what);
    }
    verdict
}

/// Considers first copies only, because a second copy is reported as a duplicate.
fn out_of_order(ledger: &HashMap<String, Line>, copies: &[Copy]) -> Vec<(String, String)> {
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<&str, (i64, &Copy)> = BTreeMap::new();
    let mut found = Vec::new();
    for copy in copies {
        let Some(Line { n, key: Some(key) }) = ledger.get(&copy.id) else {
            continue;
        };
        if !seen.insert(copy.id.as_str()) {
            continue;
        }
        match last.get(key.as_str()) {
            Some((before, other)) if before > n => found.push((
                copy.id.clone(),
                format!(
                    "out of order in {key}: number {n} at sequence {} comes after number {before} at sequence {} ({})",
                    copy.sequence, other.sequence, other.id
                ),
            )),
            _ => {
                last.insert(key, (*n, copy));
            }
        }
    }
    found
}

/// Everything known about the messages that broke a promise.
pub fn histories(lab: &Lab, observed: &Observed, verdict: &Verdict, log: &FaultLog) -> String {
    let mut text = String::new();
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    for (id, what) in &verdict.broken {
        let kind = what.split([' ', ':']).next().unwrap_or_default();
        let count = told.entry(kind).or_default();
        *count += 1;
        if *count > TOLD {
            continue;
        }
        let _ = writeln!(text, "\nmessage {id}: {what}");
        let copies: Vec<&Copy> = observed.copies.iter().filter(|copy| copy.id == *id).collect();
        for copy in &copies {
            let gone = copy.gone.map(|at| format!(", removed {at}")).unwrap_or_default();
            let _ = writeln!(
                text,
                "  stream: sequence {} (life {}) at {}{gone}: {}",
                copy.sequence, copy.life, copy.at, copy.payload
            );
        }
        for table in [
            "chaos.ledger",
            "jetstream.history",
            "chaos.history",
            "jetstream.outbox",
            "jetstream.dead_letters",
        ] {
            let query = format!(
                "select row_to_json(t) from {table} t where message_id = '{}'",
                id.replace('\'', "''")
            );
            for row in lab.sql(&query).unwrap_or_default() {
                let _ = writeln!(text, "  {table}: {}", row.concat());
            }
        }
        let moments: Vec<OffsetDateTime> = copies.iter().map(|copy| copy.at).collect();
        for at in moments {
            let _ = writeln!(text, "  faults around {at}:");
            for line in log.around(at, Duration::from_secs(6)) {
                let _ = writeln!(text, "  {line}");
            }
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::field_reassign_with_default)]
mod tests {
    use super::*;

    fn line(n: i64, key: Option<&str>) -> Line {
        Line {
            n,
            key: key.map(str::to_owned),
        }
    }

    fn observed(ids: &[&str]) -> Observed {
        let copy = |(sequence, id): (usize, &&str)| Copy {
            id: (*id).to_owned(),
            payload: serde_json::Value::Null,
            life: 0,
            sequence: sequence as u64 + 1,
            at: OffsetDateTime::UNIX_EPOCH + Duration::from_secs(sequence as u64),
            gone: None,
        };
        let mut observed = Observed::default();
        observed.copies = ids.iter().enumerate().map(copy).collect();
        observed
    }

    fn judge(ledger: &[(&str, Line)], observed: &Observed, dead: &[&str]) -> Vec<String> {
        let ledger = ledger
            .iter()
            .map(|(id, line)| ((*id).to_owned(), line.clone()))
            .collect();
        let dead = dead.iter().map(|id| (*id).to_owned()).collect();
        let none = HashSet::new();
        let verdict = compare(&ledger, observed, &dead, &none, &none);
        verdict
            .broken
            .into_iter()
            .map(|(id, what)| format!("{id} {}", what.split([' ', ':']).next().unwrap()))
            .collect()
    }

    #[test]
    fn sees_each_kind_of_broken_promise() {
        let ledger = [
            ("a", line(1, Some("k"))),
            ("b", line(2, Some("k"))),
            ("c", line(3, None)),
        ];
        assert!(judge(&ledger, &observed(&["a", "c", "b"]), &[]).is_empty());
        assert!(judge(&ledger, &observed(&["a", "b"]), &["c"]).is_empty());
        assert_eq!(judge(&ledger, &observed(&["a", "b"]), &[]), ["c missing"]);
        assert_eq!(judge(&ledger, &observed(&["a", "b", "c", "d"]), &[]), ["d phantom"]);
        assert_eq!(judge(&ledger, &observed(&["a", "b", "a", "c"]), &[]), ["a twice"]);
        assert_eq!(judge(&ledger, &observed(&["b", "c", "a"]), &[]), ["a out"]);
    }

    #[test]
    fn forgives_what_an_operator_took_away() {
        let ledger = [("a", line(1, Some("k")))];
        let mut twice = observed(&["a", "a"]);
        twice.copies[0].gone = Some(twice.copies[1].at);
        assert!(judge(&ledger, &twice, &[]).is_empty());
    }
}
