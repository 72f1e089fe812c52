//! A database that accepts connections but never answers does not keep a worker from ending.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lab::lab::DATABASE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::endpoint::Endpoint;
use super::{Kind, LONG, Place, shows};
use crate::e2e_support::{drained, eventually};

/// A proxy that forwards everything until it falls silent, like a proxy that has lost its server, or a server that is
/// stopped. Dropping it stops it.
pub struct Proxy {
    port: u16,
    silent: Arc<AtomicBool>,
    /// Chunks that arrived and were not forwarded.
    swallowed: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    /// Starts the proxy for the server at this port of 127.0.0.1.
    pub fn start(to: u16) -> Proxy {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (silent, swallowed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let shared = (silent.clone(), swallowed.clone());
        runtime.spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(pass(from_client, to_server, shared.clone()));
                tokio::spawn(pass(from_server, to_client, shared.clone()));
            }
        });
        Proxy {
            port,
            silent,
            swallowed,
            _runtime: runtime,
        }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops forwarding in both directions. Connections stay open, and new ones are accepted.
    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    /// Number of chunks received since it fell silent.
    pub fn swallowed(&self) -> usize {
        self.swallowed.load(Ordering::Relaxed)
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: (Arc<AtomicBool>, Arc<AtomicUsize>)) {
    let mut buffer = vec![0; 8192];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if shared.0.load(Ordering::Relaxed) {
            shared.1.fetch_add(1, Ordering::Relaxed);
        } else if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
    if shared.0.load(Ordering::Relaxed) {
        // Does not forward the end of the connection either.
        std::future::pending::<()>().await;
    }
}

/// One worker has a connection that has fallen silent, and one never gets an answer at all. Each has a call that needs
/// a secret.
pub fn a_silent_database_keeps_no_worker_from_ending(kind: &Kind) {
    let place = Place::new(kind, Endpoint::start([]));
    let webhook = place.webhook("held", None, r#"headers = '{"X": "{{secret:token}}"}'"#);
    let proxy = Proxy::start(place.lab.postgres.port());
    let url = format!("postgresql://hooks@127.0.0.1:{}/{DATABASE}", proxy.port());
    let variables = [
        ("DATABASE_URL", url.as_str()),
        ("SHUTDOWN_TIMEOUT_MS", "1000"),
        ("STATS_INTERVAL_MS", "300"),
        ("BATCH_SIZE", "1"),
    ];
    let mut connected = place.worker("connected", &variables);
    let reported = "select count(*) from jetstream.rule_nats_consumer_stats where active";
    shows(&place.lab, "a report", reported, "1");
    proxy.fall_silent();
    eventually(&place.lab, LONG, "silence", || Ok(proxy.swallowed() > 0));
    let before = proxy.swallowed();
    let mut late = place.worker("late", &variables);
    eventually(
        &place.lab,
        LONG,
        "another connection",
        || Ok(proxy.swallowed() > before),
    );
    let call = format!("select jetstream.webhook_call({webhook}, '{{}}') from generate_series(1, 2)");
    place.lab.sql(&call).unwrap();
    drained(&place.lab, LONG);
    eventually(&place.lab, LONG, "both workers have a message", || {
        Ok(place.owed() == Some((0, 2)))
    });
    for worker in [&mut connected, &mut late] {
        worker.terminate();
    }
    // The limits in the README, plus some time for a busy machine.
    for worker in [&mut connected, &mut late] {
        worker.ended(Duration::from_secs(1 + 11 + 5));
    }
    assert_eq!(place.endpoint.count(), 0);
}
