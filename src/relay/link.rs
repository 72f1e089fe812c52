//! One connection's life: connect, publish until it is lost, connect again.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::backoff::Backoff;
use super::connect::{Refusal, Session, connect};
use super::panics::caught;
use super::positions::{Plan, Position};
use super::publish::{self, End};
use super::queue::Queue;
use super::recover::Tail;
use super::wake::Reporter;
use super::{Limits, Report};
use crate::message::{ConnectionSpec, LinkState, Message, Outcome, Settled, StreamSpec};

/// Delay between attempts that need somebody to change something.
const SLOW_RETRY: Duration = Duration::from_secs(30);

/// A connection that lasted so long, or stored something, was a good one: the next attempt is made at once.
const STEADY: Duration = Duration::from_secs(5);

/// What the hub asks of one connection.
#[derive(Debug)]
pub(super) enum Order {
    /// Publish these, in order.
    Publish(Vec<Arc<Message>>),
    /// The failure of a message of this key is known.
    Resume(String),
    /// Nothing is owed any more of what was owed when the connection was opened.
    Recovered,
    /// The connection's streams, all of them.
    Streams(Vec<StreamSpec>),
    Limits(Limits),
    /// Close and connect anew.
    Reconnect,
    /// If the connection is marked failed, try again now.
    Retry,
    /// Release everything and end.
    Close,
    /// Publish no more, wait for acks until then, release the rest and end.
    Shutdown(Instant),
}

/// What an order leaves to do after it has been taken in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Todo {
    Nothing,
    Streams,
    Reconnect,
    Retry,
    /// End; at once, unless acks are still waited for.
    End,
}

/// The state of one connection, connected or not.
pub(super) struct Link {
    pub(super) spec: ConnectionSpec,
    pub(super) limits: Limits,
    pub(super) streams: Vec<StreamSpec>,
    pub(super) queue: Queue,
    /// Sent on a connection that was lost before the ack came, oldest first.
    pub(super) unknown: Vec<Arc<Message>>,
    /// No message of `unknown` was sent before.
    pub(super) unknown_since: Option<SystemTime>,
    /// An earlier attempt of these may have been stored: they are looked for before they are published.
    pub(super) unsure: Vec<Arc<Message>>,
    /// What to look for before anything is published: left by those who sent before us.
    pub(super) plan: Option<Plan>,
    /// What was found of that.
    pub(super) tail: Tail,
    /// For each stream the sequence up to which everything we sent is settled.
    pub(super) safe: HashMap<Arc<str>, Position>,
    /// Outcomes not yet reported.
    pub(super) settled: Vec<Settled>,
    /// No more is published; acks are waited for until then.
    pub(super) closing: Option<Instant>,
    pub(super) orders: UnboundedReceiver<Order>,
    pub(super) reporter: Reporter,
    /// The account of the present session may not read its streams.
    pub(super) blind: bool,
    /// The present session has stored something.
    pub(super) proved: bool,
    /// Something was stored in a session without JetStream's API.
    pub(super) stored_without_api: bool,
    /// JetStream domains other than the server's own that have stored something of ours.
    pub(super) domains: BTreeSet<String>,
    /// The state is not reported any more.
    retired: Arc<AtomicBool>,
    shown: Option<(LinkState, String)>,
}

impl Link {
    pub(super) fn new(
        spec: ConnectionSpec,
        limits: Limits,
        streams: Vec<StreamSpec>,
        orders: UnboundedReceiver<Order>,
        reporter: Reporter,
        retired: Arc<AtomicBool>,
    ) -> Self {
        Link {
            spec,
            limits,
            streams,
            queue: Queue::default(),
            unknown: Vec::new(),
            unknown_since: None,
            unsure: Vec::new(),
            plan: None,
            tail: Tail::default(),
            safe: HashMap::new(),
            settled: Vec::new(),
            closing: None,
            orders,
            reporter,
            blind: false,
            proved: false,
            stored_without_api: false,
            domains: BTreeSet::new(),
            retired,
            shown: None,
        }
    }

    /// Runs until it is told to end; then nothing is held any more. A panic is shown as the connection's state, and after
    /// a pause it begins again.
    pub(super) async fn run(mut self) {
        while let Err(panic) = caught(self.live()).await {
            self.show(LinkState::Failed, format!("internal error: {panic}"));
            if self.wait(sleep(SLOW_RETRY)).await == Err(Todo::End) {
                break;
            }
        }
        self.release();
    }

    async fn live(&mut self) {
        let mut backoff = Backoff::new(self.spec.reconnect_delay);
        self.show(LinkState::Connecting, String::new());
        while let Some(mut session) = self.connected(&mut backoff).await {
            let since = Instant::now();
            // It may have been given the right since.
            self.blind = false;
            let end = match caught(self.recover(&mut session)).await {
                Ok(Ok(())) => publish::serve(self, session).await,
                Ok(Err(end)) => end,
                Err(panic) => self.recovery_panicked(panic),
            };
            if self.closing.is_some() {
                break;
            }
            match end {
                End::Closed => break,
                End::Again => {
                    self.show(LinkState::Connecting, String::new());
                    backoff.reset();
                }
                End::Lost(reason) => self.show(LinkState::Disconnected, reason),
                End::Refused(error) => {
                    self.show(LinkState::Failed, error.to_string());
                    if self.wait(sleep(SLOW_RETRY)).await == Err(Todo::End) {
                        break;
                    }
                }
            }
            if std::mem::take(&mut self.proved) || since.elapsed() >= STEADY {
                backoff.reset();
            }
        }
    }

