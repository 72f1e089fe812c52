//! The HTTP endpoint that workers call. It records every request and fails on purpose, as the `plan` in the body says.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

/// How one request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Answers immediately with this status.
    Status(u16),
    /// Answers with this status and `Retry-After: seconds`.
    RetryAfter(u16, u64),
    /// Answers 200 after this many milliseconds.
    Slow(u64),
    /// Closes the connection without an answer.
    Close,
    /// Answers 200 with an endless body.
    Endless,
    /// Answers with this status. The body's `to` is the `Location`.
    Redirect(u16),
}

/// The answers to successive calls of one message. The last one repeats.
pub type Answers = &'static [Answer];

/// A received request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// `Host`, which shows the address that was called.
    pub host: String,
    pub headers: BTreeMap<String, String>,
    pub body: Bytes,
    pub at: Instant,
    pub answer: Answer,
}

impl Seen {
    /// The body as JSON, or null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The `Idempotency-Key` header.
    pub fn key(&self) -> &str {
        self.headers.get("idempotency-key").map_or("", String::as_str)
    }
}

struct State {
    plans: HashMap<&'static str, Answers>,
    seen: Mutex<Vec<Seen>>,
    counts: Mutex<HashMap<String, usize>>,
    endless_bytes: AtomicU64,
}

/// The running endpoint, on all addresses of 127.0.0.0/8. Dropping it stops it.
pub struct Endpoint {
    state: Arc<State>,
    port: u16,
    _runtime: tokio::runtime::Runtime,
}

impl Endpoint {
    /// Starts the endpoint. It answers 200 to a body that is not JSON or has an unknown `plan`.
    pub fn start(plans: impl IntoIterator<Item = (&'static str, Answers)>) -> Endpoint {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("0.0.0.0:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            plans: plans.into_iter().collect(),
            seen: Mutex::default(),
            counts: Mutex::default(),
            endless_bytes: AtomicU64::new(0),
        });
        runtime.spawn(accept(listener, state.clone()));
        Endpoint {
            state,
            port,
            _runtime: runtime,
        }
    }

    /// `http://127.0.0.1:<port>` with this path.
    pub fn url(&self, path: &str) -> String {
        self.url_at("127.0.0.1", path)
    }

    /// The same with another host name or address.
    pub fn url_at(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.port)
    }

    /// All requests so far, in order of arrival.
    pub fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.state.seen.lock().unwrap()
    }

    /// Number of requests so far.
    pub fn count(&self) -> usize {
        self.seen().len()
    }

    /// The requests by their `Idempotency-Key`.
    pub fn by_key(&self) -> BTreeMap<String, Vec<Seen>> {
        let mut calls: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
        for seen in self.seen().iter() {
            calls.entry(seen.key().to_owned()).or_default().push(seen.clone());
        }
        calls
    }

    /// Bytes of endless bodies that the kernel has accepted.
    pub fn endless_bytes(&self) -> u64 {
        self.state.endless_bytes.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let state = state.clone();
        let service = hyper::service::service_fn(move |request| answer(state.clone(), request));
        // `Answer::Close` relies on this: an error of the service closes the connection without an answer.
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
    let at = Instant::now();
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let headers: BTreeMap<String, String> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let mut seen = Seen {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        host: headers.get("host").cloned().unwrap_or_default(),
        headers,
        body,
        at,
        answer: Answer::Status(200),
    };
    let json = seen.json();
    if let Some(answers) = json["plan"].as_str().and_then(|plan| state.plans.get(plan)) {
        let mut counts = state.counts.lock().unwrap();
        let nth = counts.entry(seen.key().to_owned()).or_insert(0);
        seen.answer = answers[(*nth).min(answers.len() - 1)];
        *nth += 1;
    }
    // A followed redirect arrives at this path and gets an answer.
    if seen.path.starts_with("/followed") {
        seen.answer = Answer::Status(200);
    }
    let kind = seen.answer;
    state.seen.lock().unwrap().push(seen);
    let response = Response::builder();
    let text = |text: &str| http_body_util::Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed();
    let response = match kind {
        Answer::Status(204) => response.status(204).body(text("")),
        Answer::Status(status) => response.status(status).body(text("as planned")),
        Answer::RetryAfter(status, seconds) => response
            .status(status)
            .header("Retry-After", seconds)
            .body(text("busy")),
        Answer::Slow(ms) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            response.status(200).body(text("at last"))
        }
        Answer::Close => return Err(std::io::Error::other("closed on purpose")),
        Answer::Endless => response.status(200).body(endless(state)),
        Answer::Redirect(status) => {
            let to = json["to"].as_str().unwrap_or_default();
            response.status(status).header("Location", to).body(text(""))
        }
    };
    response.map_err(std::io::Error::other)
}

fn endless(state: Arc<State>) -> Body {
    const PIECE: Bytes = Bytes::from_static(&[b'x'; 8192]);
    let pieces = stream::repeat_with(move || {
        state.endless_bytes.fetch_add(PIECE.len() as u64, Ordering::Relaxed);
        Ok(Frame::data(PIECE))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}
