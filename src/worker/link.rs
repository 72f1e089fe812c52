//! Connections and streams as the tables ask for them, and as the relay reports them.

use std::collections::HashSet;
use std::time::SystemTime;

use pgrx::spi::SpiResult;

use super::Worker;
use super::claim::lanes_for;
use crate::message::{ConnectionSpec, LinkState, StreamSpec, StreamSynced};
use crate::relay::Command;
use crate::store::config;
use crate::{pg, status};

/// One connection as shown by `status()`.
struct Shown {
    spec: ConnectionSpec,
    enabled: bool,
    state: LinkState,
    detail: String,
    /// Its failing messages are due when it is up.
    hurry: Option<Why>,
}

/// Why messages that fail may not fail any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The connection was changed, or asked for again.
    Changed,
    /// It was lost: the server may have other streams and rights now.
    Lost,
}

/// What is known of the connections.
#[derive(Default)]
pub(super) struct Links {
    shown: Vec<Shown>,
    streams: Vec<StreamSpec>,
    /// Streams that are new or changed, or that the server does not have as asked.
    unsynced: HashSet<i64>,
    /// The tables have been read once.
    known: bool,
    /// Results of stream requests, not written yet.
    pub(super) synced: Vec<StreamSynced>,
    /// Of these, those that stay so once the transaction has committed: somebody holds their row.
    pub(super) unwritten: Vec<StreamSynced>,
    /// Why no connection at all is up.
    pub(super) problem: Option<String>,
    /// The tables are to be read again.
    pub(super) stale: bool,
    /// What others see is not what there is.
    changed: bool,
}

impl Links {
    /// Shows the connections to others, if there is anything new to show.
    pub(super) fn show(&mut self, slot: usize) -> Result<(), pg::SqlError> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let links: Vec<_> = self
            .shown
            .iter()
            .map(|shown| status::Link {
                name: shown.spec.name.to_string(),
                state: shown.state as u8,
                detail: shown.detail.clone(),
            })
            .collect();
        status::show_links(slot, &links)
    }

    /// Whether a connection that is enabled is not up.
    pub(super) fn is_partial(&self) -> bool {
        let down = |shown: &Shown| shown.enabled && shown.state != LinkState::Connected;
        self.shown.iter().any(down)
    }

    fn judge(&mut self) {
        self.changed = true;
        let up = self.shown.iter().any(|shown| shown.state == LinkState::Connected);
        let first = self.shown.iter().find(|shown| shown.enabled);
        self.problem = match (up, first) {
            (true, _) => None,
            (false, Some(shown)) => Some(shown.detail.clone()),
            (false, None) => Some("no connection is enabled".into()),
        };
    }
}

impl Worker {
    /// Looks whether connections, streams or the pause have changed, or somebody asked to connect anew.
    pub(super) fn take_requests(&mut self) {
        let requests = status::requests(self.slot);
        let asked = requests != self.seen_requests;
        if status::take_delayed(self.slot) || asked {
            // What was committed may be due before anything known.
            self.lanes.iter_mut().for_each(|lane| lane.due.wake());
        }
        if asked {
            if self.seen_requests.1 != u32::MAX && requests.1 != self.seen_requests.1 {
                let which = status::slot(self.slot).reconnect;
                for shown in self.links.shown.iter_mut().filter(|shown| shown.enabled) {
                    if which.as_str().is_empty() || which.as_str() == &*shown.spec.name {
                        self.relay.send(Command::Reconnect(shown.spec.name.clone()));
                        (shown.state, shown.detail) = (LinkState::Connecting, String::new());
                        shown.hurry = Some(Why::Changed);
                    }
                }
                self.links.changed = true;
            }
            self.seen_requests = requests;
            self.links.stale = true;
        }
    }

    /// Reads the tables again if they changed, and writes what the relay found out about streams.
    pub(super) fn apply_changes(&mut self) -> SpiResult<()> {
        self.links.unwritten.clear();
        for synced in &self.links.synced {
            if !config::stream_synced(synced)? {
                self.links.unwritten.push(synced.clone());
            }
            // The relay knows already: that the table says so too is no change.
            if let Some(spec) = self.links.streams.iter_mut().find(|spec| spec.id == synced.id) {
                spec.origin = synced.origin.or(spec.origin);
                spec.applied = synced.applied.clone().or(spec.applied.take());
            }
        }
        if !self.links.stale {
            return Ok(());
        }
        self.paused = config::paused()?;
        let connections = config::connections()?;
        let streams = config::streams()?;
        self.links.stale = false;
        self.take_connections(connections)?;
        if streams != self.links.streams {
            self.relay.send(Command::Streams(streams.clone()));
            let changed = streams.iter().filter(|stream| !self.links.streams.contains(stream));
            if self.links.known {
                self.links.unsynced.extend(changed.map(|stream| stream.id));
            }
            self.links.streams = streams;
        }
        self.links.known = true;
        // A changed row of the outbox asks for the same: it may lie below what has been claimed.
        self.lanes.iter_mut().for_each(super::lane::Lane::sweep_all);
        self.look_everywhere()
    }

