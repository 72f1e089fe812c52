//! Splits a document into blocks, in order, and reads the instructions for the test in its HTML comments.
//!
//! | In the document | Meaning |
//! |---|---|
//! | a block `sql`, `sh`, `ini` or `conf` | run it: with psql, with sh, as lines of postgresql.conf, with `nats-server -t` |
//! | a block `text` | output of the last of these; `…` matches anything, and on a line of its own any number of lines |
//! | a block `json`, or one without a language | do not run it |
//! | `<!-- not run: why -->` | do not run the next block |
//! | `<!-- run by: file -->` | do not run the next block, because this file of the repository does |
//! | `<!-- until: query -->` | wait until the query returns true |
//! | `<!-- sql … -->`, `<!-- sh … -->` | run a block that readers do not see |

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// What the test does with a part of a document.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Sql,
    Sh,
    /// Sets lines of postgresql.conf and restarts the server.
    Ini,
    /// Checks a NATS server configuration.
    Conf,
    /// Waits until the query returns true.
    Until,
    /// Does not run, for the given reason.
    NotRun(String),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub action: Action,
    pub line: usize,
    pub text: String,
    pub expected: Option<String>,
}

impl Step {
    /// The first line with content.
    pub fn first_line(&self) -> &str {
        self.text.lines().find(|line| !line.trim().is_empty()).unwrap_or("")
    }
}

/// The steps of a document. A comment or block that the test does not understand is an error, which names its line.
pub fn steps(document: &str) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    let mut excuse: Option<(usize, String)> = None;
    for (line, part) in parts(document) {
        match part {
            Part::Comment(text) => match comment(&text).map_err(|error| format!("line {line}: {error}"))? {
                Comment::Excuse(why) => excuse = Some((line, why)),
                Comment::Step(action, text) => steps.push(Step {
                    action,
                    line,
                    text,
                    expected: None,
                }),
            },
            Part::Block(info, text) => {
                let excuse = excuse.take().map(|(_, why)| why);
                if let Some(action) = action(&info) {
                    let action = excuse.map_or(action, Action::NotRun);
                    steps.push(Step {
                        action,
                        line,
                        text,
                        expected: None,
                    });
                } else if info == "text" {
                    let step = steps.last_mut().filter(|step| step.expected.is_none());
                    let step = step.ok_or(format!("line {line}: no preceding block that could have printed this"))?;
                    step.expected = Some(text);
                } else if !matches!(info.as_str(), "" | "json") || excuse.is_some() {
                    return Err(format!("line {line}: unknown type of block {info:?}"));
                }
            }
        }
    }
    match excuse {
        Some((line, why)) => Err(format!("line {line}: no block follows the comment {why:?}")),
        None => Ok(steps),
    }
}

fn action(info: &str) -> Option<Action> {
    match info {
        "sql" => Some(Action::Sql),
        "sh" => Some(Action::Sh),
        "ini" => Some(Action::Ini),
        "conf" => Some(Action::Conf),
        _ => None,
    }
}

enum Comment {
    Excuse(String),
    Step(Action, String),
}

fn comment(text: &str) -> Result<Comment, String> {
    let inner = text
        .trim()
        .strip_prefix("<!--")
        .and_then(|text| text.strip_suffix("-->"));
    let inner = inner.ok_or(format!("HTML {text:?}"))?.trim();
    let (word, rest) = inner.split_once([':', '\n']).unwrap_or((inner, ""));
    let rest = rest.trim().to_owned();
    match word.trim() {
        _ if rest.is_empty() => Err(format!("empty comment {inner:?}")),
        "not run" => Ok(Comment::Excuse(rest.split_whitespace().collect::<Vec<_>>().join(" "))),
        "run by" => Ok(Comment::Excuse(format!("run by: {rest}"))),
        "until" => Ok(Comment::Step(Action::Until, rest)),
        "sql" => Ok(Comment::Step(Action::Sql, rest)),
        "sh" => Ok(Comment::Step(Action::Sh, rest)),
        word => Err(format!("unknown comment {word:?}")),
    }
}

enum Part {
    Block(String, String),
    Comment(String),
}

/// Code blocks and HTML comments with their line numbers.
fn parts(document: &str) -> Vec<(usize, Part)> {
    let mut parts = Vec::new();
    let mut open: Option<(usize, Option<String>, String)> = None;
    for (event, range) in Parser::new_ext(document, Options::ENABLE_TABLES).into_offset_iter() {
        let line = || document[..range.start].matches('\n').count() + 1;
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                open = Some((line(), Some(info.to_string()), String::new()));
            }
            // An HTML block may also be an `<img>` or the like, which is not a comment.
            Event::Start(Tag::HtmlBlock) if document[range.clone()].trim_start().starts_with("<!--") => {
                open = Some((line(), None, String::new()));
            }
            Event::Text(text) | Event::Html(text) => {
                if let Some((_, _, sofar)) = &mut open {
                    sofar.push_str(&text);
                }
            }
            Event::End(TagEnd::CodeBlock | TagEnd::HtmlBlock) => match open.take() {
                Some((line, Some(info), text)) => parts.push((line, Part::Block(info, text))),
                Some((line, None, text)) => parts.push((line, Part::Comment(text))),
                None => {}
            },
            _ => {}
        }
    }
    parts
}

#[test]
fn finds_blocks_outputs_and_comments() {
    let found = steps(
        "Text\n\n<!-- until: select true -->\n```sql\nselect 1;\n```\n\n```text\n1\n```\n\n1. list\n\n   <!-- not run: a\n   b -->\n   \
         ```sh\n   make\n   ```\n\n<!-- sql\ncreate table a ();\n-->\n\n```json\n{}\n```\n",
    )
    .unwrap();
    let seen: Vec<_> = found
        .iter()
        .map(|step| (&step.action, step.line, step.text.trim(), step.expected.as_deref()))
        .collect();
    let why = &Action::NotRun("a b".into());
    let expected = [
        (&Action::Until, 3, "select true", None),
        (&Action::Sql, 4, "select 1;", Some("1\n")),
        (why, 16, "make", None),
        (&Action::Sql, 20, "create table a ();", None),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn refuses_what_would_be_passed_over_in_silence() {
    for bad in [
        "```text\n1\n```\n",
        "```bash\nls\n```\n",
        "<!-- note: x -->\n",
        "<!-- not run: x -->\n",
        "<!-- not run: x -->\n```json\n{}\n```\n",
        "```sql\nselect 1\n```\n```text\n1\n```\n```text\n1\n```\n",
    ] {
        assert!(steps(bad).is_err(), "{bad}");
    }
}
