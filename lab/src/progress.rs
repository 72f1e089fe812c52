//! Runs long commands: a bar with elapsed time on a terminal, a line now and then elsewhere, the whole output in a file.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::test_files::TestFiles;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// The longest silence where there is no terminal, as long as the command itself is not silent.
const SILENT: Duration = Duration::from_secs(60);

/// What a command that ran to its end has left.
pub struct Done {
    /// Whether it exited with 0.
    pub success: bool,
    /// What it wrote, without the progress bars that cargo draws over each other.
    pub output: String,
    /// How long it ran.
    pub took: Duration,
}

/// Runs `command` to its end, showing how far it is. Its output goes to `log`; the end of it is part of the error.
pub fn run(title: &str, command: Command, log: &Path) -> Result<()> {
    let done = capture(title, command, log)?;
    if !done.success {
        bail!(
            "{title} failed; the end of {}:\n{}",
            log.display(),
            tail(&done.output, 40)
        );
    }
    eprintln!("  {title} ({})", seconds(done.took));
    Ok(())
}

/// Like [`run`], but says nothing at the end, and a failing command is no error. Of `cargo test` it says what each file of
/// tests did.
pub fn capture(title: &str, mut command: Command, log: &Path) -> Result<Done> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir)?;
    }
    let started = Instant::now();
    let (mut reader, writer) = io::pipe()?;
    command
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", "120");
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    // The pipe ends when its last writer is gone; this one would stay.
    drop(command);

    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut shown = Shown::new(title);
    let mut buffer = [0u8; 8192];
    let mut rest = Vec::new();
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n])?;
        rest.extend_from_slice(&buffer[..n]);
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n' || byte == b'\r') {
            shown.line(&String::from_utf8_lossy(&rest[..end]));
            rest.drain(..=end);
        }
    }
    let success = child.wait()?.success();
    shown.end();
    Ok(Done {
        success,
        output: clean(&fs::read(log)?),
        took: started.elapsed(),
    })
}

/// Without what a carriage return has overwritten.
fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let last_written = |line: &str| {
        line.rsplit('\r')
            .find(|part| !part.trim().is_empty())
            .unwrap_or("")
            .to_owned()
    };
    let lines = text
        .lines()
        .map(last_written)
        .filter(|line| parse_cargo(line).is_none());
    lines
        .map(|line| line.trim_start_matches("\x1b[K").to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// What is shown of one running command.
struct Shown {
    title: String,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
    files: TestFiles,
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
            files: TestFiles::default(),
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(ended) = self.files.line(line) {
            self.note(&ended);
        }
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
            return;
        }
        let silence = self.last_line.elapsed();
        if let Some((done, all, what)) = progress {
            if silence >= LINE_EVERY {
                let elapsed = seconds(self.started.elapsed());
                self.note(&format!("{} {done}/{all} ({elapsed}) {what}", self.title));
            }
        } else if silence >= SILENT && !line.trim().is_empty() {
            let elapsed = seconds(self.started.elapsed());
            self.note(&format!("{} ({elapsed}) {}", self.title, line.trim()));
        }
    }

    /// A line that stays.
    fn note(&mut self, line: &str) {
        self.last_line = Instant::now();
        match &self.bar {
            Some(bar) => bar.println(format!("  {line}")),
            None => eprintln!("  {line}"),
        }
    }

    fn end(mut self) {
        if let Some(ended) = self.files.end() {
            self.note(&ended);
        }
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Steps of one long work that runs in this process: on a terminal a line that says which, elsewhere only what is worth
/// keeping.
#[derive(Debug)]
pub struct Steps(Option<ProgressBar>);

impl Steps {
    /// Begins to show them.
    pub fn start() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self(bar)
    }

    /// What is being done.
    pub fn say(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(what.to_owned());
        }
    }

    /// A line that stays.
    pub fn note(&self, line: &str) {
        match &self.0 {
            Some(bar) => bar.println(format!("  {line}")),
            None => eprintln!("  {line}"),
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
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
    fn overwritten_lines_are_left_out() {
        let bytes = b"   Compiling a\n    Building [=> ] 1/2: a\r\x1b[K   Compiling b\nbad\rgood\r\n";
        assert_eq!(clean(bytes), "   Compiling a\n   Compiling b\ngood");
    }

    #[test]
    fn reads_the_bar_of_cargo() {
        let line = "    Building [====>      ] 12/345: serde, syn(build.rs)";
        assert_eq!(parse_cargo(line), Some((12, 345, "serde, syn(build.rs)")));
        assert_eq!(parse_cargo("   Compiling serde v1.0.0"), None);
        assert_eq!(parse_cargo("    Building [=>  ] x/y: z"), None);
    }
}
