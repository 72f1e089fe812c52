//! Settling: what the relay reported becomes what the tables say.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pgrx::spi::SpiResult;

use super::claim::key_of;
use super::lane::Lane;
use super::{LOOK_EVERYWHERE, MAINTENANCE, Worker, probe};
use crate::error::{Class, RelayError};
use crate::latency::Histogram;
use crate::message::{Message, Outcome, Settled};
use crate::micros;
use crate::order::End;
use crate::pg;
use crate::relay::Command;
use crate::store::{Failure, Record, config};

/// How often a connection's ids that were used twice are worth a warning.
const WARNING_INTERVAL: Duration = Duration::from_secs(3600);

/// What one transaction has settled; taken into account once it has committed.
#[derive(Default)]
pub(super) struct Settlement {
    ended: Vec<(i64, End)>,
    /// Somebody holds their row: to be settled later.
    kept: HashSet<i64>,
    /// Given back by a connection that was closed: they may have been stored.
    released: Vec<i64>,
    /// Messages stored, and of these those the stream had already.
    stored: usize,
    duplicates: usize,
    /// Of these, those whose id another message has used, with the first of them, by lane.
    reused: BTreeMap<usize, (u64, String)>,
    latency: Histogram,
    /// Sequence of the last one stored anew, for each connection (by its lane) and stream.
    reached: Vec<(usize, Arc<str>, i64)>,
    retried: usize,
    /// Messages that failed because of their subject.
    subject_failed: HashSet<i64>,
    dead: usize,
    first_death: Option<String>,
    last_error: Option<String>,
}

impl Settlement {
    fn reach(&mut self, lane: usize, stream: &Arc<str>, sequence: i64) {
        let known = self
            .reached
            .iter_mut()
            .rev()
            .find(|(l, s, _)| *l == lane && s == stream);
        match known {
            Some((_, _, last)) => *last = sequence,
            None => self.reached.push((lane, stream.clone(), sequence)),
        }
    }
}

/// A message the relay has failed with.
struct Failed {
    message: Arc<Message>,
    txid: u64,
    error: RelayError,
    attempts: i32,
    /// It was sent that long before its time, to see whether its subject fails still: no attempt.
    early: Option<Duration>,
    began_at: SystemTime,
}

