//! Programs of Debian packages that only tests need: exporters, Prometheus, a browser. They are unpacked below
//! `target/tools`, so that nothing of them is installed or started on the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::packages::on_path;
use crate::paths::Paths;
use crate::progress;
use crate::setup::lock;

/// Prometheus.
pub fn prometheus(paths: &Paths) -> Result<Command> {
    Ok(Command::new(alone(paths, "prometheus")?.join("usr/bin/prometheus")))
}

/// The checker of Prometheus' rules and configuration, which comes with it.
pub fn promtool(paths: &Paths) -> Result<Command> {
    Ok(Command::new(alone(paths, "prometheus")?.join("usr/bin/promtool")))
}

/// github.com/prometheus-community/postgres_exporter
pub fn postgres_exporter(paths: &Paths) -> Result<Command> {
    let name = "prometheus-postgres-exporter";
    Ok(Command::new(alone(paths, name)?.join("usr/bin").join(name)))
}

/// github.com/justwatchcom/sql_exporter
pub fn sql_exporter(paths: &Paths) -> Result<Command> {
    let name = "prometheus-sql-exporter";
    Ok(Command::new(alone(paths, name)?.join("usr/bin").join(name)))
}

/// Chromium without a window, and the environment it needs.
pub struct Chromium {
    /// The program.
    pub program: PathBuf,
    /// Variables with their values.
    pub environment: Vec<(&'static str, PathBuf)>,
}

/// Chromium with its own libraries and fonts, so that it draws the same everywhere.
pub fn chromium(paths: &Paths) -> Result<Chromium> {
    let root = unpacked(paths, "chromium-headless-shell", with_dependencies, |root| {
        let fonts = root.join("usr/share/fonts");
        let alias = |generic: &str, font: &str| {
            format!(
                "<alias binding=\"same\"><family>{generic}</family><prefer><family>{font}</family></prefer></alias>\n"
            )
        };
        let config = format!(
            "<?xml version=\"1.0\"?>\n<!DOCTYPE fontconfig SYSTEM \"urn:fontconfig:fonts.dtd\">\n<fontconfig>\n<dir>{}</dir>\n\
             <cachedir>{}</cachedir>\n{}{}{}</fontconfig>\n",
            fonts.display(),
            root.join("font-cache").display(),
            alias("system-ui", "DejaVu Sans"),
            alias("sans-serif", "DejaVu Sans"),
            alias("monospace", "DejaVu Sans Mono"),
        );
        fs::write(root.join("fonts.conf"), config).context("cannot write fonts.conf")
    })?;
    let mut libraries = Vec::new();
    // Some packages have their libraries in /lib, which is not a link to /usr/lib here.
    for folder in [root.join("usr/lib"), root.join("lib")] {
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.file_name().to_string_lossy().ends_with("-linux-gnu") {
                libraries.extend([entry.path(), entry.path().join("pulseaudio")]);
            }
        }
    }
    let libraries = std::env::join_paths(libraries)?;
    Ok(Chromium {
        program: root.join("usr/lib/chromium/chromium-headless-shell"),
        environment: vec![
            ("LD_LIBRARY_PATH", libraries.into()),
            ("FONTCONFIG_FILE", root.join("fonts.conf")),
        ],
    })
}

/// The folder of a package that needs nothing but the C library.
fn alone(paths: &Paths, package: &str) -> Result<PathBuf> {
    unpacked(paths, package, |package| Ok(vec![package.to_owned()]), |_| Ok(()))
}

/// Unpacks packages unless that was done; `finish` makes what else is needed. Returns the folder that stands for `/`.
fn unpacked(
    paths: &Paths,
    package: &str,
    wanted: fn(&str) -> Result<Vec<String>>,
    finish: impl Fn(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let root = paths.target.join("tools/deb").join(package);
    let _lock = lock(paths)?;
    if root.join(COMPLETE).exists() {
        return Ok(root);
    }
    for program in ["apt-get", "dpkg-deb"] {
        on_path(program).with_context(|| format!("{program} is not there: this needs Debian or Ubuntu"))?;
    }
    let log = paths.logs().join(format!("{package}.log"));
    let debs = root.join("debs");
    let download = || -> Result<()> {
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(&debs)?;
        let mut download = Command::new("apt-get");
        download.arg("download").args(wanted(package)?).current_dir(&debs);
        progress::run(package, download, &log)
    };
    if let Err(error) = download() {
        if !Uid::effective().is_root() {
            return Err(error);
        }
        // The package lists are not there, or older than what they name.
        let mut update = Command::new("apt-get");
        update.arg("update");
        progress::run("apt-get update", update, &log)?;
        download()?;
    }
    for deb in fs::read_dir(&debs)? {
        let output = Command::new("dpkg-deb")
            .arg("-x")
            .arg(deb?.path())
            .arg(&root)
            .output()?;
        if !output.status.success() {
            bail!("{package}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    fs::remove_dir_all(debs)?;
    finish(&root)?;
    fs::write(root.join(COMPLETE), "")?;
    Ok(root)
}

/// The fonts that pages are drawn with. Not more of them: a mathematical one would be taken for those that are missing.
const FONTS: &str = "fonts-dejavu-core";

const C_LIBRARY: &str = "libc6";

/// The file that says a folder is complete. A folder without it is unpacked again; its name changes with what a folder holds.
const COMPLETE: &str = "complete";

/// A package, all that it depends on, and fonts. What this machine has installed plays no part: a library of its own may
/// be of another version or be removed later. Only the C library is the machine's, because the loader that starts the
/// program belongs to it.
fn with_dependencies(package: &str) -> Result<Vec<String>> {
    let output = Command::new("apt-get")
        .args(["install", "--simulate", "--no-install-recommends"])
        .args(["--option", "Dir::State::status=/dev/null", package, FONTS])
        .output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let packages: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
        .filter(|name| *name != C_LIBRARY)
        .map(str::to_owned)
        .collect();
    if !packages.iter().any(|name| name == package) {
        bail!("apt-get does not say what {package} depends on:\n{text}");
    }
    Ok(packages)
}