    /// Tries until there is a session; none if told to end.
    async fn connected(&mut self, backoff: &mut Backoff) -> Option<Session> {
        let mut failures: u32 = 0;
        loop {
            match self.wait(sleep(backoff.next())).await {
                Err(Todo::End) => return None,
                Err(Todo::Reconnect) => {
                    backoff.reset();
                    self.show(LinkState::Connecting, String::new());
                }
                _ => {}
            }
            let spec = self.spec.clone();
            let connecting = async {
                let session = caught(connect(&spec)).await;
                session.unwrap_or_else(|panic| Err(Refusal::Passing(format!("internal error: {panic}"))))
            };
            let pause = match self.wait(connecting).await {
                Ok(Ok(session)) => return Some(session),
                Ok(Err(Refusal::Lasting(error))) => {
                    self.show(LinkState::Failed, error.to_string());
                    self.wait(sleep(SLOW_RETRY)).await
                }
                Ok(Err(Refusal::Passing(reason))) => {
                    failures += 1;
                    match self.spec.max_reconnects {
                        Some(most) if failures >= most => {
                            self.show(
                                LinkState::Failed,
                                format!("gave up after {failures} attempts: {reason}"),
                            );
                            failures = 0;
                            self.wait_for_reconnect().await
                        }
                        _ => {
                            self.show(LinkState::Disconnected, reason);
                            continue;
                        }
                    }
                }
                Err(todo) => Err(todo),
            };
            match pause {
                Err(Todo::End) => return None,
                // Whoever asked wants to hear of the result, also of the same one.
                Err(Todo::Reconnect) => self.show(LinkState::Connecting, String::new()),
                _ => {}
            }
            backoff.reset();
        }
    }

    async fn wait_for_reconnect(&mut self) -> Result<(), Todo> {
        loop {
            match self.wait(std::future::pending::<()>()).await {
                Err(Todo::Retry) => {}
                other => return other,
            }
        }
    }

    /// Waits for `future`, taking in orders; an error if one of them asks for something else to be done.
    pub(super) async fn wait<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Todo> {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                value = &mut future => return Ok(value),
                order = self.orders.recv() => match self.take_in(order) {
                    Todo::Nothing | Todo::Streams => {}
                    todo => return Err(todo),
                },
            }
        }
    }

    /// Takes in an order; none means that the hub is gone.
    pub(super) fn take_in(&mut self, order: Option<Order>) -> Todo {
        match order {
            Some(Order::Publish(messages)) => messages.into_iter().for_each(|message| self.push(message)),
            Some(Order::Resume(key)) => self.queue.open(&key),
            Some(Order::Recovered) => self.forget_tail(),
            Some(Order::Limits(limits)) => self.limits = limits,
            Some(Order::Streams(streams)) => {
                self.streams = streams;
                return Todo::Streams;
            }
            Some(Order::Reconnect) => return Todo::Reconnect,
            Some(Order::Retry) => return Todo::Retry,
            Some(Order::Shutdown(deadline)) => {
                self.closing = Some(deadline);
                return Todo::End;
            }
            Some(Order::Close) | None => return Todo::End,
        }
        Todo::Nothing
    }

    /// Takes a message in: to be looked for, to be published, or found already.
    pub(super) fn push(&mut self, message: Arc<Message>) {
        match self.tail.take(message.id, &message.message_id) {
            Some((stream, sequence)) => self.found(&message, stream, sequence),
            None if message.unsure_since.is_some() => self.unsure.push(message),
            None => self.enqueue(message),
        }
    }

    /// Puts a message in line, or holds it back if one of its key has failed.
    pub(super) fn enqueue(&mut self, message: Arc<Message>) {
        let id = message.id;
        if !self.queue.push(message) {
            self.settled.push(Settled {
                id,
                outcome: Outcome::HeldBack,
            });
        }
    }

    /// Takes note that everything sent up to this sequence of a stream is settled.
    pub(super) fn advance(&mut self, stream: &Arc<str>, sequence: u64) {
        let at = SystemTime::now();
        match self.safe.get_mut(stream) {
            // A stream made anew counts from 1 again.
            Some(safe) => *safe = Position { sequence, at },
            None => drop(self.safe.insert(stream.clone(), Position { sequence, at })),
        }
    }

    /// Settles a message that recovery has found in a stream.
    pub(super) fn found(&mut self, message: &Message, stream: Arc<str>, sequence: u64) {
        let outcome = Outcome::Stored {
            stream,
            sequence,
            duplicate: true,
            acked_at: SystemTime::now(),
        };
        self.settled.push(Settled {
            id: message.id,
            outcome,
        });
    }

    /// Reports the state if it or its reason has changed.
    pub(super) fn show(&mut self, state: LinkState, detail: String) {
        let now = Some((state, detail));
        if self.shown == now || self.retired.load(Ordering::Relaxed) {
            return;
        }
        self.shown = now;
        let Some((_, detail)) = self.shown.clone() else { return };
        let connection = self.spec.name.clone();
        debug!(target: "pg_jetstream", connection = &*connection, ?state, detail, "connection");
        self.reporter.send(Report::Link {
            connection,
            state,
            detail,
        });
    }

    /// Reports the outcomes collected so far.
    pub(super) fn flush(&mut self) {
        if !self.settled.is_empty() {
            self.reporter.send(Report::Settled(std::mem::take(&mut self.settled)));
        }
    }

    fn release(&mut self) {
        self.orders.close();
        while let Ok(order) = self.orders.try_recv() {
            self.take_in(Some(order));
        }
        let held = self
            .unknown
            .drain(..)
            .chain(self.unsure.drain(..))
            .chain(self.queue.drain());
        self.settled.extend(held.map(|message| Settled {
            id: message.id,
            outcome: Outcome::Released,
        }));
        self.flush();
    }
}
