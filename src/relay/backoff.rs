//! Delays between connection attempts.

use std::time::Duration;

/// Doublings of the first delay before it stays as it is.
const MAX_DOUBLINGS: u32 = 4;

/// The first attempt is made at once, the next ones after a delay that doubles to sixteen times its value, each a
/// fifth longer or shorter by chance.
#[derive(Debug)]
pub(super) struct Backoff {
    base: Duration,
    attempts: u32,
}

impl Backoff {
    pub(super) fn new(base: Duration) -> Self {
        Backoff { base, attempts: 0 }
    }

    /// How long to wait before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        let attempt = self.attempts;
        self.attempts = attempt.saturating_add(1);
        match attempt {
            0 => Duration::ZERO,
            n => self
                .base
                .saturating_mul(1 << (n - 1).min(MAX_DOUBLINGS))
                .mul_f64(rand::random_range(0.8..1.2)),
        }
    }

    /// The connection has proved itself: begin anew.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_doubling_to_sixteen_times() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        assert_eq!(backoff.next(), Duration::ZERO);
        for factor in [1, 2, 4, 8, 16, 16, 16] {
            let delay = backoff.next();
            assert!(delay >= Duration::from_millis(800) * factor && delay <= Duration::from_millis(1200) * factor);
        }
        backoff.reset();
        assert_eq!(backoff.next(), Duration::ZERO);
    }
}
