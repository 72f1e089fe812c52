//! Runs `examples/monitoring` with the real programs: exporters, Prometheus and its checker. No package registry has
//! Grafana itself, so Grafana's SDK reads the dashboard, and Prometheus evaluates its expressions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod console_support;
mod e2e_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use console_support::{Program, console, database_url, get, repository};
use e2e_support::{SOON, drained, eventually, insert, lab};
use lab::nats::free_port;
use lab::paths::Paths;
use lab::{Lab, debs, tools};
use serde_json::Value;

fn paths() -> Paths {
    Paths::ready().unwrap()
}

fn example(name: &str) -> PathBuf {
    repository().join("examples/monitoring").join(name)
}

fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn succeeds(command: &mut Command) {
    let (success, text) = run(command);
    assert!(success, "{command:?}\n{text}");
}

/// A copy of the alerts and their tests in which one text is replaced.
fn spoiled(text: &str, by: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let alerts = fs::read_to_string(example("alerts.yml")).unwrap();
    assert!(alerts.contains(text), "no {text}");
    fs::write(folder.path().join("alerts.yml"), alerts.replace(text, by)).unwrap();
    fs::copy(example("alerts_test.yml"), folder.path().join("alerts_test.yml")).unwrap();
    folder
}

#[test]
fn alerts_fire_when_they_should_and_not_before() {
    let promtool = |arguments: &[&str], folder: &Path| {
        let mut command = debs::promtool(&paths()).unwrap();
        command.args(arguments).current_dir(folder);
        command
    };
    let test = ["test", "rules", "alerts_test.yml"];
    let folder = repository().join("examples/monitoring");
    succeeds(&mut promtool(&["check", "config", "prometheus.yml"], &folder));
    succeeds(&mut promtool(&test, &folder));
    for (text, by) in [
        (
            "pg_jetstream_connection_lag_seconds > 60",
            "pg_jetstream_connection_lag_seconds > 6000",
        ),
        (
            "ignoring (connection) pg_jetstream_worker_up == 1",
            "ignoring (connection) pg_jetstream_worker_up >= 0",
        ),
    ] {
        let folder = spoiled(text, by);
        assert!(!run(&mut promtool(&test, folder.path())).0, "{by} was not noticed");
    }
    // Each alert has a test, and a description for its recipient.
    let alerts = fs::read_to_string(example("alerts.yml")).unwrap();
    let tests = fs::read_to_string(example("alerts_test.yml")).unwrap();
    let guide = fs::read_to_string(repository().join("docs/monitoring.md")).unwrap();
    let names: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() > 10);
    for name in names {
        assert!(
            tests.contains(&format!(
                "alertname: {name}\n        exp_alerts:\n          - exp_labels"
            )),
            "{name} has no test"
        );
        assert!(
            guide.contains(&format!("`{name}`")),
            "{name} is not in docs/monitoring.md"
        );
    }
}

#[test]
fn the_dashboard_is_one() {
    let check = |file: &Path| {
        let script = repository().join("lab/tests/data/grafana/check_dashboard.py");
        let mut command = tools::grafana_python(&paths()).unwrap();
        command.arg(script).arg(file);
        run(&mut command)
    };
    let file = example("grafana/pg_jetstream.json");
    let (good, text) = check(&file);
    assert!(good, "{text}");
    let bad = tempfile::NamedTempFile::new().unwrap();
    let spoiled = fs::read_to_string(file)
        .unwrap()
        .replace("\"legendFormat\"", "\"legendFormats\"");
    fs::write(bad.path(), spoiled).unwrap();
    assert!(!check(bad.path()).0, "an unknown option was not noticed");
}

/// Prometheus with the configuration of the examples, except for ports and intervals, which are shorter.
fn prometheus(lab: &Lab, ports: [(&str, u16); 3]) -> (Program, u16) {
    let folder = lab.nats.dir().join("prometheus");
    fs::create_dir(&folder).unwrap();
    let mut config = fs::read_to_string(example("prometheus.yml")).unwrap();
    for (usual, port) in ports {
        assert!(config.contains(usual));
        config = config.replace(usual, &port.to_string());
    }
    fs::write(
        folder.join("prometheus.yml"),
        config.replace("_interval: 15s", "_interval: 1s"),
    )
    .unwrap();
    fs::copy(example("alerts.yml"), folder.join("alerts.yml")).unwrap();
    let port = free_port().unwrap();
    let mut command = debs::prometheus(&paths()).unwrap();
    command
        .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"));
    (
        Program::start(command, lab.nats.dir().join("prometheus.log"), port),
        port,
    )
}

fn exporters(lab: &Lab) -> [(Program, u16); 2] {
    lab.sql("create role monitor login; grant pg_monitor to monitor")
        .unwrap();
    let url = format!(
        "{}?sslmode=disable",
        database_url(lab, "monitor").replace("postgresql:", "postgres:")
    );
    let port = free_port().unwrap();
    let mut postgres = debs::postgres_exporter(&paths()).unwrap();
    postgres
        .args(["--disable-default-metrics", "--disable-settings-metrics"])
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .env("DATA_SOURCE_NAME", &url)
        .env("PG_EXPORTER_EXTEND_QUERY_PATH", example("postgres_exporter.yml"));
    let first = Program::start(postgres, lab.nats.dir().join("postgres_exporter.log"), port);

    let config = lab.nats.dir().join("sql_exporter.yml");
    let text = fs::read_to_string(example("sql_exporter.yml")).unwrap();
    assert!(text.contains("interval: 15s"));
    fs::write(&config, text.replace("interval: 15s", "interval: 1s")).unwrap();
    let other = free_port().unwrap();
    let mut sql = debs::sql_exporter(&paths()).unwrap();
    sql.arg(format!("-config.file={}", config.display()))
        .arg(format!("-web.listen-address=127.0.0.1:{other}"))
        .env("DATABASE_URL", &url);
    let second = Program::start(sql, lab.nats.dir().join("sql_exporter.log"), other);
    [(first, port), (second, other)]
}

