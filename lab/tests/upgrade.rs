//! Updates the extension to the next version with pending messages. A copy of the sources is built as the version after
//! this one, with an upgrade script of its own, and replaces this one under a running server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e_support::{LATER, SOON, eventually, stream};
use lab::lab::DATABASE;
use lab::paths::Paths;
use lab::{Lab, release, setup, upgrade_script};

/// The additions of the next version, both in a fresh install and in its upgrade script.
const NEXT: &str = "
    alter table jetstream.streams add column note text constraint streams_note_check check (note <> '');
    comment on column jetstream.streams.note is 'What it is for';
    create function jetstream.answer() returns integer language sql immutable as 'select 42';
    comment on function jetstream.answer() is 'The answer';
    revoke all on function jetstream.answer() from public;
    grant execute on function jetstream.answer() to jetstream_reader;
";

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A PostgreSQL with the extension that no other test uses.
fn own_tree(paths: &Paths, folder: &Path) -> Paths {
    run(Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(paths.pg_tree())
        .arg(folder.join("pg")));
    Paths {
        base: folder.to_owned(),
        ..paths.clone()
    }
}

fn next_version(version: &str) -> String {
    let mut numbers: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
    numbers[1] += 1;
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}

/// Builds the next version from a copy of the sources. Returns the folder of its files.
fn build_next(paths: &Paths, folder: &Path, version: &str, next: &str) -> std::path::PathBuf {
    let sources = folder.join("sources");
    fs::create_dir(&sources).unwrap();
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "pg_jetstream.control",
        "src",
        "sql",
        "migrations",
        "vendor",
        "lab",
        "examples",
    ] {
        run(Command::new("cp").arg("-a").arg(paths.root.join(part)).arg(&sources));
    }
    let manifest = fs::read_to_string(sources.join("Cargo.toml")).unwrap();
    let line = |version: &str| format!("name = \"pg_jetstream\"\nversion = \"{version}\"");
    assert!(manifest.contains(&line(version)));
    fs::write(
        sources.join("Cargo.toml"),
        manifest.replace(&line(version), &line(next)),
    )
    .unwrap();
    let last = sources.join("sql/monitoring.sql");
    // The additions can go to the end of this script, because `streams` and `jetstream_reader` are created before it.
    fs::write(&last, fs::read_to_string(&last).unwrap() + NEXT).unwrap();
    fs::write(sources.join(format!("sql/pg_jetstream--{version}--{next}.sql")), NEXT).unwrap();

    let out = folder.join("next");
    let mut build = setup::cargo(paths, paths.cargo_pgrx());
    build.current_dir(&sources).env("CARGO_TARGET_DIR", &paths.target);
    build.args([
        "pgrx",
        "package",
        "--debug",
        "--no-default-features",
        "--features",
        &paths.feature(),
    ]);
    run(build
        .arg("--pg-config")
        .arg(paths.pg_config())
        .arg("--out-dir")
        .arg(&out));
    // The files are in this folder, with the paths that pg_config reports.
    out.join(paths.pg_tree().strip_prefix("/").unwrap())
}

/// Replaces the installed files with those of another version by renaming, as a package manager does.
fn replace_files(from: &Path, tree: &Paths) {
    let base = tree.pg_tree();
    for folder in [tree.pg_lib(), tree.pg_extension()] {
        let source = from.join(folder.strip_prefix(&base).unwrap());
        for file in fs::read_dir(source).unwrap() {
            let file = file.unwrap();
            let new = folder.join("new");
            fs::copy(file.path(), &new).unwrap();
            fs::rename(new, folder.join(file.file_name())).unwrap();
        }
    }
}

fn catalog(lab: &Lab, database: &str) -> BTreeSet<String> {
    let rows = lab.postgres.sql(database, include_str!("data/catalog.sql")).unwrap();
    rows.concat().into_iter().collect()
}

fn assert_same(updated: &BTreeSet<String>, fresh: &BTreeSet<String>, what: &str) {
    let different: Vec<&String> = updated.symmetric_difference(fresh).collect();
    assert!(
        different.is_empty(),
        "{what}: updated and fresh differ in {different:#?}"
    );
}

fn put(lab: &Lab, database: &str, from: u32, to: u32) {
    let insert = format!(
        "insert into jetstream.outbox (subject, payload, key) \
         select 'up.{database}.' || n % 3, to_jsonb(n), 'k' || n % 3 from generate_series({from}, {to}) n"
    );
    lab.postgres.sql(database, &insert).unwrap();
}

fn state(lab: &Lab, database: &str) -> anyhow::Result<String> {
    lab.postgres.value(database, "select state from jetstream.status()")
}

fn says(lab: &Lab, database: &str, text: &str) {
    eventually(lab, SOON, text, || Ok(state(lab, database)?.contains(text)));
    assert!(lab.postgres.log_contains(&format!(
        "WARNING:  pg_jetstream: database \"{database}\": waiting: {text}"
    )));
}

fn drained(lab: &Lab, database: &str) {
    eventually(lab, LATER, "the outbox is empty", || {
        Ok(lab.postgres.value(database, "select count(*) from jetstream.outbox")? == "0")
    });
}

/// Checks that all messages of a database are in the stream, once and in order per key.
fn complete(lab: &Lab, database: &str, last: u64) {
    let mut by_subject: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for message in lab.stream_messages("UP").unwrap() {
        by_subject
            .entry(message.subject.clone())
            .or_default()
            .push(message.json().unwrap().as_u64().unwrap());
    }
    for key in 0..3 {
        let expected: Vec<u64> = (1..=last).filter(|n| n % 3 == key).collect();
        assert_eq!(by_subject[&format!("up.{database}.{key}")], expected);
    }
}

