//! The one static worker: starts a drain worker for each listed database and starts it again when it has ended.

use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime, DynamicBackgroundWorker};
use pgrx::prelude::*;

use crate::status;
use crate::{guc, pg};

/// Longest wait before a worker that keeps ending is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A worker that ran for so long is started again at once.
const SOUND_RUN: Duration = Duration::from_secs(10);
/// How often missing databases and worker slots are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Registers the launcher; only while `shared_preload_libraries` is processed.
pub fn register() {
    BackgroundWorkerBuilder::new("pg_jetstream launcher")
        .set_type("pg_jetstream launcher")
        .set_library("pg_jetstream")
        .set_function("pg_jetstream_launcher_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

/// The drain worker of one database, as the launcher sees it.
struct Child {
    slot: usize,
    database: String,
    handle: Option<DynamicBackgroundWorker>,
    started: Option<Instant>,
    next_start: Instant,
    pause: Duration,
}

/// Main function of the launcher.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_jetstream_launcher_main(_arg: pg_sys::Datum) {
    pg::install_signal_handlers(pg::OnTerminate::Die);
    pg::connect(None);
    // It runs no statement, and needs no right to read the list of databases as it does.
    pg::rights::become_role(pg::rights::powerless());
    pgrx::log!("pg_jetstream: launcher started");
    let mut children: Vec<Child> = Vec::new();
    let mut unserved: Vec<String> = Vec::new();
    loop {
        pg::reread_config();
        let listed = guc::databases();
        // A worker whose database is no longer listed sees that itself and ends.
        children.retain(|child| {
            let keep = listed.contains(&child.database) || child.is_running();
            if !keep {
                status::deafen(child.slot);
                status::update(child.slot, |slot| *slot = status::Slot::default());
            }
            keep
        });
        let mut without_slot = Vec::new();
        for name in &listed {
            if !children.iter().any(|child| &child.database == name) {
                match Child::new(name) {
                    Some(child) => children.push(child),
                    None => without_slot.push(name.clone()),
                }
            }
        }
        if without_slot != unserved {
            if !without_slot.is_empty() {
                pgrx::warning!(
                    "pg_jetstream: {} databases of pg_jetstream.databases are not served, the first of them \"{}\": \
                     pg_jetstream.max_databases is {}. HINT: raise it and restart PostgreSQL",
                    without_slot.len(),
                    without_slot[0],
                    guc::max_databases()
                );
            }
            unserved = without_slot;
        }
        for child in children.iter_mut().filter(|child| listed.contains(&child.database)) {
            child.look_after();
        }
        pg::report_activity(None);
        let next = children.iter().filter(|c| !c.is_running()).map(|c| c.next_start).min();
        let timeout = next.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).min(LOOK));
        pg::wait(timeout.max(Duration::from_millis(10)));
        pg::serve_interrupts();
    }
}

impl Child {
    /// A slot for a listed database; `None` if all are taken.
    fn new(database: &str) -> Option<Child> {
        let same = status::find(|slot| slot.name.as_str() == database);
        let slot = same.or_else(|| status::find(|slot| slot.name.as_str().is_empty()))?;
        status::update(slot, |slot| slot.name = database.into());
        Some(Child {
            slot,
            database: database.to_string(),
            handle: None,
            started: None,
            next_start: Instant::now(),
            pause: Duration::ZERO,
        })
    }

    /// Whether its process is alive. A launcher that was restarted knows only the process id in the slot.
    fn is_running(&self) -> bool {
        use pgrx::bgworkers::BackgroundWorkerStatus::NotYetStarted;
        match &self.handle {
            Some(handle) => match handle.pid() {
                Ok(_) => true,
                Err(status) => matches!(status, NotYetStarted),
            },
            None => pg::is_alive(status::slot(self.slot).pid),
        }
    }

    fn look_after(&mut self) {
        if self.is_running() {
            return;
        }
        if let Some(started) = self.started.take() {
            self.ended(started.elapsed());
        }
        if Instant::now() >= self.next_start {
            self.start();
        }
    }

    fn ended(&mut self, ran: Duration) {
        self.handle = None;
        self.pause = if ran >= SOUND_RUN {
            Duration::ZERO
        } else {
            (self.pause * 2).clamp(Duration::from_millis(100), LONGEST_PAUSE)
        };
        self.next_start = Instant::now() + self.pause;
        let slot = status::slot(self.slot);
        self.stopped(&match slot.failure.as_str() {
            "" => "the worker ended and is started again".to_string(),
            failure => format!("the worker ended and is started again: {failure}"),
        });
        status::update(self.slot, |slot| slot.report.last_error_at = slot.failed_at);
    }

    /// Notes why no worker runs; says so in the log when the reason is a new one.
    fn stopped(&self, reason: &str) -> bool {
        status::deafen(self.slot);
        let mut changed = false;
        status::update(self.slot, |slot| {
            changed = slot.stopped.as_str() != reason;
            slot.pid = 0;
            slot.stopped = reason.into();
        });
        changed
    }

    fn start(&mut self) {
        self.next_start = Instant::now() + LOOK;
        let oid = pg::transaction(|| pg::database_oid(&self.database)).ok().flatten();
        status::update(self.slot, |slot| slot.database = oid.unwrap_or(0));
        if oid.is_none() {
            if self.stopped("database does not exist") {
                pgrx::warning!(
                    "pg_jetstream: database \"{}\" in pg_jetstream.databases does not exist; waiting for it",
                    self.database
                );
            }
            return;
        }
        let worker = BackgroundWorkerBuilder::new(&format!("pg_jetstream worker: {}", self.database))
            .set_type("pg_jetstream worker")
            .set_library("pg_jetstream")
            .set_function("pg_jetstream_worker_main")
            .enable_spi_access()
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            .set_restart_time(None)
            .set_argument(Some(pg_sys::Datum::from(self.slot)))
            .set_extra(&self.database)
            .set_notify_pid(pg::my_pid())
            .load_dynamic();
        match worker {
            Ok(handle) => {
                self.handle = Some(handle);
                self.started = Some(Instant::now());
                // What ended the last one is shown until this one has begun.
                status::update(self.slot, |slot| {
                    if slot.pid == 0 && slot.failure.as_str().is_empty() {
                        slot.stopped = "the worker is starting".into();
                    }
                });
            }
            Err(_) => {
                if self.stopped("no background worker slot is free; raise max_worker_processes") {
                    pgrx::warning!(
                        "pg_jetstream: no background worker slot is free for database \"{}\"; its messages wait. \
                         HINT: raise max_worker_processes",
                        self.database
                    );
                }
            }
        }
    }
}
