//! Checks Dockerfiles, the compose file and the Kubernetes manifests of `examples/`, as far as possible without a
//! Docker engine or a cluster. A missing tool is a failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod e2e_support;

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e_support::synced;
use lab::paths::Paths;
use lab::{Lab, tools};
use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(name: &str) -> PathBuf {
    repository().join("examples/kubernetes").join(name)
}

/// Output of a command, and whether it succeeded.
fn output(command: &mut Command) -> (bool, String) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn succeeds(command: &mut Command) -> String {
    let (success, text) = output(command);
    assert!(success, "{command:?}:\n{text}");
    text
}

fn paths() -> Paths {
    Paths::ready().unwrap()
}

/// A YAML file as JSON, one value for each document.
fn documents(file: &Path) -> Vec<Value> {
    let code = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let text = succeeds(tools::python(&paths()).unwrap().args(["-c", code]).arg(file));
    serde_json::from_str(&text).unwrap()
}

/// A copy of a manifest in which one word is replaced.
fn spoiled(file: &Path, word: &str, by: &str) -> tempfile::NamedTempFile {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(word), "{} has no {word}", file.display());
    let copy = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(copy.path(), text.replace(word, by)).unwrap();
    copy
}

/// Each Dockerfile, and the folder it is built from.
const DOCKERFILES: [(&str, &str); 4] = [
    ("Dockerfile", "."),
    ("examples/webhook-worker/Dockerfile", "."),
    ("examples/nats-workers/go/Dockerfile", "examples/nats-workers/go"),
    (
        "examples/nats-workers/nodejs/Dockerfile",
        "examples/nats-workers/nodejs",
    ),
];

#[test]
fn dockerfiles_pass_the_linter() {
    let files = DOCKERFILES.map(|(file, _)| file);
    // The archives of Debian and Alpine keep no version one could pin.
    let mut lint = tools::hadolint(&paths()).unwrap();
    lint.args(["--ignore", "DL3008", "--ignore", "DL3018"]);
    succeeds(lint.args(files).current_dir(repository()));
    let bad = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bad.path(), "FROM debian:latest\nRUN cd / && ls\n").unwrap();
    assert!(
        !output(tools::hadolint(&paths()).unwrap().arg(bad.path())).0,
        "the linter finds nothing"
    );
}

/// The instructions of a Dockerfile's last stage, continued lines joined.
fn last_stage(file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repository().join(file)).unwrap();
    let text = text.replace("\\\n", " ");
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    let start = lines.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    lines[start..].to_vec()
}

#[test]
fn images_trust_public_certificates_and_end_on_a_signal() {
    for (file, context) in DOCKERFILES {
        let stage = last_stage(file);
        let has = |what: &str| stage.iter().any(|line| line.contains(what));
        let begins = |what: &str| stage.iter().find(|line| line.starts_with(what));
        assert!(has("ca-certificates"), "{file} has no certificates");
        let folder = repository().join(context);
        for line in &stage {
            let mut words = line.split(' ').skip(1).filter(|word| !word.starts_with("--chown"));
            if line.starts_with("COPY ") && !line.contains("--from=") {
                let source = words.next().unwrap();
                assert!(
                    source.contains('*') || folder.join(source).exists(),
                    "{file}: no {source}"
                );
            }
        }
        let ignored = std::fs::read_to_string(folder.join(".dockerignore")).unwrap();
        let secrets = ignored.lines().any(|line| line.ends_with(".env"));
        assert!(secrets, "{file}: .env would be part of the image");
        // PostgreSQL's image starts as root, which hands over to postgres, and has its own entry point.
        if file == "Dockerfile" {
            continue;
        }
        let user = begins("USER ").unwrap_or_else(|| panic!("{file} runs as root"));
        assert!(!user.contains("root") && *user != "USER 0", "{file}: {user}");
        // A shell or npm in between would keep the signal to itself.
        let start = begins("ENTRYPOINT ").unwrap();
        assert!(
            start.contains("[\"") && !start.contains("npm") && !start.contains("\"sh\""),
            "{file}: {start}"
        );
        assert!(
            begins("HEALTHCHECK ").is_some() && has("HTTP_LISTEN=0.0.0.0:8080"),
            "{file}"
        );
        assert!(has("tzdata"), "{file} knows no time zones");
    }
}

