//! A drain worker: settle and claim in one short transaction, hand over to the relay, wait, repeat.
//!
//! Crash-only: an ERROR ends the process, unless the transaction may succeed when it is made again, and the launcher starts
//! it again with nothing but what is in the tables.

mod begin;
mod checkpoint;
mod claim;
mod due;
mod hurry;
mod lane;
mod late;
mod link;
mod probe;
mod settle;
mod upkeep;
mod visit;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pgrx::prelude::*;
use pgrx::spi::SpiResult;
use rustc_hash::FxHashMap;

use crate::guc::{self, Settings};
use crate::log::{self, Log};
use crate::message::{Message, Settled};
use crate::notes::Reader;
use crate::order::Keys;
use crate::pg::bulk::Place;
use crate::relay::{Command, Relay, Report};
use crate::snapshot::Snapshot;
use crate::store::{Store, config};
use crate::{micros, pg, status, store};
use begin::{must, passing};
use lane::Lane;
use link::Links;

/// How long outcomes wait for a claim to be settled with.
const SETTLE_DELAY: Duration = Duration::from_millis(2);
/// As many outcomes are settled without waiting.
const SETTLE_AT_ONCE: usize = 250;
/// How often rows skipped because of somebody's lock are looked for, and partitions are kept.
const MAINTENANCE: Duration = Duration::from_secs(60);
/// Every so many times it looks through the whole outbox, whatever it believes to have seen.
const LOOK_EVERYWHERE: u32 = 60;
/// Cycles that follow one another more closely than this are few wakes each ...
const CLOSE: Duration = Duration::from_millis(1);
/// ... and from so many in a row on, they are held apart by as much: a cycle costs as much as twenty messages, ...
const CLOSE_IN_A_ROW: u32 = 4;
/// ... or by so many times what they take, which is more where processors are short, ...
const APART: u32 = 4;
/// ... but by no more than this.
const APART_AT_MOST: Duration = Duration::from_millis(4);
/// How often a worker looks whether its extension was updated.
const LOOK: Duration = Duration::from_secs(1);
/// How long a worker that is asked to end waits for acknowledgements.
const LAST_ACKS: Duration = Duration::from_secs(1);

/// A message that was claimed and is not settled.
struct Flight {
    message: Arc<Message>,
    /// Where its row stood when it was claimed.
    place: Place,
    /// Transaction that inserted it: where ids begin anew, a row of this id may be another's.
    txid: u64,
    due_at: i64,
    claimed_at: SystemTime,
    lane: usize,
    /// Checkpoint of its lane that it has to be settled for.
    checkpoint: u64,
    /// Found by `deliver_at`.
    delayed: bool,
}

/// Everything the main thread of a drain worker holds.
struct Worker {
    slot: usize,
    /// As it was when this worker began; another one is for another worker.
    extension: pg::Extension,
    /// When it is looked at again.
    next_look: Instant,
    /// Object id of the outbox: another extension has another one.
    outbox: u32,
    settings: Settings,
    /// Whose rights it has, and why it has not those of another role that `pg_jetstream.role` asks for.
    role: String,
    refused: Option<String>,
    next_role_look: Instant,
    store: Store,
    relay: Relay,
    waiter: pg::Waiter,
    log: Log,
    links: Links,
    lanes: Vec<Lane>,
    keys: Keys,
    flights: FxHashMap<i64, Flight>,
    outcomes: Vec<Settled>,
    outcomes_since: Instant,
    /// Somebody holds a row that is to be settled: lock first, settle what can be locked.
    careful: bool,
    paused: bool,
    /// Commits do not wake this worker.
    resting: bool,
    next_sweep: Instant,
    next_maintenance: Instant,
    /// Maintenances made.
    rounds: u32,
    /// When the last cycle began, and how many wakes in a row came close to it.
    began: Instant,
    close: u32,
    /// What the last cycles took on average.
    took: Duration,
    seen_requests: (u32, u32),
    /// Which ids other transactions have inserted.
    notes: Reader,
    hurry: hurry::Hurry,
    probes: probe::Probes,
    /// What had ended when late committers were last looked for.
    view: Snapshot,
    /// Nothing was in progress and nothing was left to do when this transaction was the next one to begin.
    at_rest: Option<u64>,
    captured: crate::capture::expand::Seen,
    /// There are more captured changes than one transaction takes.
    more_captured: bool,
    /// Something has been captured in this database: until then nothing is looked for.
    may_be_captured: bool,
    report: status::Report,
}

