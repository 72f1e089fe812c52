//! Makes the HTTP calls of pg_jetstream's webhooks.
//!
//! `app` starts and stops the parts; `consume` takes messages from NATS and `delivery` deals with each; `queue` drains the
//! queue of PostgreSQL; `client` makes a call, `report` tells the database, `observe` shows metrics. `envelope`, `outcome`,
//! `address` and `stats` are rules without I/O.

pub mod address;
pub mod app;
pub mod client;
pub mod config;
pub mod consume;
pub mod database;
pub mod delivery;
pub mod envelope;
pub mod observe;
pub mod outcome;
pub mod queue;
pub mod report;
pub mod stats;
pub mod stream;

/// An error with its causes, each once.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        next = cause.source();
    }
    texts.join(": ")
}
