//! Login to one NATS cluster: addresses, credentials, TLS, and what a failure means.

use std::error::Error;
use std::io;
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError, Subscriber};
use serde_json::Value;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tracing::debug;

use super::address::Server;
use super::files::{self, Files};
use super::jsapi::{self, Api, ApiError, NOT_ENABLED, NOT_ENABLED_FOR_ACCOUNT};
use super::said::shortened;
use super::wire;
use crate::error::RelayError;
use crate::message::{Auth, ConnectionSpec};

/// A silent server is noticed after three of these without an answer.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Room for commands between us and the client's task: more than the largest window, so that a send never waits.
const CLIENT_CAPACITY: usize = 16_384;

/// Messages of a subscription that wait to be taken; more than acks can be on their way.
const SUBSCRIPTION_CAPACITY: usize = 16_384;

/// Most characters shown of a server's name and version.
const MAX_NAME: usize = 200;

/// Oldest server that is supported.
const OLDEST_SERVER: (u32, u32) = (2, 10);

/// The client is told to look here once it is connected, so that it ends with its connection instead of making a new
/// one behind our back: nothing ever listens on port 0, and it gives up after one attempt.
const NOWHERE: &str = "nats://127.0.0.1:0";

/// A connected client and what comes from it.
pub(super) struct Session {
    pub(super) client: Client,
    /// The JetStream API that the connection asks.
    pub(super) api: Api,
    /// Why that API cannot be used, if so: streams are neither made nor looked into, and what is published may still be
    /// stored, in another account or domain.
    pub(super) without_api: Option<String>,
    /// JetStream's domain there.
    pub(super) domain: Option<String>,
    /// Everything sent to `<inbox><token>`.
    pub(super) acks: Subscriber,
    /// Beginning of the reply subjects, with the last dot.
    pub(super) inbox: String,
    pub(super) events: UnboundedReceiver<Event>,
    /// Largest message the server takes, headers and payload, bytes.
    pub(super) max_payload: usize,
    /// Server's name and version, as shown to people.
    pub(super) server: String,
}

/// Why there is no session.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It may work next time.
    Passing(String),
    /// It cannot work as configured.
    Lasting(RelayError),
}

/// Connects to the first of the connection's servers that takes us.
///
/// Errors: lasting only if no server failed for a passing reason.
pub(super) async fn connect(spec: &ConnectionSpec) -> Result<Session, Refusal> {
    // An error says that a provider is installed already, which will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let files = match tokio::time::timeout(spec.connect_timeout, files::read(spec)).await {
        Ok(files) => files.map_err(lasting)?,
        Err(_) => return Err(Refusal::Passing("reading the files it names timed out".to_owned())),
    };
    let mut passing = false;
    let mut reasons = Vec::new();
    for url in &spec.servers {
        match connect_to(spec, url, &files).await {
            Ok(session) => return Ok(session),
            Err(Refusal::Lasting(RelayError::Connection(reason))) => reasons.push(reason),
            Err(Refusal::Lasting(error)) => reasons.push(error.to_string()),
            Err(Refusal::Passing(reason)) => {
                passing = true;
                reasons.push(reason);
            }
        }
    }
    if reasons.is_empty() {
        return Err(lasting("no server address"));
    }
    let reasons = reasons.join("; ");
    Err(if passing {
        Refusal::Passing(reasons)
    } else {
        lasting(reasons)
    })
}

fn lasting(reason: impl Into<String>) -> Refusal {
    Refusal::Lasting(RelayError::Connection(reason.into()))
}

