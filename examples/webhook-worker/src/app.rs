//! What the parts of a worker share, and how they start and stop.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::client::Client;
use crate::config::Config;
use crate::database::{Database, DeadLetter};
use crate::stats::Stats;
use crate::{consume, observe, queue, report, stream};

/// Limit for the last report, whatever the database does.
const LAST_REPORT: Duration = Duration::from_secs(5);
/// Limit for each of the last things: what is given back, and what is left to send to NATS.
const FAREWELL: Duration = Duration::from_secs(2);

/// The shared part of a worker.
pub struct App {
    /// Settings.
    pub config: Config,
    /// Makes the calls.
    pub client: Client,
    /// Statistics, secrets, the queue.
    pub database: Database,
    /// What was done since the last report.
    pub stats: Stats,
    /// Begin nothing new.
    pub stop: CancellationToken,
    /// Leave what has not ended.
    pub abandon: CancellationToken,
    /// All has ended.
    pub closed: CancellationToken,
    /// Calls in flight.
    pub tasks: TaskTracker,
    nats: Option<Context>,
    consumer: OnceLock<PullConsumer>,
    unreported: Mutex<Vec<DeadLetter>>,
}

impl App {
    async fn new(config: Config) -> Result<Arc<Self>, String> {
        let client = Client::new(config.allow_private_addresses.clone(), config.max_response_bytes)
            .map_err(|error| format!("HTTP client: {}", crate::chain(&error)))?;
        let database = Database::new(&config)?;
        let nats = match config.consumes_nats() {
            true => Some(stream::connect(&config).await?),
            false => None,
        };
        Ok(Arc::new(Self {
            config,
            client,
            database,
            stats: Stats::default(),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            nats,
            consumer: OnceLock::new(),
            unreported: Mutex::default(),
        }))
    }

    /// The shared consumer, once it is there.
    pub fn consumer(&self) -> Option<&PullConsumer> {
        self.consumer.get()
    }

    /// Says that the shared consumer is there.
    pub fn set_consumer(&self, consumer: PullConsumer) {
        let _ = self.consumer.set(consumer);
    }

    /// Keeps the report of a dead letter until the database is back.
    pub fn report_later(&self, dead: DeadLetter) {
        self.unreported_lock().push(dead);
    }

    /// Reports of dead letters that the database has not had yet.
    pub fn take_unreported(&self) -> Vec<DeadLetter> {
        std::mem::take(&mut self.unreported_lock())
    }

    /// Waits, but not beyond a wish to stop.
    pub async fn pause(&self, time: Duration) {
        tokio::select! {
            _ = tokio::time::sleep(time) => {}
            _ = self.stop.cancelled() => {}
        }
    }

    /// What is missing for work; none if nothing is.
    pub async fn missing(&self) -> Option<String> {
        if let Some(nats) = &self.nats {
            if nats.client().connection_state() != State::Connected {
                return Some("NATS is not connected".to_owned());
            }
            if self.consumer().is_none() {
                return Some(format!(
                    "stream {} or its consumer is not there yet",
                    self.config.stream_name
                ));
            }
        }
        match tokio::time::timeout(Duration::from_secs(3), self.database.answers()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the database does not answer".to_owned()),
        }
    }

    fn unreported_lock(&self) -> std::sync::MutexGuard<'_, Vec<DeadLetter>> {
        self.unreported.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Works until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), String> {
    let metrics = observe::install()?;
    let app = App::new(config).await?;
    let mut parts = TaskTracker::new();
    if let Some(listener) = listen(&app.config.listen()?).await? {
        tokio::spawn(observe::serve(app.clone(), metrics, listener));
    }
    if let Some(nats) = &app.nats {
        parts.spawn(consume::run(app.clone(), nats.clone()));
    }
    if app.config.queue_enabled {
        parts.spawn(queue::run(app.clone()));
    }
    let reporter = tokio::spawn(report::run(app.clone()));
    asked_to_stop().await?;
    info!("stopping: {} calls in flight", app.tasks.len());
    app.stop.cancel();
    finish(&app, &mut parts).await;
    app.closed.cancel();
    if tokio::time::timeout(LAST_REPORT, reporter).await.is_err() {
        error!("the last report did not reach the database within {LAST_REPORT:?}");
    }
    if let Some(nats) = &app.nats
        && let Err(error) = tokio::time::timeout(FAREWELL, nats.client().drain()).await
    {
        warn!("NATS: the connection was not drained: {error}");
    }
    info!("stopped");
    Ok(())
}

/// Waits for what is in flight, as long as it may take, and leaves the rest. Then everything said has reached the server.
async fn finish(app: &App, parts: &mut TaskTracker) {
    let all = async {
        parts.close();
        parts.wait().await;
        app.tasks.close();
        app.tasks.wait().await;
    };
    if tokio::time::timeout(app.config.shutdown_timeout(), all).await.is_err() {
        warn!(
            "{} calls did not end within {:?}",
            app.tasks.len(),
            app.config.shutdown_timeout()
        );
        app.abandon.cancel();
        app.tasks.close();
        let _ = tokio::time::timeout(FAREWELL, app.tasks.wait()).await;
    }
    if let Some(nats) = &app.nats {
        let _ = tokio::time::timeout(FAREWELL, nats.client().flush()).await;
    }
}

/// Listens at the first address that is free. None if there is no address, or several and none of them is free.
async fn listen(addresses: &[SocketAddr]) -> Result<Option<TcpListener>, String> {
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!("/health, /ready and /metrics are at http://{address}/");
                return Ok(Some(listener));
            }
            Err(error) if addresses.len() > 1 && error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(format!("HTTP_LISTEN {address}: {error}")),
        }
    }
    if let [first, .., last] = addresses {
        warn!("no /health, /ready and /metrics: {first} to {last} are in use; set HTTP_LISTEN");
    }
    Ok(None)
}

async fn asked_to_stop() -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|error| format!("signals: {error}"));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
