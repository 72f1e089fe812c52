//! A hostile NATS server: it says what no server should, or stands before a real one and spoils what that one says.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// What the server does to the connections that are made from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Hands on everything.
    Honest,
    /// Says this instead of a server's greeting, then nothing.
    Says(Vec<u8>),
    /// Says the first instead of a server's greeting, then the second without end.
    Endless(Vec<u8>, Vec<u8>),
    /// Hands on a byte at a time, with this pause after each.
    Slow(Duration),
    /// Hands on so many bytes of the server, then closes.
    Cut(u64),
    /// Says this in front of the first acknowledgement.
    Inject(Vec<u8>),
    /// Says the first in front of the first acknowledgement, then the second without end.
    Flood(Vec<u8>, Vec<u8>),
    /// Spoils acknowledgements.
    Acks(Ack),
    /// Answers this where JetStream lists its streams.
    List(Vec<u8>),
}

/// How an acknowledgement is spoiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ack {
    /// It does not arrive.
    Lost,
    /// It arrives twice.
    Twice,
    /// This arrives instead, as a core subscriber's answer would.
    Instead(Vec<u8>),
    /// This arrives first.
    Before(Vec<u8>),
    /// It ends after so many bytes.
    Short(usize),
}

struct Shared {
    act: Mutex<Act>,
    open: Mutex<Vec<TcpStream>>,
    accepted: AtomicU64,
    said: AtomicU64,
    ended: AtomicBool,
}

/// The server; it ends when it is dropped.
pub struct Hostile {
    port: u16,
    shared: Arc<Shared>,
}