    fn take_connections(&mut self, connections: Vec<(ConnectionSpec, bool)>) -> SpiResult<()> {
        let enabled = |list: &[Shown]| -> Vec<ConnectionSpec> {
            list.iter()
                .filter(|shown| shown.enabled)
                .map(|shown| shown.spec.clone())
                .collect()
        };
        let before = enabled(&self.links.shown);
        let mut known = std::mem::take(&mut self.links.shown);
        for (spec, on) in connections {
            let old = known
                .iter()
                .position(|shown| shown.spec == spec && shown.enabled == on)
                .map(|at| known.remove(at));
            self.links.shown.push(old.unwrap_or_else(|| Shown {
                spec,
                enabled: on,
                state: if on { LinkState::Connecting } else { LinkState::Disabled },
                detail: String::new(),
                hurry: self.links.known.then_some(Why::Changed),
            }));
        }
        let after = enabled(&self.links.shown);
        lanes_for(after.iter().map(|spec| spec.name.clone()), &mut self.lanes);
        for lane in &mut self.lanes {
            let up = |shown: &Shown| shown.spec.name == lane.name && shown.state == LinkState::Connected;
            lane.ready = self.links.shown.iter().any(up);
        }
        for spec in after.iter().filter(|spec| !before.contains(spec)) {
            if let Some(plan) = config::recovery_plan(&spec.name)? {
                if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.name == spec.name) {
                    lane.unsettled = Some((plan.up_to, SystemTime::now()));
                }
                self.relay.send(Command::Recover(spec.name.clone(), plan));
            }
        }
        if before != after {
            self.relay.send(Command::Connections(after));
        }
        self.links.judge();
        Ok(())
    }

    /// Takes note of what became of a stream that was asked for.
    pub(super) fn stream_synced(&mut self, synced: StreamSynced) {
        if synced.error.is_some() {
            self.links.unsynced.insert(synced.id);
        } else if self.links.unsynced.remove(&synced.id)
            && let Some(stream) = self.links.streams.iter().find(|stream| stream.id == synced.id)
        {
            self.hurry.changed(&stream.connection);
        }
        self.links.synced.push(synced);
    }

    /// Takes note of a connection's new state, and says so in the log.
    pub(super) fn link_changed(&mut self, connection: &str, state: LinkState, detail: String) {
        let Some(shown) = self
            .links
            .shown
            .iter_mut()
            .find(|shown| &*shown.spec.name == connection)
        else {
            return;
        };
        if !shown.enabled {
            return;
        }
        let changed = shown.state != state || shown.detail != detail;
        match state {
            LinkState::Connected => match shown.hurry.take() {
                Some(Why::Changed) => self.hurry.changed(&shown.spec.name),
                Some(Why::Lost) => self.hurry.back(&shown.spec.name),
                None => {}
            },
            LinkState::Disconnected | LinkState::Failed => {
                shown.hurry.get_or_insert(Why::Lost);
            }
            LinkState::Connecting | LinkState::Disabled => {}
        }
        shown.state = state;
        shown.detail = detail.clone();
        for lane in self.lanes.iter_mut().filter(|lane| &*lane.name == connection) {
            lane.changed_at = Some(SystemTime::now());
            lane.ready = state == LinkState::Connected;
            lane.more |= lane.ready;
        }
        self.links.judge();
        if changed {
            self.log_link(connection, state, &detail);
        }
    }

    fn log_link(&mut self, connection: &str, state: LinkState, detail: &str) {
        match state {
            LinkState::Connected => pgrx::log!("pg_jetstream: connection \"{connection}\": {detail}"),
            LinkState::Disconnected | LinkState::Failed => {
                pgrx::warning!("pg_jetstream: connection \"{connection}\" is down: {detail}");
                self.note_error(&format!("connection \"{connection}\": {detail}"));
            }
            LinkState::Connecting | LinkState::Disabled => {}
        }
        pg::report_activity(None);
    }
}
