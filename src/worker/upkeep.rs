//! What a worker does besides, in transactions of its own: the history's partitions, messages of captured changes.

use std::time::Instant;

use super::begin::{must, passing};
use super::{MAINTENANCE, Worker};
use crate::capture::expand::Seen;
use crate::pg;
use crate::store::config;

impl Worker {
    /// Makes and drops partitions of the history, in a transaction of its own: a reader's lock must not hold up more
    /// than that.
    pub(super) fn keep_history(&mut self) {
        if Instant::now() < self.next_maintenance {
            return;
        }
        self.next_maintenance = Instant::now() + MAINTENANCE;
        let retention = self.settings.history_retention;
        let result = pg::transaction(|| match pg::extension() {
            Some(extension) if extension == self.extension => config::maintain_history(retention),
            _ => Ok(()),
        });
        match result {
            Err(e) if e.is_passing() => self.note_error(&passing("keeping the history's partitions", &e)),
            other => must(other),
        }
    }

    /// Makes messages of captured changes, in a transaction of its own: what it inserts is claimed like any other.
    pub(super) fn take_captured(&mut self) {
        if !self.may_be_captured {
            return;
        }
        let (outbox, captured) = (self.outbox, &mut self.captured);
        let result = pg::transaction(|| match pg::hold_table(outbox) {
            true => captured.expand(),
            false => Ok((0, false)),
        });
        match result {
            Err(e) if e.is_passing() => {
                self.captured = Seen::default();
                self.note_error(&passing("making messages of captured changes", &e));
            }
            other => {
                let (messages, more) = must(other);
                self.more_captured = more;
                if messages > 0 {
                    self.lanes.iter_mut().for_each(|lane| lane.more = true);
                }
                if let Some(connection) = self.captured.stray() {
                    let waits = format!(
                        "captured changes wait for connection \"{connection}\", which does not exist: insert it into \
                         jetstream.connections, or delete them from jetstream.capture_queue"
                    );
                    pgrx::warning!("pg_jetstream: {waits}");
                    self.note_error(&waits);
                }
            }
        }
    }
}
