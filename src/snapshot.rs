//! A `pg_snapshot`: which transactions had ended when it was taken. Free of PostgreSQL.

/// Transactions by their full ids, as `pg_current_snapshot()` shows them (`xmin:xmax:xip,…`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All before this one had ended.
    pub oldest: u64,
    /// This one and all after it had not ended.
    pub next: u64,
    /// In progress, between the two, ascending.
    pub in_progress: Vec<u64>,
}

impl Snapshot {
    /// Reads the text form; what is not understood counts as in progress.
    pub fn parse(text: &str) -> Snapshot {
        let mut parts = text.split(':');
        let mut number = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        let (oldest, next) = (number(), number());
        let list = parts.next().unwrap_or("");
        Snapshot {
            oldest,
            next,
            in_progress: list.split(',').filter_map(|xid| xid.parse().ok()).collect(),
        }
    }

    /// Transactions that may have owned ids when this was taken and had not ended, `begun` being the next transaction to
    /// begin, read afterwards.
    ///
    /// `next` is one more than the latest transaction that *ended* (`GetSnapshotData` in procarray.c): those that had
    /// begun after it are in progress without being listed.
    pub fn unfinished(&self, begun: u64) -> impl Iterator<Item = u64> {
        self.in_progress.iter().copied().chain(self.next..begun)
    }

    /// Whether the transaction had ended.
    pub fn has_ended(&self, xid: u64) -> bool {
        xid < self.oldest || (xid < self.next && self.in_progress.binary_search(&xid).is_err())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_text_form() {
        let snapshot = Snapshot::parse("10:20:12,15");
        assert_eq!(
            snapshot,
            Snapshot {
                oldest: 10,
                next: 20,
                in_progress: vec![12, 15]
            }
        );
        assert_eq!(
            Snapshot::parse("10:10:"),
            Snapshot {
                oldest: 10,
                next: 10,
                in_progress: vec![]
            }
        );
        assert_eq!(Snapshot::parse("?"), Snapshot::default());
    }

    #[test]
    fn counts_those_begun_after_the_latest_that_ended() {
        let snapshot = Snapshot::parse("10:20:12,15");
        assert_eq!(snapshot.unfinished(22).collect::<Vec<_>>(), [12, 15, 20, 21]);
        assert_eq!(snapshot.unfinished(20).collect::<Vec<_>>(), [12, 15]);
    }

    #[test]
    fn knows_what_had_ended() {
        let snapshot = Snapshot::parse("10:20:12,15");
        let ended: Vec<u64> = (8..22).filter(|xid| snapshot.has_ended(*xid)).collect();
        assert_eq!(ended, [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]);
    }
}
