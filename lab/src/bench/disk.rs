//! The disk by itself: what a commit would wait for if nothing else were going on.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::report::percentile;

/// Bytes of one write: a page of the write-ahead log.
const PAGE: usize = 8192;
/// Pages of the file, which has its full length before anything is measured, as a recycled file of the log has.
const PAGES: u64 = 2048;
/// A write that takes longer counts as a stall.
const STALL: Duration = Duration::from_millis(5);

const STALLED: &str = "stalled %";
/// Per cent of the time that a calm disk stalls for less than.
const CALM: f64 = 1.0;

/// Looks at the disk until it is calm, as it is not for a while after gigabytes were removed from it, at most so often;
/// the last look.
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

/// Writes pages one by one into a file of `folder`, each with an fdatasync, for so long; the figures of a row.
///
/// Errors: the folder cannot be written to.
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
