//! Measures the disk alone: how long a commit would wait on an otherwise idle machine.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::report::percentile;

/// Size of one write, the same as a WAL page.
const PAGE: usize = 8192;
/// Pages in the file. It has its full length before the measurement starts, like a recycled WAL file.
const PAGES: u64 = 2048;
/// A write that takes longer counts as a stall.
const STALL: Duration = Duration::from_millis(5);

const STALLED: &str = "stalled %";
/// A disk is calm if it stalls for less than this percentage of the time.
const CALM: f64 = 1.0;

/// Measures the disk up to `looks` times until it is calm, and returns the last result. A disk is slow for a while
/// after gigabytes have been removed from it.
///
/// Errors: as [`alone`].
pub fn calm(folder: &Path, time: Duration, looks: usize) -> Result<Vec<(&'static str, f64)>> {
    for _ in 1..looks {
        let figures = alone(folder, time)?;
        if figures.iter().any(|(name, value)| *name == STALLED && *value < CALM) {
            return Ok(figures);
        }
    }
    alone(folder, time)
}

/// Writes pages one by one into a file in `folder`, each with an fdatasync, for the duration of `time`. Returns the
/// figures of a table row.
///
/// Errors: the folder is not writable.
pub fn alone(folder: &Path, time: Duration) -> Result<Vec<(&'static str, f64)>> {
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::tempfile_in(folder)?;
    let page = vec![0xA5; PAGE];
    for _ in 0..PAGES {
        file.write_all(&page)?;
    }
    file.sync_all()?;
    let mut millis = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time {
        millis.push(write(&mut file, &page, millis.len() as u64 % PAGES)?.as_secs_f64() * 1e3);
    }
    let all: f64 = begin.elapsed().as_secs_f64() * 1e3;
    millis.sort_by(f64::total_cmp);
    let stalled = millis
        .iter()
        .filter(|one| **one > STALL.as_secs_f64() * 1e3)
        .fold(0.0, |sum, one| sum + one);
    Ok(vec![
        ("fdatasync/s", millis.len() as f64 * 1e3 / all),
        ("p50 ms", percentile(&millis, 0.5)),
        ("p99.9 ms", percentile(&millis, 0.999)),
        ("longest ms", percentile(&millis, 1.0)),
        (STALLED, 100.0 * stalled / all),
    ])
}

fn write(file: &mut File, page: &[u8], at: u64) -> Result<Duration> {
    let begin = Instant::now();
    file.seek(SeekFrom::Start(at * PAGE as u64))?;
    file.write_all(page)?;
    file.sync_data()?;
    Ok(begin.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_a_speed() {
        let figures = alone(&std::env::temp_dir(), Duration::from_millis(50)).unwrap();
        let of = |name: &str| figures.iter().find(|(one, _)| *one == name).unwrap().1;
        assert!(
            of("fdatasync/s") > 0.0 && of("p50 ms") <= of("longest ms"),
            "{figures:?}"
        );
        assert!((0.0..=100.0).contains(&of(STALLED)), "{figures:?}");
    }
}
