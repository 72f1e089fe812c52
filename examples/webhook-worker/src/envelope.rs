//! The message on the wire: which call to make.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Headers that belong to the connection, and are not the envelope's to set.
const NOT_OURS: [&str; 4] = ["connection", "content-length", "host", "transfer-encoding"];

/// Header values as JSON, exactly as they were written.
pub type RawHeaders = BTreeMap<String, Box<RawValue>>;
/// Header values as text.
pub type Headers = BTreeMap<String, String>;

/// Why an envelope cannot be read. None of the texts shows a header's value, which may be a secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvelopeError {
    /// Not JSON, or not of the right shape.
    #[error("envelope cannot be read: {0}")]
    Shape(String),
    /// The url is no url, or not of HTTP.
    #[error("webhook_url cannot be called: {0}")]
    Url(String),
    /// No HTTP method.
    #[error("method {0:?} is not valid")]
    Method(String),
    /// A header that HTTP cannot carry.
    #[error("header {0:?} is not valid")]
    Header(String),
}

/// The envelope that the extension writes; of the rule engine's, the first three fields.
#[derive(Deserialize)]
struct Wire<'a> {
    webhook_url: String,
    #[serde(default, borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    headers: Option<RawHeaders>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    webhook_id: Option<i32>,
}

/// An HTTP call, with its secrets by name still.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// Where to.
    pub url: Url,
    /// The same as it was written, which the database compares with `webhooks.url`.
    pub url_text: String,
    /// How.
    pub method: Method,
    /// Headers as given, secrets by name.
    pub headers: Headers,
    /// JSON, exactly as it was written; none for GET.
    pub body: Option<Bytes>,
    /// Limit for the call.
    pub timeout: Option<Duration>,
    /// `webhooks.id`.
    pub webhook: Option<i32>,
}

impl Envelope {
    /// Reads an envelope.
    pub fn parse(payload: &[u8]) -> Result<Self, EnvelopeError> {
        // serde would take a list for the fields in their order.
        if payload.trim_ascii_start().first() != Some(&b'{') {
            return Err(EnvelopeError::Shape("it is not a JSON object".to_owned()));
        }
        let wire: Wire = serde_json::from_slice(payload).map_err(|error| EnvelopeError::Shape(error.to_string()))?;
        let method = wire.method.as_deref().unwrap_or("POST");
        let body = wire.data.map(|data| Bytes::copy_from_slice(data.get().as_bytes()));
        let mut envelope = Self::new(&wire.webhook_url, method, &wire.headers.unwrap_or_default(), body)?;
        envelope.timeout = wire.timeout_ms.filter(|ms| *ms > 0).map(Duration::from_millis);
        envelope.webhook = wire.webhook_id;
        // What HTTP cannot carry is told before a call is tried; secrets are checked where they are stored.
        http_headers(&envelope.headers)?;
        Ok(envelope)
    }

    /// From the parts, wherever they come from.
    pub fn new(url: &str, method: &str, headers: &RawHeaders, body: Option<Bytes>) -> Result<Self, EnvelopeError> {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                let text = text(value).ok_or_else(|| EnvelopeError::Header(name.clone()))?;
                Ok((name.clone(), text))
            })
            .collect::<Result<_, _>>()?;
        let url_text = url.to_owned();
        let url = Url::parse(url).map_err(|error| EnvelopeError::Url(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(EnvelopeError::Url(format!("{} is not http or https", url.scheme())));
        }
        let known = Method::from_bytes(method.as_bytes()).map_err(|_| EnvelopeError::Method(method.to_owned()))?;
        let body = if known == Method::GET { None } else { body };
        Ok(Self {
            url,
            url_text,
            method: known,
            headers,
            body,
            timeout: None,
            webhook: None,
        })
    }

    /// Whether a header refers to a secret, which the database puts in place.
    pub fn needs_secrets(&self) -> bool {
        self.headers.values().any(|text| text.contains("{{secret:"))
    }
}

/// The text of a header value: a string as it is, a number or a boolean as it was written, those of a list with commas
/// between them. None for anything else.
fn text(value: &RawValue) -> Option<String> {
    let json = value.get();
    match json.as_bytes().first() {
        Some(b'[') => {
            let list: Vec<&RawValue> = serde_json::from_str(json).ok()?;
            let texts = list.into_iter().map(|value| match value.get().starts_with('[') {
                true => None,
                false => text(value),
            });
            Some(texts.collect::<Option<Vec<_>>>()?.join(", "))
        }
        Some(b'"') => serde_json::from_str(json).ok(),
        Some(b'{' | b'n') | None => None,
        Some(_) => Some(json.to_owned()),
    }
}

