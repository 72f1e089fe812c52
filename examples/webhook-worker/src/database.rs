//! The statements a worker runs, on one connection that is made again when it is lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::{Json, ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::Config;
use crate::envelope::{Headers, RawHeaders};
use crate::stats::Tally;

/// Longest wait for an answer, the connection included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The database refused it; SQLSTATE and message.
    #[error("{1} (SQLSTATE {0})")]
    Refused(String, String),
    /// The database is not there, or its connection was lost.
    #[error("database: {0}")]
    Away(String),
}

impl DatabaseError {
    /// Whether no further question gets the secrets of this call: there is none of that name (`undefined_object`), or they
    /// are not sent to its url (`PJ001`). All else is of the database's state, and somebody mends it.
    pub fn denies_secrets(&self) -> bool {
        self.has_code(&["42704", "PJ001"])
    }

    /// Whether the call of the queue is another worker's, has ended, or is gone.
    pub fn disowns_call(&self) -> bool {
        self.has_code(&["55000", "42704"])
    }

    /// Whether these very values are refused (`data_exception`, `integrity_constraint_violation`).
    pub fn refuses_values(&self) -> bool {
        self.has_code(&["22", "23"])
    }

    /// SQLSTATEs, or classes of them.
    fn has_code(&self, codes: &[&str]) -> bool {
        matches!(self, Self::Refused(code, _) if codes.iter().any(|begin| code.starts_with(begin)))
    }
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refused) => Self::Refused(refused.code().code().to_owned(), refused.message().to_owned()),
            None => Self::Away(crate::chain(&error)),
        }
    }
}

/// A message that was given up.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Sequence in the stream.
    pub sequence: u64,
    /// `Nats-Msg-Id`, or what stands for it.
    pub message_id: String,
    /// Subject it came with.
    pub subject: String,
    /// `webhooks.id`, if the envelope could be read.
    pub webhook: Option<i32>,
    /// Attempts made.
    pub attempts: i64,
    /// Why.
    pub reason: String,
    /// HTTP status of the last attempt.
    pub status: Option<u16>,
}

/// A call of the queue, claimed.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// `webhook_calls.id`.
    pub id: i64,
    /// Endpoint.
    pub url: String,
    /// HTTP method.
    pub method: String,
    /// Headers, secrets in their places.
    pub headers: RawHeaders,
    /// Body.
    pub payload: Option<String>,
    /// Limit for the call.
    pub timeout: Duration,
    /// `Idempotency-Key`.
    pub message_id: String,
    /// Which attempt this is.
    pub attempt: i32,
}

/// The connection.
pub struct Database {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    client: Mutex<Option<Arc<Client>>>,
    stream: String,
    worker: String,
    queue_group: String,
    max_deliver: i32,
}

