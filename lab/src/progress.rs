//! Runs long commands: a bar with elapsed time on a terminal, a line now and then elsewhere, the whole output in a file.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// Runs `command` to its end, showing how far it is. Its output goes to `log`; the end of it is part of the error.
pub fn run(title: &str, mut command: Command, log: &Path) -> Result<()> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let (mut reader, writer) = io::pipe()?;
    command
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", "120");
    command
        .stdin(std::process::Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    // The pipe ends when its last writer is gone; this one would stay.
    drop(command);

    let mut shown = Shown::new(title);
    let mut buffer = [0u8; 8192];
    let mut line = Vec::new();
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n])?;
        for &byte in &buffer[..n] {
            if byte == b'\n' || byte == b'\r' {
                shown.line(&String::from_utf8_lossy(&line));
                line.clear();
            } else {
                line.push(byte);
            }
        }
    }
    let status = child.wait()?;
    shown.end(status.success());
    if !status.success() {
        bail!(
            "{title} failed ({status}); the end of {}:\n{}",
            log.display(),
            tail(log, 40)
        );
    }
    Ok(())
}

/// The last `lines` lines of a file, without the progress bars that cargo draws over each other.
pub fn tail(file: &Path, lines: usize) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let kept: Vec<&str> = text
        .lines()
        .map(|line| line.rsplit('\r').find(|part| !part.trim().is_empty()).unwrap_or(""))
        .filter(|line| parse_cargo(line).is_none())
        .collect();
    kept[kept.len().saturating_sub(lines)..].join("\n")
}

/// What is shown of one running command.
struct Shown {
    title: String,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
}

impl Shown {
    fn new(title: &str) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style =
                ProgressStyle::with_template("{spinner} {prefix} [{bar:24}] {pos}/{len} {elapsed} {wide_msg:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("  {title} …");
        }
        Self {
            title: title.to_owned(),
            bar,
            started: Instant::now(),
            last_line: Instant::now(),
        }
    }

    fn line(&mut self, line: &str) {
        let progress = parse_cargo(line);
        if let Some(bar) = &self.bar {
            match progress {
                Some((done, all, what)) => {
                    bar.set_length(all);
                    bar.set_position(done);
                    bar.set_message(what.to_owned());
                }
                None if !line.trim().is_empty() => bar.set_message(line.trim().to_owned()),
                None => {}
            }
        } else if let Some((done, all, what)) = progress
            && self.last_line.elapsed() >= LINE_EVERY
        {
            self.last_line = Instant::now();
            eprintln!(
                "  {} {done}/{all} ({}) {what}",
                self.title,
                seconds(self.started.elapsed())
            );
        }
    }

    fn end(self, success: bool) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        if success {
            eprintln!("  {} ({})", self.title, seconds(self.started.elapsed()));
        }
    }
}

/// `12.3 s`.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Cargo's own bar: `Building [===>   ] 12/345: serde, syn` is 12 of 345, busy with `serde, syn`.
fn parse_cargo(line: &str) -> Option<(u64, u64, &str)> {
    let (_, rest) = line.split_once("Building [")?;
    let (_, rest) = rest.split_once("] ")?;
    let (counts, what) = rest.split_once(':').unwrap_or((rest, ""));
    let (done, all) = counts.trim().split_once('/')?;
    let what = what.trim_matches(|c: char| c.is_control() || c == ' ');
    Some((done.parse().ok()?, all.parse().ok()?, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_bar_of_cargo() {
        let line = "    Building [====>      ] 12/345: serde, syn(build.rs)";
        assert_eq!(parse_cargo(line), Some((12, 345, "serde, syn(build.rs)")));
        assert_eq!(parse_cargo("   Compiling serde v1.0.0"), None);
        assert_eq!(parse_cargo("    Building [=>  ] x/y: z"), None);
    }
}
