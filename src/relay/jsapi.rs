//! Requests to the JetStream API, as JSON: fields that this version does not know survive a read and a write.

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::{Request, RequestErrorKind};
use async_nats::jetstream;
use async_nats::{Client, StatusCode};
use serde_json::Value;

/// How long an API request may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What begins the subjects of requests to the server's own API.
pub(super) const LOCAL: &str = "$JS.API";

/// JetStream's error number for a stream that does not exist.
pub(super) const STREAM_NOT_FOUND: u64 = 10059;
/// JetStream's error number for an account without JetStream.
pub(super) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
/// JetStream's error number for a server without JetStream.
pub(super) const NOT_ENABLED: u64 = 10076;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// Nobody serves the API.
    #[error("JetStream does not answer (no responders)")]
    NoResponders,
    /// No answer in time.
    #[error("JetStream did not answer in time")]
    TimedOut,
    /// JetStream's own error.
    #[error("{description} (error {err_code})")]
    Refused {
        /// JetStream's error number.
        err_code: u64,
        /// The server's words.
        description: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// The JetStream API of one domain, as a client reaches it.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    /// Begins the subjects of requests: `$JS.API` unless a domain or an import says otherwise.
    prefix: Arc<str>,
}

impl Api {
    pub(super) fn new(client: Client, prefix: &str) -> Self {
        let prefix = prefix.into();
        Api { client, prefix }
    }

    /// Whether it is the one of the server and account logged in to.
    pub(super) fn is_local(&self) -> bool {
        &*self.prefix == LOCAL
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The API of another domain, through the same client.
    pub(super) fn of_domain(&self, domain: &str) -> Self {
        Api::new(self.client.clone(), &format!("$JS.{domain}.API"))
    }

    /// The same for what the client library does.
    pub(super) fn context(&self) -> jetstream::Context {
        jetstream::with_prefix(self.client.clone(), &self.prefix)
    }

    /// The name of a request, if the subject is one of this API.
    pub(super) fn request<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix(&*self.prefix)?.strip_prefix('.')
    }
}

/// Sends `body` (nothing if null) to `<prefix>.<name>`; returns the answer.
pub(super) async fn call(api: &Api, name: &str, body: &Value) -> Result<Value, ApiError> {
    let payload = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let request = Request::new().payload(payload.into()).timeout(Some(TIMEOUT));
    let reply = api
        .client
        .send_request(format!("{}.{name}", api.prefix), request)
        .await
        .map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => ApiError::NoResponders,
            RequestErrorKind::TimedOut => ApiError::TimedOut,
            _ => ApiError::Other(error.to_string()),
        })?;
    if reply.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(ApiError::NoResponders);
    }
    let answer: Value = serde_json::from_slice(&reply.payload)
        .map_err(|error| ApiError::Other(format!("JetStream's answer is not understood: {error}")))?;
    match answer.get("error") {
        Some(error) => Err(ApiError::Refused {
            err_code: error.get("err_code").and_then(Value::as_u64).unwrap_or(0),
            description: error
                .get("description")
                .and_then(Value::as_str)
                .unwrap_or("no description")
                .to_owned(),
        }),
        None => Ok(answer),
    }
}

/// The configuration of a stream; none if it does not exist.
pub(super) async fn stream_config(api: &Api, stream: &str) -> Result<Option<Value>, ApiError> {
    match call(api, &format!("STREAM.INFO.{stream}"), &Value::Null).await {
        Ok(mut info) => Ok(Some(info.get_mut("config").map_or(Value::Null, Value::take))),
        Err(ApiError::Refused {
            err_code: STREAM_NOT_FOUND,
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}
