//! `jetstream.metrics` as text that Prometheus reads.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A row of `jetstream.metrics`.
#[derive(Clone, Debug)]
pub struct Metric {
    /// Its name; of a histogram, with `_bucket`, `_sum` or `_count`.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it says.
    pub help: String,
}

impl Metric {
    /// What all rows of a histogram have in common.
    fn family(&self) -> &str {
        let parts = ["_bucket", "_sum", "_count"];
        let part = parts.iter().find_map(|part| self.name.strip_suffix(part));
        part.filter(|_| self.kind == "histogram").unwrap_or(&self.name)
    }
}

/// The text exposition format, version 0.0.4. Rows of one family must follow one another.
pub fn text(metrics: &[Metric]) -> String {
    let mut text = String::new();
    let mut family = "";
    for metric in metrics {
        if metric.family() != family {
            family = metric.family();
            let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
            let _ = writeln!(text, "# HELP {family} {help}\n# TYPE {family} {}", metric.kind);
        }
        let labels: Vec<String> = metric
            .labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let _ = writeln!(text, "{}{{{}}} {}", metric.name, labels.join(","), metric.value);
    }
    text
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(name: &str, labels: &[(&str, &str)], value: f64, kind: &str) -> Metric {
        Metric {
            name: name.to_owned(),
            labels: labels
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            value,
            kind: kind.to_owned(),
            help: "Help".to_owned(),
        }
    }

    #[test]
    fn a_family_is_described_once() {
        let rows = [
            metric("up", &[("connection", "a\"\\\nb")], 1.0, "gauge"),
            metric("up", &[("connection", "c")], 0.5, "gauge"),
            metric("took_bucket", &[("le", "+Inf")], 3.0, "histogram"),
            metric("took_sum", &[], 1e21, "histogram"),
            metric("took_count", &[], 3.0, "histogram"),
            metric("row_count", &[], 3.0, "gauge"),
        ];
        let expected = "# HELP up Help\n# TYPE up gauge\nup{connection=\"a\\\"\\\\\\nb\"} 1\nup{connection=\"c\"} 0.5\n\
             # HELP took Help\n# TYPE took histogram\ntook_bucket{le=\"+Inf\"} 3\ntook_sum{} 1000000000000000000000\n\
             took_count{} 3\n# HELP row_count Help\n# TYPE row_count gauge\nrow_count{} 3\n";
        assert_eq!(text(&rows), expected);
    }
}
