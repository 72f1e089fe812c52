//! Publishing on a connection that stands: the window is kept full, and everything that comes in is taken up.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::client::PublishErrorKind;
use async_nats::{Event, ServerError};
use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, trace};

use super::acks::{Oversized, Probe};
use super::connect::Session;
use super::doubt::{Doubts, Taking};
use super::hub::pass_panic;
use super::link::{Link, Todo};
use super::panics::{caught, guard};
use super::recover;
use super::unsure::LookedUp;
use super::window::Window;
use super::{Report, streams, wire};
use crate::error::RelayError;
use crate::message::{LinkState, Message, StreamSpec, StreamSynced};
use crate::subject;

/// Most messages sent after one whose ack is missing: bounds the memory of the window.
const MAX_SPAN: usize = 1_000_000;

/// Fewest and most messages in a window; older servers drop what goes beyond 10,000.
const WINDOW: (usize, usize) = (1, 9_999);

/// How long it is believed that the streams are as they were seen after a subject had found none.
const MISSED_AGAIN: Duration = Duration::from_secs(5);

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// We were told to.
    Closed,
    /// We were told to connect anew.
    Again,
    /// The connection is gone, with the reason.
    Lost(String),
    /// It cannot work as configured.
    Refused(RelayError),
}

/// What the session's helper tasks have found out.
#[derive(Debug)]
pub(super) enum Note {
    /// All streams have been looked at once.
    StreamsSeen {
        /// Why those that are not as they should be are not, by `streams.id`.
        unmade: HashMap<i64, String>,
        /// The connection names a default stream, which does not exist.
        default_missing: bool,
        /// It is not what was seen before.
        changed: bool,
    },
    /// What was found of the messages looked for, or why they could not be.
    LookedFor(Vec<LookedUp>),
    /// `max_msg_size` of a stream; none if it cannot be had.
    StreamLimit { stream: String, limit: Option<i64> },
    /// What a stream takes, asked for because of a message with this subject.
    Takes {
        stream: String,
        subject: String,
        taking: Taking,
    },
    /// Patterns of the subjects that streams take, all of them; none if they cannot be had.
    Taken(Option<Vec<String>>),
}

/// A link while it is connected.
pub(super) struct Serving<'a> {
    pub(super) link: &'a mut Link,
    pub(super) session: Session,
    pub(super) window: Window,
    pub(super) probe: Option<Probe>,
    pub(super) probes: u64,
    /// Acks are not expected of a time before this.
    pub(super) clock_start: Instant,
    pub(super) doubts: Doubts,
    pub(super) oversized: Oversized,
    pub(super) helpers: JoinSet<()>,
    pub(super) note: UnboundedSender<Note>,
    notes: UnboundedReceiver<Note>,
    keeper: Option<AbortHandle>,
    /// Makes the keeper look at the streams now.
    missed: Arc<Notify>,
    /// When it was last asked to.
    missed_at: Option<Instant>,
    /// Found no stream, or were refused for good, while the streams were being made or changed.
    pub(super) early: Option<Vec<Arc<Message>>>,
    /// Why JetStream's API cannot be used, until something is stored all the same: then streams are in another account or
    /// behind a leaf node. Meanwhile what finds no stream waits in `early`.
    pub(super) unproved: Option<String>,
    /// Why streams could not be made or changed, by `streams.id`.
    pub(super) unmade: HashMap<i64, String>,
    last_error: Option<String>,
    /// Messages of which an earlier attempt may have been stored, being looked for.
    pub(super) looked_for: Vec<Arc<Message>>,
    /// For subjects that were denied, how many denials of messages given up since may still come.
    pub(super) denials_to_come: HashMap<String, usize>,
}

/// Publishes until the session ends. What was on the wire then is in `link.unknown`; the rest waits in its queue.
pub(super) async fn serve(link: &mut Link, session: Session) -> End {
    let (note, notes) = mpsc::unbounded_channel();
    let mut serving = Serving {
        link,
        session,
        window: Window::default(),
        probe: None,
        probes: 0,
        clock_start: Instant::now(),
        doubts: Doubts::default(),
        oversized: Oversized::default(),
        helpers: JoinSet::new(),
        note,
        notes,
        keeper: None,
        missed: Arc::new(Notify::new()),
        missed_at: None,
        early: None,
        unproved: None,
        unmade: HashMap::new(),
        last_error: None,
        looked_for: Vec::new(),
        denials_to_come: HashMap::new(),
    };
    if !serving.link.stored_without_api {
        serving.unproved = serving.session.without_api.clone();
        serving.early = serving.unproved.as_ref().map(|_| Vec::new());
    }
    let detail = serving.detail();
    serving.link.show(LinkState::Connected, detail);
    serving.keep_streams();
    let end = caught(serving.run())
        .await
        .unwrap_or_else(|panic| End::Lost(format!("internal error: {panic}")));
    serving.put_away();
    end
}

