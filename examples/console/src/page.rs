//! The page: files that are part of the program, and the headers that keep it to itself.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// Nothing from elsewhere, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, content: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], content).into_response()
}

/// `/`
pub async fn index() -> Response {
    file("text/html; charset=utf-8", include_str!("../page/index.html"))
}

/// `/console.css`
pub async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("../page/console.css"))
}

/// `/console.js`
pub async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("../page/console.js"))
}

/// `/figures.js`
pub async fn figures() -> Response {
    file("text/javascript; charset=utf-8", include_str!("../page/figures.js"))
}

/// `/charts.js`
pub async fn charts() -> Response {
    file("text/javascript; charset=utf-8", include_str!("../page/charts.js"))
}

/// `/icon.svg`
pub async fn icon() -> Response {
    file("image/svg+xml", include_str!("../page/icon.svg"))
}

/// Puts the security headers on every response.
pub async fn secure(mut response: Response) -> Response {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