async fn connect_to(spec: &ConnectionSpec, url: &str, files: &Files) -> Result<Session, Refusal> {
    let server = Server::parse(url).map_err(lasting)?;
    let label = server.label();
    let (told, mut events) = mpsc::unbounded_channel();
    let options = options(spec, &server, files)
        .map_err(lasting)?
        .event_callback(move |event| {
            let _ = told.send(event);
            std::future::ready(())
        });
    // The client's own limit leaves out the name lookup, and counts for each address of the name.
    let client = match tokio::time::timeout(spec.connect_timeout, options.connect(&server.address)).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return Err(handshake_order(spec, refusal(&label, &error))),
        Err(_) => return Err(handshake_order(spec, Refusal::Passing(format!("{label}: timed out")))),
    };
    let broken = |error: &dyn Error| Refusal::Passing(format!("{label}: {error}"));
    client.set_server_pool(NOWHERE).await.map_err(|error| broken(&error))?;
    let inbox = format!("{}.", client.new_inbox());
    let acks = client
        .subscribe(format!("{inbox}*"))
        .await
        .map_err(|error| broken(&error))?;
    let info = client.server_info();
    if is_too_old(&info.version) {
        let (major, minor) = OLDEST_SERVER;
        let reason = format!(
            "{label}: nats-server {} is too old: {major}.{minor} or later is needed",
            shortened(&info.version, MAX_NAME)
        );
        return Err(lasting(reason));
    }
    let api = Api::new(client.clone(), &spec.api_prefix());
    let found = check_jetstream(&api, &mut events, &label, info.jetstream).await?;
    let (name, version) = (
        shortened(&info.server_name, MAX_NAME),
        shortened(&info.version, MAX_NAME),
    );
    let server = format!("{name} (nats-server {version}) at {label}");
    Ok(Session {
        client,
        api,
        without_api: found.reason,
        domain: found.domain,
        acks,
        inbox,
        events,
        max_payload: info.max_payload,
        server,
    })
}

fn options(spec: &ConnectionSpec, server: &Server, files: &Files) -> Result<ConnectOptions, String> {
    let mut options = ConnectOptions::new()
        .name("pg_jetstream")
        .connection_timeout(spec.connect_timeout)
        .ping_interval(PING_INTERVAL)
        .client_capacity(CLIENT_CAPACITY)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .max_reconnects(1)
        .ignore_discovered_servers()
        .retain_servers_order()
        .require_tls(spec.tls.required)
        // The subjects are checked before, and more strictly.
        .skip_subject_validation(true);
    if spec.handshake_first {
        options = options.tls_first();
    }
    if let Some(tls) = &files.tls {
        options = options.tls_client_config(tls.clone());
    }
    let auth = match (&spec.auth, &server.auth) {
        (Auth::None, Some(auth)) => auth,
        (auth, _) => auth,
    };
    Ok(match auth {
        Auth::None => options,
        Auth::Token(token) => options.token(token.clone()),
        Auth::Password { user, password } => options.user_and_password(user.clone(), password.clone()),
        Auth::Nkey(seed) => options.nkey(seed.trim().to_owned()),
        Auth::CredentialsFile(path) => {
            let text = files.credentials.as_deref().unwrap_or_default();
            options
                .credentials(text)
                .map_err(|_| format!("credentials file {path} cannot be used"))?
        }
    })
}

fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) < OLDEST_SERVER)
}

/// What was found of the account's JetStream.
#[derive(Default)]
struct Found {
    /// Why its API cannot be used.
    reason: Option<String>,
    domain: Option<String>,
}

/// Asks for the account's JetStream. An account that may not ask, or has none of its own, may still publish.
async fn check_jetstream(
    api: &Api,
    events: &mut UnboundedReceiver<Event>,
    label: &str,
    has_jetstream: bool,
) -> Result<Found, Refusal> {
    let answer = tokio::select! {
        answer = jsapi::call(api, "INFO", &Value::Null) => answer,
        refusal = trouble(events, label, |subject| api.request(subject) == Some("INFO")) =>
            return refusal.map(|()| Found::default()),
    };
    match answer {
        Ok(info) => Ok(Found {
            reason: None,
            domain: info["domain"].as_str().map(str::to_owned),
        }),
        Err(error @ ApiError::NoResponders) if has_jetstream && api.is_local() => {
            Err(Refusal::Passing(format!("{label}: {error}")))
        }
        Err(ApiError::Refused {
            err_code: NOT_ENABLED | NOT_ENABLED_FOR_ACCOUNT,
            ..
        })
        | Err(ApiError::NoResponders) => Ok(Found {
            reason: Some(match api.is_local() {
                true => "JetStream is not enabled on the server, or not for this account".to_owned(),
                false => format!("nothing answers at {}", api.prefix()),
            }),
            domain: None,
        }),
        Err(error @ ApiError::Refused { .. }) => Err(Refusal::Passing(format!("{label}: {error}"))),
        Err(error) => {
            debug!(target: "pg_jetstream", server = label, %error, "JetStream's account information is not to be had");
            Ok(Found::default())
        }
    }
}

