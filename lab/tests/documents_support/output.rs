//! Compares the output of a block with the output in the document.

/// Whether the output matches the document. Spaces, lengths of rules and empty lines are ignored. `…` matches anything,
/// and on a line of its own any number of lines.
pub fn is_as_shown(shown: &str, output: &str) -> bool {
    let (shown, output) = (lines(shown), lines(output));
    lines_match(&shown, &output)
}

fn lines(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let mut line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        while line.contains("--") {
            line = line.replace("--", "-");
        }
        line
    };
    text.lines().map(line).filter(|line| !line.is_empty()).collect()
}

fn lines_match(shown: &[String], output: &[String]) -> bool {
    match shown.split_first() {
        None => output.is_empty(),
        Some((any, rest)) if any == "…" => (0..=output.len()).any(|from| lines_match(rest, &output[from..])),
        Some((first, rest)) => output
            .split_first()
            .is_some_and(|(line, others)| line_matches(first, line) && lines_match(rest, others)),
    }
}

fn line_matches(shown: &str, line: &str) -> bool {
    match shown.split_once('…') {
        None => shown == line,
        Some((before, after)) => line.strip_prefix(before).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.into_iter().any(|at| line_matches(after, &rest[at..]))
        }),
    }
}

#[test]
fn compares_but_for_what_varies() {
    let shown = " id | name \n----+------\n  1 | …x\n…\n(2 rows)\n";
    assert!(is_as_shown(
        shown,
        "  id | name\n-----+---------\n 1 |  abcx\n 2 | b\n(2 rows)\n\n"
    ));
    assert!(is_as_shown(shown, " id | name\n--+--\n 1 | x\n(2 rows)"));
    assert!(!is_as_shown(shown, " id | name\n--+--\n 1 | y\n(2 rows)"));
    assert!(!is_as_shown(shown, " id | name\n--+--\n 1 | x\n(3 rows)"));
    assert!(!is_as_shown(shown, " id | name\n--+--\n 1 | x\n(2 rows)\n more"));
    assert!(!is_as_shown("a", ""));
    assert!(is_as_shown("a …", "a b c"));
    assert!(!is_as_shown("a …", "b c"));
}