/// The current result of an expression.
fn ask(port: u16, expression: &str) -> Vec<Value> {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let answer = get(port, &format!("/api/v1/query?query={encoded}")).json();
    assert_eq!(answer["status"], "success", "{expression}: {answer}");
    answer["data"]["result"].as_array().unwrap().clone()
}

/// Values by name and by the metric's own labels.
type Series = BTreeMap<(String, BTreeMap<String, String>), f64>;

const OWN_LABELS: [&str; 7] = [
    "database",
    "connection",
    "stream",
    "consumer",
    "status",
    "verdict",
    "le",
];

fn scraped(port: u16, job: &str) -> Series {
    let all = ask(
        port,
        &format!("{{__name__=~\"pg_jetstream_.+\", job=\"pg_jetstream-{job}\"}}"),
    );
    let series = all.iter().map(|series| {
        let labels = series["metric"].as_object().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let own = labels.iter().filter(|(name, _)| OWN_LABELS.contains(&name.as_str()));
        let own = own.map(|(name, value)| (name.clone(), text(value))).collect();
        (
            (text(&labels["__name__"]), own),
            text(&series["value"][1]).parse().unwrap(),
        )
    });
    series.collect()
}

fn expected(lab: &Lab) -> Series {
    let rows = lab.sql("select name, labels, value from jetstream.metrics").unwrap();
    let series = rows.iter().map(|row| {
        let labels = serde_json::from_str(&row[1]).unwrap();
        ((row[0].clone(), labels), row[2].parse().unwrap())
    });
    series.collect()
}

/// Metrics whose value changes all the time.
fn moves(name: &str) -> bool {
    name.ends_with("last_cycle_time_seconds") || name.ends_with("cycles_total") || name.ends_with("webhook_lag_seconds")
}

/// Metrics that were scraped with a different value, or not at all.
fn differences(scraped: &Series, expected: &Series) -> Vec<String> {
    let same = |one: f64, other: f64| (one - other).abs() <= 1e-9 * other.abs();
    let missing = expected
        .iter()
        .filter(|((name, _), _)| !moves(name))
        .filter(|(key, value)| !scraped.get(key).is_some_and(|found| same(*found, **value)))
        .map(|(key, value)| format!("{key:?} is {:?} and not {value}", scraped.get(key)));
    let more = scraped.keys().filter(|key| !expected.contains_key(key));
    missing.chain(more.map(|key| format!("{key:?} is nowhere"))).collect()
}

fn panels(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().unwrap().to_owned();
            found.push((title, target["expr"].as_str().unwrap().to_owned()));
        }
    }
    found
}

#[test]
fn exporters_prometheus_and_the_dashboard_agree_with_the_database() {
    let lab = lab(&[]);
    let _exporters = exporters(&lab);
    let (_console, console_port) = console(&lab, None);
    let [(_, postgres_port), (_, sql_port)] = &_exporters;
    let ports = [("8090", console_port), ("9187", *postgres_port), ("9237", *sql_port)];
    let (_prometheus, port) = prometheus(&lab, ports);
    lab.sql(
        "insert into jetstream.webhooks (name, url) values ('w', 'http://localhost/');
             select jetstream.webhook_call((select id from jetstream.webhooks), '1');
             select jetstream.rule_nats_consumer_update_stats('S', 'worker \"1\"', 10, 8, 5, 1.5, 2, true)",
    )
    .unwrap();
    lab.sql(&insert("s.a", 1, 500)).unwrap();
    drained(&lab, SOON);

    for job in ["console", "postgres_exporter", "sql_exporter"] {
        let deadline = Instant::now() + SOON;
        loop {
            let wrong = differences(&scraped(port, job), &expected(&lab));
            if wrong.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{job}:\n{}", wrong.join("\n"));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    let dashboard = fs::read_to_string(example("grafana/pg_jetstream.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = panels(&dashboard);
    assert!(panels.len() > 20);
    for (title, expression) in panels {
        let filled = expression
            .replace("$__rate_interval", "20s")
            .replace("$job", "pg_jetstream-console")
            .replace("$database", ".*");
        // A rate requires two samples with activity between them.
        eventually(&lab, SOON, &format!("{title}: {filled}"), || {
            let answer = ask(port, &filled);
            let shown = !answer.is_empty() && answer.iter().all(|series| series["value"][1] != "NaN");
            if !shown {
                lab.sql(&insert("s.a", 1, 1))?;
                std::thread::sleep(Duration::from_millis(300));
            }
            Ok(shown)
        });
    }
    // Each part of an alert's expression finds its metrics.
    let rules = get(port, "/api/v1/rules").json();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    let names = expected(&lab)
        .into_keys()
        .map(|(name, _)| name)
        .collect::<std::collections::BTreeSet<_>>();
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        let query = rule["query"].as_str().unwrap();
        for word in query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            assert!(
                !word.starts_with("pg_jetstream_") || names.contains(word),
                "{word} is not a metric"
            );
        }
    }
    assert!(rules.len() > 10);
}
