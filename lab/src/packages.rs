//! The Debian packages: installed by root, named to everybody else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use nix::unistd::Uid;

use crate::paths::{DEBIAN_LIB, Paths, SUPPORTED};
use crate::progress;

/// What the packages are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Building the extension for a PostgreSQL that is there.
    Build,
    /// Building it for a PostgreSQL that is not there, whose headers are enough.
    Headers,
    /// Also running servers of one's own.
    Servers,
}

/// Something that has to be on the machine, and the package that brings it.
struct Need {
    what: String,
    package: String,
    there: bool,
}

/// Installs the packages that are missing, if that is allowed; otherwise says which they are.
pub fn install(paths: &Paths, scope: Scope) -> Result<()> {
    let missing: Vec<Need> = needs(paths, scope).into_iter().filter(|need| !need.there).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package.as_str()).collect();
    if !Uid::effective().is_root() || on_path("apt-get").is_none() {
        let list: Vec<String> = missing
            .iter()
            .map(|need| format!("  {} ({})", need.what, need.package))
            .collect();
        bail!(
            "these are missing, and only root on Debian or Ubuntu can have them installed from here:\n{}\n\
             Install them with\n  sudo apt-get install {}\nand run this again. PostgreSQL is expected where Debian \
             has it, below {DEBIAN_LIB}/{}; PG_MAJOR=… chooses another version.",
            list.join("\n"),
            packages.join(" "),
            paths.major
        );
    }
    let log = paths.logs().join("apt.log");
    progress::run("apt-get update", apt(paths, &["update"])?, &log)?;
    let args: Vec<&str> = ["install", "-y", "--no-install-recommends"]
        .into_iter()
        .chain(packages.clone())
        .collect();
    progress::run(&format!("packages: {}", packages.join(" ")), apt(paths, &args)?, &log)?;
    if let Some(need) = needs(paths, scope).iter().find(|need| !need.there) {
        bail!(
            "package {} is installed, but {} is still not there; see {}",
            need.package,
            need.what,
            log.display()
        );
    }
    Ok(())
}

/// The PostgreSQL that this distribution's `postgresql` package depends on.
pub fn default_major() -> Option<u32> {
    let output = Command::new("apt-cache")
        .args(["depends", "postgresql"])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: postgresql-")?.parse().ok());
    major.filter(|major| SUPPORTED.contains(major))
}

fn needs(paths: &Paths, scope: Scope) -> Vec<Need> {
    let need = |what: &str, package: &str, there| Need {
        what: what.into(),
        package: package.into(),
        there,
    };
    let mut needs = vec![
        need("libclang", "libclang-dev", libclang()),
        need("a C compiler", "build-essential", on_path("cc").is_some()),
        need("pkg-config", "pkg-config", on_path("pkg-config").is_some()),
        need(
            "OpenSSL's headers, for cargo-pgrx",
            "libssl-dev",
            Path::new("/usr/include/openssl/ssl.h").exists(),
        ),
    ];
    let major = paths.major;
    let lib = Path::new(DEBIAN_LIB).join(major.to_string());
    if scope != Scope::Build {
        let headers = Path::new(&format!("/usr/include/postgresql/{major}/server/postgres.h")).exists()
            && lib.join("lib/pgxs/src/test/regress/pg_regress").exists();
        needs.push(need(
            &format!("PostgreSQL {major}'s headers and pg_regress"),
            &format!("postgresql-server-dev-{major}"),
            headers,
        ));
    }
    if scope == Scope::Servers {
        let server = lib.join("bin/postgres").exists() && lib.join("lib/pgcrypto.so").exists();
        needs.push(need(
            &format!("PostgreSQL {major}"),
            &format!("postgresql-{major}"),
            server,
        ));
        needs.push(need(
            "Python's venv",
            "python3-venv",
            paths.nats_server().exists() || venv(),
        ));
    }
    needs
}

/// The packages' scripts inherit this environment: a new PostgreSQL package would start a server of its own.
fn apt(paths: &Paths, args: &[&str]) -> Result<Command> {
    let config = paths.lab.join("apt");
    fs::create_dir_all(&config)?;
    fs::write(config.join("createcluster.conf"), "start_conf = 'manual'\n")?;
    let mut command = Command::new("apt-get");
    command
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("PGSYSCONFDIR", config);
    Ok(command)
}

/// Where a program is found, as the shell would.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

fn venv() -> bool {
    Command::new("python3")
        .args(["-c", "import ensurepip, venv"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// bindgen looks for the library in these folders by itself.
fn libclang() -> bool {
    let folders = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    folders
        .flat_map(|folder| [folder.join("lib"), folder])
        .chain(["/usr/lib64".into()])
        .any(|folder| {
            fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name.starts_with("libclang") && name.contains(".so") && !name.starts_with("libclang-cpp")
            })
        })
}