impl Database {
    /// Reads the url; connects when the first statement needs it.
    pub fn new(settings: &Config) -> Result<Self, String> {
        let worker = &settings.consumer_name;
        let mut config: tokio_postgres::Config = settings
            .database_url
            .parse()
            .map_err(|error| format!("DATABASE_URL cannot be read: {}", crate::chain(&error)))?;
        if config.get_user().is_none() {
            config.user(std::env::var("USER").unwrap_or_else(|_| "postgres".to_owned()));
        }
        config.application_name(format!("webhook-worker {worker}"));
        // For TCP alone, and for each of several servers: the others are asked within the limit of the statement.
        config.connect_timeout(PATIENCE / 4);
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            config,
            tls: MakeRustlsConnect::new(tls),
            client: Mutex::new(None),
            stream: settings.stream_name.clone(),
            worker: worker.clone(),
            queue_group: settings.queue_group.clone(),
            max_deliver: i32::try_from(settings.max_deliver).unwrap_or(i32::MAX),
        })
    }

    /// Whether the database answers.
    pub async fn answers(&self) -> Result<(), DatabaseError> {
        self.query("select 1", &[]).await.map(drop)
    }

    /// Headers with the secrets of the webhook in their places, for a call of this url.
    pub async fn headers(&self, webhook: Option<i32>, headers: &Headers, url: &str) -> Result<Headers, DatabaseError> {
        let text = "select jetstream.webhook_headers($1, $2, $3)";
        let parameters: &[(&(dyn ToSql + Sync), Type)] = &[
            (&webhook, Type::INT4),
            (&Json(headers), Type::JSONB),
            (&url, Type::TEXT),
        ];
        let rows = self.query(text, parameters).await?;
        let Json(resolved): Json<Headers> = first(&rows)?.try_get(0)?;
        Ok(resolved)
    }

    /// Reports what was done since the last report.
    pub async fn report(&self, tally: &Tally, pending: Option<i64>, active: bool) -> Result<(), DatabaseError> {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let text = "select jetstream.rule_nats_consumer_update_stats($1, $2, $3, $4, $5,
                        ($6::pg_catalog.float8)::pg_catalog.numeric, $7, $8,
                        p_queue_group => $9, p_ack_policy => 'explicit', p_max_deliver => $10)";
        self.query(
            text,
            &[
                (&self.stream, Type::TEXT),
                (&self.worker, Type::TEXT),
                (&number(tally.delivered), Type::INT8),
                (&number(tally.acknowledged), Type::INT8),
                (&pending, Type::INT8),
                (&tally.average_ms(), Type::FLOAT8),
                (&number(tally.redelivered), Type::INT8),
                (&active, Type::BOOL),
                (&self.queue_group, Type::TEXT),
                (&self.max_deliver, Type::INT4),
            ],
        )
        .await
        .map(drop)
    }

    /// Reports a message that was given up.
    pub async fn dead_letter(&self, dead: &DeadLetter) -> Result<(), DatabaseError> {
        let text = "select jetstream.webhook_dead_letter($1, $2, $3, $4, $5, $6, $7, $8, $9)";
        self.query(
            text,
            &[
                (&self.stream, Type::TEXT),
                (&i64::try_from(dead.sequence).unwrap_or(i64::MAX), Type::INT8),
                (&dead.message_id, Type::TEXT),
                (&dead.subject, Type::TEXT),
                (&dead.webhook, Type::INT4),
                (&self.worker, Type::TEXT),
                (&i32::try_from(dead.attempts).unwrap_or(i32::MAX), Type::INT4),
                (&dead.reason, Type::TEXT),
                (&dead.status.map(i32::from), Type::INT4),
            ],
        )
        .await
        .map(drop)
    }

    /// Claims calls of the queue that are due.
    pub async fn claim(&self, n: i32, lease: Duration) -> Result<Vec<Claimed>, DatabaseError> {
        let text = "select call_id, url, method, headers, payload::pg_catalog.text, timeout_ms, message_id, attempt
                    from jetstream.webhook_claim($1, $2, $3 operator(pg_catalog.*) interval '1 millisecond')";
        let lease = lease.as_secs_f64() * 1000.0;
        let parameters: &[(&(dyn ToSql + Sync), Type)] =
            &[(&self.worker, Type::TEXT), (&n, Type::INT4), (&lease, Type::FLOAT8)];
        let rows = self.query(text, parameters).await?;
        rows.iter()
            .map(|row| claimed(row).map_err(DatabaseError::from))
            .collect()
    }

    /// Says that a claimed call succeeded.
    pub async fn complete(&self, call: &Claimed, status: u16, body: &str, took: Duration) -> Result<(), DatabaseError> {
        let text = "select jetstream.webhook_complete($1, $2, $3, $4, $5, $6)";
        self.query(
            text,
            &[
                (&call.id, Type::INT8),
                (&i32::from(status), Type::INT4),
                (&body, Type::TEXT),
                (&(took.as_secs_f64() * 1000.0), Type::FLOAT8),
                (&self.worker, Type::TEXT),
                (&call.attempt, Type::INT4),
            ],
        )
        .await
        .map(drop)
    }

    /// Says that a claimed call failed, and how; true if the database has given it up.
    pub async fn fail(&self, call: &Claimed, failure: &Failure<'_>) -> Result<bool, DatabaseError> {
        let text = "select jetstream.webhook_fail($1, $2, $3, ($4::pg_catalog.float8) operator(pg_catalog.*) interval '1 second', $5, $6, $7, $8, $9)";
        let rows = self
            .query(
                text,
                &[
                    (&call.id, Type::INT8),
                    (&failure.reason, Type::TEXT),
                    (&failure.retry, Type::BOOL),
                    (&failure.after.map(|after| after.as_secs_f64()), Type::FLOAT8),
                    (&failure.status.map(i32::from), Type::INT4),
                    (&failure.body, Type::TEXT),
                    (&(failure.took.as_secs_f64() * 1000.0), Type::FLOAT8),
                    (&self.worker, Type::TEXT),
                    (&call.attempt, Type::INT4),
                ],
            )
            .await?;
        let end: &str = first(&rows)?.try_get(0)?;
        Ok(end == "dead")
    }

    async fn query(&self, text: &str, parameters: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>, DatabaseError> {
        let end = Instant::now() + PATIENCE;
        let late = || DatabaseError::Away(format!("no answer within {PATIENCE:?}"));
        let client = timeout_at(end, self.client()).await.map_err(|_| late())??;
        match timeout_at(end, client.query_typed(text, parameters)).await {
            Ok(rows) => Ok(rows?),
            Err(_) => {
                // Whatever it does there: the next statement has a connection of its own.
                let mut slot = self.client.lock().await;
                slot.take_if(|known| Arc::ptr_eq(known, &client));
                Err(late())
            }
        }
    }

    async fn client(&self) -> Result<Arc<Client>, DatabaseError> {
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let (client, connection) = self.config.connect(self.tls.clone()).await?;
        // Ends with an error when the connection is lost, which the statements on it are told too.
        tokio::spawn(connection);
        let client = Arc::new(client);
        *slot = Some(client.clone());
        Ok(client)
    }
}

/// How a call of the queue failed.
#[derive(Debug)]
pub struct Failure<'a> {
    /// Why.
    pub reason: &'a str,
    /// Whether another attempt may do better.
    pub retry: bool,
    /// `Retry-After`.
    pub after: Option<Duration>,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What was read of the body.
    pub body: &'a str,
    /// Duration of the call.
    pub took: Duration,
}

fn first(rows: &[Row]) -> Result<&Row, DatabaseError> {
    rows.first().ok_or_else(|| DatabaseError::Away("no row".to_owned()))
}

fn claimed(row: &Row) -> Result<Claimed, tokio_postgres::Error> {
    let Json(headers): Json<RawHeaders> = row.try_get(3)?;
    let timeout: i32 = row.try_get(5)?;
    Ok(Claimed {
        id: row.try_get(0)?,
        url: row.try_get(1)?,
        method: row.try_get(2)?,
        headers,
        payload: row.try_get(4)?,
        timeout: Duration::from_millis(timeout.unsigned_abs().into()),
        message_id: row.try_get(6)?,
        attempt: row.try_get(7)?,
    })
}
