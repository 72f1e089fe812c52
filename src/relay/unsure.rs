//! Messages of which an earlier attempt may have been stored: they are looked up before they are published again.

use std::sync::Arc;

use tracing::trace;

use super::jsapi::Api;
use super::panics::caught;
use super::positions::Plan;
use super::publish::{Note, Serving};
use super::recover::{self, Tail};
use crate::error::RelayError;
use crate::message::{Message, Outcome, Settled};

/// Most subjects of a consumer's filter.
const MAX_FILTERS: usize = 64;

/// Messages that were looked up together, and what was found.
#[derive(Debug)]
pub(super) struct LookedUp {
    messages: Vec<Arc<Message>>,
    found: Result<Tail, RelayError>,
}

impl Serving<'_> {
    /// Starts looking for the messages of which an earlier attempt may have been stored.
    pub(super) fn look_for_unsure(&mut self) {
        if self.link.unsure.is_empty() || !self.looked_for.is_empty() || self.link.closing.is_some() {
            return;
        }
        if self.link.blind {
            // They are dropped by the stream as long as its duplicate window lasts.
            std::mem::take(&mut self.link.unsure)
                .into_iter()
                .for_each(|message| self.link.enqueue(message));
            return;
        }
        self.looked_for = std::mem::take(&mut self.link.unsure);
        let (apis, note) = (self.link.apis(&self.session), self.note.clone());
        let (prefix, messages) = (self.link.spec.subject_prefix.clone(), self.looked_for.clone());
        self.helpers.spawn(async move {
            let _ = note.send(Note::LookedFor(look_up(&apis, prefix.as_deref(), messages).await));
        });
    }

    /// Settles what was found; publishes the rest, or leaves it for another time if nothing could be seen.
    pub(super) fn unsure_known(&mut self, looked_up: Vec<LookedUp>) {
        self.looked_for.clear();
        for LookedUp { messages, found } in looked_up {
            match found {
                Ok(mut tail) => {
                    for message in messages {
                        match tail.take(message.id, &message.message_id) {
                            Some((stream, sequence)) => self.link.found(&message, stream, sequence),
                            None => match self.link.elsewhere(&self.session, &tail, &message) {
                                Some(error) => self.fail(&message, error),
                                None => self.link.enqueue(message),
                            },
                        }
                    }
                }
                Err(RelayError::NotLookedUp(_)) if self.link.blind => {
                    messages.into_iter().for_each(|message| self.link.enqueue(message));
                }
                Err(error) => {
                    let failed = messages.iter().map(|message| Settled {
                        id: message.id,
                        outcome: Outcome::Failed(error.clone()),
                    });
                    self.link.settled.extend(failed);
                }
            }
        }
    }
}

/// Looks messages up, all together. If that panics, the halves are looked up each on its own, until the message that is
/// the reason stands alone.
async fn look_up(apis: &[Api], prefix: Option<&str>, messages: Vec<Arc<Message>>) -> Vec<LookedUp> {
    let mut done = Vec::new();
    let mut left = vec![messages];
    while let Some(mut messages) = left.pop() {
        let plan = plan_for(&messages);
        let reading = async {
            for message in &messages {
                trace!(target: "pg_jetstream", id = message.id, "message is looked up");
            }
            recover::read(apis, prefix, &plan).await
        };
        let found = match caught(reading).await {
            Ok(found) => found.map_err(RelayError::NotLookedUp),
            Err(_) if messages.len() > 1 => {
                let second = messages.split_off(messages.len() / 2);
                left.extend([second, messages]);
                continue;
            }
            Err(panic) => Err(RelayError::Panicked(panic)),
        };
        done.push(LookedUp { messages, found });
    }
    done
}

fn plan_for(messages: &[Arc<Message>]) -> Plan {
    let subjects = recover::subjects(messages);
    Plan {
        since: messages.iter().filter_map(|message| message.unsure_since).min(),
        filtered: subjects.len() <= MAX_FILTERS,
        message_ids: recover::message_ids(messages),
        subjects,
        up_to: i64::MAX,
        ..Plan::default()
    }
}
