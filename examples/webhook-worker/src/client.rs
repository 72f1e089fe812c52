//! Makes one HTTP call, to nowhere it must not.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Response, Url};

use crate::address::{Guard, Refused};
use crate::envelope::{self, Envelope};
use crate::outcome::{Outcome, retry_after};

/// Most redirects that are followed.
const REDIRECTS: usize = 5;
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Sent on when a redirect leads to another server; what else a webhook's headers hold is for the first one alone.
const FOR_ANY_SERVER: [HeaderName; 4] = [
    CONTENT_TYPE,
    IDEMPOTENCY_KEY,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// What a call led to.
#[derive(Debug)]
pub struct Answer {
    /// Done, again, or never.
    pub outcome: Outcome,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What was read of the body.
    pub body: String,
    /// From the request to the last byte that was read.
    pub took: Duration,
}

/// The HTTP client.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    guard: Guard,
    max_response_bytes: usize,
}

impl Client {
    /// A client that calls what the guard permits, and reads so much of an answer.
    pub fn new(guard: Guard, max_response_bytes: usize) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("pg_jetstream-webhook-worker/", env!("CARGO_PKG_VERSION")))
            // A proxy would make the connection, to addresses that nobody here has checked.
            .no_proxy()
            .dns_resolver(Arc::new(Resolver(guard.clone())))
            // Followed by `send`, which looks at each address and leaves what is not for another server.
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(Duration::from_secs(10))
            .build()?;
        Ok(Self {
            http,
            guard,
            max_response_bytes,
        })
    }

    /// Makes the call; `trace` are the headers that go along from the message.
    pub async fn call(&self, envelope: &Envelope, message_id: &str, trace: HeaderMap, timeout: Duration) -> Answer {
        let begin = Instant::now();
        let (outcome, status, body) = match self.send(envelope, message_id, trace, timeout).await {
            Ok(response) => {
                let status = response.status().as_u16();
                let after = header(&response, RETRY_AFTER.as_str());
                let after = after.and_then(|value| retry_after(value, SystemTime::now()));
                let body = read(response, self.max_response_bytes).await;
                (Outcome::of_status(status, after), Some(status), body)
            }
            Err(outcome) => (outcome, None, String::new()),
        };
        Answer {
            outcome,
            status,
            body,
            took: begin.elapsed(),
        }
    }

    async fn send(
        &self,
        envelope: &Envelope,
        message_id: &str,
        trace: HeaderMap,
        timeout: Duration,
    ) -> Result<Response, Outcome> {
        let give_up = |reason: String| Outcome::GiveUp { reason };
        let end = Instant::now() + timeout;
        let mut headers = envelope::http_headers(&envelope.headers).map_err(|error| give_up(error.to_string()))?;
        headers.extend(trace);
        let key = HeaderValue::from_str(message_id).map_err(|_| give_up("message id is no header value".to_owned()))?;
        headers.insert(IDEMPOTENCY_KEY, key);
        let mut url = envelope.url.clone();
        for _ in 0..=REDIRECTS {
            check(&self.guard, &url).map_err(|refused| give_up(refused.to_string()))?;
            let mut request = self.http.request(envelope.method.clone(), url.clone());
            request = request.headers(headers.clone());
            request = request.timeout(end.saturating_duration_since(Instant::now()));
            if let Some(body) = &envelope.body {
                request = request.body(body.clone());
            }
            let response = request.send().await.map_err(outcome_of)?;
            let Some(next) = redirect(&url, &response) else {
                return Ok(response);
            };
            if next.origin() != url.origin() {
                headers = for_any_server(&headers);
            }
            url = next;
        }
        Err(give_up(format!("more than {REDIRECTS} redirects")))
    }
}

/// Where a redirect leads, if the answer is one that is followed: 307 and 308 keep method and body; the others would make
/// another call of it, and are answers like any other.
fn redirect(url: &Url, response: &Response) -> Option<Url> {
    if !matches!(response.status().as_u16(), 307 | 308) {
        return None;
    }
    let next = url.join(header(response, LOCATION.as_str())?).ok()?;
    matches!(next.scheme(), "http" | "https").then_some(next)
}

/// Of the headers of a call, those that any server may see.
fn for_any_server(headers: &HeaderMap) -> HeaderMap {
    let kept = headers.iter().filter(|(name, _)| FOR_ANY_SERVER.contains(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// What an error of the client means: refused addresses and requests that cannot be made stay so.
fn outcome_of(error: reqwest::Error) -> Outcome {
    let error = error.without_url();
    let mut chain = Vec::new();
    let mut next: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(cause) = next {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return Outcome::GiveUp {
                reason: refused.to_string(),
            };
        }
        let text = cause.to_string();
        if !chain.contains(&text) {
            chain.push(text);
        }
        next = cause.source();
    }
    let reason = chain.join(": ");
    if error.is_builder() {
        Outcome::GiveUp { reason }
    } else {
        Outcome::Retry { reason, after: None }
    }
}

/// Reads up to so many bytes, and hangs up if there is more. That a body breaks off changes nothing: the status has come.
async fn read(response: Response, limit: usize) -> String {
    let mut body = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        let room = limit - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if body.len() >= limit {
            break;
        }
    }
    // PostgreSQL's text has no NUL.
    String::from_utf8_lossy(&body).replace('\0', "\u{fffd}")
}

fn header<'r>(response: &'r Response, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

/// Addresses in the url itself; names are checked when they are resolved.
fn check(guard: &Guard, url: &Url) -> Result<(), Refused> {
    let host = url.host_str().unwrap_or_default();
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse();
    match literal {
        Ok(address) if !guard.permits(address) => Err(Refused(host.to_owned())),
        _ => Ok(()),
    }
}

/// The system's names, less the addresses that may not be called: the connection is made to one that was checked.
struct Resolver(Guard);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| guard.permits(address.ip()));
            match (good.is_empty(), bad.first()) {
                (true, Some(bad)) => Err(Refused(format!("{} ({})", name.as_str(), bad.ip())).into()),
                _ => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}
