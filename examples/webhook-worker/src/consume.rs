//! Takes messages from the shared consumer, no more than can be called at once.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use crate::app::App;
use crate::{delivery, stream};

/// How long one request for messages lasts: what came of it is dealt with after SIGTERM too, so that none is given back.
const PULL: Duration = Duration::from_secs(2);
/// How long to wait for room for half a batch before less is asked for.
const GATHER: Duration = Duration::from_millis(20);
/// How long to wait after an error.
const PAUSE: Duration = Duration::from_secs(1);

/// Consumes until told to stop. What is in flight then goes on.
pub async fn run(app: Arc<App>, context: Context) {
    let Some(consumer) = prepared(&app, &context).await else {
        return;
    };
    app.set_consumer(consumer.clone());
    info!(
        "consuming {} of {} as {}",
        app.config.subject, app.config.stream_name, app.config.queue_group
    );
    let room = Arc::new(Semaphore::new(app.config.batch_size as usize));
    // Two, so that one asks for more while the other waits for the rest of what it asked for.
    tokio::join!(
        pull(&app, &context, &consumer, &room),
        pull(&app, &context, &consumer, &room)
    );
}

/// The consumer, once there is all it needs; none if told to stop before.
async fn prepared(app: &App, context: &Context) -> Option<PullConsumer> {
    let mut last = String::new();
    while !app.stop.is_cancelled() {
        match stream::prepare(context, &app.config).await {
            Ok(consumer) => return Some(consumer),
            Err(error) => {
                if error != last {
                    warn!("waiting: {error}");
                    last = error;
                }
                app.pause(PAUSE).await;
            }
        }
    }
    None
}

async fn pull(app: &Arc<App>, context: &Context, consumer: &PullConsumer, room: &Arc<Semaphore>) {
    let half = app.config.batch_size.div_ceil(2);
    while !app.stop.is_cancelled() {
        let Some(mut permits) = gather(app, room, half).await else {
            return;
        };
        let batch = consumer
            .batch()
            .max_messages(permits.num_permits())
            .expires(PULL)
            .messages();
        let mut messages = match batch.await {
            Ok(messages) => messages,
            Err(error) => {
                warn!("cannot ask for messages: {}", crate::chain(&error));
                app.pause(PAUSE).await;
                continue;
            }
        };
        while let Some(message) = messages.next().await {
            match message {
                Ok(message) => {
                    let permit = permits.split(1);
                    let (app, context) = (app.clone(), context.clone());
                    app.clone().tasks.spawn(async move {
                        delivery::handle(&app, &context, &message).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!("request for messages ended: {error}");
                    recover(app, context).await;
                    break;
                }
            }
        }
    }
}

/// Room for half a batch, or for what there is after a moment. None if told to stop.
async fn gather(app: &App, room: &Arc<Semaphore>, half: u32) -> Option<OwnedSemaphorePermit> {
    let acquire = async {
        if let Ok(permits) = tokio::time::timeout(GATHER, room.clone().acquire_many_owned(half)).await {
            return permits.ok();
        }
        let mut permits = room.clone().acquire_owned().await.ok()?;
        while permits.num_permits() < half as usize {
            match room.clone().try_acquire_owned() {
                Ok(one) => permits.merge(one),
                Err(_) => break,
            }
        }
        Some(permits)
    };
    tokio::select! {
        permits = acquire => permits,
        _ = app.stop.cancelled() => None,
    }
}

/// Somebody may have deleted the consumer, which all of them then make anew.
async fn recover(app: &App, context: &Context) {
    app.pause(PAUSE).await;
    if !app.stop.is_cancelled()
        && let Err(error) = stream::prepare(context, &app.config).await
    {
        warn!("waiting: {error}");
    }
}
