//! Results of a measurement: a Markdown table for the terminal and the documents, and JSON for programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table as Printed, presets};
use serde::Serialize;

use super::cpu;
use super::machine::Machine;

/// Name of the ratio to a reference that ran next to a relay alone.
pub const OF_BESIDE: &str = "ratio next to a relay";

/// One value and the runs it comes from.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Name with unit, which is the heading of the column.
    pub name: String,
    pub median: f64,
    /// The value of each run, in order.
    pub runs: Vec<f64>,
}

/// One measured case.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub case: String,
    pub figures: Vec<Figure>,
    /// The case that the ratios compare with, if the table has several references.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

impl Row {
    /// A row without figures.
    pub fn new(case: impl Into<String>) -> Self {
        Self {
            case: case.into(),
            figures: Vec::new(),
            reference: None,
        }
    }

    /// Adds a figure with the values of its runs.
    pub fn with(mut self, name: impl Into<String>, runs: impl IntoIterator<Item = f64>) -> Self {
        let runs: Vec<f64> = runs.into_iter().collect();
        self.figures.push(Figure {
            name: name.into(),
            median: median(&runs),
            runs,
        });
        self
    }

    /// Adds the speeds of a reference next to a relay alone, and the ratio of `own` speeds to them. Adds nothing if the
    /// reference was not measured.
    pub fn with_beside_a_relay(self, name: &str, own: impl Iterator<Item = f64>, beside: &[f64]) -> Self {
        if beside.is_empty() {
            return self;
        }
        self.with(name, beside.iter().copied())
            .with(OF_BESIDE, own.zip(beside).map(|(own, other)| own / other))
    }

    /// Sets the case that the ratios compare with.
    pub fn to(mut self, reference: impl Into<String>) -> Self {
        self.reference = Some(reference.into());
        self
    }

    /// Adds the processor time of each role. `runs` has one map per run.
    pub fn with_cpu(mut self, runs: &[BTreeMap<&'static str, f64>]) -> Self {
        let used = |role: &&str| {
            runs.iter()
                .any(|run| run.get(role).is_some_and(|micros| *micros >= 0.005))
        };
        for role in cpu::ROLES.into_iter().filter(used) {
            let of_role = runs.iter().map(|run| run.get(role).copied().unwrap_or(0.0));
            self = self.with(format!("{role} µs"), of_role);
        }
        let totals: Vec<f64> = runs.iter().map(|run| run.values().sum()).collect();
        self.with("sum µs", totals)
    }

    /// The median of a figure, or `None` if the row does not have it.
    pub fn get(&self, name: &str) -> Option<f64> {
        let found = self.figures.iter().find(|figure| figure.name == name);
        found.map(|figure| figure.median)
    }
}

/// Rows with the same columns.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    pub title: String,
    pub rows: Vec<Row>,
    /// Figures to plot.
    #[serde(skip)]
    pub plotted: Vec<&'static str>,
}

impl Table {
    /// A table without rows.
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            rows: Vec::new(),
            plotted: Vec::new(),
        }
    }

    /// Chooses the figures that the plot shows next to each other. They have the same unit.
    pub fn plot(mut self, figures: &[&'static str]) -> Self {
        self.plotted = figures.to_vec();
        self
    }

    pub fn markdown(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for figure in self.rows.iter().flat_map(|row| &row.figures) {
            if !names.contains(&figure.name.as_str()) {
                names.push(&figure.name);
            }
        }
        let mut printed = Printed::new();
        printed.load_preset(presets::ASCII_MARKDOWN);
        let with_reference = self.rows.iter().any(|row| row.reference.is_some());
        let last = with_reference.then_some("to");
        printed.set_header([""].into_iter().chain(names.iter().copied()).chain(last));
        for row in &self.rows {
            let cells = names.iter().map(|name| row.get(name).map_or(String::new(), number));
            let reference = with_reference.then(|| row.reference.clone().unwrap_or_default());
            printed.add_row([row.case.clone()].into_iter().chain(cells).chain(reference));
        }
        for column in printed.column_iter_mut().skip(1).take(names.len()) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{}:\n\n{printed}\n", self.title)
    }
}

