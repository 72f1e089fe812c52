//! Delays between connection attempts.

use std::time::Duration;

/// No delay is doubled beyond this: a server that is back is connected to within two seconds.
const CEILING: Duration = Duration::from_millis(1_400);

/// The first attempt is made at once, the next ones after a delay that doubles up to [`CEILING`], or stays as it is where
/// it is longer, each a fifth longer or shorter by chance.
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
                .saturating_mul(1 << (n - 1).min(16))
                .min(self.base.max(CEILING))
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
    fn at_once_then_doubling_up_to_the_ceiling() {
        let mut backoff = Backoff::new(Duration::from_millis(200));
        assert_eq!(backoff.next(), Duration::ZERO);
        for nominal in [200, 400, 800, 1400, 1400, 1400] {
            let (delay, nominal) = (backoff.next(), Duration::from_millis(nominal));
            assert!(
                delay >= nominal.mul_f64(0.79) && delay <= nominal.mul_f64(1.21),
                "{delay:?}"
            );
            assert!(delay < Duration::from_secs(2));
        }
        let mut slow = Backoff::new(Duration::from_secs(10));
        slow.next();
        assert!(slow.next() >= Duration::from_secs(8) && slow.next() <= Duration::from_secs(12));
        backoff.reset();
        assert_eq!(backoff.next(), Duration::ZERO);
    }
}
