//! What the console answers.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::Config;
use crate::database::{Database, DatabaseError};
use crate::host::{self, Hosts};
use crate::{metrics, page, token};

/// Why a request is not answered.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    reason: String,
}

impl Refusal {
    /// With a reason for whoever asked.
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({"error": self.reason}))).into_response()
    }
}

impl From<DatabaseError> for Refusal {
    fn from(error: DatabaseError) -> Self {
        let status = match &error {
            DatabaseError::Refused { code, .. } if code == "P0002" => StatusCode::NOT_FOUND,
            DatabaseError::Refused { .. } => StatusCode::CONFLICT,
            DatabaseError::Away(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

type Answer<T> = Result<T, Refusal>;
type Shared = State<Arc<Database>>;

/// All there is. An error says what is wrong with the settings.
pub fn router(config: &Config) -> Result<Router, String> {
    let database = Arc::new(Database::new(&config.database_url)?);
    let guarded = Router::new()
        .route("/api/token", get(async || StatusCode::NO_CONTENT))
        .route("/api/dead-letters/{id}", get(dead_letter))
        .route("/api/dead-letters/{id}/redrive", post(redrive))
        .route("/api/pause", post(pause))
        .route("/api/resume", post(resume))
        .layer(middleware::from_fn_with_state(
            config.console_token.clone(),
            token::required,
        ));
    Ok(Router::new()
        .route("/", get(page::index))
        .route("/console.css", get(page::style))
        .route("/console.js", get(page::script))
        .route("/figures.js", get(page::figures))
        .route("/charts.js", get(page::charts))
        .route("/icon.svg", get(page::icon))
        .route("/api/overview", get(overview))
        .route("/metrics", get(prometheus))
        .route("/health", get(health))
        .merge(guarded)
        .layer(middleware::from_fn_with_state(
            Hosts::new(&config.allowed_hosts, config.http_listen),
            host::required,
        ))
        .layer(middleware::map_response(page::secure))
        .with_state(database))
}

async fn overview(State(database): Shared) -> Answer<Response> {
    let text = database.overview().await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// The verdict, as JSON. Always 200: a restart of this process is no cure for what is down elsewhere.
async fn health(State(database): Shared) -> Response {
    let text = database.health().await.unwrap_or_else(|error| {
        let reason = json!({"level": "down", "connection": null, "reason": error.to_string(),
            "next_step": "Check DATABASE_URL and whether the database answers."});
        json!({"verdict": "down", "reasons": [reason]}).to_string()
    });
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn prometheus(State(database): Shared) -> Answer<Response> {
    let text = metrics::text(&database.metrics().await?);
    Ok((
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response())
}

async fn dead_letter(State(database): Shared, Path(id): Path<i64>) -> Answer<Response> {
    match database.dead_letter(id).await? {
        Some(text) => Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response()),
        None => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            format!("dead letter {id} does not exist"),
        )),
    }
}

#[derive(Deserialize)]
struct Redrive {
    /// With a new message id, for a stream that knows the old one.
    #[serde(default)]
    new_message_id: bool,
}

async fn redrive(State(database): Shared, Path(id): Path<i64>, Query(how): Query<Redrive>) -> Answer<Json<Value>> {
    let outbox_id = database.redrive(id, how.new_message_id).await?;
    tracing::info!("dead letter {id} was put back, as message {outbox_id}");
    Ok(Json(json!({"outbox_id": outbox_id})))
}

async fn pause(State(database): Shared) -> Answer<Json<Value>> {
    Ok(Json(json!({"changed": database.pause(true).await?})))
}

async fn resume(State(database): Shared) -> Answer<Json<Value>> {
    Ok(Json(json!({"changed": database.pause(false).await?})))
}
