//! Every setting. All take effect on reload, but `pg_jetstream.max_databases`, which needs a restart, and
//! `jetstream.traceparent`, which a session sets.

use std::ffi::CString;
use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

use crate::guc_defaults as default;
use crate::pg;
use crate::pg::rights::WORKER;
use crate::relay::Limits;
use crate::retry::Backoff;

/// What is recorded in `jetstream.history`.
#[derive(PostgresGucEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// Every settled message.
    #[name = c"all"]
    All,
    /// Dead letters only.
    #[name = c"failures"]
    Failures,
    /// Nothing.
    #[name = c"none"]
    None,
}

/// Least severe message of the relay that reaches PostgreSQL's log.
#[derive(PostgresGucEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Errors.
    #[name = c"error"]
    Error,
    /// Warnings.
    #[name = c"warn"]
    Warn,
    /// What an operator wants to see.
    #[name = c"info"]
    Info,
    /// Details.
    #[name = c"debug"]
    Debug,
    /// Everything, the NATS client's own messages included.
    #[name = c"trace"]
    Trace,
}

/// Databases a drain worker serves, separated by commas.
static DATABASES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
/// Most databases that can be listed, 1 to 10,000; each takes 2 kB of shared memory.
static MAX_DATABASES: GucSetting<i32> = GucSetting::<i32>::new(64);
/// Role whose rights the drain workers have; empty for jetstream_worker.
static ROLE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
/// Most messages claimed in one transaction, 1 to 100,000.
static BATCH_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1_000);
/// Most unacknowledged messages on the wire for one connection, 1 to 9,999: older servers' ingest queue ends at 10,000.
static MAX_IN_FLIGHT: GucSetting<i32> = GucSetting::<i32>::new(1_000);
/// Most bytes of claimed and unsettled messages in the worker's memory, 64 kB to 1 GB.
static MAX_IN_FLIGHT_BYTES: GucSetting<i32> = GucSetting::<i32>::new(32 * 1024 * 1024);
/// Longest time between two looks at an outbox that nobody woke the worker for, 10 ms to 10 min.
static POLL_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(1_000);
/// How long an acknowledgement may take, 10 ms to 10 min.
static ACK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
/// Attempts before a message becomes a dead letter, 1 to 1,000,000.
static MAX_ATTEMPTS: GucSetting<i32> = GucSetting::<i32>::new(default::MAX_ATTEMPTS);
/// Delay after the first failed attempt, 1 ms to 1 h; it doubles with each further one.
static RETRY_BACKOFF_BASE: GucSetting<i32> = GucSetting::<i32>::new(default::RETRY_BACKOFF_BASE_MS);
/// Longest delay between attempts, 1 ms to 1 d.
static RETRY_BACKOFF_MAX: GucSetting<i32> = GucSetting::<i32>::new(default::RETRY_BACKOFF_MAX_MS);
/// What is recorded in `jetstream.history`.
static HISTORY: GucSetting<History> = GucSetting::<History>::new(History::All);
/// Whether the history keeps bodies and headers.
static HISTORY_PAYLOAD: GucSetting<bool> = GucSetting::<bool>::new(false);
/// How long the history is kept, 1 h to 10 years, dropped by whole days (UTC).
static HISTORY_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(7 * 24 * 60);
/// Least severe message of the relay that reaches PostgreSQL's log.
static LOG_LEVEL: GucSetting<LogLevel> = GucSetting::<LogLevel>::new(LogLevel::Info);
/// W3C trace context of what is inserted into the outbox; a session sets it, `outbox.traceparent` reads it.
static TRACEPARENT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Defines the settings; called once, from `_PG_init`.
pub fn init() {
    let ms = GucFlags::UNIT_MS;
    string(
        c"pg_jetstream.databases",
        c"Databases whose outbox is published, separated by commas.",
        &DATABASES,
    );
    // PostgreSQL lets no session define what only a restart can change.
    if pg::preloading() {
        GucRegistry::define_int_guc(
            c"pg_jetstream.max_databases",
            c"Most databases that pg_jetstream.databases can list; takes effect at a restart.",
            c"",
            &MAX_DATABASES,
            1,
            10_000,
            GucContext::Postmaster,
            GucFlags::empty(),
        );
    }
    pg::rights::define_setting(
        c"pg_jetstream.role",
        c"Role whose rights the drain workers have; empty for jetstream_worker.",
        &ROLE,
    );
    int(
        c"pg_jetstream.batch_size",
        c"Most messages claimed in one transaction.",
        &BATCH_SIZE,
        1,
        100_000,
        GucFlags::empty(),
    );
    int(
        c"pg_jetstream.max_in_flight",
        c"Most unacknowledged messages on the wire for one connection.",
        &MAX_IN_FLIGHT,
        1,
        9_999,
        GucFlags::empty(),
    );
    int(
        c"pg_jetstream.max_in_flight_bytes",
        c"Most bytes of claimed and unsettled messages in a worker's memory.",
        &MAX_IN_FLIGHT_BYTES,
        64 * 1024,
        1024 * 1024 * 1024,
        GucFlags::UNIT_BYTE,
    );
    int(
        c"pg_jetstream.poll_interval",
        c"Longest time between two looks at an outbox that no commit woke the worker for.",
        &POLL_INTERVAL,
        10,
        600_000,
        ms,
    );
    int(
        c"pg_jetstream.ack_timeout",
        c"How long an acknowledgement may take.",
        &ACK_TIMEOUT,
        10,
        600_000,
        ms,
    );
    int(
        c"pg_jetstream.max_attempts",
        c"Attempts before a message becomes a dead letter.",
        &MAX_ATTEMPTS,
        1,
        1_000_000,
        GucFlags::empty(),
    );
    int(
        c"pg_jetstream.retry_backoff_base",
        c"Delay after the first failed attempt; it doubles with each further one.",
        &RETRY_BACKOFF_BASE,
        1,
        3_600_000,
        ms,
    );
    int(
        c"pg_jetstream.retry_backoff_max",
        c"Longest delay between attempts.",
        &RETRY_BACKOFF_MAX,
        1,
        86_400_000,
        ms,
    );
    GucRegistry::define_enum_guc(
        c"pg_jetstream.history",
        c"What is recorded in jetstream.history: all, failures or none.",
        c"",
        &HISTORY,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    GucRegistry::define_bool_guc(
        c"pg_jetstream.history_payload",
        c"Whether the history keeps bodies and headers.",
        c"",
        &HISTORY_PAYLOAD,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    int(
        c"pg_jetstream.history_retention",
        c"How long the history is kept; it is dropped by whole days.",
        &HISTORY_RETENTION,
        60,
        10 * 366 * 24 * 60,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_enum_guc(
        c"pg_jetstream.log_level",
        c"Least severe message of the relay that reaches the log: error, warn, info, debug or trace.",
        c"",
        &LOG_LEVEL,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    GucRegistry::define_string_guc(
        c"jetstream.traceparent",
        c"W3C trace context that messages of this session or transaction carry.",
        c"",
        &TRACEPARENT,
        GucContext::Userset,
        GucFlags::empty(),
    );
}

fn int(
    name: &'static std::ffi::CStr,
    about: &'static std::ffi::CStr,
    setting: &'static GucSetting<i32>,
    min: i32,
    max: i32,
    unit: GucFlags,
) {
    GucRegistry::define_int_guc(name, about, c"", setting, min, max, GucContext::Sighup, unit);
}

fn string(
    name: &'static std::ffi::CStr,
    about: &'static std::ffi::CStr,
    setting: &'static GucSetting<Option<CString>>,
) {
    GucRegistry::define_string_guc(name, about, c"", setting, GucContext::Sighup, GucFlags::empty());
}

fn text(setting: &GucSetting<Option<CString>>) -> String {
    setting
        .get()
        .map(|value| value.to_string_lossy().trim().to_string())
        .unwrap_or_default()
}

fn millis(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(setting.get().max(0) as u64)
}

/// `pg_jetstream.databases` as a list without blanks and repetitions.
pub fn databases() -> Vec<String> {
    let mut names = Vec::new();
    for name in text(&DATABASES).split(',').map(|name| name.trim().trim_matches('"')) {
        if !name.is_empty() && !names.iter().any(|known| known == name) {
            names.push(name.to_string());
        }
    }
    names
}

/// `pg_jetstream.max_databases`.
pub fn max_databases() -> usize {
    MAX_DATABASES.get().max(1) as usize
}

/// The role that `pg_jetstream.role` asks for.
pub fn role() -> String {
    let role = text(&ROLE);
    if role.is_empty() { WORKER.to_string() } else { role }
}

/// The settings one cycle of a drain worker works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// `batch_size`.
    pub batch_size: usize,
    /// `max_in_flight` and `ack_timeout`.
    pub limits: Limits,
    /// `max_in_flight_bytes`.
    pub max_bytes: usize,
    /// `poll_interval`.
    pub poll_interval: Duration,
    /// `max_attempts`.
    pub max_attempts: i32,
    /// `retry_backoff_base` and `retry_backoff_max`.
    pub backoff: Backoff,
    /// `history`.
    pub history: History,
    /// `history_payload`.
    pub history_payload: bool,
    /// `history_retention`.
    pub history_retention: Duration,
    /// `log_level`.
    pub log_level: LogLevel,
}

impl Settings {
    /// The current values.
    pub fn current() -> Settings {
        Settings {
            batch_size: BATCH_SIZE.get().max(1) as usize,
            limits: Limits {
                max_in_flight: MAX_IN_FLIGHT.get().max(1) as usize,
                ack_timeout: millis(&ACK_TIMEOUT),
            },
            max_bytes: MAX_IN_FLIGHT_BYTES.get().max(0) as usize,
            poll_interval: millis(&POLL_INTERVAL),
            max_attempts: MAX_ATTEMPTS.get(),
            backoff: Backoff {
                base: millis(&RETRY_BACKOFF_BASE),
                max: millis(&RETRY_BACKOFF_MAX),
            },
            history: HISTORY.get(),
            history_payload: HISTORY_PAYLOAD.get(),
            history_retention: Duration::from_secs(HISTORY_RETENTION.get().max(0) as u64 * 60),
            log_level: LOG_LEVEL.get(),
        }
    }

    /// Most messages of one connection that are claimed and not settled: a full wire and two batches behind it.
    pub fn claim_ahead(&self) -> usize {
        self.limits.max_in_flight + 2 * self.batch_size
    }
}