impl Worker {
    fn start(slot: usize, extension: pg::Extension, outbox: u32, role: String) -> std::io::Result<Worker> {
        let settings = Settings::current();
        log::set_level(settings.log_level);
        let (dispatch, log) = Log::start();
        let relay = pg::with_signals_blocked(|| Relay::start(settings.limits, Some(dispatch)))
            .map_err(std::io::Error::from)??;
        Ok(Worker {
            slot,
            extension,
            next_look: Instant::now(),
            outbox,
            settings,
            role,
            refused: None,
            next_role_look: Instant::now(),
            store: Store::default(),
            waiter: pg::Waiter::new(relay.wake_fd()),
            relay,
            log,
            links: Links::default(),
            lanes: Vec::new(),
            keys: Keys::default(),
            flights: FxHashMap::default(),
            outcomes: Vec::new(),
            outcomes_since: Instant::now(),
            careful: false,
            paused: false,
            resting: false,
            next_sweep: Instant::now() + MAINTENANCE,
            next_maintenance: Instant::now(),
            rounds: 0,
            began: Instant::now(),
            close: 0,
            took: Duration::ZERO,
            seen_requests: (u32::MAX, u32::MAX),
            notes: Reader::new(status::notes(), pg::next_xid),
            view: Snapshot::default(),
            hurry: hurry::Hurry::default(),
            probes: probe::Probes::default(),
            at_rest: None,
            captured: crate::capture::expand::Seen::default(),
            more_captured: false,
            may_be_captured: false,
            report: status::slot(slot).report,
        })
    }

    /// Reads what an earlier worker left: the keys its failed messages hold, and subjects that cannot be published to.
    fn load(&mut self) {
        let most = self.keys.most();
        let read = || -> SpiResult<_> { Ok((config::failing_keys(most as i64 + 1)?, store::hurry::subjects()?)) };
        let (mut failing, subjects) = loop {
            match pg::transaction(read) {
                Err(e) if e.is_passing() => begin::pause(&passing("reading the failing messages", &e)),
                other => break must(other),
            }
        };
        for (id, connection, subject) in subjects {
            self.probes.failed(&connection.into(), &subject, id);
        }
        let all = failing.len() <= most;
        failing.truncate(most);
        self.keys.load(failing, all);
    }

    /// One transaction; true if there is reason to make the next at once.
    fn cycle(&mut self) -> bool {
        self.began = Instant::now();
        self.take_reports();
        self.take_requests();
        self.keep_history();
        self.take_captured();
        pg::report_activity(Some(c"settle and claim"));
        let lanes = self.lanes.clone();
        self.take_found();
        let hurry = self.hurry.all();
        let mut work = claim::Claimed::default();
        let result = pg::transaction(|| self.work(&mut work));
        self.took = (self.took * 7 + self.began.elapsed()) / 8;
        self.report.cycles += 1;
        self.report.last_cycle_at = micros::from_time(SystemTime::now());
        let again = match result {
            Ok(Ok(settlement)) => {
                self.links.synced = std::mem::take(&mut self.links.unwritten);
                self.settled(settlement);
                self.hand_over(work);
                self.more_captured || self.has_room_for_more()
            }
            Ok(Err(e)) => must(Ok(Err(e))),
            Err(e) if e.is_passing() => {
                self.undo(work, lanes);
                self.hurry.again(hurry);
                self.links.stale = true;
                let again = !self.careful;
                self.careful = true;
                self.note_error(&passing("settling and claiming", &e));
                again
            }
            Err(e) => must(Err(e)),
        };
        pg::flush_stats();
        pg::report_activity(None);
        self.publish_status();
        self.log.write();
        again
    }

    /// The body of the transaction.
    fn work(&mut self, claimed: &mut claim::Claimed) -> SpiResult<settle::Settlement> {
        let now = Instant::now();
        let look = now >= self.next_look;
        if look {
            self.next_look = now + LOOK;
        }
        if !pg::hold_table(self.outbox) || look && pg::extension().as_ref() != Some(&self.extension) {
            pgrx::log!("pg_jetstream: extension was dropped, made anew or updated; starting over");
            pg::exit(1);
        }
        if !self.may_be_captured && pg::has_pages(c"capture_queue") {
            self.may_be_captured = true;
            self.more_captured = true;
        }
        self.apply_changes()?;
        self.rest();
        let quiet = self.is_quiet();
        let settlement = self.settle()?;
        self.probe()?;
        self.hurry()?;
        self.maintain()?;
        if !self.paused {
            self.claim(claimed)?;
            // Nobody sees a synchronous commit before it is on disk.
            let maybe_not = claimed.xids.iter().copied().filter(|xid| !status::is_synchronous(*xid));
            pg::flush_commits(maybe_not);
        }
        // Its own id, which any statement of this transaction may have taken, is nobody else's work.
        self.at_rest = quiet
            .filter(|_| claimed.messages.is_empty())
            .and_then(|next| match pg::own_xid() {
                None => Some(next),
                Some(own) if own == next => Some(next + 1),
                Some(_) => None,
            });
        Ok(settlement)
    }

