//! A TCP proxy between the worker and its NATS servers that can misbehave on request.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// How the proxy treats its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forwards everything.
    Pass,
    /// Forwards data from the client and drops data from the server.
    DropAcks,
    /// Forwards everything, each chunk after this delay.
    Delay(Duration),
    /// Reads from neither side, but keeps connections open.
    Stall,
    /// Closes the direction from server to client. Data from the client is still forwarded.
    HalfClose,
    /// Closes every connection, and new ones immediately.
    Refuse,
}

#[derive(Clone, Copy)]
struct Order {
    mode: Mode,
    /// Connections of an older generation are closed.
    generation: u64,
}

/// The running proxy, which has one port per server. It stops with its runtime.
pub struct Proxy {
    ports: Vec<u16>,
    orders: watch::Sender<Order>,
    swallowed: Arc<AtomicU64>,
    accepted: Arc<AtomicU64>,
}

/// The state that one connection needs.
#[derive(Clone)]
struct Pump {
    orders: watch::Receiver<Order>,
    generation: u64,
    swallowed: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 for each server port, and forwards to it.
    pub fn start(runtime: &Handle, servers: &[u16]) -> Result<Self> {
        let first = Order {
            mode: Mode::Pass,
            generation: 0,
        };
        let mut proxy = Self {
            ports: Vec::new(),
            orders: watch::channel(first).0,
            swallowed: Arc::default(),
            accepted: Arc::default(),
        };
        for &server in servers {
            let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
            proxy.ports.push(listener.local_addr()?.port());
            let accepted = proxy.accepted.clone();
            let pump = Pump {
                orders: proxy.orders.subscribe(),
                generation: 0,
                swallowed: proxy.swallowed.clone(),
            };
            runtime.spawn(listen(listener, server, pump, accepted));
        }
        Ok(proxy)
    }

    /// `nats://127.0.0.1:<port>`, in the order of the servers.
    pub fn urls(&self) -> Vec<String> {
        let url = |port| format!("nats://127.0.0.1:{port}");
        self.ports.iter().map(url).collect()
    }

    /// Sets the mode of all connections, present and future.
    pub fn set(&self, mode: Mode) {
        self.orders.send_modify(|order| order.mode = mode);
    }

    /// Closes all present connections. Future connections forward everything.
    pub fn renew(&self) {
        self.orders.send_modify(|order| {
            order.mode = Mode::Pass;
            order.generation += 1;
        });
    }

    /// Bytes dropped so far.
    pub fn swallowed(&self) -> u64 {
        self.swallowed.load(Ordering::Relaxed)
    }

    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// Accepts connections and assigns each to the current generation.
async fn listen(listener: TcpListener, server: u16, pump: Pump, accepted: Arc<AtomicU64>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let order = *pump.orders.borrow();
        if order.mode == Mode::Refuse {
            continue;
        }
        accepted.fetch_add(1, Ordering::Relaxed);
        let pump = Pump {
            generation: order.generation,
            ..pump.clone()
        };
        tokio::spawn(serve(client, server, pump));
    }
}

/// Serves one connection until either side or the proxy closes it.
async fn serve(client: TcpStream, server: u16, pump: Pump) {
    let Ok(server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, server))).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = pump.clone().copy(from_client, to_server, false);
    let down = pump.copy(from_server, to_client, true);
    tokio::pin!(up, down);
    tokio::select! {
        // A half-closed connection continues in the other direction.
        ended = &mut down => if ended == Ended::Half { up.await; },
        _ = &mut up => {}
    }
}

#[derive(PartialEq, Eq)]
enum Ended {
    Whole,
    Half,
}

impl Pump {
    async fn copy(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, answers: bool) -> Ended {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let order = *self.orders.borrow_and_update();
            if order.mode == Mode::Refuse || order.generation != self.generation {
                return Ended::Whole;
            }
            if order.mode == Mode::HalfClose && answers {
                let _ = to.shutdown().await;
                return Ended::Half;
            }
            let read = tokio::select! {
                changed = self.orders.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Ended::Whole,
                },
                read = from.read(&mut buffer), if order.mode != Mode::Stall => read,
            };
            let bytes = match read {
                Ok(n) if n > 0 => &buffer[..n],
                _ => return Ended::Whole,
            };
            match order.mode {
                Mode::DropAcks if answers => {
                    self.swallowed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    continue;
                }
                Mode::Delay(time) => tokio::time::sleep(time).await,
                _ => {}
            }
            if to.write_all(bytes).await.is_err() {
                return Ended::Whole;
            }
        }
    }
}