/// A server that is killed while it writes has to recover; a call that is killed is made again.
#[test]
fn everything_gets_the_time_it_needs_to_end() {
    let file = repository().join("examples/compose.yaml");
    let variables = [("POSTGRES_PASSWORD", "p"), ("WORKER_PASSWORD", "w")];
    let model: Value = serde_json::from_str(&succeeds(&mut compose(&file, &variables))).unwrap();
    let seconds = |service: &str| match model["services"][service]["stop_grace_period"].as_str() {
        Some("2m0s") => 120,
        Some("1m0s") => 60,
        Some("45s") => 45,
        other => panic!("{service} gets {other:?}"),
    };
    let pod = |name: &str| {
        let all = documents(&manifest(name));
        let pods = all
            .iter()
            .filter_map(|each| each.pointer("/spec/template/spec/terminationGracePeriodSeconds"));
        pods.filter_map(Value::as_u64).next()
    };
    // SHUTDOWN_TIMEOUT_MS is 30 s, and 11 s more pass at most.
    for (service, manifest, least) in [
        ("postgres", "postgres.yaml", 60),
        ("nats", "nats.yaml", 60),
        ("worker-1", "worker.yaml", 42),
    ] {
        assert!(seconds(service) >= least, "{service}");
        assert!(pod(manifest) >= Some(least), "{manifest}: {:?}", pod(manifest));
    }
}

#[test]
fn dockerfiles_copy_what_there_is_and_build_with_the_pinned_tools() {
    let text = std::fs::read_to_string(repository().join("Dockerfile")).unwrap();
    let setup = std::fs::read_to_string(repository().join("lab/src/setup.rs")).unwrap();
    let version = setup
        .split("CARGO_PGRX: &str = \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert!(
        text.contains(&format!("--version {version} cargo-pgrx")),
        "not cargo-pgrx {version}"
    );
}

fn compose(file: &Path, variables: &[(&str, &str)]) -> Command {
    let mut command = tools::compose(&paths()).unwrap();
    command.env_clear().envs(variables.iter().copied()).arg(file);
    command
}

#[test]
fn the_compose_file_is_valid() {
    let file = repository().join("examples/compose.yaml");
    let variables = [("POSTGRES_PASSWORD", "p"), ("WORKER_PASSWORD", "w")];
    let loaded = compose(&file, &variables).output().unwrap();
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let model: Value = serde_json::from_slice(&loaded.stdout).unwrap();
    let services = model["services"].as_object().unwrap();
    assert_eq!(
        services.keys().collect::<Vec<_>>(),
        ["nats", "postgres", "worker-1", "worker-2", "worker-3"]
    );
    for (name, service) in services {
        if let Some(build) = service["build"].as_object() {
            let context = Path::new(build["context"].as_str().unwrap());
            let dockerfile = context.join(build["dockerfile"].as_str().unwrap());
            assert!(dockerfile.is_file(), "{name}: no {}", dockerfile.display());
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume["source"].as_str().unwrap();
            assert!(
                volume["type"] == "volume" || Path::new(source).is_file(),
                "{name}: no {source}"
            );
        }
    }
    for name in ["worker-1", "worker-2", "worker-3"] {
        let environment = &services[name]["environment"];
        assert_eq!(environment["CONSUMER_NAME"], name);
        assert_eq!(environment["QUEUE_GROUP"], "webhook-workers");
        assert_eq!(
            environment["DATABASE_URL"],
            "postgresql://webhook_worker:w@postgres:5432/postgres"
        );
    }
    let (success, text) = output(&mut compose(&file, &variables[..1]));
    assert!(
        !success && text.contains("WORKER_PASSWORD"),
        "started without a password: {text}"
    );
    let bad = spoiled(&file, "depends_on", "depend_on");
    assert!(
        !output(&mut compose(bad.path(), &variables)).0,
        "an unknown key was accepted"
    );
}

fn kubernetes(file: &Path) -> Command {
    let mut command = tools::python(&paths()).unwrap();
    command
        .args(["-m", "kubernetes_validate", "--strict", "--no-warn"])
        .arg(file);
    command
}

