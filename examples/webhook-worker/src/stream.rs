//! NATS: the connection, the consumer that all workers share, and the dead letter stream.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config as StreamConfig, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{ConnectOptions, HeaderMap, ServerAddr};
use bytes::Bytes;
use tracing::{info, warn};

use crate::config::Config;
use crate::database::DeadLetter;

/// Connects, now or as soon as a server answers.
pub async fn connect(config: &Config) -> Result<Context, String> {
    let servers: Vec<ServerAddr> = config
        .nats_url
        .split(',')
        .map(|url| {
            url.trim()
                .parse()
                .map_err(|error| format!("NATS_URL cannot be read: {error}"))
        })
        .collect::<Result<_, _>>()?;
    let mut options = ConnectOptions::new()
        .name(format!("webhook-worker {}", config.consumer_name))
        .ping_interval(Duration::from_secs(10))
        .retry_on_initial_connect()
        .event_callback(|event| async move { info!("NATS: {event}") });
    if !config.nats_user.is_empty() {
        options = options.user_and_password(config.nats_user.clone(), config.nats_pass.clone());
    }
    let client = options
        .connect(servers)
        .await
        .map_err(|error| format!("NATS: {}", crate::chain(&error)))?;
    Ok(jetstream::new(client))
}

/// Makes the dead letter stream and the shared consumer, or brings the consumer into line. An error says what is missing.
pub async fn prepare(context: &Context, config: &Config) -> Result<PullConsumer, String> {
    let stream = context
        .get_stream(&config.stream_name)
        .await
        .map_err(|error| format!("stream {}: {}", config.stream_name, crate::chain(&error)))?;
    context
        .get_or_create_stream(StreamConfig {
            name: config.dead_letter_stream.clone(),
            subjects: vec![format!("{}.>", config.dead_letter_subject)],
            storage: StorageType::File,
            max_age: config.dead_letter_max_age(),
            duplicate_window: duplicate_window(config),
            ..StreamConfig::default()
        })
        .await
        .map_err(|error| {
            format!(
                "dead letter stream {}: {}",
                config.dead_letter_stream,
                crate::chain(&error)
            )
        })?;
    let wanted = pull::Config {
        durable_name: Some(config.queue_group.clone()),
        description: Some("webhook workers".to_owned()),
        filter_subject: config.subject.clone(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: config.ack_wait(),
        // The worker counts. The server would drop a message whose worker dies in the last attempt, and tell nobody.
        max_deliver: -1,
        max_ack_pending: config.max_ack_pending,
        ..pull::Config::default()
    };
    // Creates it, leaves it if it is the same, updates it if not; what cannot be updated is an error that says so.
    let consumer = stream
        .create_consumer(wanted)
        .await
        .map_err(|error| format!("consumer {}: {}", config.queue_group, crate::chain(&error)))?;
    let beside: Vec<_> = stream
        .cached_info()
        .config
        .subjects
        .iter()
        .filter(|subject| !covers(&config.subject, subject))
        .collect();
    if !beside.is_empty() {
        warn!(
            "stream {} takes {beside:?} and SUBJECT is {}: what does not match stays in the stream",
            config.stream_name, config.subject
        );
    }
    Ok(consumer)
}

/// How long a dead letter that is published again, because its worker died meanwhile, is known by its id. The server takes
/// none longer than the age of the messages.
fn duplicate_window(config: &Config) -> Duration {
    let window = Duration::from_secs(120).max(config.ack_wait() * 4);
    match config.dead_letter_max_age() {
        Duration::ZERO => window,
        age => window.min(age),
    }
}

/// Whether every subject that matches `narrow` matches `wide` too.
fn covers(wide: &str, narrow: &str) -> bool {
    let (mut wide, mut narrow) = (wide.split('.'), narrow.split('.'));
    loop {
        match (wide.next(), narrow.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

/// Publishes a message to the dead letter stream, as it was but for its headers, and waits until it is stored.
pub async fn bury(
    context: &Context,
    config: &Config,
    original: Option<&HeaderMap>,
    payload: Bytes,
    dead: &DeadLetter,
) -> Result<(), String> {
    let mut headers = HeaderMap::new();
    for (name, values) in original.into_iter().flat_map(HeaderMap::iter) {
        // Those would mean something to the server: an id of its own, an expected sequence, a time to live.
        if !name.to_string().to_ascii_lowercase().starts_with("nats-") {
            values
                .iter()
                .for_each(|value| headers.append(name.clone(), value.clone()));
        }
    }
    let id = format!("{}:{}", config.stream_name, dead.sequence);
    // A line break would end the header, and async-nats panics on it.
    let line = |text: &str| text.replace(['\r', '\n', '\0'], " ");
    let said = [
        ("Nats-Msg-Id", id),
        ("Dead-Letter-Reason", line(&dead.reason)),
        ("Dead-Letter-Attempts", dead.attempts.to_string()),
        ("Dead-Letter-Subject", dead.subject.clone()),
        ("Dead-Letter-Stream", config.stream_name.clone()),
        ("Dead-Letter-Sequence", dead.sequence.to_string()),
        ("Dead-Letter-Message-Id", line(&dead.message_id)),
        ("Dead-Letter-Worker", line(&config.consumer_name)),
    ];
    for (name, value) in said {
        headers.insert(name, value.as_str());
    }
    if let Some(status) = dead.status {
        headers.insert("Dead-Letter-Status", status.to_string().as_str());
    }
    let subject = format!("{}.{}", config.dead_letter_subject, dead.subject);
    let stored = context
        .publish_with_headers(subject.clone(), headers, payload)
        .await
        .map_err(|error| crate::chain(&error))?
        .await
        .map_err(|error| format!("{subject} is not stored: {}", crate::chain(&error)))?;
    if stored.stream != config.dead_letter_stream {
        return Err(format!(
            "{subject} went to stream {}, not to {}",
            stored.stream, config.dead_letter_stream
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_filter_covers_a_subject_or_not() {
        for (wide, narrow) in [
            ("a.*", "a.b"),
            ("a.>", "a.b.c"),
            ("a.>", "a.*"),
            ("a.>", "a.>"),
            ("*.b", "a.b"),
            (">", "a"),
        ] {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in [
            ("a.*", "a.>"),
            ("a.*", "a.b.c"),
            ("a.>", "a"),
            ("a.b", "a.*"),
            ("a.*", "b.a"),
            ("a.*", ">"),
        ] {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }
}