impl Serving<'_> {
    async fn run(&mut self) -> End {
        loop {
            self.look_for_unsure();
            if let Err(end) = self.fill().await {
                return end;
            }
            self.link.flush();
            if let Some(end) = self.no_jetstream() {
                return end;
            }
            if self.link.closing.is_some()
                && self.window.len() == 0
                && self.oversized.is_empty()
                && self.doubts.is_empty()
            {
                return End::Closed;
            }
            let due = self.due();
            let step = tokio::select! {
                biased;
                reply = self.session.acks.next() => match reply {
                    Some(reply) => {
                        self.take_acks(reply);
                        Ok(())
                    }
                    None => Err(self.lost()),
                },
                order = self.link.orders.recv() => {
                    let todo = self.link.take_in(order);
                    self.follow(todo)
                }
                event = self.session.events.recv() => self.notice(event),
                Some(note) = self.notes.recv() => {
                    self.take_note(note);
                    Ok(())
                }
                Some(ended) = self.helpers.join_next() => {
                    pass_panic(ended);
                    Ok(())
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.check_deadline().await,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Sends what may go and fits into the window.
    async fn fill(&mut self) -> Result<(), End> {
        if self.link.closing.is_some() {
            return Ok(());
        }
        let room = self.link.limits.max_in_flight.clamp(WINDOW.0, WINDOW.1);
        let now = Instant::now();
        while self.window.len() < room && self.window.span() < MAX_SPAN {
            let Some(message) = self.link.queue.pop() else { break };
            let encoded = guard(|| {
                trace!(target: "pg_jetstream", id = message.id, "message is sent");
                let prefix = self.link.spec.subject_prefix.as_deref();
                wire::encode(&message, prefix, self.session.max_payload)
            });
            match encoded.unwrap_or_else(|panic| Err(RelayError::Panicked(panic))) {
                Ok(wire) => self.send(message, wire, now).await?,
                Err(error) => self.fail(&message, error),
            }
        }
        Ok(())
    }

    async fn send(&mut self, message: Arc<Message>, wire: wire::Wire, now: Instant) -> Result<(), End> {
        let payload = message.payload.clone();
        let token = self.window.push(message, now);
        let mut reply = String::with_capacity(self.session.inbox.len() + 20);
        reply.push_str(&self.session.inbox);
        let _ = write!(reply, "{token}");
        let client = &self.session.client;
        let sent = client
            .publish_with_reply_and_headers(wire.subject, reply, wire.headers, payload)
            .await;
        match sent {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == PublishErrorKind::Send => Err(self.lost()),
            Err(error) => {
                // The checks above are stricter than the client's.
                if let Some(refused) = self.window.take(token) {
                    self.fail(&refused.message, RelayError::Unsendable(error.to_string()));
                }
                Ok(())
            }
        }
    }

    fn follow(&mut self, todo: Todo) -> Result<(), End> {
        match todo {
            Todo::Nothing | Todo::Retry => {}
            Todo::Streams => self.keep_streams(),
            Todo::Reconnect => return Err(End::Again),
            // A shutdown waits for the acks of what is on the wire.
            Todo::End if self.link.closing.is_some() => {}
            Todo::End => return Err(End::Closed),
        }
        Ok(())
    }

    fn notice(&mut self, event: Option<Event>) -> Result<(), End> {
        match event {
            Some(Event::Disconnected | Event::Closed) | None => Err(self.lost()),
            // The server is about to go; another one may be there.
            Some(Event::LameDuckMode) if self.link.spec.servers.len() > 1 => {
                Err(End::Lost("the server is shutting down (lame duck mode)".to_owned()))
            }
            Some(Event::ServerError(ServerError::Other(text))) => self.server_error(text),
            Some(Event::ServerError(error)) => {
                self.last_error = Some(error.to_string());
                Ok(())
            }
            Some(event) => {
                debug!(target: "pg_jetstream", connection = &*self.link.spec.name, %event, "client event");
                Ok(())
            }
        }
    }

    fn server_error(&mut self, text: String) -> Result<(), End> {
        if let Some(subject) = wire::denied(&text, "Publish") {
            if recover::needs(&self.link.apis(&self.session), &subject) {
                if !self.looked_for.is_empty() {
                    self.link.blinded();
                }
                self.cannot_ask();
            }
            self.publish_denied(&subject, &text);
        } else if wire::denied(&text, "Subscription").is_some_and(|subject| subject.starts_with(&self.session.inbox)) {
            return Err(End::Refused(RelayError::Connection(format!(
                "{text}: acks cannot be received"
            ))));
        } else {
            self.last_error = Some(text);
        }
        Ok(())
    }

    pub(super) fn lost(&mut self) -> End {
        End::Lost(self.last_error.take().unwrap_or_else(|| "connection lost".to_owned()))
    }

    /// Starts looking after the link's streams, from the beginning.
    fn keep_streams(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
        if let Some(reason) = &self.session.without_api {
            let error = format!("streams cannot be managed through this connection: {reason}");
            for spec in &self.link.streams {
                self.unmade.insert(spec.id, error.clone());
                self.link.reporter.send(Report::StreamSynced(StreamSynced {
                    id: spec.id,
                    error: Some(error.clone()),
                    ..StreamSynced::default()
                }));
            }
            return;
        }
        if self.link.streams.is_empty() && self.link.spec.default_stream.is_none() {
            return self.release_early();
        }
        self.early.get_or_insert_default();
        let keeper = streams::Keeper {
            api: self.session.api.clone(),
            specs: self.link.streams.clone(),
            default_stream: self.link.spec.default_stream.clone(),
            reporter: self.link.reporter.clone(),
            note: self.note.clone(),
            missed: self.missed.clone(),
        };
        let (reporter, note) = (self.link.reporter.clone(), self.note.clone());
        let ids: Vec<i64> = self.link.streams.iter().map(|spec| spec.id).collect();
        self.keeper = Some(self.helpers.spawn(async move {
            let Err(panic) = caught(keeper.run()).await else { return };
            let reason = format!("internal error: {panic}");
            for id in &ids {
                reporter.send(Report::StreamSynced(StreamSynced {
                    id: *id,
                    error: Some(reason.clone()),
                    ..StreamSynced::default()
                }));
            }
            let _ = note.send(Note::StreamsSeen {
                unmade: ids.into_iter().map(|id| (id, reason.clone())).collect(),
                default_missing: false,
                changed: true,
            });
        }));
    }

    /// What is said of the session: the server, and what cannot be done there.
    fn detail(&self) -> String {
        let server = &self.session.server;
        match &self.session.without_api {
            Some(reason) => {
                format!(
                    "{server}; streams cannot be managed and messages not be looked up before they are sent again: {reason}"
                )
            }
            None => server.clone(),
        }
    }

    /// Ends a session in which JetStream's API cannot be used and everything that was sent found no stream.
    fn no_jetstream(&self) -> Option<End> {
        let reason = self.unproved.as_ref()?;
        let waits = self.early.as_ref().is_some_and(|early| !early.is_empty());
        (waits && self.window.len() == 0).then(|| End::Refused(RelayError::Connection(reason.clone())))
    }

    /// Something was stored though JetStream's API cannot be used: what found no stream found none.
    pub(super) fn proved(&mut self) {
        self.link.proved = true;
        if self.unproved.take().is_some() {
            self.link.stored_without_api = true;
            for message in self.early.take().unwrap_or_default() {
                let subject = self.subject_of(&message);
                let unmade = self.unmade_for(&subject);
                self.fail(&message, RelayError::NoStream { subject, unmade });
            }
        }
    }

    /// A subject found no stream: if a stream that we keep should take it, it may be gone. The message waits until the
    /// streams have been seen; false if they have been seen a moment ago.
    pub(super) fn look_at_streams(&mut self, subject: &str) -> bool {
        let takes = |spec: &StreamSpec| spec.subjects.iter().any(|pattern| subject::matches(subject, pattern));
        let seen = self.missed_at.is_some_and(|at| at.elapsed() < MISSED_AGAIN);
        if seen || self.keeper.is_none() || !self.link.streams.iter().any(takes) {
            return false;
        }
        self.missed_at = Some(Instant::now());
        self.missed.notify_one();
        self.early.get_or_insert_default();
        true
    }

    fn take_note(&mut self, note: Note) {
        match note {
            Note::LookedFor(result) => self.unsure_known(result),
            Note::StreamLimit { stream, limit } => self.stream_limit_known(&stream, limit),
            Note::Takes {
                stream,
                subject,
                taking,
            } => self.takes(&stream, &subject, taking),
            Note::Taken(patterns) => self.taken(patterns.as_deref()),
            Note::StreamsSeen {
                unmade,
                default_missing,
                changed,
            } => {
                self.unmade = unmade;
                self.release_early();
                if !changed {
                    return;
                }
                let mut detail = self.detail();
                if default_missing && let Some(stream) = &self.link.spec.default_stream {
                    let _ = write!(detail, "; stream \"{stream}\" does not exist");
                }
                self.link.show(LinkState::Connected, detail);
            }
        }
    }

    /// What was answered while the streams were being made or changed may have another answer: these go again.
    fn release_early(&mut self) {
        if let Some(early) = self.early.take() {
            self.link.queue.put_back(early);
        }
    }

    /// The session is over: nothing of it is forgotten.
    fn put_away(&mut self) {
        self.oversized_unmeasured();
        self.taken(None);
        self.release_early();
        self.link.unsure.append(&mut self.looked_for);
        if let Some(oldest) = self.window.oldest() {
            let since = SystemTime::now() - oldest.elapsed();
            self.link.unknown_since.get_or_insert(since);
        }
        self.link.unknown = self.window.take_where(|_| true);
        self.link.flush();
    }
}
