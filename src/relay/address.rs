//! Server URLs: what they may look like, and the credentials in them.

use async_nats::ServerAddr;

use crate::message::Auth;

/// One server of a connection.
pub(super) struct Server {
    /// Address without credentials.
    pub(super) address: ServerAddr,
    /// Credentials found in the URL.
    pub(super) auth: Option<Auth>,
}

impl Server {
    /// Reads `[scheme://][user:password@ | token@]host[:port]` with the schemes `nats` and `tls`. The part before the
    /// last `@` is the credentials, percent-encoded where need be.
    ///
    /// Errors: a readable reason, without the credentials.
    pub(super) fn parse(url: &str) -> Result<Server, String> {
        let url = url.trim();
        let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
        let (credentials, host) = match rest.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials), host),
            None => (None, rest),
        };
        match scheme {
            "nats" | "tls" => {}
            "ws" | "wss" => return Err(format!("WebSocket address {scheme}://{host} is not supported")),
            _ => {
                return Err(format!(
                    "unknown scheme in address {scheme}://{host}: nats:// and tls:// are known"
                ));
            }
        }
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == ',') {
            return Err(format!("invalid address {scheme}://{host}"));
        }
        let address = format!("{scheme}://{host}")
            .parse::<ServerAddr>()
            .map_err(|error| format!("invalid address {scheme}://{host}: {error}"))?;
        if address.host().is_empty() {
            return Err(format!("invalid address {scheme}://{host}: no host"));
        }
        Ok(Server {
            address,
            auth: credentials.and_then(credentials_of),
        })
    }

    /// `host:port` as shown to people.
    pub(super) fn label(&self) -> String {
        format!("{}:{}", self.address.host(), self.address.port())
    }
}

fn credentials_of(text: &str) -> Option<Auth> {
    match text.split_once(':') {
        Some((user, password)) => Some(Auth::Password {
            user: percent_decoded(user),
            password: percent_decoded(password),
        }),
        None if text.is_empty() => None,
        None => Some(Auth::Token(percent_decoded(text))),
    }
}

/// The text with `%XX` replaced; as it stands if that would not give UTF-8.
fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match hex.filter(|two| *first == b'%' && two.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            Some(two) => {
                decoded.extend(u8::from_str_radix(two, 16).ok());
                rest = &tail[2..];
            }
            None => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn parsed(url: &str) -> (String, Option<Auth>) {
        let server = Server::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        (server.label(), server.auth)
    }

    fn password(user: &str, password: &str) -> Option<Auth> {
        Some(Auth::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    #[test]
    fn credentials_are_taken_out_of_the_address() {
        assert_eq!(parsed("nats://h:1"), ("h:1".to_owned(), None));
        assert_eq!(parsed("h"), ("h:4222".to_owned(), None));
        assert_eq!(parsed(" tls://[::1]:5 "), ("::1:5".to_owned(), None));
        assert_eq!(parsed("nats://u:p@h:1"), ("h:1".to_owned(), password("u", "p")));
        assert_eq!(
            parsed("nats://u:p%40%2f@h"),
            ("h:4222".to_owned(), password("u", "p@/"))
        );
        assert_eq!(parsed("u:a/b@c%zz@h:1"), ("h:1".to_owned(), password("u", "a/b@c%zz")));
        assert_eq!(
            parsed("nats://tok@h"),
            ("h:4222".to_owned(), Some(Auth::Token("tok".to_owned())))
        );
    }

    #[test]
    fn a_bad_address_is_refused_without_telling_its_credentials() {
        for url in [
            "ws://u:secret@h",
            "http://secret@h",
            "nats://u:secret@",
            "nats://u:secret@h:x",
            "a b",
            "",
            "h,i",
        ] {
            let reason = Server::parse(url).err().unwrap_or_else(|| panic!("{url} was accepted"));
            assert!(!reason.contains("secret"), "{reason}");
        }
    }
}
