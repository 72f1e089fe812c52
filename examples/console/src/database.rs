//! The statements of the console, on two connections: one that cannot change anything, one for those who have the token.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::{Json, ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::metrics::Metric;

/// Longest wait for an answer, the connection included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Each part of the overview is the beginning of an index, which the planner does not know of a table without statistics.
const READ_OPTIONS: &str = "-c search_path=pg_catalog -c default_transaction_read_only=on -c jit=off \
                            -c enable_seqscan=off -c enable_bitmapscan=off -c statement_timeout=10s";
const WRITE_OPTIONS: &str = "-c search_path=pg_catalog -c statement_timeout=10s -c lock_timeout=5s";

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The database refused it.
    #[error("{message} (SQLSTATE {code})")]
    Refused {
        /// SQLSTATE.
        code: String,
        /// What it said.
        message: String,
    },
    /// The database is not there, or its connection was lost.
    #[error("database: {0}")]
    Away(String),
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refused) => Self::Refused {
                code: refused.code().code().to_owned(),
                message: refused.message().to_owned(),
            },
            None => Self::Away(chain(&error)),
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The database of the console.
pub struct Database {
    reader: Connection,
    writer: Connection,
}

impl Database {
    /// Reads the url; connects when the first statement needs it.
    pub fn new(url: &str) -> Result<Self, String> {
        let mut config: tokio_postgres::Config = url
            .parse()
            .map_err(|error| format!("DATABASE_URL cannot be read: {}", chain(&error)))?;
        if config.get_user().is_none() {
            config.user(std::env::var("USER").unwrap_or_else(|_| "postgres".to_owned()));
        }
        config.application_name("pg_jetstream console");
        // For TCP alone, and for each of several servers: the others are asked within the limit of the statement.
        config.connect_timeout(PATIENCE / 4);
        Ok(Self {
            reader: Connection::new(config.clone(), READ_OPTIONS),
            writer: Connection::new(config, WRITE_OPTIONS),
        })
    }

    /// All the page shows, as JSON.
    pub async fn overview(&self) -> Result<String, DatabaseError> {
        text(&self.reader.query(include_str!("overview.sql"), &[]).await?)
    }

    /// The verdict with its reasons, as JSON.
    pub async fn health(&self) -> Result<String, DatabaseError> {
        let query = "select jsonb_build_object('verdict', v.verdict, 'reasons', v.reasons) from jetstream.verdict() v";
        text(&self.reader.query(query, &[]).await?)
    }

    /// `jetstream.metrics`, a histogram's rows in their order.
    pub async fn metrics(&self) -> Result<Vec<Metric>, DatabaseError> {
        let query = "select m.name, m.labels, m.value, m.kind, m.help from jetstream.metrics m
                     order by case m.kind when 'histogram' then regexp_replace(m.name, '_(bucket|sum|count)$', '') else m.name end,
                              m.labels - 'le', (m.labels ->> 'le')::double precision";
        let rows = self.reader.query(query, &[]).await?;
        rows.iter()
            .map(|row| metric(row).map_err(DatabaseError::from))
            .collect()
    }

    /// A dead letter with its body and headers, as JSON.
    pub async fn dead_letter(&self, id: i64) -> Result<Option<String>, DatabaseError> {
        let query = "select jsonb_build_object('id', d.id, 'payload', d.payload, 'raw', encode(d.raw, 'base64'),
                                               'headers', d.headers)
                     from jetstream.dead_letters d where d.id = $1";
        let rows = self.reader.query(query, &[(&id, Type::INT8)]).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        text(&rows).map(Some)
    }

    /// Puts a dead letter back into the outbox; returns its new `outbox.id`.
    pub async fn redrive(&self, id: i64, new_message_id: bool) -> Result<i64, DatabaseError> {
        let query = "select jetstream.redrive($1, $2)";
        let parameters: &[(&(dyn ToSql + Sync), Type)] = &[(&id, Type::INT8), (&new_message_id, Type::BOOL)];
        Ok(first(&self.writer.query(query, parameters).await?)?.try_get(0)?)
    }

    /// Pauses or resumes the worker; false if that changes nothing.
    pub async fn pause(&self, on: bool) -> Result<bool, DatabaseError> {
        let query = if on {
            "select jetstream.pause()"
        } else {
            "select jetstream.resume()"
        };
        Ok(first(&self.writer.query(query, &[]).await?)?.try_get(0)?)
    }
}

/// A connection that is made again when it is lost.
struct Connection {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    client: Mutex<Option<Arc<Client>>>,
}

impl Connection {
    fn new(mut config: tokio_postgres::Config, options: &str) -> Self {
        let given = config.get_options().unwrap_or_default();
        let options = format!("{given} {options}");
        config.options(options);
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            config,
            tls: MakeRustlsConnect::new(tls),
            client: Mutex::new(None),
        }
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

fn first(rows: &[Row]) -> Result<&Row, DatabaseError> {
    rows.first().ok_or_else(|| DatabaseError::Away("no row".to_owned()))
}

/// The one JSON value of a query, as the database wrote it.
fn text(rows: &[Row]) -> Result<String, DatabaseError> {
    let Json(value): Json<Box<RawValue>> = first(rows)?.try_get(0)?;
    Ok(value.get().to_owned())
}

fn metric(row: &Row) -> Result<Metric, tokio_postgres::Error> {
    let Json(labels): Json<BTreeMap<String, String>> = row.try_get(1)?;
    Ok(Metric {
        name: row.try_get(0)?,
        labels,
        value: row.try_get(2)?,
        kind: row.try_get(3)?,
        help: row.try_get(4)?,
    })
}
