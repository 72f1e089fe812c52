//! From the start of the process to the loop of cycles.

use std::time::SystemTime;

use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;
use pgrx::spi::SpiResult;

use super::Worker;
use crate::guc::{self, Settings};
use crate::store::config;
use crate::{micros, pg, status, wake};

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
    let extension = loop {
        match must(pg::transaction(look)) {
            Ok(extension) => break extension,
            Err(reason) => status::update(slot, |slot| slot.report.state = reason.as_str().into()),
        }
        pg::report_activity(None);
        pg::wait(None, Settings::current().poll_interval);
        pgrx::check_for_interrupts!();
        if unwanted() {
            pg::exit(1);
        }
    };
    let mut worker = match Worker::start(slot, extension) {
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

/// Whether the worker can begin: the object ids of the extension and of its outbox, or why not.
fn look() -> SpiResult<Result<(u32, u32), String>> {
    let (Some(extension), Some(outbox)) = (pg::extension_oid(), pg::table_oid(c"outbox")) else {
        return Ok(Err("waiting for create extension pg_jetstream".into()));
    };
    let library = env!("CARGO_PKG_VERSION");
    let version = config::extension_version()?.unwrap_or_default();
    if version != library {
        return Ok(Err(format!(
            "waiting: extension is version {version}, library {library}; run alter extension pg_jetstream update"
        )));
    }
    if !config::try_lock()? {
        return Ok(Err("waiting: another worker serves this database".into()));
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