/// Ends when the server denies a request to one of the subjects we ask, or goes away.
pub(super) async fn trouble(
    events: &mut UnboundedReceiver<Event>,
    label: &str,
    ours: impl Fn(&str) -> bool,
) -> Result<(), Refusal> {
    let mut reason = "connection lost".to_owned();
    loop {
        match events.recv().await {
            Some(Event::ServerError(ServerError::Other(text))) => {
                if wire::denied(&text, "Publish").is_some_and(|subject| ours(&subject)) {
                    return Ok(());
                }
                if wire::denied(&text, "Subscription").is_some() {
                    return Err(lasting(format!("{label}: {text}: acks cannot be received")));
                }
                reason = text;
            }
            Some(Event::Disconnected | Event::Closed) | None => {
                return Err(Refusal::Passing(format!("{label}: {reason}")));
            }
            Some(_) => {}
        }
    }
}

/// Says what to do where server and connection may expect TLS in a different order: a server that waits for TLS says
/// nothing, and one that does not begins with a text that is no TLS.
fn handshake_order(spec: &ConnectionSpec, refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Passing(reason) if !spec.handshake_first && reason.contains("timed out") => Refusal::Passing(format!(
            "{reason}; if the server has handshake_first, set connections.tls_handshake_first"
        )),
        Refusal::Lasting(RelayError::Connection(reason)) if spec.handshake_first && reason.contains("TLS") => lasting(
            format!("{reason}; if the server does not have handshake_first, reset connections.tls_handshake_first"),
        ),
        refusal => refusal,
    }
}

/// Nothing that came before the login is shown: any TCP service may be at the address.
fn refusal(label: &str, error: &ConnectError) -> Refusal {
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => lasting(format!("{label}: authorization violation")),
        ConnectErrorKind::Authentication => lasting(format!("{label}: the credentials cannot sign ({error})")),
        ConnectErrorKind::Tls => lasting(format!("{label}: {error}")),
        ConnectErrorKind::Dns | ConnectErrorKind::TimedOut => Refusal::Passing(format!("{label}: {error}")),
        _ => match causes(error).find_map(lasting_cause) {
            Some(reason) => lasting(format!("{label}: {reason}")),
            None => match causes(error).find_map(system_error) {
                Some(reason) => Refusal::Passing(format!("{label}: {reason}")),
                None => Refusal::Passing(format!("{label}: what answers there does not speak the NATS protocol")),
            },
        },
    }
}

/// An error of the operating system, or an end of the connection.
fn system_error(cause: &(dyn Error + 'static)) -> Option<String> {
    let error = cause.downcast_ref::<io::Error>()?;
    let ended = matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
    );
    (error.raw_os_error().is_some() || ended).then(|| error.to_string())
}

/// TLS errors and refused logins also come dressed as I/O errors.
fn lasting_cause(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return Some(format!("TLS error: {error}"));
    }
    let text = cause.downcast_ref::<ServerError>()?.to_string();
    let words = text.to_lowercase();
    ["authentication", "authorization", "tls"]
        .iter()
        .any(|word| words.contains(word))
        .then_some(text)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error: &&'a (dyn Error + 'static)| {
        // An I/O error's `source` is that of what it wraps.
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers() {
        for (version, old) in [
            ("2.9.25", true),
            ("1.4.1", true),
            ("2.10.0", false),
            ("2.15.1", false),
            ("3.0", false),
        ] {
            assert_eq!(is_too_old(version), old, "{version}");
        }
        assert!(!is_too_old("dev"));
    }
}
