//! pg_jetstream: write to the database and publish to NATS JetStream in one atomic act.
//!
//! SQL inserts into `jetstream.outbox`; a drain worker for each database claims from it, hands the messages to its
//! relay thread, and settles what the relay reports.

use pgrx::prelude::*;

mod api;
mod array;
mod capture;
mod enqueue;
mod error;
#[cfg(test)]
mod fuzz;
mod guc;
mod guc_defaults;
mod latency;
mod launcher;
mod log;
mod message;
mod micros;
mod notes;
mod order;
mod pg;
mod relay;
mod retry;
mod snapshot;
mod status;
mod store;
mod subject;
mod version;
mod wake;
mod worker;

pgrx::pg_module_magic!();

extension_sql_file!("../sql/guard.sql", name = "guard", bootstrap);
extension_sql_file!(
    "../sql/search_path.sql",
    name = "search_path",
    requires = [
        await_connection,
        capture_analyze,
        capture_changes,
        capture_depend,
        capture_relation,
        check_headers,
        check_message_id,
        check_subject,
        reload_worker,
        request_reload,
        subject_matches,
        subject_token,
        worker_status
    ]
);
extension_sql_file!(
    "../sql/connections.sql",
    name = "connections",
    requires = ["search_path"]
);
extension_sql_file!("../sql/streams.sql", name = "streams", requires = ["connections"]);
extension_sql_file!("../sql/outbox.sql", name = "outbox", requires = ["connections"]);
extension_sql_file!("../sql/history.sql", name = "history", requires = ["outbox"]);
extension_sql_file!(
    "../sql/dead_letters.sql",
    name = "dead_letters",
    requires = ["outbox", "history", subject_matches]
);
extension_sql_file!(
    "../sql/webhooks.sql",
    name = "webhooks",
    requires = ["outbox", "streams", check_headers, check_message_id]
);
extension_sql_file!(
    "../sql/webhook_queue.sql",
    name = "webhook_queue",
    requires = ["webhooks"]
);
extension_sql_file!("../sql/references.sql", name = "references", requires = ["webhooks"]);
extension_sql_file!("../sql/consumers.sql", name = "consumers", requires = ["webhooks"]);
extension_sql_file!(
    "../sql/monitoring.sql",
    name = "monitoring",
    requires = [
        "outbox",
        "history",
        "dead_letters",
        "streams",
        "capture",
        worker_role,
        worker_reused_ids,
        worker_status,
        request_reload
    ]
);
extension_sql_file!(
    "../sql/rule_engine.sql",
    name = "rule_engine",
    requires = ["webhook_queue", "consumers", "history"]
);
extension_sql_file!(
    "../sql/rule_engine_nats.sql",
    name = "rule_engine_nats",
    requires = ["rule_engine", "monitoring", await_connection]
);
extension_sql_file!(
    "../sql/rule_engine_webhooks.sql",
    name = "rule_engine_webhooks",
    requires = ["rule_engine"]
);
extension_sql_file!(
    "../sql/capture.sql",
    name = "capture",
    requires = [
        "outbox",
        "streams",
        capture_changes,
        capture_relation,
        capture_analyze,
        capture_depend,
        subject_token
    ]
);
extension_sql_file!(
    "../sql/capture_epochs.sql",
    name = "capture_epochs",
    requires = ["capture", "references"]
);
extension_sql_file!(
    "../sql/capture_schemas.sql",
    name = "capture_schemas",
    requires = ["capture"]
);
extension_sql_file!(
    "../sql/capture_ddl.sql",
    name = "capture_ddl",
    requires = ["capture_epochs", "capture_schemas"]
);
extension_sql_file!(
    "../sql/metrics.sql",
    name = "metrics",
    requires = ["monitoring", "webhook_queue", "consumers", "capture"]
);
extension_sql_file!(
    "../sql/grants.sql",
    name = "grants",
    requires = [
        "metrics",
        "references",
        "rule_engine_nats",
        "rule_engine_webhooks",
        "capture_ddl"
    ],
    finalize
);

/// Defines the settings; when preloaded, also asks for shared memory and registers the launcher.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::failure::disable_backtraces();
    guc::init();
    capture::nesting::watch();
    if pg::preloading() {
        status::init(guc::max_databases());
        // A worker would publish from a cluster that is being copied, and hold databases that are being made.
        if !pg::upgrading() {
            launcher::register();
        }
    }
}
