//! Inspects processes through /proc, and waits for them to end.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Sends a signal. A process that has already ended is not an error.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(i32::try_from(pid)?), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => bail!("cannot send {signal} to process {pid}: {error}"),
    }
}

/// Whether the process is running. A zombie is not, unless it still has threads: while a thread is left, the process
/// holds its memory, even if its main thread is dead.
pub fn alive(pid: u32) -> bool {
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X') || threads() > 1)
}

/// Memory of the process's own (not shared with others), MB. None if there is no such process.
pub fn private_mb(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

/// The child processes.
pub fn children(parent: u32) -> Vec<u32> {
    all()
        .filter(|&pid| stat(pid).is_some_and(|stat| stat.parent == parent))
        .collect()
}

/// Program and arguments of a process. Empty if the process does not exist.
pub fn arguments(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// The running processes of a program (its file name) that have this path among their arguments. The lab identifies its
/// own servers this way before it stops them.
pub fn find(program: &str, argument: &Path) -> Vec<u32> {
    let argument = argument.to_string_lossy();
    let is_it = |pid: &u32| {
        let arguments = arguments(*pid);
        let name = arguments.first().and_then(|first| Path::new(first).file_name());
        name.is_some_and(|name| name == program) && arguments.iter().any(|one| *one == argument) && alive(*pid)
    };
    all().filter(is_it).collect()
}

fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Waits until all processes have ended. Returns false if that takes longer than `limit`.
pub fn wait_gone(pids: &[u32], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while pids.iter().any(|&pid| alive(pid)) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

struct Stat {
    state: char,
    parent: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program name is in parentheses and may contain any character.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_itself_and_a_child() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(alive(std::process::id()));
        assert!(children(std::process::id()).contains(&child.id()));
        // Until a child starts its own program, it has the arguments of its parent.
        let begun = || find("sleep", Path::new("60")).contains(&child.id());
        let deadline = Instant::now() + Duration::from_secs(5);
        while !begun() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(begun());
        assert!(!find("sleeper", Path::new("60")).contains(&child.id()));
        assert!(!wait_gone(&[child.id()], Duration::from_millis(20)));
        signal(child.id(), Signal::SIGKILL).unwrap();
        assert!(
            wait_gone(&[child.id()], Duration::from_secs(5)),
            "a dead child counts as ended before it is reaped"
        );
        child.wait().unwrap();
        assert!(arguments(child.id()).is_empty());
    }
}
