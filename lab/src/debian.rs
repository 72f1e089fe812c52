//! A Debian release in a folder below `target/lab`, made by debootstrap: packages are built and tried out there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;
use tempfile::TempDir;

use crate::package::output;
use crate::packages;
use crate::paths::Paths;
use crate::progress;

/// In a mount namespace of its own, so that nothing stays mounted: `/proc` and folders of the outside, each at the place
/// it has there, then the command. Arguments: the root folder, the number of folders, the folders, the command.
const ENTER: &str = "set -e; root=$1; n=$2; shift 2
mount -t proc proc \"$root/proc\"
while [ $n -gt 0 ]; do mkdir -p \"$root$1\"; mount --bind \"$1\" \"$root$1\"; shift; n=$((n - 1)); done
exec chroot \"$root\" \"$@\"";

/// How apt's settings begin that say how an archive is reached: by which proxy, and whether it may be an old copy.
const REACH: [&str; 4] = ["Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-"];

/// A Debian in a folder.
#[derive(Debug)]
pub struct Debian {
    root: PathBuf,
    release: &'static str,
    outside: Vec<PathBuf>,
    /// Removes the folder at the end.
    _temporary: Option<TempDir>,
}

impl Debian {
    /// A minimal Debian, removed when this value goes.
    pub fn clean(paths: &Paths, release: &'static str) -> Result<Self> {
        let base = bootstrapped(paths, release)?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("clean-{release}-"))
            .tempdir_in(&paths.lab)?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        copy(&base, folder.path())?;
        Self::in_folder(folder.path().to_owned(), release, Some(folder))
    }

    /// A Debian to build in, which stays; `outside` can be seen from it, where they are outside.
    pub fn kept(paths: &Paths, release: &'static str, outside: Vec<PathBuf>) -> Result<Self> {
        let root = paths.lab.join(format!("build-{release}"));
        if !root.join("complete").exists() {
            let base = bootstrapped(paths, release)?;
            if root.exists() {
                fs::remove_dir_all(&root)?;
            }
            fs::create_dir_all(&root)?;
            copy(&base, &root)?;
        }
        let debian = Self::in_folder(root, release, None)?;
        Ok(Self { outside, ..debian })
    }

    /// Names resolve, apt reaches its archive as it does outside, shared memory is there, and no package starts a service.
    fn in_folder(root: PathBuf, release: &'static str, temporary: Option<TempDir>) -> Result<Self> {
        fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
        let settings = output(Command::new("apt-config").arg("dump"))?;
        let settings = settings
            .lines()
            .filter(|line| REACH.iter().any(|part| line.starts_with(part)));
        let settings: String = settings.map(|line| format!("{line}\n")).collect();
        fs::write(root.join("etc/apt/apt.conf.d/99outside"), settings)?;
        let policy = root.join("usr/sbin/policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
        let shm = root.join("dev/shm");
        fs::create_dir_all(&shm)?;
        fs::set_permissions(shm, fs::Permissions::from_mode(0o1777))?;
        Ok(Self {
            root,
            release,
            outside: Vec::new(),
            _temporary: temporary,
        })
    }

    /// Where a path in this Debian is, seen from outside.
    pub fn outside(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A program in this Debian, run by root with an environment of its own.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "/bin/sh", "-c", ENTER, "enter"])
            .arg(&self.root);
        command.arg(self.outside.len().to_string()).args(&self.outside);
        command.arg(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .current_dir("/");
        command
    }

    /// A shell script in this Debian.
    pub fn script(&self, script: &str) -> Command {
        let mut command = self.command("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// What a shell script prints; an error if it fails.
    pub fn run(&self, script: &str) -> Result<String> {
        output(&mut self.script(script))
    }

    /// Installs packages, by name or by file, unless they are there.
    pub fn install(&self, title: &str, wanted: &[&str], log: &Path) -> Result<()> {
        let wanted = wanted.join(" ");
        if !wanted.contains('/') && self.run(&format!("dpkg -s {wanted}")).is_ok() {
            return Ok(());
        }
        let install = format!("apt-get update -q && apt-get install -y --no-install-recommends {wanted}");
        progress::run(&format!("{title} in {}", self.release), self.script(&install), log)
    }
}

/// Why Debian releases cannot be had in a folder here, if they cannot.
pub fn obstacle() -> Option<&'static str> {
    let may_mount = || output(Command::new("unshare").args(["--mount", "true"])).is_ok();
    if !Uid::effective().is_root() {
        Some("only root may change the root folder")
    } else if packages::on_path("debootstrap").is_none() {
        Some("debootstrap is missing: apt-get install debootstrap")
    } else if !may_mount() {
        Some("this root may not mount: in a container, that takes the capability SYS_ADMIN")
    } else {
        None
    }
}

/// A minimal Debian of this release, made once.
fn bootstrapped(paths: &Paths, release: &str) -> Result<PathBuf> {
    if let Some(obstacle) = obstacle() {
        bail!("Debian {release} in a folder: {obstacle}");
    }
    let base = paths.lab.join(format!("debian-{release}"));
    if base.join("complete").exists() {
        return Ok(base);
    }
    if base.exists() {
        fs::remove_dir_all(&base)?;
    }
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", release]).arg(&base);
    command.arg("http://deb.debian.org/debian");
    let scripts = Path::new("/usr/share/debootstrap/scripts");
    if !scripts.join(release).exists() {
        // A release that is younger than this debootstrap; sid's script serves for all.
        command.arg(scripts.join("sid"));
    }
    let log = paths.logs().join(format!("debootstrap-{release}.log"));
    progress::run(&format!("Debian {release}"), command, &log)?;
    fs::write(base.join("complete"), "")?;
    Ok(base)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.args(["-a", "--reflink=auto"]).arg(from.join(".")).arg(to);
    output(&mut command).map(|_| ()).context("cannot copy a Debian")
}
