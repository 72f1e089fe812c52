//! What an answer means: done, try again and when, or give up.

use std::time::{Duration, SystemTime};

/// What a call led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A 2xx.
    Succeeded,
    /// Worth another attempt, not before this delay if the endpoint asked for one.
    Retry {
        /// Why.
        reason: String,
        /// `Retry-After`.
        after: Option<Duration>,
    },
    /// No attempt will do better.
    GiveUp {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// What a status says, with the `Retry-After` that came along. The rule is that of `jetstream.http_retryable`.
    pub fn of_status(status: u16, after: Option<Duration>) -> Self {
        let reason = format!("HTTP status {status}");
        match status {
            200..=299 => Self::Succeeded,
            408 | 425 | 429 | 500.. => Self::Retry { reason, after },
            _ => Self::GiveUp { reason },
        }
    }
}

/// Delays between attempts.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first attempt.
    pub base: Duration,
    /// At most.
    pub cap: Duration,
    /// Longest `Retry-After` that is honoured.
    pub retry_after_cap: Duration,
}

impl Backoff {
    /// Delay after this attempt (from 1): doubles with each, up to the cap; half of it is random (`random` from 0 to 1),
    /// so that what failed together does not come back together. As the endpoint asks, if that is longer.
    pub fn delay(&self, attempt: i64, random: f64, after: Option<Duration>) -> Duration {
        let doublings = u32::try_from(attempt.clamp(1, 32) - 1).unwrap_or(31);
        let full = self.base.saturating_mul(2u32.saturating_pow(doublings)).min(self.cap);
        let own = full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        after.map_or(own, |after| own.max(after.min(self.retry_after_cap)))
    }
}

/// The value of a `Retry-After` header: seconds, or a date, which may have passed.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value.trim()).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_to_do() {
        for status in [200, 201, 204, 299] {
            assert_eq!(Outcome::of_status(status, None), Outcome::Succeeded);
        }
        for status in [408, 425, 429, 500, 503, 599] {
            let after = Some(Duration::from_secs(1));
            let outcome = Outcome::of_status(status, after);
            assert!(
                matches!(outcome, Outcome::Retry { after: given, .. } if given == after),
                "{status}"
            );
        }
        for status in [100, 302, 304, 400, 401, 404, 410, 422, 451] {
            assert!(
                matches!(Outcome::of_status(status, None), Outcome::GiveUp { .. }),
                "{status}"
            );
        }
    }

    #[test]
    fn delays_double_up_to_the_cap_and_honour_the_endpoint() {
        let backoff = Backoff {
            base: Duration::from_secs(1),
            cap: Duration::from_secs(10),
            retry_after_cap: Duration::from_secs(60),
        };
        let full: Vec<_> = (1..=6)
            .map(|attempt| backoff.delay(attempt, 1.0, None).as_secs())
            .collect();
        assert_eq!(full, [1, 2, 4, 8, 10, 10]);
        assert_eq!(backoff.delay(3, 0.0, None), Duration::from_secs(2));
        assert_eq!(backoff.delay(i64::MAX, 1.0, None), Duration::from_secs(10));
        let asked = |seconds| backoff.delay(1, 1.0, Some(Duration::from_secs(seconds))).as_secs();
        assert_eq!((asked(0), asked(30), asked(3600)), (1, 30, 60));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Fri, 31 Dec 1999 23:59:00 GMT").unwrap();
        assert_eq!(retry_after(" 120 ", now), Some(Duration::from_secs(120)));
        assert_eq!(
            retry_after("Fri, 31 Dec 1999 23:59:59 GMT", now),
            Some(Duration::from_secs(59))
        );
        assert_eq!(retry_after("Fri, 31 Dec 1999 23:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-1", now), None);
    }
}
