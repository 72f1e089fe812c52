//! Settings, from environment variables or the command line.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::{ArgAction, Parser, value_parser};

use crate::address::Guard;
use crate::outcome::Backoff;

/// Ports of /health, /ready and /metrics where HTTP_LISTEN is not set.
const DEFAULT_PORTS: RangeInclusive<u16> = 8080..=8099;

/// Makes the HTTP calls of pg_jetstream's webhooks, from NATS JetStream and from the queue in PostgreSQL.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Config {
    /// NATS servers, separated by commas; empty: do not consume from NATS
    #[arg(long, env, default_value = "nats://localhost:4222")]
    pub nats_url: String,
    /// User of the NATS server
    #[arg(long, env, default_value = "")]
    pub nats_user: String,
    /// Password of that user
    #[arg(long, env, default_value = "", hide_env_values = true)]
    pub nats_pass: String,
    /// Database with the extension
    #[arg(long, env, default_value = "postgresql://localhost/postgres", hide_env_values = true)]
    pub database_url: String,
    /// Stream to consume
    #[arg(long, env, default_value = "WEBHOOKS")]
    pub stream_name: String,
    /// Name of this worker in statistics, leases and dead letters
    #[arg(long, env, default_value = "webhook-worker-1")]
    pub consumer_name: String,
    /// Durable consumer that all workers share
    #[arg(long, env, default_value = "webhook-workers")]
    pub queue_group: String,
    /// Subjects to consume
    #[arg(long, env, default_value = "webhooks.*")]
    pub subject: String,
    /// Most HTTP calls in flight, for each of NATS and the queue
    #[arg(long, env, default_value_t = 10, value_parser = value_parser!(u32).range(1..=10_000))]
    pub batch_size: u32,
    /// Attempts before a message is a dead letter
    #[arg(long, env, default_value_t = 3, value_parser = value_parser!(i64).range(1..=1000))]
    pub max_deliver: i64,
    /// Time without a sign of life after which the server gives a message to another worker, milliseconds
    #[arg(long, env, default_value_t = 30_000, value_parser = value_parser!(u64).range(100..))]
    pub ack_wait_ms: u64,
    /// Most messages of the consumer that are in flight or wait for their next attempt
    #[arg(long, env, default_value_t = 10_000, value_parser = value_parser!(i64).range(1..))]
    pub max_ack_pending: i64,
    /// Delay after the first failed attempt, milliseconds; doubles with each further one
    #[arg(long, env, default_value_t = 1000)]
    pub backoff_base_ms: u64,
    /// Longest delay between attempts, milliseconds
    #[arg(long, env, default_value_t = 300_000)]
    pub backoff_cap_ms: u64,
    /// Longest Retry-After that is honoured, milliseconds
    #[arg(long, env, default_value_t = 3_600_000)]
    pub retry_after_cap_ms: u64,
    /// Limit for a call whose envelope names no timeout_ms, milliseconds
    #[arg(long, env, default_value_t = 30_000, value_parser = value_parser!(u64).range(1..))]
    pub request_timeout_ms: u64,
    /// How much of a response is read, bytes
    #[arg(long, env, default_value_t = 65_536)]
    pub max_response_bytes: usize,
    /// `true`, or networks that may be called although they are private: 127.0.0.0/8,10.1.0.0/16
    #[arg(long, env, default_value = "false")]
    pub allow_private_addresses: Guard,
    /// How long calls in flight may take after SIGTERM, milliseconds
    #[arg(long, env, default_value_t = 30_000)]
    pub shutdown_timeout_ms: u64,
    /// Stream for what is given up; <STREAM_NAME>_DEAD if left out
    #[arg(long, env, default_value = "")]
    pub dead_letter_stream: String,
    /// Begins the subject of dead letters; dead_letters.<STREAM_NAME> if left out
    #[arg(long, env, default_value = "")]
    pub dead_letter_subject: String,
    /// Age after which the stream made for dead letters drops them, milliseconds; 0: never
    #[arg(long, env, default_value_t = 2_592_000_000)]
    pub dead_letter_max_age_ms: u64,
    /// Statistics are reported as often, and after every 100 messages; milliseconds
    #[arg(long, env, default_value_t = 10_000, value_parser = value_parser!(u64).range(10..))]
    pub stats_interval_ms: u64,
    /// Address of /health, /ready and /metrics; empty: none; left out: 127.0.0.1 and the first free port from 8080 to 8099
    #[arg(long, env)]
    pub http_listen: Option<String>,
    /// Whether to drain the queue of PostgreSQL
    #[arg(long, env, default_value_t = true, action = ArgAction::Set)]
    pub queue_enabled: bool,
    /// How often to look at an empty queue, milliseconds
    #[arg(long, env, default_value_t = 1000, value_parser = value_parser!(u64).range(10..))]
    pub queue_poll_interval_ms: u64,
    /// Lease of a claimed call, milliseconds; a call is cut off before it ends
    #[arg(long, env, default_value_t = 60_000, value_parser = value_parser!(u64).range(1000..=86_400_000))]
    pub queue_lease_ms: u64,
}