impl Worker {
    /// Writes the outcomes that have come in.
    pub(super) fn settle(&mut self) -> SpiResult<Settlement> {
        let mut settlement = Settlement::default();
        let kept = if self.careful {
            self.held_rows()?
        } else {
            HashSet::new()
        };
        let mut records = Vec::with_capacity(self.outcomes.len());
        let (mut retries, mut deaths) = (Vec::new(), Vec::new());
        for settled in self.outcomes.iter().filter(|settled| !kept.contains(&settled.id)) {
            let Some(flight) = self.flights.get(&settled.id) else {
                continue;
            };
            let end = match &settled.outcome {
                Outcome::Stored {
                    stream,
                    sequence,
                    duplicate,
                    acked_at,
                } => {
                    let acked_at = micros::from_time(*acked_at);
                    let took = acked_at.saturating_sub(flight.due_at).max(0);
                    let reused = *duplicate && self.is_first_attempt(settled.id, flight);
                    records.push(Record {
                        message: &flight.message,
                        place: flight.place,
                        txid: flight.txid,
                        stream,
                        sequence: *sequence as i64,
                        duplicate: *duplicate,
                        reused,
                        latency_ms: (took as f64 / 1000.0) as f32,
                        acked_at,
                    });
                    settlement.stored += 1;
                    if reused {
                        let (count, _) = settlement.reused.entry(flight.lane).or_insert_with(|| {
                            let message = &flight.message;
                            (
                                0,
                                format!(
                                    "message {} of subject \"{}\" with id \"{}\"",
                                    message.id, message.subject, message.message_id
                                ),
                            )
                        });
                        *count += 1;
                    }
                    settlement.latency.record(took as u64);
                    if *duplicate {
                        settlement.duplicates += 1;
                    } else {
                        settlement.reach(flight.lane, stream, *sequence as i64);
                    }
                    End::Gone
                }
                Outcome::Failed(error) => {
                    let early = self.probes.left(settled.id).filter(|_| probe::is_about_subject(error));
                    let failed = Failed {
                        message: flight.message.clone(),
                        txid: flight.txid,
                        error: error.clone(),
                        attempts: flight.message.attempts + i32::from(early.is_none()),
                        early,
                        began_at: flight.claimed_at,
                    };
                    match error.class() {
                        Class::PermanentForConnection => End::back(flight.delayed),
                        Class::Transient if failed.attempts < self.settings.max_attempts => {
                            if probe::is_about_subject(error) {
                                settlement.subject_failed.insert(settled.id);
                            }
                            retries.push(failed);
                            End::Again
                        }
                        Class::Transient | Class::PermanentForMessage => {
                            deaths.push(failed);
                            End::Gone
                        }
                    }
                }
                Outcome::HeldBack => End::back(flight.delayed),
                Outcome::Released => {
                    settlement.released.push(settled.id);
                    End::back(flight.delayed)
                }
            };
            settlement.ended.push((settled.id, end));
        }
        settlement.kept = kept;
        settlement.retried = retries.iter().filter(|failed| failed.early.is_none()).count();
        settlement.dead = deaths.len();
        settlement.last_error = deaths.iter().chain(&retries).last().map(|f| f.error.to_string());
        settlement.first_death = deaths
            .first()
            .map(|f| format!("message {}: {}", f.message.id, reason(f)));
        let backoff = self.settings.backoff;
        let failure = |f: &Failed| {
            let delay = f.early.unwrap_or_else(|| backoff.delay(f.attempts.max(1) as u32));
            delay.as_millis() as i64
        };
        let retries: Vec<_> = retries
            .iter()
            .map(|f| as_failure(f, f.error.to_string(), failure(f)))
            .collect();
        let deaths: Vec<_> = deaths.iter().map(|f| as_failure(f, reason(f), 0)).collect();
        self.store.settle_stored(&records, &self.settings)?;
        self.store.settle_retries(&retries)?;
        self.store.settle_dead(&deaths, &self.settings)?;
        Ok(settlement)
    }

    /// Whether nobody can have sent this message before: then a duplicate of it is another message with the same id.
    fn is_first_attempt(&self, id: i64, flight: &super::Flight) -> bool {
        let lane = &self.lanes[flight.lane];
        let message = &flight.message;
        message.attempts == 0
            && message.unsure_since.is_none()
            // What is in flight when a connection is lost is looked for, or sent again, by the next one.
            && lane.changed_at.is_some_and(|at| at < flight.claimed_at)
            && lane.unsettled.is_none_or(|(up_to, _)| id > up_to)
    }

