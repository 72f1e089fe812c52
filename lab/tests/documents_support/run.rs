//! Runs the steps of a document on servers of its own.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::nats::{NatsServer, nats_binary};
use lab::paths::Paths;
use lab::postgres::Postgres;
use lab::setup;

use super::output::is_as_shown;
use super::parse::{Action, Step, steps};
use super::root;

/// The database that all documents use.
const DATABASE: &str = "shop";
/// The NATS address that documents use.
const NATS_URL: &str = "nats://localhost:4222";
/// The folder of PostgreSQL's programs that documents use.
const PG_BIN: &str = "/usr/lib/postgresql/15/bin";
/// The file with the addresses of the servers that `make up` starts.
const ENV_FILE: &str = "target/lab/env";
/// Longest wait of a step `until`.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest run of a block, in seconds.
const LIMIT: &str = "600";

/// The servers that the reader of a document has. If the document creates the extension, it starts with a plain
/// PostgreSQL.
struct Reader {
    postgres: Postgres,
    nats: NatsServer,
    paths: Paths,
    scratch: PathBuf,
}

/// Runs a document. Panics with the block that differs, its line, and the difference.
pub fn run(name: &str) {
    let text = fs::read_to_string(root().join(name)).unwrap();
    let steps = steps(&text).unwrap_or_else(|error| panic!("{name}, {error}"));
    if steps.iter().all(|step| matches!(step.action, Action::NotRun(_))) {
        return;
    }
    let begins = |step: &Step| step.action == Action::Sql && step.text.contains("create extension pg_jetstream;");
    let mut reader = Reader::start(steps.iter().any(begins));
    let mut failure = None;
    for step in &steps {
        let begin = Instant::now();
        let result = reader.step(step);
        let took = begin.elapsed().as_secs_f64();
        println!("{name}, line {}: {took:.1} s  {}", step.line, step.first_line());
        if let Err(error) = result {
            let log = reader.postgres.log_tail();
            failure = Some(format!(
                "line {}: {error}\n--- block\n{}\n--- log\n{log}",
                step.line, step.text
            ));
            break;
        }
    }
    reader.make_down();
    // Drops the servers before the panic, which would make them keep their files.
    drop(reader);
    if let Some(failure) = failure {
        panic!("{name}, {failure}");
    }
}

impl Reader {
    fn start(from_nothing: bool) -> Reader {
        let nats = NatsServer::start().unwrap();
        let mut postgres = Postgres::builder();
        postgres = match from_nothing {
            true => postgres
                .set("shared_preload_libraries", "")
                .set("pg_jetstream.databases", ""),
            false => postgres.set("pg_jetstream.databases", DATABASE),
        };
        let reader = Reader {
            postgres: postgres.start().unwrap(),
            scratch: nats.dir().to_owned(),
            nats,
            paths: Paths::ready().unwrap(),
        };
        reader.postgres.sql("postgres", "create database shop").unwrap();
        if !from_nothing {
            reader.postgres.sql(DATABASE, "create extension pg_jetstream").unwrap();
            let point = format!("update jetstream.connections set url = '{}'", reader.nats.url());
            reader.postgres.sql(DATABASE, &point).unwrap();
        }
        reader
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let output = match step.action {
            Action::NotRun(_) => return Ok(()),
            Action::Until => return self.until(&step.text),
            Action::Ini => return self.configure(&step.text),
            Action::Sql => self.sql(step),
            Action::Sh => self.command("sh").args(["-eu", "-c", &self.here(&step.text)]).output(),
            Action::Conf => self.nats_configuration(&step.text),
        };
        let output = output.map_err(|error| error.to_string())?;
        let printed = [output.stdout, output.stderr].concat();
        let printed = self.as_written(&String::from_utf8_lossy(&printed));
        match &step.expected {
            Some(expected) if is_as_shown(expected, &printed) => Ok(()),
            Some(expected) => Err(format!("prints\n{printed}--- and not\n{expected}")),
            None if output.status.success() => Ok(()),
            None => Err(format!("failed with {}:\n{printed}", output.status)),
        }
    }

