//! Messages of unknown outcome: on the wire of a connection that was lost, or sent by a worker before this one.

use std::pin::pin;

use tracing::{info, warn};

use super::connect::{Refusal, Session, trouble};
use super::jsapi::Api;
use super::link::{Link, Todo};
use super::positions::Plan;
use super::publish::End;
use super::recover::{self, Tail};
use super::wire;
use crate::error::RelayError;
use crate::message::{Message, Outcome, Settled};

impl Link {
    /// Before anything is published on a new session: settles what is stored already of the messages whose outcome is
    /// unknown, and puts the rest back ahead of everything newer, with the same message ids.
    pub(super) async fn recover(&mut self, session: &mut Session) -> Result<(), End> {
        if let Some(plan) = self.plan.clone() {
            let tail = self.read_tail(session, &plan).await?;
            // Unless all it was for has been settled in the meantime.
            if self.end_plan() {
                self.tail = tail;
            }
            for message in self
                .queue
                .drain()
                .into_iter()
                .chain(std::mem::take(&mut self.unsure))
                .collect::<Vec<_>>()
            {
                self.push(message);
            }
        }
        if self.unknown.is_empty() {
            return Ok(());
        }
        let plan = Plan {
            positions: self.safe.clone(),
            subjects: recover::subjects(&self.unknown),
            since: self.unknown_since,
            filtered: false,
            up_to: i64::MAX,
            message_ids: recover::message_ids(&self.unknown),
        };
        let mut tail = self.read_tail(session, &plan).await?;
        let unknown = std::mem::take(&mut self.unknown);
        self.unknown_since = None;
        let sent = unknown.len();
        let mut again = Vec::new();
        for message in unknown {
            match tail.take(message.id, &message.message_id) {
                Some((stream, sequence)) => {
                    self.queue.stored(&message);
                    self.found(&message, stream, sequence);
                }
                None => match self.elsewhere(session, &tail, &message) {
                    Some(error) => {
                        let held = self.queue.failed(&message);
                        let held = held.iter().map(|held| (held.id, Outcome::HeldBack));
                        let all = std::iter::once((message.id, Outcome::Failed(error))).chain(held);
                        self.settled.extend(all.map(|(id, outcome)| Settled { id, outcome }));
                    }
                    None => again.push(message),
                },
            }
        }
        info!(
            target: "pg_jetstream",
            connection = &*self.spec.name,
            found = sent - again.len(),
            publishing_again = again.len(),
            "outcome of messages on the wire looked up"
        );
        self.queue.put_back(again);
        self.flush();
        Ok(())
    }

    /// Reads the tails of streams. An account that may not read them gets none: its messages are published again, and
    /// dropped by the stream as long as its duplicate window lasts.
    async fn read_tail(&mut self, session: &mut Session, plan: &Plan) -> Result<Tail, End> {
        let apis = self.apis(session);
        if apis.is_empty() {
            self.blinded();
            return Ok(Tail::default());
        }
        let label = session.server.clone();
        let prefix = self.spec.subject_prefix.clone();
        let events = &mut session.events;
        let reading = async {
            tokio::select! {
                tail = recover::read(&apis, prefix.as_deref(), plan) => tail.map(Some).map_err(End::Lost),
                refusal = trouble(events, &label, |subject| recover::needs(&apis, subject)) => match refusal {
                    Ok(()) => Ok(None),
                    Err(Refusal::Passing(reason)) => Err(End::Lost(reason)),
                    Err(Refusal::Lasting(error)) => Err(End::Refused(error)),
                },
            }
        };
        let mut reading = pin!(reading);
        let read = loop {
            match self.wait(reading.as_mut()).await {
                // Of no concern to a session that stands: what is read already is not read anew.
                Err(Todo::Retry) => {}
                read => break read,
            }
        };
        match read {
            Ok(Ok(Some(tail))) => Ok(tail),
            Ok(Ok(None)) => {
                self.blinded();
                Ok(Tail::default())
            }
            Ok(Err(end)) => Err(end),
            Err(Todo::Reconnect) => Err(End::Again),
            // An order to end, the only one left.
            Err(_) => Err(End::Closed),
        }
    }

    /// Reading the streams panicked: the messages in doubt are looked up a few at a time once the connection serves, and
    /// the plan is read from the beginning of the streams.
    pub(super) fn recovery_panicked(&mut self, panic: String) -> End {
        self.unsure.append(&mut self.unknown);
        self.unknown_since = None;
        if let Some(plan) = &mut self.plan {
            plan.since = None;
        }
        End::Lost(format!("internal error: {panic}"))
    }

    /// The APIs of all domains in which messages of ours may be stored.
    pub(super) fn apis(&self, session: &Session) -> Vec<Api> {
        let own = session.without_api.is_none().then(|| session.api.clone());
        let others = self.domains.iter().map(|domain| session.api.of_domain(domain));
        own.into_iter().chain(others).collect()
    }

    /// Why a message that was not found may be stored all the same: in a domain that we do not know.
    pub(super) fn elsewhere(&self, session: &Session, tail: &Tail, message: &Message) -> Option<RelayError> {
        let domain = session.domain.as_ref()?;
        let subject = wire::subject(self.spec.subject_prefix.as_deref(), &message.subject);
        tail.is_untaken(&subject).then(|| {
            RelayError::NotLookedUp(format!(
                "no stream of JetStream domain \"{domain}\" takes subject \"{subject}\"; if one of another domain does, name it in connections.domain"
            ))
        })
    }

    /// What was owed when the connection was opened is settled: what was found for it is of no use, and what has not been
    /// read need not be.
    pub(super) fn forget_tail(&mut self) {
        self.tail = Tail::default();
        self.end_plan();
    }

    /// Nothing is left to be read for the plan; its positions are the link's. False if there is no plan.
    fn end_plan(&mut self) -> bool {
        let Some(plan) = self.plan.take() else { return false };
        for (stream, position) in plan.positions {
            self.safe.entry(stream).or_insert(position);
        }
        true
    }

    /// The account may not read its streams.
    pub(super) fn blinded(&mut self) {
        if !std::mem::replace(&mut self.blind, true) {
            warn!(
                target: "pg_jetstream",
                connection = &*self.spec.name,
                "the account may not read its streams: what was on the wire is published again unseen"
            );
        }
    }
}