impl Hostile {
    /// Listens on a free port, before the real server on `upstream`.
    ///
    /// # Errors
    /// No port to be had.
    pub fn start(upstream: u16, act: Act) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            act: Mutex::new(act),
            open: Mutex::new(Vec::new()),
            accepted: AtomicU64::new(0),
            said: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if theirs.ended.load(Ordering::Relaxed) {
                    return;
                }
                theirs.accepted.fetch_add(1, Ordering::Relaxed);
                theirs.keep(&client);
                let (act, theirs) = (locked(&theirs.act).clone(), theirs.clone());
                std::thread::spawn(move || {
                    let _ = theirs.play(&client, upstream, act);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(Self { port, shared })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Connections made so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Bytes said so far.
    pub fn said(&self) -> u64 {
        self.shared.said.load(Ordering::Relaxed)
    }

    /// Closes all connections; those made from now on are treated like this.
    pub fn set(&self, act: Act) {
        *locked(&self.shared.act) = act;
        for stream in locked(&self.shared.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.set(Act::Honest);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn keep(&self, stream: &TcpStream) {
        locked(&self.open).extend(stream.try_clone());
    }

    fn say(&self, mut client: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        client.write_all(bytes)?;
        self.said.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn without_end(&self, client: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        let piece = bytes.repeat((64 * 1024 / bytes.len().max(1)).max(1));
        loop {
            self.say(client, &piece)?;
        }
    }

    fn play(&self, client: &TcpStream, upstream: u16, act: Act) -> io::Result<()> {
        client.set_nodelay(true)?;
        match &act {
            Act::Says(bytes) => {
                self.say(client, bytes)?;
                // Until the client has enough.
                io::copy(&mut { client }, &mut io::sink())?;
                return Ok(());
            }
            Act::Endless(head, body) => {
                self.say(client, head)?;
                return self.without_end(client, body);
            }
            _ => {}
        }
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream))?;
        self.keep(&server);
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
        match act {
            Act::Slow(pause) => {
                for byte in BufReader::new(server).bytes() {
                    self.say(client, &[byte?])?;
                    std::thread::sleep(pause);
                }
                Ok(())
            }
            Act::Cut(bytes) => {
                let handed = io::copy(&mut server.take(bytes), &mut { client })?;
                self.said.fetch_add(handed, Ordering::Relaxed);
                Ok(())
            }
            act => self.spoil(client, BufReader::new(server), &act),
        }
    }

    /// Hands on frame by frame.
    fn spoil(&self, client: &TcpStream, mut server: BufReader<TcpStream>, act: &Act) -> io::Result<()> {
        let mut first = true;
        while let Some(frame) = Frame::read(&mut server)? {
            if let Act::List(list) = act
                && frame.is_list()
            {
                self.say(client, &frame.with(list))?;
                continue;
            }
            if !frame.is_ack() {
                self.say(client, &frame.bytes())?;
                continue;
            }
            if std::mem::take(&mut first) {
                match act {
                    Act::Inject(bytes) => self.say(client, bytes)?,
                    Act::Flood(head, body) => {
                        self.say(client, head)?;
                        return self.without_end(client, body);
                    }
                    _ => {}
                }
            }
            let spoiled = match act {
                Act::Acks(Ack::Lost) => Vec::new(),
                Act::Acks(Ack::Twice) => frame.bytes().repeat(2),
                Act::Acks(Ack::Instead(payload)) => frame.with(payload),
                Act::Acks(Ack::Before(payload)) => [frame.with(payload), frame.bytes()].concat(),
                Act::Acks(Ack::Short(length)) => frame.with(&frame.payload[..frame.payload.len().min(*length)]),
                _ => frame.bytes(),
            };
            self.say(client, &spoiled)?;
        }
        Ok(())
    }
}

/// What a server says in one piece.
struct Frame {
    line: String,
    payload: Vec<u8>,
}

impl Frame {
    fn read(server: &mut impl BufRead) -> io::Result<Option<Frame>> {
        let mut line = Vec::new();
        if server.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let mut payload = Vec::new();
        if line.starts_with("MSG ") || line.starts_with("HMSG ") {
            let length = line.rsplit(' ').next().and_then(|length| length.parse().ok());
            payload.resize(length.unwrap_or(0) + 2, 0);
            server.read_exact(&mut payload)?;
            payload.truncate(payload.len() - 2);
        }
        Ok(Some(Frame { line, payload }))
    }

    /// An acknowledgement, or JetStream's refusal: the relay's reply subjects end in a number.
    fn is_ack(&self) -> bool {
        let token = self
            .line
            .split(' ')
            .nth(1)
            .and_then(|subject| subject.rsplit('.').next());
        self.line.starts_with("MSG _INBOX.")
            && token.is_some_and(|token| token.bytes().all(|byte| byte.is_ascii_digit()))
            && self.payload.starts_with(b"{")
    }

    fn is_list(&self) -> bool {
        String::from_utf8_lossy(&self.payload).contains("stream_list_response")
    }

    fn bytes(&self) -> Vec<u8> {
        match self.line.starts_with("MSG ") || self.line.starts_with("HMSG ") {
            true => [self.line.as_bytes(), b"\r\n", &self.payload, b"\r\n"].concat(),
            false => [self.line.as_bytes(), b"\r\n"].concat(),
        }
    }

    fn with(&self, payload: &[u8]) -> Vec<u8> {
        let head = self.line.rsplit_once(' ').map_or("", |(head, _)| head);
        let line = format!("{head} {}\r\n", payload.len());
        [line.as_bytes(), payload, b"\r\n"].concat()
    }
}

/// A greeting like that of a real server, with these fields on top.
pub fn greeting(more: &str) -> Vec<u8> {
    let fields = r#""server_id":"X","server_name":"h","version":"2.15.1","proto":1,"host":"127.0.0.1","port":4222,"headers":true,"max_payload":1048576,"jetstream":true"#;
    format!("INFO {{{fields}{}{more}}}\r\n", if more.is_empty() { "" } else { "," }).into_bytes()
}

/// Answers that are no acknowledgement, whatever they look like.
pub const NO_ACKS: &[&str] = &[
    "+OK thanks",
    "",
    "{}",
    "[]",
    "null",
    "0",
    "{",
    "\"S\"",
    "{\"ok\":true}",
    "{\"stream\":\"S\"}",
    "{\"seq\":1}",
    "{\"stream\":\"S\",\"seq\":0}",
    "{\"stream\":\"S\",\"seq\":-5}",
    "{\"stream\":\"S\",\"seq\":1.5}",
    "{\"stream\":\"S\",\"seq\":\"1\"}",
    "{\"stream\":\"S\",\"seq\":9223372036854775808}",
    "{\"stream\":\"S\",\"seq\":18446744073709551615}",
    "{\"stream\":\"S\",\"seq\":1e400}",
    "{\"stream\":\"\",\"seq\":1}",
    "{\"stream\":\"a\\u0000b\",\"seq\":1}",
    "{\"stream\":\"a.b\",\"seq\":1}",
    "{\"stream\":\"a b\",\"seq\":1}",
    "{\"stream\":\"S\",\"seq\":1,\"duplicate\":\"yes\"}",
    "{\"stream\":\"S\",\"seq\":1,\"domain\":7}",
    "{\"stream\":[\"S\"],\"seq\":1}",
    "{\"error\":\"no\"}",
    "{\"error\":{}}",
    "{\"error\":{\"code\":500}}",
    "{\"error\":{\"code\":400,\"err_code\":7,\"description\":\"not mine\"}}",
    "{\"stream\":\"S\",\"seq\":1}{}",
];

/// A list of streams that has no end.
pub fn endless_list() -> Vec<u8> {
    let stream = r#"{"config":{"name":"X","subjects":["x"]},"state":{"messages":0}}"#;
    format!("{{\"total\":1000000000,\"offset\":0,\"limit\":256,\"streams\":[{stream}]}}").into_bytes()
}

/// Errors a server may announce.
const ERRORS: &[&str] = &[
    "Unknown Protocol Operation",
    "Authorization Violation",
    "Authentication Timeout",
    "User Authentication Expired",
    "Account Authentication Expired",
    "Maximum Connections Exceeded",
    "Slow Consumer",
    "Stale Connection",
    "Maximum Control Line Exceeded",
    "Maximum Payload Violation",
    "Invalid Subject",
    "Secure Connection - TLS Required",
    "Permissions Violation for Subscription to \"other.>\"",
    "Parser Error",
    "Invalid Client Protocol",
    "No Responders Requires Headers Support",
    "Failed Account Registration",
    "",
    "\u{0}\u{1b}[2J",
];

/// An act drawn at random. None of them says that a message is stored which is not.
pub fn draw(random: &mut StdRng) -> Act {
    let some = |random: &mut StdRng, least: u64, most: u64| random.random_range(least..=most);
    match some(random, 0, 20) {
        0 => Act::Says(Vec::new()),
        1 => Act::Says((0..some(random, 1, 5000)).map(|_| random.random()).collect()),
        2 => Act::Says(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        3 => Act::Says(b"-ERR\r\n".to_vec()),
        4 => {
            let whole = greeting("");
            Act::Says(whole[..some(random, 0, whole.len() as u64) as usize].to_vec())
        }
        5 => Act::Says(greeting("\"tls_required\":true")),
        6 => Act::Says(greeting("\"connect_urls\":[\"127.0.0.1:1\",\"\\u0000\"],\"ldm\":true")),
        7 => Act::Says(greeting(&format!("\"max_payload\":{}", some(random, 0, u64::MAX)))),
        8 => Act::Endless(b"INFO {\"server_name\":\"".to_vec(), b"x".to_vec()),
        9 => Act::Slow(Duration::from_millis(some(random, 1, 20))),
        10 => Act::Cut(some(random, 0, 3000)),
        11 => {
            let error = ERRORS.choose(random).copied().unwrap_or_default();
            Act::Inject(format!("-ERR '{error}'\r\n").into_bytes())
        }
        12 => Act::Inject(b"MSG _INBOX.x 1 18446744073709551615\r\n".to_vec()),
        13 => Act::Inject(b"HMSG _INBOX.x 1 18446744073709551615 18446744073709551615\r\n".to_vec()),
        14 => Act::Inject((0..some(random, 1, 5000)).map(|_| random.random()).collect()),
        15 => Act::Flood(b"MSG _INBOX.x 1 3221225472\r\n".to_vec(), b"x".to_vec()),
        16 => Act::Acks([Ack::Lost, Ack::Twice][some(random, 0, 1) as usize].clone()),
        20 => Act::List(endless_list()),
        17 => Act::Acks(Ack::Short(some(random, 0, 25) as usize)),
        n => {
            let text = NO_ACKS
                .choose(random)
                .map_or(Vec::new(), |text| text.as_bytes().to_vec());
            Act::Acks(if n == 18 { Ack::Instead(text) } else { Ack::Before(text) })
        }
    }
}