    /// Warns of ids that were used twice, at most once an hour for each connection.
    fn warn_of_reused(&mut self, reused: BTreeMap<usize, (u64, String)>) {
        for (number, (count, first)) in reused {
            self.report.reused_ids += count;
            let lane = &mut self.lanes[number];
            if lane.warned_at.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
                lane.warned_at = Some(Instant::now());
                let name = lane.name.clone();
                let warning = format!(
                    "connection \"{name}\": the stream dropped {first}, as another message has used this id; \
                     history.error names all of them"
                );
                pgrx::warning!("pg_jetstream: {warning}");
                self.note_error(&warning);
            }
        }
    }

    /// Holds the keys of messages that failed or were given back before anything else of them is claimed; of the failed
    /// ones the relay takes messages again then.
    pub(super) fn hold_keys(&mut self, outcomes: &[Settled]) {
        let held = |settled: &&Settled| matches!(settled.outcome, Outcome::Failed(_) | Outcome::Released);
        for settled in outcomes.iter().filter(held) {
            let Some(flight) = self.flights.get(&settled.id) else {
                continue;
            };
            let Some(key) = key_of(&flight.message) else {
                continue;
            };
            if matches!(settled.outcome, Outcome::Released) {
                if !flight.delayed {
                    self.keys.give_back(&key, settled.id);
                }
                continue;
            }
            // One found by `deliver_at` may lie beyond messages of its key that have not been claimed yet.
            let last = match flight.delayed {
                true => settled.id.min(self.lanes[flight.lane].cursor),
                false => settled.id,
            };
            self.keys.block(key.clone(), settled.id, last.saturating_add(1));
            self.relay.send(Command::Resume {
                connection: key.connection,
                key: key.key,
            });
        }
    }

    /// Messages with an outcome whose row somebody else holds.
    fn held_rows(&mut self) -> SpiResult<HashSet<i64>> {
        let touches = |settled: &&Settled| matches!(settled.outcome, Outcome::Stored { .. } | Outcome::Failed(_));
        let ids: Vec<i64> = self.outcomes.iter().filter(touches).map(|s| s.id).collect();
        let free = self.store.lockable(&ids)?;
        let rest: Vec<i64> = ids.into_iter().filter(|id| !free.contains(id)).collect();
        if rest.is_empty() {
            return Ok(HashSet::new());
        }
        config::existing(rest)
    }

    /// Takes a committed settlement into account.
    pub(super) fn settled(&mut self, settlement: Settlement) {
        for (lane, stream, sequence) in &settlement.reached {
            self.lanes[*lane].checkpoint.stored(stream, *sequence);
        }
        for id in &settlement.released {
            if let Some(flight) = self.flights.get(id) {
                let unsettled = &mut self.lanes[flight.lane].unsettled;
                let up_to = unsettled.map_or(*id, |(up_to, _)| up_to.max(*id));
                *unsettled = Some((up_to, SystemTime::now()));
            }
        }
        for (id, end) in &settlement.ended {
            let Some(flight) = self.flights.remove(id) else {
                continue;
            };
            let lane = &mut self.lanes[flight.lane];
            lane.checkpoint.ended(flight.checkpoint);
            lane.in_flight -= 1;
            lane.delayed -= usize::from(flight.delayed);
            lane.bytes -= flight.message.cost();
            if settlement.subject_failed.contains(id) {
                let message = &flight.message;
                self.probes.failed(&message.connection, &message.subject, *id);
            } else if matches!(end, End::Gone | End::Again) {
                self.probes.ended(&flight.message);
            }
            match end {
                End::Gone => self.hurry.stored(&flight.message.connection, &flight.message.subject),
                End::Again => {
                    self.hurry.failed(&flight.message.connection, &flight.message.subject);
                    lane.due.soon();
                }
                End::StillDue => lane.due.all_soon(),
                _ => {}
            }
            match key_of(&flight.message) {
                Some(key) => self.keys.ended(&key, *id, *end),
                None if *end == End::Back => lane.rewind(*id - 1),
                None => {}
            }
        }
        self.careful = !settlement.kept.is_empty();
        self.outcomes.retain(|settled| settlement.kept.contains(&settled.id));
        self.outcomes_since = Instant::now();
        self.report.stored += settlement.stored as u64;
        self.report.duplicates += settlement.duplicates as u64;
        self.warn_of_reused(settlement.reused);
        self.report.latency.add(&settlement.latency);
        self.report.retried += settlement.retried as u64;
        self.report.dead += settlement.dead as u64;
        if let Some(error) = &settlement.last_error {
            self.note_error(error);
        }
        if let Some(first) = &settlement.first_death {
            pgrx::warning!("pg_jetstream: {} dead letter(s), the first is {first}", settlement.dead);
        }
        for lane in &mut self.lanes {
            lane.checkpoint.begin(lane.in_flight);
        }
    }

    /// What is done now and then: positions, sweeps, keys whose blocker somebody removed.
    pub(super) fn maintain(&mut self) -> SpiResult<()> {
        for number in 0..self.lanes.len() {
            let positions = self.lanes[number].checkpoint.due();
            if positions.is_empty() {
                continue;
            }
            self.forget_recovered(number)?;
            let lane = &self.lanes[number];
            if lane.unsettled.is_none() {
                for (stream, sequence) in positions {
                    config::advance(&lane.name, &stream, sequence)?;
                }
            }
        }
        if Instant::now() < self.next_sweep {
            return Ok(());
        }
        self.next_sweep = Instant::now() + MAINTENANCE;
        self.rounds += 1;
        if self.rounds.is_multiple_of(LOOK_EVERYWHERE) {
            self.lanes.iter_mut().for_each(Lane::sweep_all);
        }
        self.take_back_keys()?;
        self.look_everywhere()
    }

    /// Sees whether a connection owes nothing any more that was sent before it was opened.
    fn forget_recovered(&mut self, number: usize) -> SpiResult<()> {
        let lane = &self.lanes[number];
        let Some((up_to, due_by)) = lane.unsettled else {
            return Ok(());
        };
        let in_flight = |(id, flight): (&i64, &super::Flight)| flight.lane == number && *id <= up_to;
        // The look at the table may pass over many dead rows: it is left until nothing else speaks against it.
        if (lane.more && lane.cursor < up_to) || self.flights.iter().any(in_flight) {
            return Ok(());
        }
        if !config::is_owed(&lane.name, up_to, micros::from_time(due_by))? {
            self.lanes[number].unsettled = None;
            let name = self.lanes[number].name.clone();
            self.relay.send(Command::Recovered(name));
        }
        Ok(())
    }

    /// Starts over if ids to come lie below those claimed: somebody set the sequence back, or gave an id of his own.
    pub(super) fn follow_sequence(&mut self) -> SpiResult<()> {
        let last = config::last_outbox_id()?;
        for lane in self.lanes.iter_mut().filter(|lane| lane.cursor > last) {
            // The next look is soon enough: a row with a higher id that cannot be claimed must not keep this busy.
            let more = lane.more;
            lane.rewind(0);
            lane.more = more;
        }
        Ok(())
    }

    /// Takes spilled keys back into memory if they have room there. Not while a sweep may find messages of a key that was
    /// released while it was spilled.
    fn take_back_keys(&mut self) -> SpiResult<()> {
        let sweeping = self.lanes.iter().any(|lane| lane.sweep_from.is_some());
        if !self.keys.spilled() || sweeping || !self.keys.has_room() {
            return Ok(());
        }
        let most = self.keys.most();
        let failing = config::failing_keys(most as i64 + 1)?;
        if failing.len() <= most {
            self.keys.load(failing, true);
        }
        Ok(())
    }

    /// Begins a sweep of every connection, and releases keys whose failing message is gone.
    pub(super) fn look_everywhere(&mut self) -> SpiResult<()> {
        self.follow_sequence()?;
        let oldest = pg::snapshot().oldest;
        self.lanes.iter_mut().for_each(|lane| lane.begin_sweep(oldest));
        let blockers = self.keys.blockers();
        if !blockers.is_empty() {
            let mut existing = config::existing(blockers)?;
            existing.extend(self.flights.keys());
            self.keys.forget_missing(&existing);
        }
        Ok(())
    }
}

fn reason(failed: &Failed) -> String {
    match failed.error.class() {
        Class::Transient => format!("gave up after {} attempts: {}", failed.attempts, failed.error),
        _ => failed.error.to_string(),
    }
}

fn as_failure(failed: &Failed, reason: String, delay_ms: i64) -> Failure<'_> {
    Failure {
        message: &failed.message,
        txid: failed.txid,
        attempts: failed.attempts,
        reason,
        delay_ms,
        unsure_since: failed.error.is_unsure().then(|| micros::from_time(failed.began_at)),
    }
}
