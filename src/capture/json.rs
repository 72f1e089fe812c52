//! Writing JSON text. Free of PostgreSQL.

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends `text` as a JSON string. Works on bytes: in every encoding a database can have, bytes below 0x80 that are
/// not ASCII characters do not occur, so that the result has the encoding of `text`.
pub fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let mut plain = 0;
    for (at, &byte) in text.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text[plain..at]);
        plain = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
    }
    out.extend_from_slice(&text[plain..]);
    out.push(b'"');
}

/// `text` as a JSON string.
pub fn quoted(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    string(&mut out, text.as_bytes());
    String::from_utf8_lossy(&out).into_owned()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: impl ExactSizeIterator<Item = u8>) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        for half in [byte >> 4, byte & 15] {
            digits.push(char::from(HEX[usize::from(half)]));
        }
    }
    digits
}

/// Appends bytes as PostgreSQL shows a `bytea`: `"\\x00ff"`.
pub fn bytea(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() * 2 + 5);
    out.extend_from_slice(b"\"\\\\x");
    for byte in bytes {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn strings_come_back_as_they_went() {
        for text in [
            "",
            "plain",
            "\"\\/\u{8}\u{c}\n\r\t\u{1f}\u{7f}",
            "käse 🧀 \u{2028}",
            "a\0b",
        ] {
            let read: String = serde_json::from_str(&quoted(text)).unwrap();
            assert_eq!(read, text);
        }
    }

    #[test]
    fn bytes_are_hexadecimal() {
        let mut out = Vec::new();
        bytea(&mut out, b"\x00\xff");
        assert_eq!(out, br#""\\x00ff""#);
    }
}
