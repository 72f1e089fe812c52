//! The webhook worker.

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use webhook_worker::app;
use webhook_worker::config::Config;

fn main() -> ExitCode {
    let config = Config::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .init();
    // One provider for all TLS; it fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}")),
    };
    let result = config.complete().and_then(|config| runtime.block_on(app::run(config)));
    // A name that is still being resolved would be waited for.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &str) -> ExitCode {
    tracing::error!("{error}");
    ExitCode::FAILURE
}
