//! What becomes of the messages on the wire: acks, refusals, denials, silence.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt, StreamExt};
use serde_json::Value;
use tokio::time::Instant;
use tracing::debug;

use super::answer::{Answer, answer};
use super::doubt::Ack;
use super::jsapi;
use super::panics::guard;
use super::publish::{End, Note, Serving};
use super::window::InFlight;
use super::wire;
use crate::error::{Class, RelayError, Unmade};
use crate::message::{Message, Outcome, Settled};
use crate::subject;

/// Most acks taken before their outcomes are reported and the window is filled again.
const BATCH: usize = 512;

/// A probe that comes back later than this says that the server had stopped for a while, or that the link is slow.
const PROMPT: Duration = Duration::from_millis(250);

/// How long a stream's `max_msg_size` is believed.
const LIMIT_LIFE: Duration = Duration::from_secs(10);

/// JetStream's error number for a message above `max_msg_size`.
const TOO_LARGE: u64 = 10054;

/// Begins the last token of a probe's subject; acks have digits only.
const PROBE_MARK: char = 'p';

/// A message to ourselves, to see whether the server answers.
#[derive(Debug)]
pub(super) struct Probe {
    number: u64,
    sent: Instant,
}

/// Messages that a stream found too large, until its limit is known.
#[derive(Debug, Default)]
pub(super) struct Oversized {
    waiting: HashMap<String, Vec<(Arc<Message>, RelayError)>>,
    limits: HashMap<String, (Instant, i64)>,
}

impl Oversized {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Serving<'_> {
    /// Takes the reply and all others that are there already, so that they are reported together.
    pub(super) fn take_acks(&mut self, first: async_nats::Message) {
        let now = SystemTime::now();
        self.take_ack(&first, now);
        for _ in 1..BATCH {
            match tokio::task::unconstrained(self.session.acks.next()).now_or_never() {
                Some(Some(reply)) => self.take_ack(&reply, now),
                _ => break,
            }
        }
    }

    fn take_ack(&mut self, reply: &async_nats::Message, now: SystemTime) {
        let Some(token) = reply.subject.as_str().strip_prefix(self.session.inbox.as_str()) else {
            return;
        };
        if let Some(number) = token.strip_prefix(PROBE_MARK) {
            return self.probe_back(number.parse().ok());
        }
        let Some((token, slot)) = token
            .parse()
            .ok()
            .and_then(|token| Some((token, self.window.get_mut(token)?)))
        else {
            debug!(target: "pg_jetstream", connection = &*self.link.spec.name, token, "late ack");
            return;
        };
        match guard(|| answer(reply)).unwrap_or(Answer::Foreign) {
            Answer::Stored {
                stream,
                sequence,
                duplicate,
                domain,
            } => {
                let ack = Ack {
                    sequence,
                    duplicate,
                    at: now,
                };
                self.acknowledged(token, &stream, domain.as_deref(), ack);
            }
            Answer::NoStream => {
                if let Some(slot) = self.window.take(token) {
                    self.no_stream(slot.message);
                }
            }
            Answer::Refused {
                code,
                err_code,
                description,
                stream,
            } => {
                let error = RelayError::Refused {
                    code,
                    err_code,
                    description,
                };
                if let Some(slot) = self.window.take(token) {
                    self.refused(slot.message, error, stream);
                }
            }
            // JetStream's own answer may still come.
            Answer::Foreign => slot.foreign = true,
        }
    }

    /// The message is in the stream.
    pub(super) fn stored(&mut self, token: u64, stream: Arc<str>, ack: Ack) {
        let oldest = self.window.is_oldest(token);
        let Some(message) = self.window.take(token).map(|slot| slot.message) else {
            return;
        };
        if oldest && !ack.duplicate {
            // All that was sent before it is settled: what is not, lies behind it in the stream.
            self.link.advance(&stream, ack.sequence);
        }
        let outcome = Outcome::Stored {
            stream,
            sequence: ack.sequence,
            duplicate: ack.duplicate,
            acked_at: ack.at,
        };
        self.link.settled.push(Settled {
            id: message.id,
            outcome,
        });
        self.link.queue.stored(&message);
        self.proved();
    }

