//! From the start of the process to the loop of cycles.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;
use pgrx::spi::SpiResult;

use super::Worker;
use crate::guc::{self, Settings};
use crate::pg::rights::{self, Role, Unusable, WORKER};
use crate::{micros, pg, status, version, wake};

/// Slot of this worker, for the report of what ends it.
static SLOT: AtomicUsize = AtomicUsize::new(0);
/// How long it waits before it makes a transaction again.
const PAUSE: Duration = Duration::from_millis(200);

/// Main function of a drain worker; the argument is its slot.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_jetstream_worker_main(arg: pg_sys::Datum) {
    let slot = arg.value();
    SLOT.store(slot, Ordering::Relaxed);
    pg::install_signal_handlers(pg::OnTerminate::Finish);
    pg::failure::watch(failed);
    wake::ignore_own_commits();
    let database = BackgroundWorker::get_extra().to_string();
    pg::connect(Some(&database));
    status::update(slot, |slot| {
        slot.pid = pg::my_pid();
        slot.stopped = "".into();
        slot.role = "".into();
        slot.report = status::Report {
            started_at: micros::from_time(SystemTime::now()),
            ..status::Report::default()
        };
        if !slot.failure.as_str().is_empty() {
            slot.report.last_error = format!("the worker before this one ended: {}", slot.failure.as_str())
                .as_str()
                .into();
            slot.report.last_error_at = slot.failed_at;
        }
        slot.failure = "".into();
        slot.links = 0;
    });
    status::listen(slot, pg::my_database());
    run(slot, &database);
}

/// Leaves in shared memory what ends this process.
fn failed(reason: &str) {
    status::update(SLOT.load(Ordering::Relaxed), |slot| {
        slot.failure = reason.into();
        slot.failed_at = pg::now();
    });
}

/// Waits until the database is ready and this is its one worker, then works until the process is to end.
fn run(slot: usize, database: &str) -> ! {
    let unwanted =
        || pg::termination_pending() || pg::reread_config() && !guc::databases().iter().any(|name| name == database);
    let mut reported = Wait::default();
    let ready = loop {
        let wait = match pg::transaction(look) {
            Ok(Ok(ready)) => break ready,
            Ok(Err(wait)) => wait,
            Err(e) if e.is_passing() => Wait::quiet(&passing("starting", &e)),
            Err(e) => pg::fatal(e.code, e.message, e.hint),
        };
        status::update(slot, |slot| {
            slot.report.state = wait.reason.as_str().into();
            if wait.log {
                slot.report.last_error = wait.reason.as_str().into();
                slot.report.last_error_at = pg::now();
            }
        });
        if wait.log && wait != reported {
            pgrx::warning!("pg_jetstream: database \"{database}\": {}", wait.reason);
        }
        reported = wait;
        pg::report_activity(None);
        pg::wait(Settings::current().poll_interval);
        pg::serve_interrupts();
        if unwanted() {
            pg::exit(1);
        }
    };
    // Before the first statement.
    rights::become_role(ready.role);
    status::update(slot, |slot| slot.role = ready.name.as_str().into());
    let mut worker = match Worker::start(slot, ready.extension, ready.outbox, ready.name) {
        Ok(worker) => worker,
        Err(e) => pg::fatal(
            PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
            format!("relay could not be started: {e}"),
            None,
        ),
    };
    worker.load();
    loop {
        let again = worker.cycle();
        if !again {
            worker.wait();
        }
        if unwanted() {
            worker.finish();
        }
        worker.take_settings();
        worker.take_role();
        pg::serve_interrupts();
    }
}

/// What a worker needs to begin.
struct Ready {
    extension: pg::Extension,
    /// Object id of the outbox.
    outbox: u32,
    role: Role,
    /// Name of the role.
    name: String,
}

/// Why the worker cannot begin.
#[derive(Default, PartialEq, Eq)]
struct Wait {
    reason: String,
    /// Whether an operator has to do something about it.
    log: bool,
}

impl Wait {
    fn quiet(reason: &str) -> Wait {
        Wait {
            reason: reason.into(),
            log: false,
        }
    }
}

/// Whether the worker can begin, or why not. Runs no statement: it has the rights of the bootstrap superuser.
fn look() -> Result<Ready, Wait> {
    let loud = |reason: String| Wait { reason, log: true };
    let (Some(extension), Some(outbox)) = (pg::extension(), pg::table_oid(c"outbox")) else {
        return Err(Wait::quiet("waiting for create extension pg_jetstream"));
    };
    if let Some(reason) = version::mismatch(&extension.version, env!("CARGO_PKG_VERSION")) {
        return Err(loud(reason));
    }
    let name = guc::role();
    let role = role(&name).map_err(|reason| loud(format!("waiting: {reason}")))?;
    if !pg::try_lock() {
        return Err(Wait::quiet("waiting: another worker serves this database"));
    }
    Ok(Ready {
        extension,
        outbox,
        role,
        name,
    })
}

/// The role of this name, if a worker can work with its rights, or what there is to do. To be called in a transaction.
pub(super) fn role(name: &str) -> Result<Role, String> {
    rights::usable(name).map_err(|why| match why {
        Unusable::Missing if name == WORKER => {
            format!("role {WORKER} {why}; create it with its grants (see the reference)")
        }
        Unusable::Missing => format!("role \"{name}\" of pg_jetstream.role {why}; create it, or correct the setting"),
        Unusable::NoMember => format!("role \"{name}\" of pg_jetstream.role {why}; grant {WORKER} to \"{name}\""),
    })
}

/// The value of a statement that fails only by a defect; ends the process otherwise.
pub(super) fn must<T>(result: Result<SpiResult<T>, pg::SqlError>) -> T {
    match result {
        Ok(Ok(value)) => value,
        Ok(Err(e)) => pg::fatal(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("statement failed: {e}"),
            None,
        ),
        Err(e) if e.code == PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE => {
            let hint = format!(
                "The worker has the rights of role \"{}\": grant {WORKER} to it, and to {WORKER} what the reference lists.",
                guc::role()
            );
            pg::fatal(e.code, e.message, Some(hint))
        }
        Err(e) => pg::fatal(e.code, e.message, e.hint),
    }
}

/// What to report of a transaction that is made again.
pub(super) fn passing(what: &str, e: &pg::SqlError) -> String {
    if e.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE {
        format!("waiting for a lock while {what}: {}", e.message)
    } else {
        format!("{what} is tried again: {}", e.message)
    }
}

/// Waits before a transaction is made again; ends the process if it is to end.
pub(super) fn pause(reason: &str) {
    pgrx::log!("pg_jetstream: {reason}");
    pg::wait(PAUSE);
    pg::serve_interrupts();
    if pg::termination_pending() {
        pg::exit(1);
    }
}
