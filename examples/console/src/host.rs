//! Under which names the console answers: this machine's own, the address it listens on, and those of ALLOWED_HOSTS. A page
//! elsewhere whose name begins to resolve to this machine (DNS rebinding) sends its own name, and gets nothing.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::routes::Refusal;

/// A host as a request names it, without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// In lower case and without the dot that ends a complete name.
    Name(String),
    /// Of an IPv4 address within IPv6, the IPv4 address.
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return match inner.parse::<Ipv6Addr>() {
                Ok(address) => Ok(Host::Address(IpAddr::V6(address).to_canonical())),
                Err(_) => Err(format!("{text:?} is not an IPv6 address")),
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Host::Address(IpAddr::V4(address)));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if name.split('.').all(label) {
            Ok(Host::Name(name))
        } else {
            Err(format!(
                "{text:?} is neither a host's name nor an address (IPv6 in brackets), without a port"
            ))
        }
    }
}

impl Host {
    /// The host of `host`, `host:port`, `[address]` or `[address]:port`.
    fn of_authority(text: &str) -> Option<Host> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (text, ""),
        };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || !port.is_empty() && port.parse::<u16>().is_err() {
            return None;
        }
        host.parse().ok()
    }

    fn is_loopback(&self) -> bool {
        match self {
            Host::Name(name) => name == "localhost",
            Host::Address(address) => address.is_loopback(),
        }
    }
}

/// Hosts separated by commas.
#[derive(Clone, Debug, Default)]
pub struct List(Vec<Host>);

impl FromStr for List {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hosts = text.split(',').map(str::trim).filter(|host| !host.is_empty());
        hosts.map(str::parse).collect::<Result<_, _>>().map(List)
    }
}

/// The hosts under which the console answers, apart from loopback.
#[derive(Clone, Debug)]
pub struct Hosts(Arc<[Host]>);

impl Hosts {
    /// Those of the settings, and the address to listen on if it is a certain one.
    pub fn new(allowed: &List, listen: SocketAddr) -> Self {
        let listen = listen.ip().to_canonical();
        let own = (!listen.is_unspecified()).then_some(Host::Address(listen));
        Hosts(allowed.0.iter().cloned().chain(own).collect())
    }

    fn allow(&self, host: &Host) -> bool {
        host.is_loopback() || self.0.contains(host)
    }
}

/// Lets only requests through that name an allowed host, in the header `Host` and, if they have it there too, in the request
/// line.
pub async fn required(State(hosts): State<Hosts>, request: Request, next: Next) -> Result<Response, Refusal> {
    let mut named = Vec::new();
    for value in request.headers().get_all(header::HOST) {
        named.push(value.to_str().unwrap_or("?").to_owned());
    }
    if named.len() != 1 {
        let reason = format!(
            "a request names its host once, and this one has {} Host headers",
            named.len()
        );
        return Err(Refusal::new(StatusCode::BAD_REQUEST, reason));
    }
    named.extend(request.uri().authority().map(|authority| authority.to_string()));
    for authority in named {
        match Host::of_authority(&authority) {
            Some(host) if hosts.allow(&host) => {}
            Some(_) => {
                let reason = format!("this console does not answer as {authority:?}: add the name to ALLOWED_HOSTS");
                return Err(Refusal::new(StatusCode::FORBIDDEN, reason));
            }
            None => {
                let reason = format!("{authority:?} is not a host");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, reason));
            }
        }
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(hosts: &str, listen: &str, authority: &str) -> bool {
        let hosts = Hosts::new(&hosts.parse().unwrap(), listen.parse().unwrap());
        Host::of_authority(authority).is_some_and(|host| hosts.allow(&host))
    }

    #[test]
    fn loopback_is_always_allowed() {
        for authority in [
            "localhost",
            "localhost:8090",
            "LocalHost",
            "localhost.",
            "LOCALHOST.:80",
            "127.0.0.1",
            "127.0.0.1:8090",
            "127.8.8.8",
            "[::1]",
            "[::1]:8090",
            "[0:0:0:0:0:0:0:1]:1",
            "[::ffff:127.0.0.1]",
            "localhost:",
        ] {
            assert!(allowed("", "0.0.0.0:8090", authority), "{authority}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for authority in [
            "",
            ":8090",
            ".",
            "localhost..",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:8090",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost, evil.example",
            "localhost evil.example",
            "localhost/evil.example",
            "192.168.1.5:8090",
            "0.0.0.0:8090",
            "[::]:8090",
            "[fe80::1]",
            "[::1",
            "::1",
            "::1:8090",
            "[::1]8090",
            "[localhost]",
            "[127.0.0.1]",
            "127.1",
            "2130706433",
            "localhost:x",
            "localhost:70000",
            "localhost:+80",
            "localhost:80:80",
        ] {
            assert!(!allowed("", "0.0.0.0:8090", authority), "{authority}");
        }
    }

    #[test]
    fn configured_names_and_the_address_listened_on_are_allowed() {
        let hosts = "Console.Example.com, 10.0.0.7,[2001:db8::1]";
        for (authority, right) in [
            ("console.example.com", true),
            ("CONSOLE.example.com.:443", true),
            ("10.0.0.7:8090", true),
            ("[2001:DB8:0::1]:80", true),
            ("10.0.0.5", true),
            ("x.console.example.com", false),
            ("example.com", false),
            ("10.0.0.6", false),
        ] {
            assert_eq!(allowed(hosts, "10.0.0.5:8090", authority), right, "{authority}");
        }
        for wrong in [
            "console.example.com:8090",
            "*.example.com",
            "http://console.example.com",
            "::1",
        ] {
            assert!(wrong.parse::<List>().is_err(), "{wrong}");
        }
    }
}
