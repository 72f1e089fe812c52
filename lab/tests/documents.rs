//! Every block of SQL, shell and configuration in the documents, run in order as a reader would, on servers of the
//! document's own. `documents_support/parse.rs` says what the documents' HTML comments mean.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod documents_support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use documents_support::parse::{Action, steps};
use documents_support::{links, root, run};

/// A test for each document.
macro_rules! documents {
    ($($name:ident => $file:literal,)*) => {
        const DOCUMENTS: &[&str] = &[$($file),*];
        $(
            #[test]
            fn $name() {
                run::run($file);
            }
        )*
    };
}

documents! {
    readme => "README.md",
    changelog => "CHANGELOG.md",
    contributing => "CONTRIBUTING.md",
    security => "SECURITY.md",
    architecture => "docs/architecture.md",
    capture => "docs/capture.md",
    guarantees => "docs/guarantees.md",
    guide => "docs/guide.md",
    monitoring => "docs/monitoring.md",
    moving => "docs/moving.md",
    operations => "docs/operations.md",
    performance => "docs/performance.md",
    notes_performance => "docs/notes/performance.md",
    reference => "docs/reference.md",
    releasing => "docs/releasing.md",
    webhooks => "docs/webhooks.md",
    examples => "examples/README.md",
    examples_console => "examples/console/README.md",
    examples_consumers => "examples/consumers/README.md",
    examples_monitoring => "examples/monitoring/README.md",
    examples_nats_workers => "examples/nats-workers/README.md",
    examples_nats_workers_go => "examples/nats-workers/go/README.md",
    examples_nats_workers_nodejs => "examples/nats-workers/nodejs/README.md",
    examples_webhook_worker => "examples/webhook-worker/README.md",
}

/// Blocks that are not run here: document, how its first line begins, why.
const NOT_RUN: &[(&str, &str, &str)] = &[
    ("README.md", "apt-get install build-essential", "changes the machine"),
    ("README.md", "make package", "run by: lab/tests/package.rs"),
    ("README.md", "make install", "changes the PostgreSQL of the machine"),
    (
        "CONTRIBUTING.md",
        "lab/run install",
        "builds and tests, which is what this is part of",
    ),
    ("CONTRIBUTING.md", "make fmt lint test", "it is what runs this"),
    (
        "docs/guarantees.md",
        "cargo run -p lab -- setup",
        "run by: lab/tests/major_upgrade.rs",
    ),
    ("docs/guide.md", "nats stream view", "needs the nats command line tool"),
    (
        "docs/monitoring.md",
        "cd examples/monitoring",
        "run by: lab/tests/monitoring.rs",
    ),
    (
        "docs/monitoring.md",
        "cd examples/monitoring",
        "run by: lab/tests/monitoring.rs",
    ),
    ("docs/monitoring.md", "cargo build", "run by: lab/tests/console.rs"),
    (
        "docs/performance.md",
        "make bench",
        "takes hours; lab/tests/bench.rs runs the measurements in small",
    ),
    (
        "docs/releasing.md",
        "cargo run -p lab -- freeze",
        "is done once for each release",
    ),
    (
        "docs/releasing.md",
        "lab/run upgrade-script",
        "writes a file of the repository",
    ),
    ("docs/releasing.md", "make test", "it is what runs this"),
    ("docs/releasing.md", "make package", "run by: lab/tests/package.rs"),
    (
        "examples/README.md",
        "export POSTGRES_PASSWORD",
        "needs a Docker engine; lab/tests/manifests.rs checks the files",
    ),
    (
        "examples/README.md",
        "kubectl apply",
        "needs a Kubernetes cluster; lab/tests/manifests.rs checks the files",
    ),
    (
        "examples/console/README.md",
        "cargo build",
        "run by: lab/tests/console.rs",
    ),
    ("examples/console/README.md", "curl", "run by: lab/tests/console.rs"),
    (
        "examples/console/README.md",
        "cargo test",
        "they are tests of their own",
    ),
    (
        "examples/monitoring/README.md",
        "psql",
        "run by: lab/tests/monitoring.rs",
    ),
    (
        "examples/consumers/README.md",
        "nats consumer add",
        "needs the nats command line tool; lab/tests/e2e_capture_consumers.rs makes this consumer",
    ),
    (
        "examples/nats-workers/go/README.md",
        "go build",
        "run by: lab/tests/e2e_webhook_workers.rs",
    ),
    (
        "examples/nats-workers/nodejs/README.md",
        "npm ci",
        "run by: lab/tests/e2e_webhook_workers.rs",
    ),
    (
        "examples/nats-workers/go/README.md",
        "go test",
        "they are tests of their own",
    ),
    (
        "examples/nats-workers/nodejs/README.md",
        "npm test",
        "they are tests of their own",
    ),
    (
        "examples/webhook-worker/README.md",
        "cargo build",
        "run by: lab/tests/e2e_webhook_workers.rs",
    ),
    (
        "examples/webhook-worker/README.md",
        "cargo test -p webhook-worker",
        "they are tests of their own",
    ),
    (
        "examples/webhook-worker/README.md",
        "cargo test --release",
        "takes minutes",
    ),
];

/// Folders that hold no documents of this repository: built things, and what others have written.
const NO_DOCUMENTS: [&str; 4] = ["target", "node_modules", "data", "vendor"];

/// The Markdown files of a folder and those below it.
fn markdown(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if !NO_DOCUMENTS.iter().any(|other| name == *other) && !name.to_string_lossy().starts_with('.') {
                markdown(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.insert(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn every_document_is_run() {
    let mut found = BTreeSet::new();
    markdown(&root(), &mut found);
    let run: BTreeSet<String> = DOCUMENTS.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, run, "documents there are, and documents that have a test");
}

#[test]
fn only_known_blocks_are_not_run() {
    let mut found = Vec::new();
    for name in DOCUMENTS {
        let text = fs::read_to_string(root().join(name)).unwrap();
        let steps = steps(&text).unwrap_or_else(|error| panic!("{name}, {error}"));
        for step in &steps {
            if let Action::NotRun(why) = &step.action {
                if let Some(file) = why.strip_prefix("run by: ") {
                    assert!(
                        root().join(file).exists(),
                        "{name}: {file} is to run a block and is not there"
                    );
                }
                found.push(((*name).to_owned(), step.first_line().trim().to_owned(), why.clone()));
            }
        }
    }
    println!("{} blocks are not run here:", found.len());
    for (name, line, why) in &found {
        println!("  {name}: {line} ({why})");
    }
    let same = |found: &(String, String, String), known: &(&str, &str, &str)| {
        found.0 == known.0 && found.1.starts_with(known.1) && found.2 == known.2
    };
    let unknown: Vec<_> = found
        .iter()
        .filter(|found| !NOT_RUN.iter().any(|known| same(found, known)))
        .collect();
    assert!(unknown.is_empty(), "not run, and not known here: {unknown:#?}");
    assert_eq!(found.len(), NOT_RUN.len(), "some that are known here are run, or gone");
}

#[test]
fn links_lead_somewhere() {
    let broken: Vec<String> = DOCUMENTS.iter().flat_map(|name| links::broken(name)).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}
