//! Default values of the settings that the pure modules and their tests refer to. Free of PostgreSQL.

/// `pg_jetstream.max_attempts`: with the default backoff, more than a day of attempts.
pub const MAX_ATTEMPTS: i32 = 330;
/// `pg_jetstream.retry_backoff_base`, milliseconds.
pub const RETRY_BACKOFF_BASE_MS: i32 = 1_000;
/// `pg_jetstream.retry_backoff_max`, milliseconds.
pub const RETRY_BACKOFF_MAX_MS: i32 = 300_000;
