//! Checks META.json against the PGXN Meta Spec 1.0.0 (https://pgxn.org/meta/spec.txt).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use lab::paths::Paths;
use lab::release;
use serde_json::Value;

/// License names in the specification.
const LICENSES: [&str; 14] = [
    "agpl_3",
    "apache_1_1",
    "apache_2_0",
    "artistic_1",
    "artistic_2",
    "bsd",
    "freebsd",
    "gpl_2",
    "gpl_3",
    "lgpl_2_1",
    "lgpl_3_0",
    "mit",
    "mozilla_1_1",
    "postgresql",
];

/// A term has two characters or more, without spaces, slashes and control characters.
fn is_term(text: &str) -> bool {
    text.chars().count() >= 2 && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/' || c == '\\')
}

/// Three numbers, as in Semantic Versioning.
fn is_version(text: &str) -> bool {
    let main = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = main.split('.').collect();
    parts.len() == 3
        && parts
            .iter()
            .all(|part| part.parse::<u32>().is_ok_and(|number| number.to_string() == *part))
}

/// The errors in the file.
fn problems(meta: &Value, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |good: bool, what: &str| {
        if !good {
            found.push(what.to_owned());
        }
    };
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    check(is_term(&text(meta, "name")), "name");
    check(is_version(&text(meta, "version")), "version");
    check(!text(meta, "abstract").is_empty(), "abstract");
    let maintainers = match &meta["maintainer"] {
        Value::Array(list) => !list.is_empty() && list.iter().all(|one| one.as_str().is_some_and(|s| !s.is_empty())),
        one => one.as_str().is_some_and(|one| !one.is_empty()),
    };
    check(maintainers, "maintainer");
    check(LICENSES.contains(&text(meta, "license").as_str()), "license");
    check(text(&meta["meta-spec"], "version") == "1.0.0", "meta-spec.version");
    let spec = text(&meta["meta-spec"], "url");
    check(
        spec.is_empty() || spec.ends_with("//pgxn.org/meta/spec.txt"),
        "meta-spec.url",
    );
    let provides = meta["provides"].as_object().cloned().unwrap_or_default();
    check(!provides.is_empty(), "provides");
    for (name, extension) in &provides {
        check(is_term(name), "the name of an extension");
        check(is_version(&text(extension, "version")), "the version of an extension");
        check(exists(&text(extension, "file")), "the file of an extension");
        let document = text(extension, "docfile");
        check(document.is_empty() || exists(&document), "the document of an extension");
    }
    let tags = meta["tags"].as_array().cloned().unwrap_or_default();
    let is_tag = |tag: &Value| {
        tag.as_str()
            .is_some_and(|tag| !tag.is_empty() && !tag.contains(['/', '\\']) && tag.len() < 256)
    };
    check(tags.iter().all(is_tag), "tags");
    found
}

#[test]
fn meta_json_is_what_pgxn_takes() {
    let paths = Paths::find().unwrap();
    let text = std::fs::read_to_string(paths.root.join("META.json")).unwrap();
    let meta: Value = serde_json::from_str(&text).unwrap();
    let exists = |file: &str| !file.is_empty() && paths.root.join(file).is_file();
    assert_eq!(problems(&meta, exists), Vec::<String>::new());
    let version = release::version(&paths).unwrap();
    assert_eq!(meta["version"], version.as_str());
    assert_eq!(meta["provides"]["pg_jetstream"]["version"], version.as_str());

    for field in [
        "name",
        "version",
        "abstract",
        "maintainer",
        "license",
        "provides",
        "meta-spec",
    ] {
        let mut without = meta.clone();
        without.as_object_mut().unwrap().remove(field);
        assert!(!problems(&without, exists).is_empty(), "{field} is required");
    }
}
