//! Hands each connection its share of the commands.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::link::{Link, Order};
use super::wake::Reporter;
use super::{Command, Limits, Plan, Report};
use crate::message::{ConnectionSpec, LinkState, Message, Outcome, Settled, StreamSpec};

struct Handle {
    spec: ConnectionSpec,
    orders: UnboundedSender<Order>,
    /// Set when the link is told to close: what it still has to say about its state is of no interest.
    retired: Arc<AtomicBool>,
}

impl Handle {
    fn close(&self) {
        self.retired.store(true, Ordering::Relaxed);
        let _ = self.orders.send(Order::Close);
    }
}

struct Hub {
    limits: Limits,
    streams: Vec<StreamSpec>,
    links: HashMap<Arc<str>, Handle>,
    tasks: JoinSet<()>,
    reporter: Reporter,
    /// For connections about to be opened.
    plans: HashMap<Arc<str>, Plan>,
}

/// Runs until [`Command::Shutdown`] is done or the main thread is gone. A panic in a connection's task comes out here:
/// the main thread must not wait for outcomes that will never be.
pub(super) async fn run(mut commands: UnboundedReceiver<Command>, limits: Limits, reporter: Reporter) {
    let mut hub = Hub {
        limits,
        streams: Vec::new(),
        links: HashMap::new(),
        tasks: JoinSet::new(),
        reporter,
        plans: HashMap::new(),
    };
    let patience = loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Shutdown(patience)) => break patience,
                Some(command) => hub.obey(command),
                None => break Duration::ZERO,
            },
            Some(ended) = hub.tasks.join_next() => pass_panic(ended),
        }
    };
    commands.close();
    let deadline = Instant::now() + patience;
    hub.links
        .values()
        .for_each(|link| drop(link.orders.send(Order::Shutdown(deadline))));
    while let Some(ended) = hub.tasks.join_next().await {
        pass_panic(ended);
    }
    while let Some(command) = commands.recv().await {
        if let Command::Publish(messages) = command {
            hub.release(&messages);
        }
    }
    debug!(target: "pg_jetstream", "relay ended");
}

/// Goes on with the panic of a task that panicked.
pub(super) fn pass_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

impl Hub {
    fn obey(&mut self, command: Command) {
        match command {
            Command::Connections(specs) => self.set_connections(specs),
            Command::Recover(name, plan) => drop(self.plans.insert(name, plan)),
            Command::Recovered(name) => self.order(&name, Order::Recovered),
            Command::Resume { connection, key } => self.order(&connection, Order::Resume(key)),
            Command::Reconnect(name) => self.order(&name, Order::Reconnect),
            Command::Streams(specs) => self.set_streams(specs),
            Command::Limits(limits) => {
                self.limits = limits;
                self.links
                    .values()
                    .for_each(|link| drop(link.orders.send(Order::Limits(limits))));
            }
            Command::Publish(messages) => self.publish(messages),
            // Taken by `run`.
            Command::Shutdown(_) => {}
        }
    }

    fn order(&self, name: &str, order: Order) {
        if let Some(link) = self.links.get(name) {
            let _ = link.orders.send(order);
        }
    }

    fn set_connections(&mut self, specs: Vec<ConnectionSpec>) {
        let mut old = std::mem::take(&mut self.links);
        for spec in specs {
            let handle = match old.remove(&spec.name) {
                Some(handle) if handle.spec == spec => {
                    let _ = handle.orders.send(Order::Retry);
                    handle
                }
                Some(handle) => {
                    handle.close();
                    self.open(spec)
                }
                None => self.open(spec),
            };
            self.links.insert(handle.spec.name.clone(), handle);
        }
        for (connection, handle) in old {
            handle.close();
            self.reporter.send(Report::Link {
                connection,
                state: LinkState::Disabled,
                detail: String::new(),
            });
        }
    }

    fn open(&mut self, spec: ConnectionSpec) -> Handle {
        let (sender, orders) = mpsc::unbounded_channel();
        let streams = self.streams_of(&spec.name);
        let retired = Arc::new(AtomicBool::new(false));
        let reporter = self.reporter.clone();
        let mut link = Link::new(spec.clone(), self.limits, streams, orders, reporter, retired.clone());
        link.plan = self.plans.remove(&spec.name);
        self.tasks.spawn(link.run());
        Handle {
            spec,
            orders: sender,
            retired,
        }
    }

    fn set_streams(&mut self, specs: Vec<StreamSpec>) {
        self.streams = specs;
        for (name, link) in &self.links {
            let _ = link.orders.send(Order::Streams(self.streams_of(name)));
        }
    }

    fn streams_of(&self, connection: &str) -> Vec<StreamSpec> {
        self.streams
            .iter()
            .filter(|spec| &*spec.connection == connection)
            .cloned()
            .collect()
    }

    /// Splits the messages by connection, in order within each.
    fn publish(&self, messages: Vec<Arc<Message>>) {
        let mut rest = messages;
        while let Some(name) = rest.first().map(|message| message.connection.clone()) {
            let share;
            if rest.iter().all(|message| message.connection == name) {
                share = std::mem::take(&mut rest);
            } else {
                (share, rest) = rest.into_iter().partition(|message| message.connection == name);
            }
            match self.links.get(&name) {
                // A link ends only by an order, and then its handle is gone from the map.
                Some(link) => drop(link.orders.send(Order::Publish(share))),
                None => self.release(&share),
            }
        }
    }

    fn release(&self, messages: &[Arc<Message>]) {
        let released = messages.iter().map(|message| Settled {
            id: message.id,
            outcome: Outcome::Released,
        });
        self.reporter.send(Report::Settled(released.collect()));
    }
}
