//! Links from a document to files in the repository.

use std::fs;
use std::path::Path;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::root;

/// Links to files or headings that do not exist.
pub fn broken(name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(name)).unwrap();
    let folder = root().join(name).parent().expect("a file has a folder").to_owned();
    let mut broken = Vec::new();
    for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
        let (Event::Start(Tag::Link { dest_url: target, .. }) | Event::Start(Tag::Image { dest_url: target, .. })) =
            event
        else {
            continue;
        };
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
        let path = match file {
            "" => root().join(name),
            file => folder.join(file),
        };
        if !path.exists() || !heading.is_empty() && !headings(&path).iter().any(|known| known == heading) {
            broken.push(format!("{name}: {target}"));
        }
    }
    broken
}

/// The anchors that a forge creates for the headings of a document.
fn headings(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut found: Vec<String> = Vec::new();
    let mut heading: Option<String> = None;
    for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => found.extend(heading.take().map(|text| anchor(&text))),
            _ => {}
        }
    }
    found
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
