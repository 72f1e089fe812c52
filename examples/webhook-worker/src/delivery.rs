//! One delivery of a message from the stream: from the envelope to its acknowledgement.

use std::time::{Duration, Instant};

use async_nats::header::HeaderMap as NatsHeaders;
use async_nats::jetstream::{AckKind, Context, Message};
use reqwest::header::{HeaderMap, HeaderValue};
use tracing::{debug, error, warn};

use crate::app::App;
use crate::client::Answer;
use crate::database::{DatabaseError, DeadLetter};
use crate::envelope::{Envelope, Headers};
use crate::outcome::Outcome;
use crate::{observe, stream};

/// How long to wait before a database or a dead letter stream that is away is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a dead letter is offered to its stream before the message is given back.
const BURIALS: u32 = 5;

/// What the server says about a delivery.
struct Delivery<'m> {
    message: &'m Message,
    sequence: u64,
    /// From 1; every delivery counts, also those whose worker died.
    number: i64,
    message_id: String,
}

/// What becomes of the message.
enum End {
    Ack,
    Again(Duration),
    Dead {
        webhook: Option<i32>,
        attempts: i64,
        reason: String,
        status: Option<u16>,
    },
}

/// Deals with a delivery, saying "in progress" while it takes long.
pub async fn handle(app: &App, context: &Context, message: &Message) {
    let delivery = match message.info() {
        Ok(info) => Delivery {
            message,
            sequence: info.stream_sequence,
            number: info.delivered,
            message_id: message_id(app, message, info.stream_sequence),
        },
        Err(error) => return error!("not a message of JetStream: {error}"),
    };
    let begin = Instant::now();
    let mut signs = tokio::time::interval(app.config.ack_wait() / 3);
    signs.tick().await;
    let work = settle(app, context, &delivery);
    tokio::pin!(work);
    let acknowledged = loop {
        tokio::select! {
            acknowledged = &mut work => break acknowledged,
            _ = app.abandon.cancelled() => {
                warn!("message {} is given back: its call did not end in time", delivery.sequence);
                send(message, AckKind::Nak(None)).await;
                break false;
            }
            _ = signs.tick() => send(message, AckKind::Progress).await,
        }
    };
    app.stats.record(delivery.number, acknowledged, begin.elapsed());
}

/// Calls, and tells the server what came of it; true for a success.
async fn settle(app: &App, context: &Context, delivery: &Delivery<'_>) -> bool {
    let end = attempt(app, delivery).await;
    match end {
        End::Ack => {
            send(delivery.message, AckKind::Ack).await;
            observe::outcome("nats", "succeeded");
            return true;
        }
        End::Again(delay) => {
            send(delivery.message, AckKind::Nak(Some(delay))).await;
            observe::outcome("nats", "retried");
        }
        End::Dead {
            webhook,
            attempts,
            reason,
            status,
        } => {
            let dead = DeadLetter {
                sequence: delivery.sequence,
                message_id: delivery.message_id.clone(),
                subject: delivery.message.subject.to_string(),
                webhook,
                attempts,
                reason,
                status,
            };
            give_up(app, context, delivery, dead).await;
        }
    }
    false
}

async fn attempt(app: &App, delivery: &Delivery<'_>) -> End {
    let limit = app.config.max_deliver;
    let dead = |webhook, attempts, reason, status| End::Dead {
        webhook,
        attempts,
        reason,
        status,
    };
    let parsed = Envelope::parse(&delivery.message.payload);
    if delivery.number > limit {
        let webhook = parsed.ok().and_then(|envelope| envelope.webhook);
        return dead(
            webhook,
            limit,
            format!("attempt {limit} was the last, and its worker did not come back"),
            None,
        );
    }
    let mut envelope = match parsed {
        Ok(envelope) => envelope,
        Err(error) => return dead(None, delivery.number, error.to_string(), None),
    };
    let webhook = envelope.webhook;
    if envelope.needs_secrets() {
        match secrets(app, &envelope).await {
            Ok(headers) => envelope.headers = headers,
            Err(error) => return dead(webhook, delivery.number, error.to_string(), None),
        }
    }
    let timeout = envelope.timeout.unwrap_or(app.config.request_timeout());
    let trace = trace(delivery.message.headers.as_ref());
    let Answer {
        outcome, status, took, ..
    } = app.client.call(&envelope, &delivery.message_id, trace, timeout).await;
    observe::call("nats", took);
    match outcome {
        Outcome::Succeeded => End::Ack,
        Outcome::Retry { reason, after } if delivery.number < limit => {
            debug!("message {}, attempt {}: {reason}", delivery.sequence, delivery.number);
            End::Again(app.config.backoff().delay(delivery.number, rand::random(), after))
        }
        Outcome::Retry { reason, .. } | Outcome::GiveUp { reason } => dead(webhook, delivery.number, reason, status),
    }
}

/// Header values with their secrets. While the database cannot give them the message is held, so that no attempt is used up.
async fn secrets(app: &App, envelope: &Envelope) -> Result<Headers, DatabaseError> {
    loop {
        let asked = app
            .database
            .headers(envelope.webhook, &envelope.headers, &envelope.url_text);
        match asked.await {
            Err(error) if !error.denies_secrets() => {
                warn!("waiting for a secret: {error}");
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Dead letter, database, terminate: in this order, so that one who dies in between is followed by one who does it all.
async fn give_up(app: &App, context: &Context, delivery: &Delivery<'_>, dead: DeadLetter) {
    warn!(
        "message {} ({}) is given up after {} attempts: {}",
        dead.sequence, dead.subject, dead.attempts, dead.reason
    );
    let (headers, payload) = (delivery.message.headers.as_ref(), &delivery.message.payload);
    for burial in 1.. {
        match stream::bury(context, &app.config, headers, payload.clone(), &dead).await {
            Ok(()) => break,
            Err(error) if burial < BURIALS => {
                error!("dead letter of message {}: {error}", dead.sequence);
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                error!(
                    "dead letter of message {}: {error}; the message is given back",
                    dead.sequence
                );
                observe::outcome("nats", "retried");
                let delay = app.config.backoff().delay(delivery.number, rand::random(), None);
                return send(delivery.message, AckKind::Nak(Some(delay))).await;
            }
        }
    }
    match app.database.dead_letter(&dead).await {
        Ok(()) => {}
        Err(error) if error.refuses_values() => error!("the database does not take the report: {error}"),
        Err(_) => app.report_later(dead),
    }
    send(delivery.message, AckKind::Term).await;
    observe::outcome("nats", "dead");
}

/// `Nats-Msg-Id`; without one, what names the message as well.
fn message_id(app: &App, message: &Message, sequence: u64) -> String {
    let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
    id.map_or_else(|| format!("{}:{sequence}", app.config.stream_name), ToString::to_string)
}

/// The trace of the message, for the call.
fn trace(headers: Option<&NatsHeaders>) -> HeaderMap {
    let mut trace = HeaderMap::new();
    for name in ["traceparent", "tracestate"] {
        let value = headers.and_then(|headers| headers.get(name));
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value.as_str()).ok()) {
            trace.insert(name, value);
        }
    }
    trace
}

async fn send(message: &Message, kind: AckKind) {
    // Without it the server gives the message to a worker again, after ACK_WAIT.
    if let Err(error) = message.ack_with(kind).await {
        warn!("{kind:?} could not be sent: {error}");
    }
}
