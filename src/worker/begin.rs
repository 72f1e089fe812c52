//! From the start of the process to the loop of cycles.

use std::time::SystemTime;

use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;
use pgrx::spi::SpiResult;

use super::Worker;
use crate::guc::{self, Settings};
use crate::store::config;
use crate::{micros, pg, status, version, wake};

/// Main function of a drain worker; the argument is its slot.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_jetstream_worker_main(arg: pg_sys::Datum) {
    let slot = arg.value();
    pg::install_signal_handlers(pg::OnTerminate::Finish);
    wake::ignore_own_commits();
    let role = guc::role();
    let database = BackgroundWorker::get_extra().to_string();
    pg::connect(Some(&database), role.as_deref());
    status::update(slot, |slot| {
        slot.pid = pg::my_pid();
        slot.stopped = "".into();
        slot.report = status::Report {
            started_at: micros::from_time(SystemTime::now()),
            ..status::Report::default()
        };
        slot.links = status::Links::default();
    });
    status::listen(slot, pg::my_database());
    run(slot, &database, role);
}

/// Waits until the database is ready and this is its one worker, then works until the process is to end.
fn run(slot: usize, database: &str, role: Option<String>) -> ! {
    must(pg::transaction(config::configure_session));
    let unwanted = || {
        pg::termination_pending()
            || pg::reread_config() && !(guc::databases().iter().any(|name| name == database) && guc::role() == role)
    };
    let mut told = Wait::default();
    let (extension, outbox) = loop {
        match must(pg::transaction(look)) {
            Ok(found) => break found,
            Err(wait) => {
                status::update(slot, |slot| slot.report.state = wait.reason.as_str().into());
                if wait.log && wait != told {
                    pgrx::warning!("pg_jetstream: database \"{database}\": {}", wait.reason);
                }
                told = wait;
            }
        }
        pg::report_activity(None);
        pg::wait(Settings::current().poll_interval);
        pgrx::check_for_interrupts!();
        if unwanted() {
            pg::exit(1);
        }
    };
    let mut worker = match Worker::start(slot, extension, outbox) {
        Ok(worker) => worker,
        Err(e) => pg::fatal(
            PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
            format!("relay could not be started: {e}"),
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
        pgrx::check_for_interrupts!();
    }
}

/// Why the worker cannot begin.
#[derive(Default, PartialEq, Eq)]
struct Wait {
    reason: String,
    /// Whether somebody has to do something about it.
    log: bool,
}

/// Whether the worker can begin: the extension and the object id of its outbox, or why not.
fn look() -> SpiResult<Result<(pg::Extension, u32), Wait>> {
    let wait = |reason: &str, log| {
        Ok(Err(Wait {
            reason: reason.into(),
            log,
        }))
    };
    let (Some(extension), Some(outbox)) = (pg::extension(), pg::table_oid(c"outbox")) else {
        return wait("waiting for create extension pg_jetstream", false);
    };
    if let Some(reason) = version::mismatch(&extension.version, env!("CARGO_PKG_VERSION")) {
        return wait(&reason, true);
    }
    if !config::try_lock()? {
        return wait("waiting: another worker serves this database", false);
    }
    Ok(Ok((extension, outbox)))
}

/// The value of a statement that fails only by a defect; ends the process otherwise.
pub(super) fn must<T>(result: Result<SpiResult<T>, pg::SqlError>) -> T {
    match result {
        Ok(Ok(value)) => value,
        Ok(Err(e)) => pg::fatal(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("statement failed: {e}")),
        Err(e) => pg::fatal(e.code, e.message),
    }
}
