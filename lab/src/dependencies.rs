//! Checks the dependencies in `Cargo.lock` against `deny.toml`, as `cargo deny check licenses bans sources` does: each license
//! is allowed, each crate comes from the registry, none is banned, no requirement is a wildcard. The advisory database is not
//! consulted, because it is not in a package registry.

use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::paths::Paths;
use crate::setup;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What this check reads of `deny.toml`.
#[derive(Debug, Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
}

/// What this check reads of `cargo metadata`.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None for a member of the workspace and a copy in `vendor/`.
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    req: String,
    path: Option<String>,
}

/// Fails with everything that `deny.toml` does not allow; returns how many packages were checked.
pub fn check(paths: &Paths) -> Result<usize> {
    let rules = fs::read_to_string(paths.root.join("deny.toml")).context("cannot read deny.toml")?;
    let rules: Rules = toml::from_str(&rules).context("cannot read deny.toml")?;
    let mut cargo = setup::cargo(paths, std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let output = cargo.args(["metadata", "--format-version", "1", "--locked"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    let wrong = objections(&rules, &metadata);
    if !wrong.is_empty() {
        bail!("deny.toml does not allow:\n  {}", wrong.join("\n  "));
    }
    Ok(metadata.packages.len())
}

fn objections(rules: &Rules, metadata: &Metadata) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let mut object = |why: String| wrong.push(format!("{} {}: {why}", package.name, package.version));
        match &package.license {
            None => object("it names no license".to_owned()),
            Some(license) if allowed(license, &rules.licenses.allow) => {}
            Some(license) => object(format!("its license is {license}")),
        }
        match &package.source {
            // A member of the workspace, or a copy in vendor/.
            None => {
                for each in package
                    .dependencies
                    .iter()
                    .filter(|each| each.req == "*" && each.path.is_none())
                {
                    object(format!("it takes any version of {}", each.name));
                }
            }
            Some(source) if source != REGISTRY => object(format!("it comes from {source}")),
            Some(_) => {}
        }
        if rules.bans.deny.iter().any(|banned| banned.name == package.name) {
            object("it is banned".to_owned());
        }
    }
    wrong
}

/// Whether an SPDX expression can be met by the allowed licenses. `/` is an old way to write `OR`.
fn allowed(expression: &str, allow: &[String]) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut parser = Expression { words, at: 0, allow };
    let met = parser.any_of();
    // What was not understood is not allowed.
    met && parser.at == parser.words.len()
}

struct Expression<'a> {
    words: Vec<&'a str>,
    at: usize,
    allow: &'a [String],
}

impl Expression<'_> {
    fn takes(&mut self, word: &str) -> bool {
        let found = self.words.get(self.at) == Some(&word);
        self.at += usize::from(found);
        found
    }

    fn any_of(&mut self) -> bool {
        let mut met = self.all_of();
        while self.takes("OR") {
            met |= self.all_of();
        }
        met
    }

    fn all_of(&mut self) -> bool {
        let mut met = self.one();
        while self.takes("AND") {
            met &= self.one();
        }
        met
    }

    fn one(&mut self) -> bool {
        if self.takes("(") {
            let met = self.any_of();
            return self.takes(")") && met;
        }
        let mut name = match self.words.get(self.at) {
            Some(word) => (*word).to_owned(),
            None => return false,
        };
        self.at += 1;
        if self.takes("WITH") {
            name = format!("{name} WITH {}", self.words.get(self.at).unwrap_or(&""));
            self.at += 1;
        }
        self.allow.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licenses_are_expressions() {
        let allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for (expression, met) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("MIT OR GPL-3.0-only", true),
            ("GPL-3.0-only/MIT", true),
            ("MIT AND GPL-3.0-only", false),
            ("(MIT OR GPL-2.0) AND Apache-2.0", true),
            ("(MIT OR GPL-2.0) AND BSL-1.0", false),
            ("GPL-2.0 OR MIT AND Apache-2.0", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT WITH LLVM-exception", false),
            ("", false),
            ("(MIT", false),
            ("MIT Apache-2.0", false),
        ] {
            assert_eq!(allowed(expression, &allow), met, "{expression}");
        }
    }

    #[test]
    fn each_rule_objects() {
        let rules = "[licenses]\nallow = ['MIT']\n[bans]\ndeny = [{ crate = 'openssl-sys' }]";
        let rules: Rules = toml::from_str(rules).unwrap();
        let package = |name: &str, license: Option<&str>, source: Option<&str>| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
            dependencies: ["*", "1"]
                .map(|req| Dependency {
                    name: "x".into(),
                    req: req.into(),
                    path: None,
                })
                .into(),
        };
        let git = Some("git+https://example.com/x");
        let packages = vec![
            package("fine", Some("MIT"), Some(REGISTRY)),
            package("copyleft", Some("GPL-3.0-only"), Some(REGISTRY)),
            package("silent", None, Some(REGISTRY)),
            package("elsewhere", Some("MIT"), git),
            package("openssl-sys", Some("MIT"), Some(REGISTRY)),
            package("member", Some("MIT"), None),
        ];
        assert_eq!(
            objections(&rules, &Metadata { packages }),
            [
                "copyleft 1.0.0: its license is GPL-3.0-only",
                "silent 1.0.0: it names no license",
                "elsewhere 1.0.0: it comes from git+https://example.com/x",
                "openssl-sys 1.0.0: it is banned",
                "member 1.0.0: it takes any version of x",
            ]
        );
    }
}