    fn no_stream(&mut self, message: Arc<Message>) {
        match &mut self.early {
            Some(early) => early.push(message),
            None => {
                let subject = self.subject_of(&message);
                if self.look_at_streams(&subject) {
                    return self.early.get_or_insert_default().push(message);
                }
                let unmade = self.unmade_for(&subject);
                self.fail(&message, RelayError::NoStream { subject, unmade });
            }
        }
    }

    fn refused(&mut self, message: Arc<Message>, error: RelayError, stream: String) {
        // A refusal for good is not for good if a stream is about to change.
        if error.class() == Class::PermanentForMessage
            && let Some(early) = &mut self.early
        {
            return early.push(message);
        }
        match error {
            RelayError::Refused {
                err_code: TOO_LARGE, ..
            } if !stream.is_empty() => self.too_large(message, stream, error),
            _ => self.fail(&message, error),
        }
    }

    /// The stream that would take the subject, were it as asked for.
    pub(super) fn unmade_for(&self, subject: &str) -> Option<Unmade> {
        self.link.streams.iter().find_map(|spec| {
            let reason = self.unmade.get(&spec.id)?;
            let takes = spec.subjects.iter().any(|pattern| subject::matches(subject, pattern));
            takes.then(|| Unmade {
                stream: spec.name.clone(),
                reason: reason.clone(),
            })
        })
    }

    /// The message failed; what waits behind it is held back.
    pub(super) fn fail(&mut self, message: &Message, error: RelayError) {
        debug!(target: "pg_jetstream", connection = &*self.link.spec.name, id = message.id, %error, "message failed");
        let held = self.link.queue.failed(message);
        self.link.settled.push(Settled {
            id: message.id,
            outcome: Outcome::Failed(error),
        });
        self.link.settled.extend(held.iter().map(|held| Settled {
            id: held.id,
            outcome: Outcome::HeldBack,
        }));
    }

    pub(super) fn subject_of(&self, message: &Message) -> String {
        wire::subject(self.link.spec.subject_prefix.as_deref(), &message.subject).into_owned()
    }

    /// The server denied publishing to the subject: what is on the wire there is given up.
    ///
    /// Each denial is of one message, and does not say of which. If there was more than one, the right may have been taken
    /// away between them, and the earlier ones are stored.
    pub(super) fn publish_denied(&mut self, subject: &str, detail: &str) {
        if let Some(number) = subject
            .strip_prefix(&self.session.inbox)
            .and_then(|token| token.strip_prefix(PROBE_MARK))
        {
            // An answer all the same.
            return self.probe_back(number.parse().ok());
        }
        let prefix = self.link.spec.subject_prefix.as_deref();
        let denied = self
            .window
            .take_where(|slot| wire::subject(prefix, &slot.message.subject) == subject);
        let candidates = self.denials_to_come.remove(subject).unwrap_or(0) + denied.len();
        if candidates > 1 {
            self.denials_to_come.insert(subject.to_owned(), candidates - 1);
        }
        for message in denied {
            let error = RelayError::Denied {
                subject: subject.to_owned(),
                detail: detail.to_owned(),
                maybe_stored: candidates > 1,
            };
            self.fail(&message, error);
        }
    }

