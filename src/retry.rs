//! When a failed message is tried again. Free of PostgreSQL.

use std::time::Duration;

use rand::RngExt;

/// Share of the delay by which it may differ in either direction, so that messages that failed together do not come
/// back together.
const JITTER: f64 = 0.1;

/// Exponential backoff with a ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Delay after the first failure.
    pub base: Duration,
    /// Longest delay.
    pub max: Duration,
}

impl Backoff {
    /// Delay after the `attempts`-th failure (from 1), without jitter.
    pub fn nominal(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max.max(self.base))
    }

    /// Delay after the `attempts`-th failure (from 1), give or take a tenth.
    pub fn delay(&self, attempts: u32) -> Duration {
        self.nominal(attempts)
            .mul_f64(rand::rng().random_range(1.0 - JITTER..=1.0 + JITTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guc_defaults::{MAX_ATTEMPTS, RETRY_BACKOFF_BASE_MS, RETRY_BACKOFF_MAX_MS};

    const DEFAULT: Backoff = Backoff {
        base: Duration::from_millis(RETRY_BACKOFF_BASE_MS as u64),
        max: Duration::from_millis(RETRY_BACKOFF_MAX_MS as u64),
    };

    #[test]
    fn doubles_up_to_the_ceiling() {
        let backoff = Backoff {
            base: Duration::from_secs(1),
            max: Duration::from_secs(10),
        };
        let nominal: Vec<u64> = (1..=6).map(|n| backoff.nominal(n).as_secs()).collect();
        assert_eq!(nominal, [1, 2, 4, 8, 10, 10]);
        assert_eq!(backoff.nominal(u32::MAX), backoff.max);
    }

    #[test]
    fn a_ceiling_below_the_base_does_not_shorten_it() {
        let backoff = Backoff {
            base: Duration::from_secs(5),
            max: Duration::from_secs(1),
        };
        assert_eq!(backoff.nominal(3), Duration::from_secs(5));
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        let seconds: Vec<f64> = (0..1000)
            .map(|_| DEFAULT.delay(1).as_secs_f64() / DEFAULT.base.as_secs_f64())
            .collect();
        assert!(seconds.iter().all(|s| (0.9..=1.1).contains(s)));
        assert!(seconds.iter().any(|s| *s < 0.95) && seconds.iter().any(|s| *s > 1.05));
    }

    #[test]
    fn default_attempts_last_a_day_even_with_the_shortest_jitter() {
        let total: f64 = (1..MAX_ATTEMPTS as u32)
            .map(|n| DEFAULT.nominal(n).as_secs_f64() * (1.0 - JITTER))
            .sum();
        assert!(total >= 86_400.0, "{total} s");
    }
}
