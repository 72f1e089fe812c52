//! Epochs: numbers that grow whenever another cluster writes, as positions in the write-ahead log do within one.
//!
//! A writer leaves its cluster behind the salt of a row of the queue; the worker, of which there is one, gives each
//! cluster its number (`jetstream.capture_epoch`).

use std::collections::HashMap;

use pgrx::spi::{SpiClient, SpiResult};

use crate::pg::cluster::Cluster;

/// Characters of a salt.
const SALT: usize = 12;

/// A cluster as it is stored behind a salt.
pub fn stored(cluster: Cluster) -> String {
    format!("{:016x}{:08x}", cluster.system, cluster.timeline)
}

/// What is stored as salt, taken apart. Rows that 0.1.1 has stored name no cluster.
fn split(stored: &str) -> (&str, Option<Cluster>) {
    let (salt, cluster) = stored.split_at_checked(SALT).unwrap_or((stored, ""));
    let parse = || {
        let (system, timeline) = cluster.split_at_checked(16)?;
        Some(Cluster {
            system: u64::from_str_radix(system, 16).ok()?,
            timeline: u32::from_str_radix(timeline, 16).ok()?,
        })
    };
    (salt, parse())
}

/// The epochs that a worker knows.
#[derive(Default)]
pub struct Epochs(HashMap<Cluster, i64>);

impl Epochs {
    /// The salt and the epoch of a row of the queue.
    pub fn of(&mut self, client: &mut SpiClient<'_>, stored: &str) -> SpiResult<(String, i64)> {
        let current = Cluster::current();
        let (salt, written) = split(stored);
        let cluster = written.unwrap_or(current);
        let epoch = match self.0.get(&cluster) {
            Some(epoch) => *epoch,
            None => {
                let sql = "select jetstream.capture_epoch($1, $2, $3, $4)";
                let arguments = [
                    (cluster.system as i64).into(),
                    (cluster.timeline as i32).into(),
                    (current.system as i64).into(),
                    (current.timeline as i32).into(),
                ];
                let found = client.update(sql, None, &arguments)?.first().get::<i64>(1)?;
                let epoch = found.unwrap_or_default();
                self.0.insert(cluster, epoch);
                epoch
            }
        };
        Ok((salt.to_owned(), epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_read_as_it_is_stored() {
        let cluster = Cluster {
            system: u64::MAX - 1,
            timeline: 7,
        };
        let salt = format!("0123456789ab{}", stored(cluster));
        assert_eq!(split(&salt), ("0123456789ab", Some(cluster)));
        for earlier in ["0123456789ab", "ff", ""] {
            assert_eq!(split(earlier), (earlier, None));
        }
    }
}
