//! Finds out that a stream or a right is there which was missing, though no new message and no event says so.
//!
//! Of each subject that no stream takes, or that may not be published to, one failing message is sent again at a slow
//! beat. Such an attempt reaches nobody and does not count: if it fails in the same way, the message is due when it would
//! have been. If it succeeds, all failing messages of the connection are due.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgrx::spi::SpiResult;

use super::Worker;
use crate::error::RelayError;
use crate::message::Message;
use crate::store::hurry;

/// Time between two beats.
const BEAT: Duration = Duration::from_secs(2);
/// Most subjects of a connection that are watched.
const MOST_SUBJECTS: usize = 64;
/// Most of these with the same first token: one stream that is missing must not hide all others.
const MOST_ALIKE: usize = 16;
/// Most messages of a connection that are sent in one beat.
const MOST: usize = 16;
/// All failing messages of a connection are made due at most once in this time.
const PAUSE: Duration = Duration::from_secs(10);

/// One failing message stands for its subject.
#[derive(Debug)]
struct Watched {
    subject: String,
    id: i64,
}

/// Subjects that cannot be published to at present.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// By connection; those that were sent longest ago are first.
    watched: HashMap<Arc<str>, VecDeque<Watched>>,
    /// Messages of the last beats without an outcome, and when they would have been due.
    sent: HashMap<i64, Instant>,
    /// Connections with a success, of which not all failing messages are due yet.
    found: HashSet<Arc<str>>,
    /// `None` while there is nothing to do.
    next: Option<Instant>,
}

/// Whether a message that fails in this way was seen by nobody, and only its subject is the reason.
pub(super) fn is_about_subject(error: &RelayError) -> bool {
    matches!(error, RelayError::NoStream { .. } | RelayError::Denied { .. })
}

fn first_token(subject: &str) -> &str {
    subject.split('.').next().unwrap_or_default()
}

impl Probes {
    /// When the next beat is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|at| at <= now)
    }

    /// How long until the message would have been due, if it was sent before its time.
    pub(super) fn left(&self, id: i64) -> Option<Duration> {
        let left = self.sent.get(&id)?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Takes note of a message that failed because of its subject.
    pub(super) fn failed(&mut self, connection: &Arc<str>, subject: &str, id: i64) {
        self.sent.remove(&id);
        let watched = self.watched.entry(connection.clone()).or_default();
        let alike = |known: &&Watched| first_token(&known.subject) == first_token(subject);
        if watched.len() >= MOST_SUBJECTS
            || watched.iter().filter(alike).count() >= MOST_ALIKE
            || watched.iter().any(|known| known.subject == subject)
        {
            return;
        }
        watched.push_back(Watched {
            subject: subject.to_owned(),
            id,
        });
        self.next.get_or_insert_with(|| Instant::now() + BEAT);
    }

    /// Takes note of a message with another outcome.
    pub(super) fn ended(&mut self, message: &Message) {
        if self.sent.remove(&message.id).is_some() {
            self.found.insert(message.connection.clone());
            self.next = Some(Instant::now());
            self.forget(&message.connection, |known| known.id == message.id);
        }
    }

    fn forget(&mut self, connection: &Arc<str>, gone: impl Fn(&Watched) -> bool) {
        if let Some(watched) = self.watched.get_mut(connection) {
            watched.retain(|known| !gone(known));
            if watched.is_empty() {
                self.watched.remove(connection);
            }
        }
    }

    /// The messages of the next beat on a connection, which go to the end of the line.
    fn turn(&mut self, connection: &str) -> Vec<i64> {
        let Some(watched) = self.watched.get_mut(connection) else {
            return Vec::new();
        };
        let most = MOST.min(watched.len());
        let ids = watched.iter().take(most).map(|known| known.id).collect();
        watched.rotate_left(most);
        ids
    }

    /// Plans the beat after this one.
    fn plan(&mut self, now: Instant) {
        self.sent.retain(|_, due| *due > now);
        let idle = self.watched.is_empty() && self.found.is_empty();
        self.next = (!idle).then(|| now + BEAT);
    }
}

impl Worker {
    /// After a success all failing messages of the connection are due, though not too often.
    pub(super) fn take_found(&mut self) {
        let hurry = &mut self.hurry;
        self.probes.found.retain(|connection| !hurry.after(connection, PAUSE));
    }

    /// One beat. To be called after the settlement and before the claim.
    pub(super) fn probe(&mut self) -> SpiResult<()> {
        let now = Instant::now();
        if self.paused || !self.probes.is_due(now) {
            return Ok(());
        }
        self.probes.plan(now);
        let served: HashSet<Arc<str>> = self.lanes.iter().map(|lane| lane.name.clone()).collect();
        self.probes.watched.retain(|connection, _| served.contains(connection));
        self.probes.found.retain(|connection| served.contains(connection));
        let ready: Vec<Arc<str>> = (self.lanes.iter())
            .filter(|lane| lane.ready)
            .map(|lane| lane.name.clone())
            .collect();
        for connection in ready {
            let ids = self.probes.turn(&connection);
            if ids.is_empty() {
                continue;
            }
            let step = hurry::early(&ids)?;
            self.probes.forget(&connection, |known| {
                ids.contains(&known.id) && !step.existing.contains(&known.id)
            });
            self.look_for_due(&connection, step.due.len() as i64);
            for (id, left) in step.due {
                self.probes.sent.insert(id, now + left);
            }
        }
        Ok(())
    }
}