#[test]
fn an_update_under_a_running_worker_loses_nothing() {
    let paths = Paths::ready().unwrap();
    let version = release::version(&paths).unwrap();
    let next = next_version(&version);
    fs::create_dir_all(paths.run()).unwrap();
    let folder = tempfile::Builder::new()
        .prefix("upgrade-")
        .tempdir_in(paths.run())
        .unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let tree = own_tree(&paths, folder.path());
    let files = build_next(&paths, folder.path(), &version, &next);
    // The scripts that users of released versions have. Until this version is released, its script is the installed one.
    let released = release::frozen(&release::folder(&paths)).unwrap();
    for (_, script) in &released {
        fs::copy(script, tree.pg_extension().join(script.file_name().unwrap())).unwrap();
    }

    let mut lab = Lab::builder()
        .nats_extra("max_payload: 65536")
        .configure(|postgres| postgres.of(tree.clone()).set("pg_jetstream.databases", "postgres,late"))
        .start()
        .unwrap();
    stream(&lab, "UP", "up.>");
    put(&lab, DATABASE, 1, 300);
    drained(&lab, DATABASE);
    lab.sql("select jetstream.publish('up.large', to_jsonb(repeat('x', 100000)))")
        .unwrap();
    eventually(&lab, SOON, "there is a dead letter", || {
        Ok(lab.value("select count(*) from jetstream.dead_letters")? == "1")
    });
    lab.nats.pause().unwrap();
    put(&lab, DATABASE, 301, 600);
    eventually(&lab, SOON, "messages are in flight", || {
        Ok(lab.value("select in_flight > 0 from jetstream.status()")? == "t")
    });

    // The SQL objects are new, the loaded library is old.
    replace_files(&files, &tree);
    lab.sql("alter extension pg_jetstream update").unwrap();
    says(
        &lab,
        DATABASE,
        &format!("extension is version {next}, library {version}; restart PostgreSQL"),
    );
    lab.nats.resume().unwrap();
    put(&lab, DATABASE, 601, 900);
    std::thread::sleep(Duration::from_secs(2));
    assert!(state(&lab, DATABASE).unwrap().starts_with("waiting: extension"));
    let owed: u32 = lab
        .value("select count(*) from jetstream.outbox")
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(owed, 600, "messages were claimed or settled");
    lab.postgres.restart().unwrap();
    drained(&lab, DATABASE);
    complete(&lab, DATABASE, 900);
    assert_eq!(lab.value("select count(*) from jetstream.dead_letters").unwrap(), "1");
    let history = lab
        .value("select count(*) from jetstream.history where success")
        .unwrap();
    assert!(history.parse::<u32>().unwrap() >= 900, "{history}");

    // The SQL objects are those of each released version, the library is new.
    lab.sql("create database fresh").unwrap();
    lab.postgres.sql("fresh", "create extension pg_jetstream").unwrap();
    let fresh = catalog(&lab, "fresh");
    for part in ["function jetstream.answer()", "streams_note_check", "streams note"] {
        assert!(fresh.iter().any(|line| line.contains(part)), "{part} in {fresh:#?}");
    }
    assert_same(&catalog(&lab, DATABASE), &fresh, &format!("{version} to {next}"));
    let mut versions: Vec<String> = released.into_iter().map(|(version, _)| version).collect();
    versions.push(version);
    versions.dedup();
    for old in versions {
        lab.sql("create database late").unwrap();
        let create = format!(
            "create extension pg_jetstream version '{old}';
             update jetstream.connections set url = '{}' where name = 'default'",
            lab.nats.url()
        );
        lab.postgres.sql("late", &create).unwrap();
        assert_ne!(catalog(&lab, "late"), fresh, "{old}");
        put(&lab, "late", 1, 300);
        says(
            &lab,
            "late",
            &format!("extension is version {old}, library {next}; run alter extension pg_jetstream update"),
        );
        lab.postgres.sql("late", "alter extension pg_jetstream update").unwrap();
        drained(&lab, "late");
        complete(&lab, "late", 300);
        assert_same(&catalog(&lab, "late"), &fresh, &format!("{old} to {next}"));
        lab.postgres.set(&[("pg_jetstream.databases", DATABASE)]).unwrap();
        lab.sql("drop database late with (force)").unwrap();
        lab.postgres
            .set(&[("pg_jetstream.databases", "postgres,late")])
            .unwrap();
        // The messages of the next version have the same numbers.
        lab.jetstream(async |context| {
            context.get_stream("UP").await?.purge().await?;
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn what_is_released_is_what_is_installed() {
    let paths = Paths::ready().unwrap();
    let version = release::version(&paths).unwrap();
    let installed = fs::read_to_string(release::installed_script(&paths, &version)).unwrap();
    for (released, script) in release::frozen(&release::folder(&paths)).unwrap() {
        if released == version {
            let script = fs::read_to_string(script).unwrap();
            let (released, installed) = (release::parts(&script), release::parts(&installed));
            let different: Vec<_> = released.symmetric_difference(&installed).collect();
            assert!(
                different.is_empty(),
                "{version} is released, but these parts differ, so raise the version in Cargo.toml: {different:#?}"
            );
        }
    }
}

#[test]
fn the_upgrade_script_is_what_the_sources_say() {
    let paths = Paths::ready().unwrap();
    if let Some((file, script)) = upgrade_script::make(&paths).unwrap() {
        let written = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            upgrade_script::same(&written, &script),
            "{} is out of date: run `lab/run upgrade-script`",
            file.display()
        );
    }
}
