//! How long messages took from the insert to the acknowledgement, as a histogram. Free of PostgreSQL.

/// Upper bounds of the buckets, milliseconds; what took longer is in a last one.
const BOUNDS_MS: [u64; 17] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000,
];

/// Messages by the time they took. Plain data, for shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BOUNDS_MS.len() + 1],
    micros: u64,
}

impl Histogram {
    /// Counts one message that took so many microseconds.
    pub fn record(&mut self, micros: u64) {
        let bucket = BOUNDS_MS.partition_point(|bound| bound * 1000 < micros);
        self.counts[bucket] += 1;
        self.micros += micros;
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.micros += other.micros;
    }

    /// Time of all messages together, seconds.
    pub fn seconds(&self) -> f64 {
        self.micros as f64 / 1e6
    }

    /// For each bucket its upper bound in seconds as Prometheus writes it (`0.001` to `+Inf`), and how many messages
    /// took no longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (String, u64)> {
        let bounds = BOUNDS_MS.iter().map(|ms| (*ms as f64 / 1000.0).to_string());
        let bounds = bounds.chain(std::iter::once("+Inf".to_owned()));
        bounds.zip(self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_message_in_the_first_bucket_it_fits() {
        let mut histogram = Histogram::default();
        for micros in [0, 1_000, 1_001, 5_000_000, 3_600_000_001] {
            histogram.record(micros);
        }
        let counted: Vec<_> = histogram.cumulative().collect();
        let at = |bound: &str| counted.iter().find(|(le, _)| le == bound).map(|(_, count)| *count);
        assert_eq!(
            ["0.001", "0.002", "2", "5", "3600", "+Inf"].map(at),
            [Some(2), Some(3), Some(3), Some(4), Some(4), Some(5)]
        );
        assert!(counted.is_sorted_by_key(|(_, count)| *count));
        assert_eq!(histogram.seconds(), 3605.002002);
    }

    #[test]
    fn adds_up() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.record(5);
        other.record(7);
        other.record(2_000_000_000);
        one.add(&other);
        assert_eq!(one.cumulative().last(), Some(("+Inf".to_owned(), 3)));
        assert_eq!(one.seconds(), 2000.000012);
    }
}
