//! Draws figures of a table as bars, in SVG.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::report::{Row, Table, number};

/// Sizes in pixels: a bar, the space between two rows, the names to the left of the bars, and the whole picture.
const BAR: i32 = 16;
const GAP: i32 = 14;
const NAMES: i32 = 430;
const WIDTH: i32 = 960;
/// Height of title and legend above the bars.
const HEAD: i32 = 64;

const COLORS: [RGBColor; 4] = [
    RGBColor(38, 102, 166),
    RGBColor(166, 166, 166),
    RGBColor(222, 145, 53),
    RGBColor(91, 155, 92),
];

/// If values differ by more than this factor, the scale is logarithmic.
const LINEAR_UP_TO: f64 = 1000.0;

/// Converts values to lengths of bars.
struct Scale {
    most: f64,
    /// With a logarithmic scale, the power of ten below all values, at which bars begin.
    decade: Option<f64>,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Scale {
        let positive = values.filter(|value| value.is_finite() && *value > 0.0);
        let (least, most) = positive.fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let decade = (most / least > LINEAR_UP_TO).then(|| least.log10().floor());
        Scale { most, decade }
    }

    /// Length for a value, as a share of the longest bar.
    fn share(&self, value: f64) -> f64 {
        match self.decade {
            Some(decade) if value > 0.0 => (value.log10() - decade) / (self.most.log10() - decade),
            Some(_) => 0.0,
            None => value / self.most,
        }
    }
}

/// Draws the figures of [`Table::plotted`] to `<dir>/<name>.svg`. The largest value gets the longest bar.
///
/// Errors: the file cannot be written.
pub fn draw(table: &Table, dir: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("{name}.svg"));
    let bars = i32::try_from(table.plotted.len())?;
    let height = HEAD + i32::try_from(table.rows.len())? * (bars * BAR + GAP);
    let values = |row| table.plotted.iter().filter_map(move |name| Row::get(row, name));
    let scale = Scale::of(table.rows.iter().flat_map(values));
    let root = SVGBackend::new(&path, (u32::try_from(WIDTH)?, u32::try_from(height)?)).into_drawing_area();
    let text = |what: String, at: (i32, i32), size: i32| Text::new(what, at, ("sans-serif", size).into_font());
    let drawn = || -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        root.fill(&WHITE)?;
        let scaled = if scale.decade.is_some() { " (logarithmic)" } else { "" };
        root.draw(&text(format!("{}{scaled}", table.title), (8, 8), 18))?;
        let mut y = HEAD;
        for (n, name) in table.plotted.iter().enumerate() {
            let x = NAMES + n as i32 * 140;
            root.draw(&Rectangle::new(
                [(x, 38), (x + 10, 48)],
                COLORS[n % COLORS.len()].filled(),
            ))?;
            root.draw(&text((*name).to_owned(), (x + 16, 37), 12))?;
        }
        for row in &table.rows {
            root.draw(&text(row.case.clone(), (8, y + bars * BAR / 2 - 7), 12))?;
            for (n, name) in table.plotted.iter().enumerate() {
                if let Some(value) = row.get(name).filter(|value| value.is_finite()) {
                    let length = (scale.share(value) * f64::from(WIDTH - NAMES - 70)).round() as i32;
                    let corners = [(NAMES, y), (NAMES + length.max(1), y + BAR - 2)];
                    root.draw(&Rectangle::new(corners, COLORS[n % COLORS.len()].filled()))?;
                    root.draw(&text(number(value), (NAMES + length + 6, y + 1), 12))?;
                }
                y += BAR;
            }
            y += GAP;
        }
        root.present()
    };
    let done = drawn().map_err(|error| anyhow!("cannot draw {}: {error}", path.display()));
    drop(root);
    done.map(|()| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let mut table = Table::new("speed").plot(&["a"]);
        table.rows = vec![Row::new("all").with("a", [200.0]), Row::new("half").with("a", [100.0])];
        let dir = tempfile::tempdir().unwrap();
        let svg = fs::read_to_string(draw(&table, dir.path(), "speed").unwrap()).unwrap();
        // The first bar fills the width between the names and the margin, the second one half of it.
        assert!(svg.contains("width=\"460\"") && svg.contains("width=\"230\""), "{svg}");
        assert!(svg.contains("half"), "{svg}");
    }

    #[test]
    fn values_far_apart_are_drawn_by_their_logarithms() {
        let scale = Scale::of([0.1, 10_000.0, f64::NAN].into_iter());
        assert_eq!([0.1, 10.0, 10_000.0].map(|value| scale.share(value)), [0.0, 0.4, 1.0]);
        assert_eq!(Scale::of([1.0, 1000.0].into_iter()).share(10.0), 0.01);
    }
}
