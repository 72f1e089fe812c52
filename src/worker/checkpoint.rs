//! Up to where the streams of one connection are settled. Free of SQL.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Positions are written at most so often.
const POSITION_INTERVAL: Duration = Duration::from_secs(1);

/// Finds positions that are safe to write: everything handed over before the position was taken has been settled.
///
/// A message in flight may be stored already, below the highest sequence acknowledged, so that sequence alone is no
/// position.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Given to messages as they are claimed.
    pub number: u64,
    waiting: usize,
    /// By stream.
    candidate: HashMap<Arc<str>, i64>,
    highest: HashMap<Arc<str>, i64>,
    changed: bool,
    made_at: Instant,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Checkpoint {
            number: 0,
            waiting: 0,
            candidate: HashMap::new(),
            highest: HashMap::new(),
            changed: false,
            made_at: Instant::now(),
        }
    }
}

impl Checkpoint {
    /// Takes note of a message stored, not as a duplicate. A lower sequence is that of a stream made anew.
    pub fn stored(&mut self, stream: &Arc<str>, sequence: i64) {
        self.highest.insert(stream.clone(), sequence);
        self.changed = true;
    }

    /// Takes note of the end of a message that was claimed at `number`.
    pub fn ended(&mut self, number: u64) {
        if number < self.number {
            self.waiting = self.waiting.saturating_sub(1);
        }
    }

    /// Whether there is no position to be written, now or later.
    pub fn is_written(&self) -> bool {
        !self.changed && self.candidate.is_empty()
    }

    /// Positions that can be written, each once.
    pub fn due(&mut self) -> HashMap<Arc<str>, i64> {
        match self.waiting {
            0 => std::mem::take(&mut self.candidate),
            _ => HashMap::new(),
        }
    }

    /// Takes the positions of this moment, to be written once all `in_flight` messages of the connection have ended.
    pub fn begin(&mut self, in_flight: usize) {
        if self.changed && self.candidate.is_empty() && self.made_at.elapsed() >= POSITION_INTERVAL {
            self.candidate = self.highest.clone();
            self.waiting = in_flight;
            self.number += 1;
            self.changed = false;
            self.made_at = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_waits_for_all_that_was_in_flight_when_it_was_taken() {
        let mut checkpoint = Checkpoint::default();
        let stream: Arc<str> = "S".into();
        checkpoint.stored(&stream, 7);
        checkpoint.begin(2);
        assert!(checkpoint.due().is_empty(), "too early to take one");
        checkpoint.made_at -= POSITION_INTERVAL;
        checkpoint.begin(2);
        assert_eq!(checkpoint.number, 1);
        checkpoint.stored(&stream, 9);
        checkpoint.ended(1);
        checkpoint.ended(0);
        assert!(checkpoint.due().is_empty(), "one of the two is still out");
        checkpoint.ended(0);
        assert_eq!(checkpoint.due(), HashMap::from([(stream, 7)]));
        assert!(checkpoint.due().is_empty());
    }
}