#[test]
fn the_kubernetes_manifests_are_valid() {
    for name in ["namespace.yaml", "nats.yaml", "postgres.yaml", "worker.yaml"] {
        succeeds(&mut kubernetes(&manifest(name)));
    }
    let bad = spoiled(&manifest("worker.yaml"), "readinessProbe", "readynessProbe");
    assert!(!output(&mut kubernetes(bad.path())).0, "an unknown field was accepted");
    let bad = spoiled(&manifest("nats.yaml"), "containerPort: 4222", "containerPort: client");
    assert!(
        !output(&mut kubernetes(bad.path())).0,
        "a port that is not a number was accepted"
    );
}

fn keda(file: &Path) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/check_keda.py");
    let mut command = tools::python(&paths()).unwrap();
    command
        .arg(script)
        .arg(tools::keda_definitions(&paths()).unwrap())
        .arg(file);
    command
}

#[test]
fn the_keda_manifest_is_valid_and_scales_the_workers() {
    let file = manifest("keda.yaml");
    assert_eq!(succeeds(&mut keda(&file)).trim(), "1 checked");
    for (word, by) in [
        ("scaleTargetRef", "scaleTarget"),
        ("maxReplicaCount: 20", "maxReplicaCount: many"),
    ] {
        assert!(!output(&mut keda(spoiled(&file, word, by).path())).0, "{by} passes");
    }
    let scaled = documents(&file).remove(0);
    let worker = documents(&manifest("worker.yaml")).remove(0);
    let variables = worker["spec"]["template"]["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap();
    let variable = |name: &str| &variables.iter().find(|each| each["name"] == name).unwrap()["value"];
    assert_eq!(scaled["spec"]["scaleTargetRef"]["name"], worker["metadata"]["name"]);
    assert_eq!(
        worker["spec"].get("replicas"),
        None,
        "the autoscaler must be the only one to set replicas"
    );
    let trigger = &scaled["spec"]["triggers"][0];
    assert_eq!(trigger["type"], "nats-jetstream");
    assert_eq!(&trigger["metadata"]["stream"], variable("STREAM_NAME"));
    assert_eq!(&trigger["metadata"]["consumer"], variable("QUEUE_GROUP"));
    let nats = documents(&manifest("nats.yaml")).remove(0);
    let service = format!(
        "{}.{}.svc.cluster.local:8222",
        nats["metadata"]["name"].as_str().unwrap(),
        nats["metadata"]["namespace"].as_str().unwrap()
    );
    assert_eq!(trigger["metadata"]["natsServerMonitoringEndpoint"], service.as_str());
}

/// Compose and Kubernetes set up the database with the same script, which must run.
#[test]
fn the_set_up_script_runs() {
    let script = repository().join("examples/compose/init.sh");
    let config = documents(&manifest("postgres.yaml")).remove(0);
    let same = config["data"]["10-pg_jetstream.sh"].as_str().unwrap();
    assert_eq!(std::fs::read_to_string(&script).unwrap(), same);
    let lab = Lab::start().unwrap();
    lab.sql("drop extension pg_jetstream cascade").unwrap();
    let path = std::env::join_paths([paths().pg_bin(), "/usr/bin".into(), "/bin".into()]).unwrap();
    let mut command = Command::new(&script);
    command
        .env_clear()
        .env("PATH", path)
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", lab.postgres.port().to_string())
        .env("WORKER_PASSWORD", "it's")
        .env("NATS_URL", lab.nats.url());
    succeeds(&mut command);
    synced(&lab, "WEBHOOKS");
    let claim = "set role webhook_worker; select count(*) from jetstream.webhook_claim('w')";
    assert_eq!(lab.sql(claim).unwrap().concat().last().unwrap(), "0");
}

/// A workflow names only targets of the Makefile, commands of the lab and scripts that there are.
#[test]
fn workflows_run_what_there_is() {
    let makefile = std::fs::read_to_string(repository().join("Makefile")).unwrap();
    let mut commands = 0;
    for name in ["ci.yml", "nightly.yml"] {
        let workflow = documents(&repository().join(".github/workflows").join(name)).remove(0);
        for (job, steps) in workflow["jobs"].as_object().unwrap() {
            for run in steps["steps"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|step| step["run"].as_str())
            {
                let words: Vec<&str> = run.split_whitespace().collect();
                let there = match words[0] {
                    "make" => makefile.contains(&format!("\n{}: ", words[1])),
                    "cargo" => words[1] == "test",
                    script => repository().join(script).is_file(),
                };
                assert!(there, "{name}, {job}: {run}");
                commands += 1;
            }
        }
    }
    assert!(commands >= 8, "{commands} commands");
}