    /// Runs psql, which stops at the first error unless the document shows an error.
    fn sql(&self, step: &Step) -> std::io::Result<std::process::Output> {
        let mut psql = self.command("sh");
        let stop = match step.expected.as_ref().is_some_and(|text| text.contains("ERROR:")) {
            true => "",
            false => "-v ON_ERROR_STOP=1",
        };
        psql.args(["-c", &format!("exec psql -X -q {stop} 2>&1")]);
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let text = self.here(&step.text);
        child.stdin.take().expect("piped").write_all(text.as_bytes())?;
        child.wait_with_output()
    }

    fn until(&self, query: &str) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            let answer = self.postgres.value(DATABASE, query);
            match answer {
                Ok(value) if value == "t" => return Ok(()),
                answer if begin.elapsed() > PATIENCE => return Err(format!("still not true: {answer:?}")),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Sets lines of postgresql.conf. PostgreSQL must accept each of them as written.
    fn configure(&mut self, text: &str) -> Result<(), String> {
        let lines: Vec<(String, String)> = self.here(text).lines().filter_map(setting).collect();
        let borrowed: Vec<(&str, &str)> = lines.iter().map(|(name, value)| (&**name, &**value)).collect();
        self.postgres.set(&borrowed).map_err(|error| format!("{error:#}"))?;
        self.postgres.restart().map_err(|error| format!("{error:#}"))?;
        for (name, _) in &lines {
            // A setting that no module has defined is a placeholder.
            let known = format!(
                "select count(*) from pg_settings where name = '{name}' and sourcefile is not null \
                 and short_desc <> 'GUC placeholder variable'"
            );
            let known = self
                .postgres
                .value(DATABASE, &known)
                .map_err(|error| format!("{error:#}"))?;
            if known != "1" {
                return Err(format!(
                    "{name} is not a setting, or its value does not come from the file"
                ));
            }
        }
        Ok(())
    }

    fn nats_configuration(&self, text: &str) -> std::io::Result<std::process::Output> {
        let file = self.scratch.join("checked.conf");
        fs::write(&file, text)?;
        Command::new(nats_binary()).arg("-t").arg("-c").arg(file).output()
    }

    /// A program that runs in the repository and finds the servers through the environment. Variables that cargo sets
    /// for a test are removed, because a reader's shell does not have them. With them, build scripts would run again,
    /// and everything that depends on the scripts would be rebuilt.
    fn command(&self, program: &str) -> Command {
        let path = format!(
            "{}:{}",
            self.paths.pg_bin().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut command = setup::cargo(&self.paths, "timeout");
        command
            .args([LIMIT, program])
            .env("PATH", path)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.postgres.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", DATABASE)
            .env("LC_ALL", "C.UTF-8")
            .env("PAGER", "cat")
            .env("SCRATCH", &self.scratch)
            .env("LAB_UP", self.up())
            .env("NATS_URL", self.nats.url())
            .stdin(Stdio::null());
        command
    }

    /// Replaces the addresses and paths of the documents with those of these servers.
    fn here(&self, text: &str) -> String {
        text.replace(NATS_URL, &self.nats.url())
            .replace(PG_BIN, &self.paths.pg_bin().to_string_lossy())
            .replace(ENV_FILE, &self.up().join("env").to_string_lossy())
    }

    /// The folder in which `make up` puts its servers during a test, so that it does not disturb servers of this
    /// checkout.
    fn up(&self) -> PathBuf {
        self.paths.run().join(format!("up-{}", std::process::id()))
    }

    /// Stops servers that a failed block has left running.
    fn make_down(&self) {
        if self.up().exists() {
            let _ = self.command("make").arg("down").output();
        }
    }

    /// The reverse of [`Reader::here`].
    fn as_written(&self, text: &str) -> String {
        text.replace(&self.nats.url(), NATS_URL)
            .replace(&format!("127.0.0.1:{}", self.nats.port()), "localhost:4222")
    }
}

/// Name and value of a line such as `name = 'value'   # remark`.
fn setting(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split('#').next()?.split_once('=')?;
    Some((name.trim().to_owned(), value.trim().trim_matches('\'').to_owned()))
}
