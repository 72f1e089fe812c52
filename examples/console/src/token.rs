//! Who may change something: whoever sends the token in the header `Authorization`. No browser sends it by itself, so
//! that no other site's page can.

use std::str::FromStr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;

use crate::routes::Refusal;

/// Least length: what is shorter can be guessed.
const LEAST_LENGTH: usize = 16;

/// A secret of at least 16 characters.
#[derive(Clone)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() < LEAST_LENGTH || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "a token has at least {LEAST_LENGTH} characters, ASCII and no spaces"
            ));
        }
        Ok(Token(text.to_owned()))
    }
}

impl Token {
    /// Whether the request has it; takes as long for a wrong one as for the right one.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let sent = sent
            .and_then(|value| value.strip_prefix(b"Bearer "))
            .unwrap_or_default();
        sent.ct_eq(self.0.as_bytes()).into()
    }
}

/// Lets only requests through that have the token.
pub async fn required(State(token): State<Option<Token>>, request: Request, next: Next) -> Result<Response, Refusal> {
    match token {
        Some(token) if token.is_in(request.headers()) => Ok(next.run(request).await),
        Some(_) => Err(Refusal::new(StatusCode::UNAUTHORIZED, "this needs the token")),
        None => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "this console only shows: CONSOLE_TOKEN is not set",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_the_token() {
        let token: Token = "0123456789abcdef".parse().unwrap();
        let sent = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            token.is_in(&headers)
        };
        assert!(sent("Bearer 0123456789abcdef"));
        for wrong in [
            "",
            "Bearer ",
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcdef0",
            "Bearer 0123456789abcde",
            "bearer 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert!(!sent(wrong), "{wrong}");
        }
        assert!(!token.is_in(&HeaderMap::new()));
    }
}
