//! Metrics, and the HTTP side that shows them: /health, /ready, /metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::app::App;

const CALLS: &str = "webhook_worker_calls_total";
const SECONDS: &str = "webhook_worker_call_seconds";

/// Upper bounds of the histogram, seconds.
const BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Counts what became of a call: `succeeded`, `retried` or `dead`.
pub fn outcome(source: &'static str, outcome: &'static str) {
    metrics::counter!(CALLS, "source" => source, "outcome" => outcome).increment(1);
}

/// Counts the time of an HTTP request.
pub fn call(source: &'static str, took: Duration) {
    metrics::histogram!(SECONDS, "source" => source).record(took);
}

/// Begins to count.
pub fn install() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new()
        .set_buckets(&BUCKETS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| format!("metrics: {error}"))?;
    metrics::describe_counter!(
        CALLS,
        "HTTP calls by source (nats, queue) and outcome (succeeded, retried, dead)"
    );
    metrics::describe_histogram!(SECONDS, metrics::Unit::Seconds, "Duration of HTTP calls");
    Ok(handle)
}

/// Answers until the worker stops.
pub async fn serve(app: Arc<App>, metrics: PrometheusHandle, listener: tokio::net::TcpListener) {
    // What is counted is brought into the histograms when somebody looks, and now and then if nobody does.
    let upkeep = metrics.clone();
    let ready = app.clone();
    let router = Router::new()
        .route("/health", get(async || "ok\n"))
        .route("/ready", get(async move || readiness(&ready).await))
        .route("/metrics", get(async move || metrics.render()));
    let server = axum::serve(listener, router).into_future();
    tokio::select! {
        _ = server => {}
        _ = app.closed.cancelled() => {}
        _ = async { loop { tokio::time::sleep(Duration::from_secs(5)).await; upkeep.run_upkeep(); } } => {}
    }
}

/// 200 if NATS is connected, its consumer is there, and the database answers; 503 with what is missing.
async fn readiness(app: &App) -> (StatusCode, String) {
    match app.missing().await {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
    }
}
