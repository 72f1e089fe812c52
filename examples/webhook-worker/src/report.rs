//! Tells the database what was done: every 100 deliveries, every few seconds, and at the end.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};

use crate::app::App;

/// How often the last report is tried.
const LAST_TRIES: u32 = 5;

/// Reports until all has ended, and then once more.
pub async fn run(app: Arc<App>) {
    let interval = Duration::from_millis(app.config.stats_interval_ms);
    loop {
        tokio::select! {
            _ = app.stats.due() => {}
            _ = tokio::time::sleep(interval) => {}
            _ = app.closed.cancelled() => break,
        }
        if app.config.consumes_nats() && !report(&app, true).await {
            tokio::select! {
                _ = tokio::time::sleep(Duration::from_secs(1)) => {}
                _ = app.closed.cancelled() => break,
            }
        }
    }
    if !app.config.consumes_nats() {
        return;
    }
    for _ in 0..LAST_TRIES {
        if report(&app, false).await {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let lost = app.stats.take();
    error!(
        "the last report did not reach the database: {lost:?}, {} dead letters",
        app.take_unreported().len()
    );
}

/// Makes one report; what does not arrive is part of the next one.
async fn report(app: &App, active: bool) -> bool {
    let mut unreported = app.take_unreported().into_iter();
    while let Some(dead) = unreported.next() {
        match app.database.dead_letter(&dead).await {
            Ok(()) => {}
            Err(error) if error.refuses_values() => error!("the database does not take the report: {error}"),
            Err(error) => {
                warn!("cannot report: {error}");
                std::iter::once(dead)
                    .chain(unreported)
                    .for_each(|dead| app.report_later(dead));
                return false;
            }
        }
    }
    let pending = match app.consumer() {
        Some(consumer) => consumer.get_info().await.ok(),
        None => None,
    };
    let pending = pending.and_then(|info| i64::try_from(info.num_pending).ok());
    let tally = app.stats.take();
    match app.database.report(&tally, pending, active).await {
        Ok(()) => {
            if tally.delivered > 0 {
                info!(
                    delivered = tally.delivered,
                    acknowledged = tally.acknowledged,
                    redelivered = tally.redelivered,
                    "reported"
                );
            }
            true
        }
        Err(error) => {
            warn!("cannot report: {error}");
            app.stats.give_back(tally);
            false
        }
    }
}
