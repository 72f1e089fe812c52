//! What a worker has done since it last told the database.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;

/// Deliveries after which a report is due.
const REPORT_EVERY: u64 = 100;

/// Counts since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Deliveries that were dealt with, whatever came of them.
    pub delivered: u64,
    /// Of these, calls that succeeded.
    pub acknowledged: u64,
    /// Of these, deliveries that were not the first of their message.
    pub redelivered: u64,
    /// Time spent on all of them.
    pub busy: Duration,
}

impl Tally {
    /// Average time of one delivery, milliseconds; none if there was none.
    pub fn average_ms(&self) -> Option<f64> {
        (self.delivered > 0).then(|| self.busy.as_secs_f64() * 1000.0 / self.delivered as f64)
    }

    fn add(&mut self, other: Tally) {
        self.delivered += other.delivered;
        self.acknowledged += other.acknowledged;
        self.redelivered += other.redelivered;
        self.busy += other.busy;
    }
}

/// The counts, and the wish for a report.
#[derive(Debug, Default)]
pub struct Stats {
    tally: Mutex<Tally>,
    due: Notify,
}

impl Stats {
    /// Counts one delivery (the first is number 1).
    pub fn record(&self, delivery: i64, acknowledged: bool, took: Duration) {
        let mut tally = self.lock();
        tally.add(Tally {
            delivered: 1,
            acknowledged: acknowledged.into(),
            redelivered: (delivery > 1).into(),
            busy: took,
        });
        if tally.delivered.is_multiple_of(REPORT_EVERY) {
            self.due.notify_one();
        }
    }

    /// Takes the counts for a report.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut *self.lock())
    }

    /// Puts back what could not be reported.
    pub fn give_back(&self, tally: Tally) {
        self.lock().add(tally);
    }

    /// Waits until a report is due by count.
    pub async fn due(&self) {
        self.due.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn counts_add_up_and_a_failed_report_loses_none() {
        let stats = Stats::default();
        for n in 0..250u64 {
            stats.record(if n % 5 == 0 { 2 } else { 1 }, n % 2 == 0, Duration::from_millis(4));
        }
        tokio::time::timeout(Duration::from_secs(1), stats.due()).await.unwrap();
        let tally = stats.take();
        assert_eq!((tally.delivered, tally.acknowledged, tally.redelivered), (250, 125, 50));
        assert_eq!(tally.average_ms(), Some(4.0));
        stats.record(1, true, Duration::ZERO);
        stats.give_back(tally);
        assert_eq!(stats.take().delivered, 251);
        assert_eq!(stats.take(), Tally::default());
        assert_eq!(Tally::default().average_ms(), None);
    }

    #[tokio::test]
    async fn no_report_is_due_before_a_hundred() {
        let stats = Stats::default();
        (0..99).for_each(|_| stats.record(1, true, Duration::ZERO));
        assert!(
            tokio::time::timeout(Duration::from_millis(20), stats.due())
                .await
                .is_err()
        );
        stats.record(1, true, Duration::ZERO);
        tokio::time::timeout(Duration::from_secs(1), stats.due()).await.unwrap();
    }
}