    /// Lets commits wake this worker only while there is a connection to publish to. To be called before the claim.
    fn rest(&mut self) {
        let resting = self.paused || !self.lanes.iter().any(|lane| lane.ready);
        if resting != self.resting {
            self.resting = resting;
            status::rest(self.slot, resting);
            // What was captured before this cycle's look at it may have woken nobody.
            self.more_captured |= !resting && self.may_be_captured;
        }
    }

    /// Waits for a commit's wake, a report of the relay, or time.
    fn wait(&mut self) {
        while self.wait_once() {}
    }

    /// The same; true if it was for time alone and nothing can have happened since.
    fn wait_once(&mut self) -> bool {
        let began = Instant::now();
        let mut timeout = self.settings.poll_interval;
        let beat = self.probes.next().filter(|_| !self.paused);
        if let Some(due) = self
            .lanes
            .iter()
            .filter(|lane| lane.ready)
            .filter_map(|lane| match self.at_rest {
                Some(_) => lane.due.known(),
                None => lane.due.next(),
            })
            .chain(beat)
            .min()
        {
            // The wait counts whole milliseconds: without the one more it would end too early, again and again.
            timeout = timeout.min(due.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        }
        if self.waiter.wait(timeout) {
            self.keep_apart();
            return false;
        }
        if began.elapsed() >= timeout && self.stays_at_rest() {
            self.log.write();
            return true;
        }
        self.take_reports();
        // A few outcomes can wait a moment, so that they are settled together or with the next claim. A latch that is
        // set in the meantime ends the wait.
        while !self.outcomes.is_empty() && self.outcomes.len() < SETTLE_AT_ONCE {
            let left = SETTLE_DELAY.saturating_sub(self.outcomes_since.elapsed());
            if left < Duration::from_millis(1) || self.waiter.wait(left) {
                break;
            }
            self.take_reports();
        }
        false
    }

    /// The next transaction to begin, if nothing is in progress anywhere and this worker has nothing to do. To be called
    /// at the beginning of a transaction, before its snapshots.
    fn is_quiet(&self) -> Option<u64> {
        let idle = self.flights.is_empty()
            && self.outcomes.is_empty()
            && self.hurry.is_idle()
            && !self.links.stale
            && self.links.unwritten.is_empty()
            && self.lanes.iter().all(|lane| lane.checkpoint.is_written())
            && !self.more_captured
            && !self.captured.waits()
            && pg::own_xid().is_none();
        if !idle {
            return None;
        }
        let next = pg::next_xid();
        let view = pg::snapshot();
        (view.unfinished(next).next().is_none()).then_some(next)
    }

    /// Whether nothing can have been committed since the last cycle, and nothing has come due: without a transaction id
    /// no row is inserted or changed, whatever triggers are disabled and however it is committed.
    fn stays_at_rest(&self) -> bool {
        let now = Instant::now();
        let due = |lane: &Lane| {
            lane.ready && (lane.more || lane.due.is_open() || lane.due.known().is_some_and(|at| at <= now))
        };
        self.at_rest.is_some_and(|next| next == pg::next_xid())
            && now < self.next_maintenance
            && now < self.next_sweep
            && self.probes.next().is_none_or(|at| now < at)
            && !self.lanes.iter().any(due)
    }

    /// Lets commits gather where they come one upon the other.
    fn keep_apart(&mut self) {
        let left = (self.took * APART)
            .clamp(CLOSE, APART_AT_MOST)
            .saturating_sub(self.began.elapsed());
        self.close = if left.is_zero() {
            0
        } else {
            self.close.saturating_add(1)
        };
        if self.close >= CLOSE_IN_A_ROW {
            std::thread::sleep(left);
        }
    }

    /// Takes what the relay has reported.
    fn take_reports(&mut self) {
        self.relay.clear_wake();
        loop {
            match self.relay.reports().try_recv() {
                Ok(Report::Settled(outcomes)) => {
                    if self.outcomes.is_empty() {
                        self.outcomes_since = Instant::now();
                    }
                    self.hold_keys(&outcomes);
                    self.outcomes.extend(outcomes);
                }
                Ok(Report::Link {
                    connection,
                    state,
                    detail,
                }) => self.link_changed(&connection, state, detail),
                Ok(Report::StreamSynced(synced)) => self.stream_synced(synced),
                Err(crossbeam_channel::TryRecvError::Empty) => break,
                Err(crossbeam_channel::TryRecvError::Disconnected) => pg::fatal(
                    PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                    "the relay thread has ended".into(),
                    None,
                ),
            }
        }
    }

    /// Takes new settings after a reload.
    fn take_settings(&mut self) {
        let settings = Settings::current();
        if settings.limits != self.settings.limits {
            self.relay.send(Command::Limits(settings.limits));
        }
        if settings.history_retention != self.settings.history_retention {
            self.next_maintenance = Instant::now();
        }
        log::set_level(settings.log_level);
        self.settings = settings;
    }

    /// Takes another role after a reload. One that it could not work with is reported, and looked at again every second:
    /// it keeps the rights it has until the right that is missing is granted.
    fn take_role(&mut self) {
        let name = guc::role();
        if name == self.role {
            self.refused = None;
            return;
        }
        let now = Instant::now();
        if self.refused.is_some() && now < self.next_role_look {
            return;
        }
        self.next_role_look = now + LOOK;
        match pg::transaction(|| begin::role(&name)) {
            Ok(Ok(role)) => {
                pg::rights::become_role(role);
                status::update(self.slot, |slot| slot.role = name.as_str().into());
                pgrx::log!("pg_jetstream: worker continues with the rights of role \"{name}\"");
                self.role = name;
                self.refused = None;
            }
            Ok(Err(reason)) => {
                let reason = format!("{reason}; the worker keeps the rights of role \"{}\"", self.role);
                self.note_error(&reason);
                if self.refused.as_ref() != Some(&reason) {
                    pgrx::warning!("pg_jetstream: {reason}");
                    self.refused = Some(reason);
                }
            }
            Err(e) if e.is_passing() => {}
            Err(e) => must(Err(e)),
        }
    }

    fn note_error(&mut self, error: &str) {
        self.report.last_error = error.into();
        self.report.last_error_at = micros::from_time(SystemTime::now());
    }

    fn publish_status(&mut self) {
        let state = if self.paused {
            "paused"
        } else if self.links.problem.is_some() {
            "waiting for a connection"
        } else if !self.flights.is_empty() {
            "publishing"
        } else if self.links.is_partial() {
            "a connection is down"
        } else {
            "idle"
        };
        self.report.state = state.into();
        self.report.in_flight = self.flights.len() as u32;
        self.report.in_flight_bytes = self.lanes.iter().map(|lane| lane.bytes as u64).sum();
        self.report.held_keys = self.keys.held() as u32;
        if !self.links.stale {
            self.report.reconnects_taken = self.seen_requests.1;
        }
        if let Err(e) = self.links.show(self.slot) {
            self.note_error(&format!("the states of the connections cannot be shown: {}", e.message));
        }
        status::update(self.slot, |slot| slot.report = self.report);
    }

    /// Ends the process: waits a moment for acknowledgements, settles them, leaves the rest to the next worker.
    fn finish(mut self) -> ! {
        pg::defer_termination();
        self.relay.send(Command::Shutdown(LAST_ACKS));
        let end = Instant::now() + LAST_ACKS + Duration::from_millis(500);
        while !self.relay.is_finished() && Instant::now() < end && !pg::termination_pending() {
            self.waiter.wait(Duration::from_millis(20));
            self.relay.clear_wake();
            self.collect_last();
        }
        self.collect_last();
        self.careful = true;
        // What cannot be settled now is published again by the next worker and dropped as a duplicate.
        if let Ok(Ok(settlement)) = pg::transaction(|| self.settle()) {
            self.settled(settlement);
        }
        if self.relay.is_finished() && !self.relay.join() {
            pgrx::warning!("pg_jetstream: the relay thread panicked");
        }
        self.log.write();
        pgrx::log!(
            "pg_jetstream: worker ends, {} messages in flight are left to the next",
            self.flights.len()
        );
        pg::exit(1);
    }

    fn collect_last(&mut self) {
        for report in self.relay.reports().try_iter() {
            if let Report::Settled(outcomes) = report {
                self.outcomes.extend(outcomes);
            }
        }
    }
}
