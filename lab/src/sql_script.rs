//! Splits an SQL script into its statements.

/// A statement without its semicolon, and without the comments before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Its text.
    pub text: &'a str,
    /// Line of the script that it begins in, from 1.
    pub line: usize,
}

/// The statements of a script, in its order. Quotes, dollar quotes and comments are passed over as psql does; commands of
/// psql are part of the statement they are in.
pub fn statements(script: &str) -> Vec<Statement<'_>> {
    let mut found = Vec::new();
    let mut start = None;
    let mut at = 0;
    while at < script.len() {
        let rest = &script[at..];
        let (length, counts) = token(rest);
        if rest.starts_with(';') {
            if let Some(start) = start.take() {
                found.push(statement(script, start, at));
            }
        } else if counts && start.is_none() {
            start = Some(at);
        }
        at += length;
    }
    if let Some(start) = start {
        found.push(statement(script, start, script.len()));
    }
    found
}

fn statement(script: &str, start: usize, end: usize) -> Statement<'_> {
    Statement {
        text: script[start..end].trim_end(),
        line: script[..start].matches('\n').count() + 1,
    }
}

/// The length of what the text begins with, and whether that can begin a statement.
fn token(text: &str) -> (usize, bool) {
    let quoted = |quote: &str, from: usize| {
        text[from..]
            .find(quote)
            .map_or(text.len(), |at| from + at + quote.len())
    };
    if text.starts_with("--") {
        (text.find('\n').unwrap_or(text.len()), false)
    } else if text.starts_with("/*") {
        (quoted("*/", 2), false)
    } else if text.starts_with('\'') {
        (quoted("'", 1), true)
    } else if text.starts_with('"') {
        (quoted("\"", 1), true)
    } else if let Some(quote) = dollar_quote(text) {
        (quoted(quote, quote.len()), true)
    } else {
        let first = text.chars().next().map_or(1, char::len_utf8);
        (first, !text.starts_with(char::is_whitespace))
    }
}

/// `$$` or `$name$` at the beginning of the text.
fn dollar_quote(text: &str) -> Option<&str> {
    let name = text.strip_prefix('$')?;
    let end = name.find('$')?;
    let is_name = name[..end].chars().all(|c| c.is_alphabetic() || c == '_');
    is_name.then(|| &text[..end + 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_comments_hide_semicolons() {
        let script =
            "-- one; two\nselect ';', \";\", $$ ; $$;\n/* ; */ do $a$ begin; $b$ end $a$;\n\nselect 'it''s;' -- ;\n, 2";
        let texts: Vec<_> = statements(script).iter().map(|s| (s.line, s.text)).collect();
        assert_eq!(
            texts,
            [
                (2, "select ';', \";\", $$ ; $$"),
                (3, "do $a$ begin; $b$ end $a$"),
                (5, "select 'it''s;' -- ;\n, 2"),
            ]
        );
    }
}
