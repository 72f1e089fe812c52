//! What the relay's tests share: a relay whose reports are collected, and an admin's view of the server.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream;
use async_nats::{Client, ConnectOptions, HeaderMap, jetstream};
use futures_util::StreamExt;
use lab::chaos::proxy::Proxy;
use lab::message::{Auth, ConnectionSpec, LinkState, Message, Outcome, Settled, StreamSpec, StreamSynced, Tls};
use lab::nats::NatsServer;
use lab::relay::{Command, Limits, Relay, Report};
use tokio::runtime::Runtime;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn limits() -> Limits {
    Limits {
        max_in_flight: 1000,
        ack_timeout: Duration::from_secs(10),
    }
}

pub fn spec(url: &str) -> ConnectionSpec {
    ConnectionSpec {
        name: "default".into(),
        servers: url.split(',').map(str::to_owned).collect(),
        auth: Auth::None,
        tls: Tls::default(),
        connect_timeout: Duration::from_secs(2),
        reconnect_delay: Duration::from_millis(50),
        max_reconnects: None,
        subject_prefix: None,
        default_stream: None,
        domain: None,
        api_prefix: None,
        handshake_first: false,
    }
}

pub fn stream_spec(name: &str, subjects: &str) -> StreamSpec {
    StreamSpec {
        id: 1,
        connection: "default".into(),
        name: name.to_owned(),
        subjects: subjects.split(',').map(str::to_owned).collect(),
        storage: "file".to_owned(),
        retention: "limits".to_owned(),
        discard: "old".to_owned(),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_bytes: -1,
        max_age: Duration::ZERO,
        max_message_size: -1,
        replicas: 1,
        duplicate_window: Duration::from_secs(120),
        allow_message_ttl: false,
        allow_atomic: false,
        description: None,
        accept_other: false,
        origin: None,
        applied: None,
        mark: "1.0".to_owned(),
    }
}

pub fn message(id: i64, subject: &str) -> Message {
    Message {
        id,
        connection: "default".into(),
        subject: subject.to_owned(),
        payload: format!("{{\"id\":{id}}}").into(),
        headers: Vec::new(),
        message_id: format!("m{id}"),
        key: None,
        ttl_seconds: None,
        attempts: 0,
        webhook: None,
        unsure_since: None,
    }
}

pub fn keyed(id: i64, subject: &str, key: &str) -> Message {
    Message {
        key: Some(key.to_owned()),
        ..message(id, subject)
    }
}

/// A proxy to the server, its address, and what it runs in.
pub fn proxied(server: &NatsServer) -> (Runtime, Proxy, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let proxy = Proxy::start(runtime.handle(), &[server.port()]).unwrap();
    let url = proxy.urls().remove(0);
    (runtime, proxy, url)
}

/// Requests to JetStream's API that the server has answered.
pub fn api_requests(server: &NatsServer) -> u64 {
    let report: serde_json::Value = serde_json::from_str(&server.monitor("/jsz").unwrap()).unwrap();
    report["api"]["total"].as_u64().unwrap()
}

/// A relay and everything it has reported.
pub struct Rig {
    pub relay: Relay,
    /// Outcomes in the order reported.
    pub settled: Vec<Settled>,
    /// States in the order reported.
    pub links: Vec<(String, LinkState, String)>,
    /// Streams in the order reported.
    pub synced: Vec<(i64, Option<String>)>,
    /// The same with all that is known.
    pub reports: Vec<StreamSynced>,
}

impl Rig {
    pub fn new(limits: Limits) -> Self {
        let dispatch = std::env::var_os("RELAY_LOG").map(|_| {
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_test_writer()
                .finish();
            tracing::Dispatch::new(subscriber)
        });
        Rig::with_dispatch(limits, dispatch)
    }

    /// A relay whose tracing events go there.
    pub fn with_dispatch(limits: Limits, dispatch: Option<tracing::Dispatch>) -> Self {
        let relay = Relay::start(limits, dispatch).unwrap();
        Rig {
            relay,
            settled: Vec::new(),
            links: Vec::new(),
            synced: Vec::new(),
            reports: Vec::new(),
        }
    }

    /// A relay that is connected with one connection.
    pub fn connected(limits: Limits, spec: ConnectionSpec) -> Self {
        let mut rig = Rig::new(limits);
        rig.connect(spec);
        rig.wait_state(LinkState::Connected);
        rig
    }

    pub fn connect(&self, spec: ConnectionSpec) {
        assert!(self.relay.send(Command::Connections(vec![spec])));
    }

    pub fn publish(&self, messages: impl IntoIterator<Item = Message>) {
        assert!(
            self.relay
                .send(Command::Publish(messages.into_iter().map(Arc::new).collect()))
        );
    }

    /// Publishes these and waits for the outcome of each.
    #[track_caller]
    pub fn publish_and_wait(&mut self, messages: impl IntoIterator<Item = Message>) {
        let messages: Vec<_> = messages.into_iter().collect();
        let count = self.settled.len() + messages.len();
        self.publish(messages);
        self.wait_settled(count);
    }

    fn keep(&mut self, report: Report) {
        match report {
            Report::Settled(settled) => self.settled.extend(settled),
            Report::Link {
                connection,
                state,
                detail,
            } => self.links.push((connection.to_string(), state, detail)),
            Report::StreamSynced(synced) => {
                self.synced.push((synced.id, synced.error.clone()));
                self.reports.push(synced);
            }
        }
    }