/// Headers as HTTP carries them, with `Content-Type: application/json` unless they name another.
pub fn http_headers(headers: &Headers) -> Result<HeaderMap, EnvelopeError> {
    let mut map = HeaderMap::with_capacity(headers.len() + 4);
    map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, text) in headers {
        let wrong = || EnvelopeError::Header(name.clone());
        let key: HeaderName = name.parse().map_err(|_| wrong())?;
        if NOT_OURS.contains(&key.as_str()) {
            continue;
        }
        map.insert(key, HeaderValue::from_str(text).map_err(|_| wrong())?);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_envelope_of_the_extension() {
        let text = br#"{"webhook_url": "https://example.com/hook", "data": {"order": 7, "sum": 1.50},
            "headers": {"Authorization": "Bearer {{secret:token}}", "X-N": 1, "Content-Type": "text/plain", "Host": "x"},
            "method": "PUT", "timeout_ms": 2500, "webhook_id": 1, "webhook_name": "orders"}"#;
        let envelope = Envelope::parse(text).unwrap();
        assert_eq!(
            (envelope.url.as_str(), &envelope.method),
            ("https://example.com/hook", &Method::PUT)
        );
        assert_eq!(envelope.body.as_deref(), Some(&br#"{"order": 7, "sum": 1.50}"#[..]));
        assert_eq!(
            (envelope.timeout, envelope.webhook),
            (Some(Duration::from_millis(2500)), Some(1))
        );
        assert!(envelope.needs_secrets());
        let headers = http_headers(&envelope.headers).unwrap();
        assert_eq!(
            (&headers["x-n"], &headers["content-type"]),
            (&HeaderValue::from_static("1"), &HeaderValue::from_static("text/plain"))
        );
        assert!(!headers.contains_key("host"));
    }

    #[test]
    fn header_values_are_sent_as_their_text() {
        let text =
            br#"{"webhook_url": "http://a", "headers": {"S": "a\"b", "N": 1.50, "B": 9007199254740993, "T": true,
            "L": ["a", 2.0, false, "{{secret:token}}"], "E": []}}"#;
        let envelope = Envelope::parse(text).unwrap();
        let expected = [
            ("B", "9007199254740993"),
            ("E", ""),
            ("L", "a, 2.0, false, {{secret:token}}"),
            ("N", "1.50"),
            ("S", "a\"b"),
            ("T", "true"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(envelope.headers, Headers::from(expected));
        assert!(envelope.needs_secrets());
    }

    #[test]
    fn the_envelope_of_the_rule_engine() {
        let text = br#"{"webhook_url": "http://example.com", "data": [1], "headers": {"X-Event-Type": "a"}}"#;
        let envelope = Envelope::parse(text).unwrap();
        assert_eq!(
            (&envelope.method, envelope.timeout, envelope.webhook),
            (&Method::POST, None, None)
        );
        assert!(!envelope.needs_secrets());
        let bare = Envelope::parse(br#"{"webhook_url": "http://example.com", "data": null, "headers": null}"#).unwrap();
        assert!(bare.body.is_none() && bare.headers.is_empty());
    }

    #[test]
    fn what_cannot_be_called_is_told() {
        let error = |text: &str| Envelope::parse(text.as_bytes()).unwrap_err();
        for text in [
            "",
            "x",
            "[1]",
            r#"["http://a"]"#,
            "\"a\"",
            "{}",
            r#"{"webhook_url": 1}"#,
            r#"{"webhook_url": "http://a", "headers": [1]}"#,
        ] {
            assert!(matches!(error(text), EnvelopeError::Shape(_)), "{text}");
        }
        for url in ["ftp://a/", "/hook", "http://", "file:///etc/passwd"] {
            assert!(
                matches!(error(&format!(r#"{{"webhook_url": "{url}"}}"#)), EnvelopeError::Url(_)),
                "{url}"
            );
        }
        assert_eq!(
            error(r#"{"webhook_url": "http://a", "method": "BREW IT"}"#),
            EnvelopeError::Method("BREW IT".into())
        );
        for headers in [
            r#"{"X": "a\r\nB: c"}"#,
            r#"{"a b": "c"}"#,
            r#"{"X": {}}"#,
            r#"{"X": null}"#,
            r#"{"X": ["a", {}]}"#,
            r#"{"X": [["a"]]}"#,
        ] {
            let text = format!(r#"{{"webhook_url": "http://a", "headers": {headers}}}"#);
            assert!(matches!(error(&text), EnvelopeError::Header(_)), "{headers}");
        }
        assert!(Envelope::parse(&[0xff, 0, 0xfe]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Envelope::parse(&bytes);
        }

        #[test]
        fn data_and_headers_arrive_as_they_were(
            data in "[^\\p{C}]{0,40}", number in any::<i64>(), name in "[A-Za-z][A-Za-z0-9-]{0,20}", value in "[ -~]{0,40}",
            unknown in "[a-z]{12}",
        ) {
            prop_assume!(!NOT_OURS.contains(&name.to_lowercase().as_str()));
            let body = serde_json::json!({"text": data, "number": number});
            let text = serde_json::json!({
                "webhook_url": "https://example.com/", "data": body, "headers": {name.as_str(): value}, unknown: 1,
            });
            let envelope = Envelope::parse(text.to_string().as_bytes()).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Value>(&envelope.body.clone().unwrap()).unwrap(), body);
            let headers = http_headers(&envelope.headers).unwrap();
            prop_assert_eq!(headers[name.as_str()].to_str().unwrap(), value);
        }

        #[test]
        fn a_broken_field_never_passes_for_a_good_one(field in "data|headers|method|timeout_ms|webhook_id", cut in 1usize..60) {
            let text = format!(r#"{{"webhook_url": "https://example.com/", "{field}": "#);
            let text = &text[..text.len().min(cut)];
            prop_assert!(Envelope::parse(text.as_bytes()).is_err());
        }
    }
}
