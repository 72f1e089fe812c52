//! Runs the bench in its shortest form and checks what it writes. Its figures mean nothing at this size.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use lab::paths::Paths;
use serde_json::Value;

/// Runs one measurement in its shortest form on real servers and returns the JSON that it wrote.
fn measure(name: &str) -> Value {
    let dir = Paths::find().unwrap().bench();
    let file = dir.join(format!("tiny-{name}.json"));
    let _ = std::fs::remove_file(&file);
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["bench", "--tiny", "--only", name])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let problems = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{problems}");
    assert!(text.contains("Goals:"), "{text}");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// A figure of the first row whose name begins with `case`, in any table.
fn figure(report: &Value, case: &str, name: &str) -> f64 {
    let tables = report["tables"].as_array().unwrap().iter();
    let rows = tables.flat_map(|table| table["rows"].as_array().unwrap());
    let mut figures = rows
        .filter(|row| row["case"].as_str().unwrap().starts_with(case))
        .flat_map(|row| row["figures"].as_array().unwrap());
    let found = figures.find(|figure| figure["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} of {case} in {report}"))["median"]
        .as_f64()
        .unwrap_or(f64::NAN)
}

#[test]
fn the_drain_and_its_references_are_measured() {
    let report = measure("drain");
    let (drain, relay) = (
        figure(&report, "5,000", "drain"),
        figure(&report, "5,000", "relay alone"),
    );
    let ratio = figure(&report, "5,000", "ratio");
    assert!(drain > 0.0 && (drain / relay - ratio).abs() < 1e-9, "{report}");
    assert!(figure(&report, "drain, 5,000", "sum µs") > 0.0, "{report}");
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    assert_eq!(report["goals"][0]["met"], ratio >= 0.8);
}

#[test]
fn steady_writers_are_delivered() {
    let report = measure("sustained");
    let (written, p50, p99) = ("written/s", "p50 ms", "p99 ms");
    assert!(figure(&report, "500/s", written) > 0.0, "{report}");
    assert!(
        figure(&report, "500/s", p50) <= figure(&report, "500/s", p99),
        "{report}"
    );
}

#[test]
fn producers_are_compared_with_a_plain_insert() {
    let report = measure("producers");
    let ratio = figure(&report, "insert into the outbox", "ratio");
    let speeds =
        ["insert into the outbox", "insert into a plain table"].map(|case| figure(&report, case, "transactions/s"));
    assert!((speeds[0] / speeds[1] - ratio).abs() < 1e-9, "{report}");
}

#[test]
fn captures_are_compared_with_a_like_table() {
    let report = measure("capture");
    let speeds = ["transactions/s", "without capture/s"].map(|name| figure(&report, "insert", name));
    let ratio = figure(&report, "insert", "ratio");
    assert!((speeds[0] / speeds[1] - ratio).abs() < 1e-9, "{report}");
    for kind in ["insert", "update", "delete"] {
        assert!(large(&report, kind, "µs") > 0.0, "{report}");
        let more = large(&report, kind, "µs") - large(&report, kind, "without capture µs");
        assert!((more - large(&report, kind, "more µs")).abs() < 1e-9, "{report}");
    }
    assert_eq!(report["goals"].as_array().unwrap().len(), 4);
}

/// A figure of a large statement, which is in the last table.
fn large(report: &Value, case: &str, name: &str) -> f64 {
    let table = report["tables"].as_array().unwrap().last().unwrap();
    figure(&serde_json::json!({ "tables": [table] }), case, name)
}

#[test]
fn disturbances_are_compared_with_a_run_that_wrote_as_much() {
    let report = measure("flat");
    let compared = |case: &str, reference: &str| {
        let ratio = figure(&report, case, "drain/s") / figure(&report, reference, "drain/s");
        assert!((ratio - figure(&report, case, "ratio")).abs() < 1e-9, "{report}");
    };
    compared("a snapshot held", "undisturbed");
    compared("2,000 pending for a disabled", "2,000 in a plain table");
    // Messages pending for a disabled connection stay in the outbox.
    let left = |case| figure(&report, case, "table after");
    assert!(
        left("2,000 pending for a disabled") > left("2,000 in a plain table"),
        "{report}"
    );
}

#[test]
fn an_idle_worker_and_its_memory_are_measured() {
    let idle = measure("idle");
    // A worker that polls with a transaction makes 60.
    assert!(figure(&idle, "idle worker", "transactions a minute") < 31.0, "{idle}");
    let memory = measure("memory");
    let most = figure(&memory, "2,000", "most");
    assert!(most > 1.0 && most < 1000.0, "{memory}");
}