    /// When [`Serving::check_deadline`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let ack_due = match &self.probe {
            Some(probe) => Some(probe.sent + self.link.limits.ack_timeout),
            None => self
                .window
                .oldest()
                .map(|sent| sent.max(self.clock_start) + self.link.limits.ack_timeout),
        };
        [ack_due, self.link.closing].into_iter().flatten().min()
    }

    /// An ack, a probe or the end of a shutdown is due.
    pub(super) async fn check_deadline(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.link.closing.is_some_and(|deadline| now >= deadline) {
            return Err(End::Closed);
        }
        if self.due().is_none_or(|due| now < due) {
            return Ok(());
        }
        if self.probe.is_some() {
            let millis = self.link.limits.ack_timeout.as_millis();
            return Err(End::Lost(format!("the server did not answer for {millis} ms")));
        }
        self.probes += 1;
        let subject = format!("{}{PROBE_MARK}{}", self.session.inbox, self.probes);
        self.probe = Some(Probe {
            number: self.probes,
            sent: now,
        });
        match self.session.client.publish(subject, bytes::Bytes::new()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.lost()),
        }
    }

    /// The server answers. If it does so at once, the acks that were due when it was asked will not come any more;
    /// if it had stopped, it has had no time to send them, and gets it once: a link may always be slow.
    fn probe_back(&mut self, number: Option<u64>) {
        let Some(probe) = self.probe.take_if(|probe| Some(probe.number) == number) else {
            return;
        };
        let now = Instant::now();
        let limit = self.link.limits.ack_timeout;
        let had_more_time = self.window.oldest().is_some_and(|sent| sent < self.clock_start);
        if now - probe.sent > PROMPT.min(limit / 2) && !had_more_time {
            self.clock_start = now;
            return;
        }
        let start = self.clock_start;
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let late = |slot: &InFlight| slot.sent.max(start) + limit <= probe.sent;
        let foreign = self.window.take_where(|slot| late(slot) && slot.foreign);
        let foreign = foreign.into_iter().map(|message| {
            let error = self.ack_timeout(&message, millis);
            (message, error)
        });
        let foreign = foreign.collect();
        self.unanswered(foreign);
        for message in self.window.take_where(late) {
            let error = self.ack_timeout(&message, millis);
            self.fail(&message, error);
        }
    }

    fn ack_timeout(&self, message: &Message, millis: u64) -> RelayError {
        RelayError::AckTimeout {
            subject: self.subject_of(message),
            millis,
        }
    }

    /// A stream found the message too large: the stream's limit is asked for, unless it is known.
    fn too_large(&mut self, message: Arc<Message>, stream: String, error: RelayError) {
        if let Some((since, limit)) = self.oversized.limits.get(&stream)
            && since.elapsed() < LIMIT_LIFE
        {
            let limit = *limit;
            return self.fail(
                &message,
                RelayError::TooLargeForStream {
                    size: wire::size(&message),
                    limit,
                    stream,
                },
            );
        }
        let waiting = self.oversized.waiting.entry(stream.clone()).or_default();
        waiting.push((message, error));
        if waiting.len() > 1 {
            return;
        }
        let (api, note) = (self.session.api.clone(), self.note.clone());
        self.helpers.spawn(async move {
            let config = jsapi::stream_config(&api, &stream).await.ok().flatten();
            let limit = config.and_then(|config| config.get("max_msg_size").and_then(Value::as_i64));
            let _ = note.send(Note::StreamLimit { stream, limit });
        });
    }

    pub(super) fn stream_limit_known(&mut self, stream: &str, limit: Option<i64>) {
        if let Some(limit) = limit {
            self.oversized.limits.insert(stream.to_owned(), (Instant::now(), limit));
        }
        for (message, error) in self.oversized.waiting.remove(stream).unwrap_or_default() {
            let size = wire::size(&message);
            let error = match limit {
                Some(limit) => RelayError::TooLargeForStream {
                    size,
                    limit,
                    stream: stream.to_owned(),
                },
                None => error,
            };
            self.fail(&message, error);
        }
    }

    /// The limits will not be known any more; the messages were refused all the same.
    pub(super) fn oversized_unmeasured(&mut self) {
        let streams: Vec<String> = self.oversized.waiting.keys().cloned().collect();
        streams.iter().for_each(|stream| self.stream_limit_known(stream, None));
    }
}
