//! Drains the queue of PostgreSQL, by lease.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::app::App;
use crate::client::Answer;
use crate::database::{Claimed, DatabaseError, Failure};
use crate::envelope::Envelope;
use crate::observe;
use crate::outcome::Outcome;

/// How long to wait before a database that is away is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Claims and calls until told to stop. What is in flight then goes on.
pub async fn run(app: Arc<App>) {
    info!("draining the queue of PostgreSQL");
    let room = Arc::new(Semaphore::new(app.config.batch_size as usize));
    let lease = Duration::from_millis(app.config.queue_lease_ms);
    while !app.stop.is_cancelled() {
        let Ok(first) = room.clone().acquire_owned().await else {
            return;
        };
        drop(first);
        let free = i32::try_from(room.available_permits()).unwrap_or(1).max(1);
        let claimed_at = Instant::now();
        let calls = match app.database.claim(free, lease).await {
            Ok(calls) => calls,
            Err(error) => {
                warn!("cannot claim calls: {error}");
                app.pause(PAUSE).await;
                continue;
            }
        };
        if calls.is_empty() {
            app.pause(Duration::from_millis(app.config.queue_poll_interval_ms))
                .await;
            continue;
        }
        for call in calls {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            let app = app.clone();
            app.clone().tasks.spawn(async move {
                handle(&app, &call, claimed_at + lease).await;
                drop(permit);
            });
        }
    }
}

async fn handle(app: &App, call: &Claimed, lease_end: Instant) {
    let answer = tokio::select! {
        answer = attempt(app, call, lease_end) => answer,
        _ = app.abandon.cancelled() => return warn!("call {} is left to its lease: it did not end in time", call.id),
    };
    loop {
        match tell(app, call, &answer).await {
            Ok(()) => return,
            Err(error) if !error.disowns_call() && Instant::now() < lease_end && !app.abandon.is_cancelled() => {
                warn!("cannot say how call {} went: {error}", call.id);
                tokio::time::sleep(PAUSE).await;
            }
            // It is another worker's by now, or will be: it is made again.
            Err(error) => return warn!("call {} was made, and the database does not know: {error}", call.id),
        }
    }
}

async fn attempt(app: &App, call: &Claimed, lease_end: Instant) -> Answer {
    let body = call
        .payload
        .as_ref()
        .map(|text| bytes::Bytes::copy_from_slice(text.as_bytes()));
    let envelope = match Envelope::new(&call.url, &call.method, &call.headers, body) {
        Ok(envelope) => envelope,
        Err(error) => {
            return Answer {
                outcome: Outcome::GiveUp {
                    reason: error.to_string(),
                },
                status: None,
                body: String::new(),
                took: Duration::ZERO,
            };
        }
    };
    // The last twentieth of the lease is for telling the database.
    let lease = Duration::from_millis(app.config.queue_lease_ms);
    let left = lease_end.saturating_duration_since(Instant::now() + lease / 20);
    let answer = app
        .client
        .call(&envelope, &call.message_id, HeaderMap::new(), call.timeout.min(left))
        .await;
    observe::call("queue", answer.took);
    answer
}

async fn tell(app: &App, call: &Claimed, answer: &Answer) -> Result<(), DatabaseError> {
    let (reason, retry, after) = match &answer.outcome {
        Outcome::Succeeded => {
            let status = answer.status.unwrap_or(200);
            app.database.complete(call, status, &answer.body, answer.took).await?;
            observe::outcome("queue", "succeeded");
            return Ok(());
        }
        Outcome::Retry { reason, after } => (reason, true, *after),
        Outcome::GiveUp { reason } => (reason, false, None),
    };
    let cap = Duration::from_millis(app.config.retry_after_cap_ms);
    let failure = Failure {
        reason,
        retry,
        after: after.map(|after| after.min(cap)),
        status: answer.status,
        body: &answer.body,
        took: answer.took,
    };
    let dead = app.database.fail(call, &failure).await?;
    observe::outcome("queue", if dead { "dead" } else { "retried" });
    Ok(())
}
