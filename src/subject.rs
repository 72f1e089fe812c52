//! Subjects: what may be published to, and matching against patterns. Free of PostgreSQL.

use thiserror::Error;

/// The longest accepted subject, in bytes.
pub const MAX_SUBJECT_BYTES: usize = 255;

/// First tokens that belong to the server: publishing there would call its interface instead of storing a message.
const RESERVED: [&str; 3] = ["$JS", "$SYS", "_INBOX"];

/// Why a subject is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SubjectError {
    /// The empty string.
    #[error("subject is empty")]
    Empty,
    /// Longer than [`MAX_SUBJECT_BYTES`].
    #[error("subject of {0} bytes is too long: \"{1}…\"")]
    TooLong(usize, String),
    /// Nothing between two dots, or a dot at an end.
    #[error("subject \"{0}\" has an empty token")]
    EmptyToken(String),
    /// `*` or `>`.
    #[error("subject \"{0}\" contains the wildcard \"{1}\"")]
    Wildcard(String, char),
    /// Anything that is not printable ASCII; space included.
    #[error("subject {0:?} contains the character {1:?}")]
    Character(String, char),
    /// Begins with a token that belongs to the server.
    #[error("subject \"{0}\" belongs to the server (\"{1}.\")")]
    Reserved(String, &'static str),
}

impl SubjectError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            SubjectError::Empty | SubjectError::EmptyToken(_) => {
                "Write tokens separated by single dots, such as orders.created."
            }
            SubjectError::TooLong(..) => "A subject has at most 255 bytes.",
            SubjectError::Wildcard(..) => {
                "Wildcards belong to subscriptions and streams; publish to one exact subject."
            }
            SubjectError::Character(..) => "Tokens consist of printable ASCII without space, dot, * and >.",
            SubjectError::Reserved(..) => "Choose a subject that does not begin with $JS, $SYS or _INBOX.",
        }
    }
}

/// Checks that one can publish to `subject`: tokens of printable ASCII without `.`, `*`, `>` and space, none empty,
/// at most [`MAX_SUBJECT_BYTES`] in all, not in the server's own name space.
pub fn check(subject: &str) -> Result<(), SubjectError> {
    if subject.is_empty() {
        return Err(SubjectError::Empty);
    }
    if subject.len() > MAX_SUBJECT_BYTES {
        let start: String = subject.chars().take(40).collect();
        return Err(SubjectError::TooLong(subject.len(), start));
    }
    let mut previous = b'.';
    for (at, &byte) in subject.as_bytes().iter().enumerate() {
        match byte {
            b'.' if previous == b'.' => return Err(SubjectError::EmptyToken(subject.into())),
            b'*' | b'>' => return Err(SubjectError::Wildcard(subject.into(), byte as char)),
            b'!'..=b'~' => {}
            _ => {
                let found = subject
                    .get(at..)
                    .and_then(|rest| rest.chars().next())
                    .unwrap_or(char::REPLACEMENT_CHARACTER);
                return Err(SubjectError::Character(subject.into(), found));
            }
        }
        previous = byte;
    }
    if previous == b'.' {
        return Err(SubjectError::EmptyToken(subject.into()));
    }
    let first = subject.split('.').next().unwrap_or(subject);
    match RESERVED.iter().find(|reserved| **reserved == first) {
        Some(reserved) => Err(SubjectError::Reserved(subject.into(), reserved)),
        None => Ok(()),
    }
}

/// Whether `subject` matches `pattern` by the rules of NATS: `*` stands for one token, `>` for one or more at the end.
pub fn matches(subject: &str, pattern: &str) -> bool {
    let mut tokens = subject.split('.');
    let mut wanted = pattern.split('.').peekable();
    while let Some(want) = wanted.next() {
        if want == ">" && wanted.peek().is_none() {
            return tokens.next().is_some();
        }
        match tokens.next() {
            Some(token) if want == "*" || want == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Whether everything that `inner` matches is matched by `outer`.
pub fn covers(outer: &str, inner: &str) -> bool {
    let mut tokens = inner.split('.');
    let mut wanted = outer.split('.').peekable();
    while let Some(want) = wanted.next() {
        let token = tokens.next();
        if want == ">" && wanted.peek().is_none() {
            return token.is_some();
        }
        match token {
            Some(token) if token != ">" && (want == token || want == "*") => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_ordinary_subjects() {
        for subject in [
            "a",
            "orders.created",
            "$KV.bucket.key",
            "a.b-c_d.~!",
            "x".repeat(255).as_str(),
        ] {
            assert_eq!(check(subject), Ok(()), "{subject}");
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        assert_eq!(check(""), Err(SubjectError::Empty));
        assert!(matches!(check(&"x".repeat(256)), Err(SubjectError::TooLong(256, _))));
        for subject in [".a", "a.", "a..b", "."] {
            assert!(matches!(check(subject), Err(SubjectError::EmptyToken(_))), "{subject}");
        }
        assert!(matches!(check("a.*"), Err(SubjectError::Wildcard(_, '*'))));
        assert!(matches!(check("a.>"), Err(SubjectError::Wildcard(_, '>'))));
        assert!(matches!(check("a b"), Err(SubjectError::Character(_, ' '))));
        assert!(matches!(check("a\r\nb"), Err(SubjectError::Character(_, '\r'))));
        assert!(matches!(check("käse"), Err(SubjectError::Character(_, 'ä'))));
        assert!(matches!(
            check("$JS.API.STREAM.DELETE.X"),
            Err(SubjectError::Reserved(_, "$JS"))
        ));
    }

    #[test]
    fn covers_what_it_matches() {
        for (outer, inner) in [
            ("a.>", "a.b"),
            ("a.>", "a.>"),
            ("a.>", "a.*.c"),
            ("a.*", "a.*"),
            ("a.*", "a.b"),
            (">", "a.>"),
        ] {
            assert!(covers(outer, inner), "{outer} {inner}");
        }
        for (outer, inner) in [
            ("a.*", "a.>"),
            ("a.b", "a.*"),
            ("a.>", "a"),
            ("a.*", "a.b.c"),
            ("a.>", ">"),
            ("a.b", "a.b.c"),
        ] {
            assert!(!covers(outer, inner), "{outer} {inner}");
        }
    }

    #[test]
    fn matches_like_nats() {
        assert!(matches("a.b", "a.b"));
        assert!(matches("a.b", "a.*"));
        assert!(matches("a.b.c", "a.>"));
        assert!(matches("a", ">"));
        assert!(!matches("a", "a.>"));
        assert!(!matches("a.b", "a"));
        assert!(!matches("a", "a.b"));
        assert!(!matches("a.b.c", "a.*"));
        assert!(!matches("a.b.c", ">.c"));
    }
}
