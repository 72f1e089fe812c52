//! What the session of a worker is like, whatever is set for the database or the role: decided before it connects, in C,
//! so that no statement ever runs under anybody else's settings.

use std::ffi::CStr;

use pgrx::pg_sys;

/// Settings of every worker. The first ones decide what names mean and with whose rights statements run.
const SETTINGS: &[(&CStr, &CStr)] = &[
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"role", c"none"),
    (c"row_security", c"on"),
    (c"session_replication_role", c"origin"),
    // Transactions as the worker expects them; it does its own waiting, and handles errors.
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_deferrable", c"off"),
    (c"exit_on_error", c"off"),
    (c"statement_timeout", c"0"),
    (c"lock_timeout", c"200ms"),
    (c"idle_in_transaction_session_timeout", c"0"),
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    (c"transaction_timeout", c"0"),
    (c"synchronous_commit", c"off"),
    // What the text of statements and values means.
    (c"standard_conforming_strings", c"on"),
    (c"transform_null_equals", c"off"),
    (c"array_nulls", c"on"),
    (c"DateStyle", c"ISO, MDY"),
    (c"IntervalStyle", c"postgres"),
    (c"TimeZone", c"UTC"),
    (c"extra_float_digits", c"1"),
    (c"bytea_output", c"hex"),
    // No compilation of small statements, plans kept, index scans also on a table that was never analyzed.
    (c"jit", c"off"),
    (c"plan_cache_mode", c"force_generic_plan"),
    (c"enable_indexscan", c"on"),
    (c"enable_seqscan", c"off"),
    (c"enable_bitmapscan", c"off"),
    (c"enable_sort", c"off"),
    (c"max_parallel_workers_per_gather", c"0"),
    #[cfg(any(feature = "pg13", feature = "pg14", feature = "pg15"))]
    (c"force_parallel_mode", c"off"),
    #[cfg(not(any(feature = "pg13", feature = "pg14", feature = "pg15")))]
    (c"debug_parallel_query", c"off"),
    (c"application_name", c"pg_jetstream"),
];

/// Sets all that a worker's session depends on. To be called before [`super::connect`]: what the database or the role asks
/// for comes later and is weaker, as autovacuum does it (`AutoVacWorkerMain`).
pub fn configure() {
    for (name, value) in SETTINGS {
        // SAFETY: C strings, which are copied; none of these settings looks anything up in a catalog.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}
