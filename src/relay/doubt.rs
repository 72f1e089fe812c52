//! Answers that may come from another program than JetStream: which streams can have acknowledged a message, and whether
//! any stream takes the subject of one that only others have answered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::jsapi::{self, Api};
use super::publish::{Note, Serving};
use super::recover;
use crate::error::RelayError;
use crate::message::Message;
use crate::subject;

/// A stream that does not take a subject is asked again after this: it may have been changed.
const BELIEF: Duration = Duration::from_secs(1);

/// Longest wait for what a stream takes; one that cannot be asked is believed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most streams remembered.
const MAX_TAKERS: usize = 10_000;

/// Most JetStream domains remembered.
const MAX_DOMAINS: usize = 16;

/// Most acknowledgements that wait for one stream: more than the window has messages.
const MAX_WAITING: usize = 20_000;

/// So many mapped subjects of a stream are checked; then it is believed.
const MAX_MAPPED: usize = 100;

/// What a stream takes.
#[derive(Debug, Default)]
pub(super) struct Taking {
    /// Patterns of its subjects; none if they cannot be had.
    patterns: Option<Vec<String>>,
    /// The message that was asked for is there, though its subject is not one of these: the account maps it.
    mapped: bool,
}

/// What an acknowledgement says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    pub(super) sequence: u64,
    pub(super) duplicate: bool,
    pub(super) at: SystemTime,
}

/// A stream that has acknowledged.
#[derive(Debug)]
struct Taker {
    name: Arc<str>,
    /// Patterns of its subjects; none if they cannot be known.
    patterns: Option<Vec<String>>,
    /// Subjects that the account maps to others: their messages were found in the stream.
    mapped: HashSet<String>,
    /// Subjects it does not take, and when that was found out.
    others: HashMap<String, Instant>,
    /// The last subject it was found to take.
    last: String,
}

impl Taker {
    fn takes(&mut self, subject: &str) -> bool {
        let Some(patterns) = &self.patterns else { return true };
        if self.last == subject {
            return true;
        }
        let takes = patterns.iter().any(|pattern| subject::matches(subject, pattern)) || self.mapped.contains(subject);
        if takes {
            subject.clone_into(&mut self.last);
        }
        takes
    }
}

/// Whether a stream can have acknowledged a message.
enum Verdict {
    Yes(Arc<str>),
    No,
    /// It has to be asked for its subjects.
    Unknown,
}

/// Acknowledgements of a stream that is being asked for its subjects.
#[derive(Debug, Default)]
struct Waiting {
    /// The stream's domain if it is not the server's own.
    domain: Option<String>,
    /// Each with the token of its message.
    acks: Vec<(u64, Ack)>,
}

/// What is known and what is being asked.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    takers: HashMap<String, Taker>,
    /// By the stream that is being asked for its subjects.
    waiting: HashMap<String, Waiting>,
    /// Not answered by JetStream in time, but by another program.
    unanswered: Vec<(Arc<Message>, RelayError)>,
    /// Streams may not be asked for: every acknowledgement is believed.
    blind: bool,
}

impl Doubts {
    pub(super) fn is_empty(&self) -> bool {
        self.unanswered.is_empty()
    }

    fn judge(&mut self, stream: &str, subject: &str) -> Verdict {
        let Some(taker) = self.takers.get_mut(stream) else {
            return Verdict::Unknown;
        };
        if taker.takes(subject) {
            Verdict::Yes(taker.name.clone())
        } else if taker.others.get(subject).is_some_and(|since| since.elapsed() < BELIEF) {
            Verdict::No
        } else {
            Verdict::Unknown
        }
    }

    fn know(&mut self, stream: &str, subject: &str, taking: Taking) {
        if self.takers.len() >= MAX_TAKERS {
            self.takers.clear();
        }
        let taker = self.takers.entry(stream.to_owned()).or_insert_with(|| Taker {
            name: stream.into(),
            patterns: None,
            mapped: HashSet::new(),
            others: HashMap::new(),
            last: String::new(),
        });
        taker.patterns = taking.patterns;
        if taking.mapped {
            taker.mapped.insert(subject.to_owned());
        }
        if taker.mapped.len() >= MAX_MAPPED {
            taker.patterns = None;
        }
        if !taker.takes(subject) {
            if taker.others.len() >= MAX_TAKERS {
                taker.others.clear();
            }
            taker.others.insert(subject.to_owned(), Instant::now());
        }
    }
}