/// The good side of a limit.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The limit or more is good.
    AtLeast(f64),
    /// Less than the limit is good.
    Below(f64),
}

/// A limit, and the value that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    pub what: String,
    /// The limit, in the unit named in `what`.
    pub limit: Limit,
    /// The measured value.
    pub reached: f64,
    /// Whether the value is on the good side.
    pub met: bool,
}

impl Goal {
    /// A goal and the value reached. A goal is not met if the value is NaN.
    pub fn new(what: impl Into<String>, limit: Limit, reached: f64) -> Self {
        let met = match limit {
            Limit::AtLeast(least) => reached >= least,
            Limit::Below(most) => reached < most,
        };
        Self {
            what: what.into(),
            limit,
            reached,
            met,
        }
    }

    /// One line for the terminal.
    pub fn line(&self) -> String {
        let wanted = match self.limit {
            Limit::AtLeast(least) => format!("at least {}", number(least)),
            Limit::Below(most) => format!("below {}", number(most)),
        };
        let verdict = if self.met { "met" } else { "NOT MET" };
        format!("{verdict:>8}  {}: {}, to be {wanted}", self.what, number(self.reached))
    }
}

/// All results of one measurement.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub tables: Vec<Table>,
    pub goals: Vec<Goal>,
}

/// Writes `<measurement>.json` and returns its path.
pub fn write_json(dir: &Path, name: &str, machine: &Machine, report: &Report) -> Result<PathBuf> {
    #[derive(Serialize)]
    struct Document<'a> {
        measurement: &'a str,
        machine: &'a Machine,
        #[serde(flatten)]
        report: &'a Report,
    }
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("{name}.json"));
    let document = Document {
        measurement: name,
        machine,
        report,
    };
    let text = serde_json::to_string_pretty(&document)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The middle value, or the mean of the two middle values. NaN if there are no values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = &sorted[sorted.len().saturating_sub(1) / 2..sorted.len().min(sorted.len() / 2 + 1)];
    middle.iter().sum::<f64>() / middle.len() as f64
}

/// The value at this share (0 to 1) of sorted values. NaN if there are no values.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1) as f64;
    sorted.get((last * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// Formats large numbers as integers with thousands separators, and small ones with three significant digits.
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "-".to_owned(),
        _ if size >= 1000.0 => {
            let digits = format!("{size:.0}");
            let mut text = String::new();
            for (n, digit) in digits.chars().enumerate() {
                if n > 0 && (digits.len() - n).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            if value < 0.0 { format!("-{text}") } else { text }
        }
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let shown = [1234567.8, 999.6, 102.4, 64.0, 0.534, 0.012, -4321.0, f64::NAN].map(number);
        assert_eq!(
            shown,
            ["1,234,568", "1000", "102", "64.0", "0.53", "0.012", "-4,321", "-"]
        );
    }

    #[test]
    fn a_row_has_the_median_of_its_runs() {
        let row = Row::new("a").with("x", [3.0, 1.0, 2.0]);
        assert_eq!(row.get("x"), Some(2.0));
        assert_eq!(row.get("y"), None);
        assert_eq!(Row::new("a").with("x", [4.0, 1.0, 2.0, 9.0]).get("x"), Some(3.0));
        assert!(median(&[]).is_nan());
        let mut table = Table::new("t");
        table.rows = vec![row, Row::new("b").with("y", [5.0])];
        let text = table.markdown();
        assert!(
            text.contains("| a | 2.00 |      |") && text.contains("| b |      | 5.00 |"),
            "{text}"
        );
    }

    #[test]
    fn percentiles_come_from_sorted_values() {
        let values: Vec<f64> = (0..=1000).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 500.0);
        assert_eq!(percentile(&values, 0.999), 999.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_goal_knows_its_good_side() {
        assert!(Goal::new("a", Limit::AtLeast(0.8), 0.8).met);
        assert!(!Goal::new("a", Limit::Below(64.0), 64.0).met);
        assert!(!Goal::new("a", Limit::Below(64.0), f64::NAN).met);
        assert!(Goal::new("a", Limit::AtLeast(0.8), 0.5).line().contains("NOT MET"));
    }
}