    /// Takes in reports until `done`; panics with what there is after [`PATIENCE`].
    #[track_caller]
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&Rig) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            match self.relay.reports().recv_deadline(deadline) {
                Ok(report) => self.keep(report),
                Err(error) => panic!(
                    "{what}: {error}; {} settled, last {:?}, links {:?}, streams {:?}",
                    self.settled.len(),
                    self.settled.last(),
                    self.links,
                    self.synced
                ),
            }
        }
    }

    /// Takes in reports for so long.
    pub fn listen(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(report) = self.relay.reports().recv_deadline(deadline) {
            self.keep(report);
        }
    }

    #[track_caller]
    pub fn wait_settled(&mut self, count: usize) {
        self.until(&format!("{count} outcomes"), |rig| rig.settled.len() >= count);
        assert_eq!(self.settled.len(), count);
    }

    /// Waits for the present state; returns its detail.
    #[track_caller]
    pub fn wait_state(&mut self, state: LinkState) -> String {
        self.until(&format!("{state:?}"), |rig| {
            rig.links.last().is_some_and(|link| link.1 == state)
        });
        self.links.last().unwrap().2.clone()
    }

    /// Waits until `text` is part of the present detail.
    #[track_caller]
    pub fn wait_detail(&mut self, text: &str) -> (LinkState, String) {
        self.until(text, |rig| rig.links.last().is_some_and(|link| link.2.contains(text)));
        let (_, state, detail) = self.links.last().unwrap().clone();
        (state, detail)
    }

    pub fn outcomes(&self) -> HashMap<i64, Outcome> {
        self.settled
            .iter()
            .map(|settled| (settled.id, settled.outcome.clone()))
            .collect()
    }

    #[track_caller]
    pub fn outcome(&self, id: i64) -> Outcome {
        self.settled
            .iter()
            .rev()
            .find(|settled| settled.id == id)
            .unwrap()
            .outcome
            .clone()
    }

    /// Forgets the outcomes so far.
    pub fn clear(&mut self) {
        self.settled.clear();
    }

    /// Ends the relay; the outcomes of all messages.
    pub fn shut_down(mut self, patience: Duration) -> Vec<Settled> {
        // The relay may have been told before, and have ended.
        self.relay.send(Command::Shutdown(patience));
        let deadline = Instant::now() + PATIENCE;
        while let Ok(report) = self.relay.reports().recv_deadline(deadline) {
            self.keep(report);
        }
        assert!(self.relay.join(), "the relay thread panicked");
        self.settled
    }
}

/// One message as it stands in a stream.
pub struct Stored {
    pub sequence: u64,
    pub subject: String,
    pub headers: HeaderMap,
    pub payload: String,
}

/// A second client, to prepare streams and look into them.
pub struct Admin {
    pub runtime: Runtime,
    pub client: Client,
    pub js: jetstream::Context,
}

impl Admin {
    pub fn new(url: &str) -> Self {
        Self::with(ConnectOptions::new(), url)
    }

    pub fn with(options: ConnectOptions, url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let client = runtime.block_on(options.connect(url)).unwrap();
        let js = runtime.block_on(async { jetstream::new(client.clone()) });
        Admin { runtime, client, js }
    }

    pub fn create(&self, name: &str, subjects: &str) {
        self.create_with(name, subjects, |_| {});
    }

    pub fn create_with(&self, name: &str, subjects: &str, change: impl FnOnce(&mut stream::Config)) {
        let mut config = stream::Config {
            name: name.to_owned(),
            subjects: subjects.split(',').map(str::to_owned).collect(),
            ..Default::default()
        };
        change(&mut config);
        self.runtime.block_on(self.js.create_stream(config)).unwrap();
    }

    pub fn delete(&self, name: &str) {
        self.runtime.block_on(self.js.delete_stream(name)).unwrap();
    }

    pub fn config(&self, name: &str) -> Option<stream::Config> {
        self.runtime
            .block_on(self.js.get_stream(name))
            .ok()
            .map(|stream| stream.cached_info().config.clone())
    }

    pub fn count(&self, name: &str) -> u64 {
        self.runtime
            .block_on(self.js.get_stream(name))
            .unwrap()
            .cached_info()
            .state
            .messages
    }

    pub fn stored(&self, name: &str) -> Vec<Stored> {
        let messages = self.read(name, false).into_iter().map(|message| Stored {
            sequence: message.info().unwrap().stream_sequence,
            subject: message.subject.to_string(),
            headers: message.headers.clone().unwrap_or_default(),
            payload: String::from_utf8_lossy(&message.payload).into_owned(),
        });
        messages.collect()
    }

    /// Message ids in stream order.
    pub fn message_ids(&self, name: &str) -> Vec<String> {
        let id = |message: jetstream::Message| message.headers.as_ref()?.get("Nats-Msg-Id").map(ToString::to_string);
        self.read(name, true)
            .into_iter()
            .map(|message| id(message).unwrap())
            .collect()
    }

    fn read(&self, name: &str, headers_only: bool) -> Vec<jetstream::Message> {
        self.runtime.block_on(async {
            let stream = self.js.get_stream(name).await.unwrap();
            let count = stream.cached_info().state.messages;
            let config = jetstream::consumer::pull::OrderedConfig {
                headers_only,
                ..Default::default()
            };
            let messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
            messages
                .take(usize::try_from(count).unwrap())
                .map(Result::unwrap)
                .collect()
                .await
        })
    }
}
