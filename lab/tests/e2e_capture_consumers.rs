//! Runs the consumers of the change streamer's document against `jetstream.capture`, unchanged except for the server's
//! address. They require node, npm, go and python3 on the machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod capture_support;
mod e2e_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use capture_support::{capture_lab, settled};
use e2e_support::{SOON, eventually, synced};
use lab::Lab;

/// A copy of an example in target/ with the address of the lab's server. The copy keeps its installed packages between
/// runs.
fn copy(lab: &Lab, example: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let to = root.join("target/examples").join(example);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(root.join("examples").join(example)).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let text = text
            .replace("nats://localhost:4222", &lab.nats.url())
            .replace("nats.DefaultURL", &format!("{:?}", lab.nats.url()));
        fs::write(to.join(path.file_name().unwrap()), text).unwrap();
    }
    to
}

fn run(directory: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// A running consumer. Dropping it stops it.
struct Consumer(Child, PathBuf);

impl Consumer {
    fn start(directory: &Path, program: &Path, arguments: &[&str]) -> Consumer {
        let log = directory.join("output.log");
        let file = fs::File::create(&log).unwrap();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(directory)
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null());
        Consumer(
            command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap(),
            log,
        )
    }

    fn says(&self, lab: &Lab, texts: &[&str]) {
        let output = || fs::read_to_string(&self.1).unwrap();
        eventually(lab, SOON, &format!("the consumer prints {texts:?}"), || {
            let missing: Vec<_> = texts.iter().filter(|text| !output().contains(**text)).collect();
            anyhow::ensure!(missing.is_empty(), "it lacks {missing:?} and says:\n{}", output());
            Ok(true)
        });
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn users() -> Lab {
    let lab = capture_lab();
    lab.sql("create table users (id int primary key, name text, email text); select jetstream.capture('users')")
        .unwrap();
    synced(&lab, "postgres_replication");
    lab
}

fn changes(lab: &Lab) {
    lab.sql(
        "insert into users values (1, 'Alice', 'alice@example.com'); update users set name = 'Al'; delete from users",
    )
    .unwrap();
    settled(lab, SOON);
}

/// A Python environment with the requirements of the example.
fn python_of(directory: &Path) -> PathBuf {
    if !directory.join("venv/bin/python").exists() {
        run(directory, "python3", &["-m", "venv", "venv"]);
    }
    let python = directory.join("venv/bin/python");
    run(
        directory,
        python.to_str().unwrap(),
        &[
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "-r",
            "requirements.txt",
        ],
    );
    python
}

#[test]
fn python() {
    let lab = users();
    let directory = copy(&lab, "consumers/python");
    let python = python_of(&directory);
    let consumer = Consumer::start(&directory, &python, &["consumer.py"]);
    consumer.says(&lab, &["Listening"]);
    changes(&lab);
    consumer.says(
        &lab,
        &[
            "New record: {'relation_id': ",
            "'new_tuple': {'id': '1', 'name': 'Alice', 'email': 'alice@example.com'}",
            "Updated record: {",
            "Deleted record: {",
            "'old_tuple': {'id': '1', 'name': 'Al'",
        ],
    );
}

#[test]
fn node() {
    let lab = users();
    let directory = copy(&lab, "consumers/node");
    run(&directory, "npm", &["ci", "--silent", "--no-audit", "--no-fund"]);
    lab.jetstream(async |context| {
        let stream = context.get_stream("postgres_replication").await?;
        let config = pull::Config {
            durable_name: Some("user_processor".into()),
            filter_subject: "postgres.public.users.*".into(),
            ..Default::default()
        };
        stream.create_consumer(config).await?;
        Ok(())
    })
    .unwrap();
    let consumer = Consumer::start(&directory, Path::new("node"), &["consumer.js"]);
    consumer.says(&lab, &["Listening"]);
    changes(&lab);
    consumer.says(
        &lab,
        &[
            "New record: {",
            "name: 'Alice'",
            "Updated record: {",
            "Deleted record: {",
        ],
    );
}

#[test]
fn go() {
    let lab = users();
    let directory = copy(&lab, "consumers/go");
    run(&directory, "go", &["build", "-o", "consumer", "."]);
    let consumer = Consumer::start(&directory, &directory.join("consumer"), &[]);
    consumer.says(&lab, &["Listening"]);
    changes(&lab);
    consumer.says(
        &lab,
        &[
            "Received: map[Insert:map[",
            " new_tuple:map[email:alice@example.com id:1 name:Alice]",
            "map[Update:map[",
            "map[Delete:map[",
        ],
    );
}

/// Checks that the result of each use case follows the table.
#[test]
fn use_cases() {
    let lab = users();
    let directory = copy(&lab, "capture");
    let python = python_of(&directory);
    let search = Consumer::start(
        &directory,
        &python,
        &["search_index.py", "postgres.public.users.*", "alice"],
    );
    search.says(&lab, &["listening"]);
    lab.sql("insert into users values (1, 'Alice', 'alice@example.com'), (2, 'Bob', null)")
        .unwrap();
    search.says(&lab, &["found: ['1']"]);
    lab.sql("update users set email = 'alice@example.org' where id = 2")
        .unwrap();
    search.says(&lab, &["found: ['1', '2']"]);
    lab.sql("delete from users where id = 1").unwrap();
    search.says(&lab, &["found: ['2']"]);
    settled(&lab, Duration::from_secs(30));
    // The directory outlives the test, and the example appends to the file.
    let log = directory.join("audit.jsonl");
    let _ = fs::remove_file(&log);
    run(&directory, python.to_str().unwrap(), &["audit_log.py", "audit.jsonl"]);
    let lines = fs::read_to_string(log).unwrap();
    assert_eq!(
        lines
            .lines()
            .filter(|line| line.contains("\"table\": \"users\""))
            .count(),
        5,
        "{lines}"
    );
}

/// Checks that the bucket's stream holds what the table holds.
#[test]
fn a_key_value_bucket_follows_a_table() {
    let lab = capture_lab();
    lab.sql("select jetstream.create_stream('KV_products', array['$KV.products.>'])")
        .unwrap();
    synced(&lab, "KV_products");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/capture/cache_invalidation.sql");
    lab.sql(&fs::read_to_string(file).unwrap()).unwrap();
    lab.sql("insert into products values (1, 'tea', 2.50), (2, 'pot', 20), (3, 'cup', 4)")
        .unwrap();
    lab.sql("update products set price = 3 where id = 1; delete from products where id = 2; update products set id = 4 where id = 3")
        .unwrap();
    settled(&lab, SOON);
    let mut last = std::collections::BTreeMap::new();
    for message in lab.stream_messages("KV_products").unwrap() {
        last.insert(message.subject.clone(), message);
    }
    assert_eq!(
        last["$KV.products.1"].json().unwrap(),
        serde_json::json!({"id": 1, "name": "tea", "price": 3})
    );
    assert_eq!(last["$KV.products.4"].json().unwrap()["name"], "cup");
    for gone in ["$KV.products.2", "$KV.products.3"] {
        assert_eq!(last[gone].header("KV-Operation"), Some("DEL"), "{gone}");
    }
}
