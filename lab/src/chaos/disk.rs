//! A small disk for PostgreSQL that can be filled up.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;

/// A file system in a file. It is unmounted and removed on drop.
pub struct SmallDisk {
    image: PathBuf,
    folder: PathBuf,
}

impl SmallDisk {
    /// Creates a file system of this many megabytes and mounts it at `folder`. This requires root.
    pub fn make(folder: &Path, megabytes: u64) -> Result<Self> {
        if !Uid::effective().is_root() {
            bail!("only root can mount a small disk");
        }
        fs::create_dir_all(folder)?;
        let image = folder.with_extension("image");
        File::create(&image)?.set_len(megabytes << 20)?;
        let disk = Self {
            image,
            folder: folder.to_owned(),
        };
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&disk.image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&disk.image).arg(folder))?;
        // PostgreSQL accepts only an empty data directory.
        let _ = fs::remove_dir(folder.join("lost+found"));
        Ok(disk)
    }

    /// Uses every free byte. Returns the number of kilobytes used.
    pub fn fill(&self) -> Result<u64> {
        let before = self.free_kb()?;
        for number in 0..50 {
            let free = self.free_kb()?;
            if free == 0 {
                break;
            }
            let file = self.folder.join(format!("filler{number}"));
            let _ = Command::new("fallocate")
                .args(["-l", &format!("{free}K")])
                .arg(&file)
                .output()?;
        }
        Ok(before - self.free_kb()?.min(before))
    }

    /// Frees the space again.
    pub fn empty(&self) -> Result<()> {
        for entry in fs::read_dir(&self.folder)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("filler") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn free_kb(&self) -> Result<u64> {
        let stat = statvfs(&self.folder)?;
        Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64 / 1024)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        release(&self.folder);
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_file(&self.image);
    }
}

/// Unmounts the file system at a folder, if there is one.
pub fn release(folder: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let folder = folder.to_string_lossy();
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(&*folder)) {
        let _ = Command::new("umount").arg("-l").arg(&*folder).status();
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