impl Config {
    /// Fills in what follows from other settings, and refuses what makes no sense.
    pub fn complete(mut self) -> Result<Self, String> {
        // An empty variable of a compose file or a manifest means: not set.
        if self.dead_letter_stream.is_empty() {
            self.dead_letter_stream = format!("{}_DEAD", self.stream_name);
        }
        if self.dead_letter_subject.is_empty() {
            self.dead_letter_subject = format!("dead_letters.{}", self.stream_name);
        }
        if !self.consumes_nats() && !self.queue_enabled {
            return Err("nothing to do: NATS_URL is empty and QUEUE_ENABLED is false".to_owned());
        }
        for (name, value) in [
            ("CONSUMER_NAME", &self.consumer_name),
            ("QUEUE_GROUP", &self.queue_group),
        ] {
            if value.trim().is_empty() {
                return Err(format!("{name} is empty"));
            }
        }
        self.listen()?;
        Ok(self)
    }

    /// Whether to consume from NATS.
    pub fn consumes_nats(&self) -> bool {
        !self.nats_url.trim().is_empty()
    }

    /// Where to answer HTTP requests: at the first of these that is free.
    pub fn listen(&self) -> Result<Vec<SocketAddr>, String> {
        match self.http_listen.as_deref() {
            // Several workers run on one machine without a setting.
            None => Ok(DEFAULT_PORTS
                .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
                .collect()),
            Some("") => Ok(Vec::new()),
            Some(text) => match text.parse() {
                Ok(address) => Ok(vec![address]),
                Err(_) => Err(format!("HTTP_LISTEN is not an address and a port: {text}")),
            },
        }
    }

    /// After this time the server gives a message to another worker.
    pub fn ack_wait(&self) -> Duration {
        Duration::from_millis(self.ack_wait_ms)
    }

    /// Age after which dead letters are dropped; zero: never.
    pub fn dead_letter_max_age(&self) -> Duration {
        Duration::from_millis(self.dead_letter_max_age_ms)
    }

    /// How long calls in flight may take after SIGTERM.
    pub fn shutdown_timeout(&self) -> Duration {
        Duration::from_millis(self.shutdown_timeout_ms)
    }

    /// Limit for a call whose envelope names none.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// Delays between attempts.
    pub fn backoff(&self) -> Backoff {
        Backoff {
            base: Duration::from_millis(self.backoff_base_ms),
            cap: Duration::from_millis(self.backoff_cap_ms),
            retry_after_cap: Duration::from_millis(self.retry_after_cap_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let all = [&["webhook-worker"], arguments].concat();
        Config::try_parse_from(all)
            .map_err(|error| error.to_string())?
            .complete()
    }

    #[test]
    fn the_names_of_dead_letters_follow_from_the_stream() {
        let config = config(&["--stream-name", "HOOKS"]).unwrap();
        assert_eq!(config.dead_letter_stream, "HOOKS_DEAD");
        assert_eq!(config.dead_letter_subject, "dead_letters.HOOKS");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            &["--nats-url", "", "--queue-enabled", "false"][..],
            &["--batch-size", "0"],
            &["--consumer-name", " "],
            &["--http-listen", "8080"],
            &["--allow-private-addresses", "yes"],
        ] {
            assert!(config(wrong).is_err(), "{wrong:?}");
        }
    }
}