impl Serving<'_> {
    /// Settles an acknowledged message if the stream takes its subject. Otherwise it stays on the wire: the
    /// acknowledgement is not JetStream's, whose own may still come.
    pub(super) fn acknowledged(&mut self, token: u64, stream: &str, domain: Option<&str>, ack: Ack) {
        let Some(slot) = self.window.get_mut(token) else { return };
        let message = slot.message.clone();
        let on_wire = super::wire::subject(self.link.spec.subject_prefix.as_deref(), &message.subject);
        match self.doubts.judge(stream, &on_wire) {
            Verdict::Yes(name) => self.stored(token, name, ack),
            Verdict::No => self.foreign(token),
            Verdict::Unknown if self.doubts.blind => {
                self.doubts.know(stream, &on_wire, Taking::default());
                self.stored(token, stream.into(), ack);
            }
            Verdict::Unknown => {
                let waiting = self.doubts.waiting.entry(stream.to_owned()).or_default();
                if waiting.acks.len() >= MAX_WAITING {
                    return;
                }
                waiting.acks.push((token, ack));
                if waiting.acks.len() > 1 {
                    return;
                }
                let domain = domain.filter(|domain| self.session.domain.as_deref() != Some(domain));
                waiting.domain = domain.map(str::to_owned);
                let own = &self.session.api;
                let (api, note) = (
                    domain.map_or(own.clone(), |domain| own.of_domain(domain)),
                    self.note.clone(),
                );
                let stream = stream.to_owned();
                let mine = Mine {
                    subject: on_wire.into_owned(),
                    message_id: message.message_id.clone(),
                    sequence: ack.sequence,
                };
                let patience = PATIENCE.min(self.link.limits.ack_timeout / 2);
                self.helpers.spawn(async move {
                    let taking = tokio::time::timeout(patience, taking(&api, &stream, &mine)).await;
                    let _ = note.send(Note::Takes {
                        stream,
                        subject: mine.subject,
                        taking: taking.unwrap_or_default(),
                    });
                });
            }
        }
    }

    /// Takes up the acknowledgements that waited for this.
    pub(super) fn takes(&mut self, stream: &str, subject: &str, taking: Taking) {
        let Some(Waiting { domain, acks }) = self.doubts.waiting.remove(stream) else {
            return;
        };
        // What is in doubt later is looked up there too.
        if let Some(domain) = &domain
            && taking.patterns.as_ref().is_some_and(|patterns| !patterns.is_empty())
            && self.link.domains.len() < MAX_DOMAINS
        {
            self.link.domains.insert(domain.clone());
        }
        self.doubts.know(stream, subject, taking);
        for (token, ack) in acks {
            self.acknowledged(token, stream, domain.as_deref(), ack);
        }
    }

    /// Streams may not be asked for.
    pub(super) fn cannot_ask(&mut self) {
        self.doubts.blind = true;
        let waiting: Vec<String> = self.doubts.waiting.keys().cloned().collect();
        waiting
            .iter()
            .for_each(|stream| self.takes(stream, "", Taking::default()));
    }

    /// An answer came that is not JetStream's.
    pub(super) fn foreign(&mut self, token: u64) {
        if let Some(slot) = self.window.get_mut(token) {
            slot.foreign = true;
        }
    }

    /// Another program has answered these, and JetStream has not: it is found out whether any stream takes their subjects.
    pub(super) fn unanswered(&mut self, messages: Vec<(Arc<Message>, RelayError)>) {
        let asked = !self.doubts.unanswered.is_empty();
        self.doubts.unanswered.extend(messages);
        if asked || self.doubts.unanswered.is_empty() {
            return;
        }
        let (apis, note) = (self.link.apis(&self.session), self.note.clone());
        self.helpers.spawn(async move {
            let _ = note.send(Note::Taken(recover::all_patterns(&apis).await.ok()));
        });
    }

    /// The subjects that streams take are known; none if they could not be had.
    pub(super) fn taken(&mut self, patterns: Option<&[String]>) {
        for (message, error) in std::mem::take(&mut self.doubts.unanswered) {
            let subject = self.subject_of(&message);
            let taken = patterns.is_none_or(|patterns| patterns.iter().any(|one| subject::matches(&subject, one)));
            let error = match taken {
                true => error,
                false => RelayError::NoStream {
                    unmade: self.unmade_for(&subject),
                    subject,
                },
            };
            self.fail(&message, error);
        }
    }
}

/// A message that a stream has acknowledged.
struct Mine {
    subject: String,
    message_id: String,
    sequence: u64,
}

/// What a stream takes. A stream that the account does not have takes nothing if another one takes the subject; otherwise
/// it may be one of another account, whose subjects are imported.
async fn taking(api: &Api, stream: &str, mine: &Mine) -> Taking {
    let subject = &mine.subject;
    let patterns = match jsapi::stream_config(api, stream).await {
        Ok(Some(config)) => Some(texts(&config["subjects"])),
        Ok(None) => {
            let names = jsapi::call(api, "STREAM.NAMES", &json!({ "subject": subject })).await;
            let taken = names.is_ok_and(|names| names["streams"].as_array().is_some_and(|names| !names.is_empty()));
            taken.then(Vec::new)
        }
        Err(_) => None,
    };
    let listed = |patterns: &Vec<String>| patterns.iter().any(|pattern| subject::matches(subject, pattern));
    let mapped = match &patterns {
        Some(patterns) if !listed(patterns) => recover::holds(api, stream, mine.sequence, &mine.message_id).await,
        _ => false,
    };
    Taking { patterns, mapped }
}

/// The texts of an array; none if it is none.
pub(super) fn texts(value: &Value) -> Vec<String> {
    let texts = value.as_array().into_iter().flatten();
    texts.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_believed_for_what_it_takes() {
        let mut doubts = Doubts::default();
        assert!(matches!(doubts.judge("S", "s.a"), Verdict::Unknown));
        let taking = |patterns: &[&str], mapped| Taking {
            patterns: Some(patterns.iter().map(|pattern| (*pattern).to_owned()).collect()),
            mapped,
        };
        doubts.know("S", "s.a", taking(&["s.>"], false));
        doubts.know("ELSEWHERE", "s.a", Taking::default());
        assert!(matches!(doubts.judge("S", "t.a"), Verdict::Unknown));
        doubts.know("S", "t.a", taking(&["s.>"], false));
        assert!(matches!(doubts.judge("S", "s.a"), Verdict::Yes(_)));
        assert!(matches!(doubts.judge("S", "t.a"), Verdict::No));
        assert!(matches!(doubts.judge("S", "s.a"), Verdict::Yes(_)));
        assert!(matches!(doubts.judge("ELSEWHERE", "t.a"), Verdict::Yes(_)));
        doubts.know("S", "mapped", taking(&["s.>"], true));
        assert!(matches!(doubts.judge("S", "mapped"), Verdict::Yes(_)));
        assert!(matches!(doubts.judge("S", "t.a"), Verdict::No));
    }
}
