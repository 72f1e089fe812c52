//! PostgreSQL's own count of time: microseconds since 2000-01-01 UTC. Free of PostgreSQL.

use std::time::{Duration, SystemTime};

/// Seconds from 1970-01-01 to 2000-01-01 UTC.
const EPOCH: Duration = Duration::from_secs(946_684_800);

/// A time as PostgreSQL counts it; 2000-01-01 for any earlier one than 1970.
pub fn from_time(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(EPOCH);
    from_unix(since.as_micros() as i64)
}

/// A count of microseconds since 1970 as PostgreSQL counts.
pub fn from_unix(micros: i64) -> i64 {
    micros - EPOCH.as_micros() as i64
}

/// The years that a time of a message may be in, as PostgreSQL counts: 1970 to 9999.
pub const YEARS: std::ops::RangeInclusive<i64> = -946_684_800_000_000..=252_455_615_999_999_999;

/// The time of a count; the nearest of [`YEARS`] for any other.
pub fn to_time(micros: i64) -> SystemTime {
    let micros = micros.clamp(*YEARS.start(), *YEARS.end());
    let epoch = SystemTime::UNIX_EPOCH + EPOCH;
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { epoch - distance } else { epoch + distance }
}

/// Length of an `interval`, a month counted as 30 days, as PostgreSQL compares it (`interval_cmp_value` in timestamp.c).
pub fn of_interval(months: i32, days: i32, micros: i64) -> i128 {
    const DAY: i128 = 86_400_000_000;
    (i128::from(months) * 30 + i128::from(days)) * DAY + i128::from(micros)
}

/// What a `Nats-TTL` may be: 1 second to 10,000 days.
pub fn ttl_range() -> std::ops::RangeInclusive<i128> {
    of_interval(0, 0, 1_000_000)..=of_interval(0, 10_000, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_both_ways() {
        let epoch = SystemTime::UNIX_EPOCH + EPOCH;
        assert_eq!(from_time(epoch), 0);
        for micros in [-1_000_000, 0, 1, 800_000_000_000_000] {
            assert_eq!(from_time(to_time(micros)), micros);
        }
    }

    #[test]
    fn far_times_are_the_nearest_that_can_be_told() {
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799) + Duration::from_micros(999_999);
        assert_eq!(to_time(i64::MIN), SystemTime::UNIX_EPOCH);
        assert_eq!(to_time(i64::MAX), last);
    }

    #[test]
    fn compares_intervals_as_postgresql_does() {
        assert_eq!(of_interval(1, -30, 5), 5);
        assert!(ttl_range().contains(&of_interval(0, 10_000, 0)));
        assert!(!ttl_range().contains(&of_interval(0, 10_000, 1)));
        assert!(!ttl_range().contains(&of_interval(0, 0, 999_999)));
    }
}
