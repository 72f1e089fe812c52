//! `make package`: a Debian package for each major version of PostgreSQL, and the archive for PGXN.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::debian::Debian;
use crate::paths::{DEBIAN_LIB, Paths};
use crate::{packages, progress, release, second_major, setup};

/// The Debian revision: the first packaging of a version.
const REVISION: u32 = 1;

/// What the packages of a Debian release build the extension with, besides the headers of PostgreSQL.
const BUILD_PACKAGES: [&str; 3] = ["build-essential", "libclang-dev", "pkg-config"];

/// Where packages go.
pub fn folder(paths: &Paths) -> PathBuf {
    paths.target.join("package")
}

/// The name of the package for a major version.
pub fn name(major: u32) -> String {
    format!("postgresql-{major}-pg-jetstream")
}

/// Makes the Debian package for a major version; the file. It is built on this machine if that has the headers of this
/// PostgreSQL, else in the Debian release that carries it, so that it needs the libraries of the Debian that it is for.
pub fn debian(paths: &Paths, major: u32) -> Result<PathBuf> {
    let workshop = Workshop::find(paths, major)?;
    let (built, scripts) = workshop.build()?;
    let name = name(major);
    let stage = folder(paths).join(&name);
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let library = stage.join(format!("usr/lib/postgresql/{major}/lib/pg_jetstream.so"));
    put(&built, &library)?;
    output(workshop.command("strip").arg("--strip-unneeded").arg(&library))?;
    put_files(&scripts, &stage.join(format!("usr/share/postgresql/{major}/extension")))?;
    put_documents(&paths.root, &stage.join("usr/share/doc").join(&name))?;
    let version = format!("{}-{REVISION}", release::version(paths)?);
    let architecture = output(workshop.command("dpkg").arg("--print-architecture"))?;
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: {architecture}\nSection: database\n\
         Priority: optional\nMaintainer: the pg_jetstream authors <noreply@localhost>\n\
         Depends: postgresql-{major}, {}\nInstalled-Size: {}\n\
         Description: transactional outbox from PostgreSQL {major} to NATS JetStream\n \
         SQL inserts messages inside a transaction; a background worker of the\n \
         server publishes what was committed to NATS JetStream, and records what\n \
         happened.\n",
        library_packages(&workshop, &library)?,
        size_kb(&stage)?,
    );
    fs::create_dir_all(stage.join("DEBIAN"))?;
    fs::write(stage.join("DEBIAN/control"), control)?;
    let file = folder(paths).join(format!("{name}_{version}_{architecture}.deb"));
    let mut build = workshop.command("dpkg-deb");
    output(build.args(["--root-owner-group", "--build"]).arg(&stage).arg(&file))?;
    fs::remove_dir_all(stage)?;
    Ok(file)
}

/// The license, and the documents as they link to each other.
fn put_documents(root: &Path, to: &Path) -> Result<()> {
    put(&root.join("LICENSE"), &to.join("copyright"))?;
    for file in ["README.md", "CHANGELOG.md"] {
        put(&root.join(file), &to.join(file))?;
    }
    for folder in ["docs", "docs/img"] {
        put_files(&root.join(folder), &to.join(folder))?;
    }
    Ok(())
}

/// Where a package is made: here, or in a Debian in a folder, in which the paths of here are the same.
struct Workshop<'a> {
    paths: &'a Paths,
    major: u32,
    debian: Option<Debian>,
    /// The toolchain of Rust.
    rust: PathBuf,
}

impl<'a> Workshop<'a> {
    fn find(paths: &'a Paths, major: u32) -> Result<Self> {
        let mut workshop = Self {
            paths,
            major,
            debian: None,
            rust: rust(paths)?,
        };
        let headers = format!("/usr/include/postgresql/{major}/server/postgres.h");
        if !Path::new(&headers).exists() {
            let release = second_major::release(major)?;
            if workshop.rust == Path::new("/usr") {
                bail!(
                    "building in another Debian release takes Rust from https://rustup.rs, which runs in all of them"
                );
            }
            let outside = vec![paths.root.clone(), workshop.rust.clone(), cargo_home()?];
            let debian = Debian::kept(paths, release, outside)?;
            let headers = format!("postgresql-server-dev-{major}");
            let wanted = [&BUILD_PACKAGES[..], &[&headers]].concat();
            debian.install(
                "what building takes",
                &wanted,
                &paths.logs().join(format!("build-{release}.log")),
            )?;
            workshop.debian = Some(debian);
        }
        Ok(workshop)
    }

    /// A program of the place.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.debian {
            Some(debian) => debian.command(program),
            None => Command::new(program),
        }
    }

    /// The library, and the folder of the control file and the scripts, which are the same for all major versions.
    fn build(&self) -> Result<(PathBuf, PathBuf)> {
        match &self.debian {
            None => pgrx_package(self.paths, self.major),
            Some(debian) => {
                let (_, scripts) = pgrx_package(self.paths, self.paths.major)?;
                Ok((self.build_in(debian)?, scripts))
            }
        }
    }

    /// The library, built with the headers and the C library of another Debian, from crates fetched here.
    fn build_in(&self, debian: &Debian) -> Result<PathBuf> {
        let mut fetch = setup::cargo(self.paths, "cargo");
        fetch.args(["fetch", "--locked"]);
        progress::run("crates", fetch, &self.paths.logs().join("fetch.log"))?;
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.rust.join("bin").display());
        let mut build = self.command("/usr/bin/env");
        build.arg(format!("--chdir={}", self.paths.root.display()));
        build.args(["cargo", "build", "--locked", "--offline", "--lib", "--release"]);
        build.args(["--no-default-features", "--features", &format!("pg{}", self.major)]);
        build.env("PATH", path).env("CARGO_HOME", cargo_home()?);
        // Line tables would be stripped.
        build
            .env("CARGO_TARGET_DIR", "/build")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
        build.env("PGRX_HOME", self.paths.pgrx_home());
        build.env("PGRX_PG_CONFIG_PATH", pg_config(self.major));
        let log = self.paths.logs().join(format!("package-build-{}.log", self.major));
        progress::run(&format!("library for PostgreSQL {}", self.major), build, &log)?;
        Ok(debian.outside("/build/release/libpg_jetstream.so"))
    }
}

/// Where Debian installs it.
fn pg_config(major: u32) -> PathBuf {
    Path::new(DEBIAN_LIB).join(format!("{major}/bin/pg_config"))
}

/// What `cargo pgrx package` makes for a PostgreSQL of this machine: the library, and the folder of control file and scripts.
fn pgrx_package(paths: &Paths, major: u32) -> Result<(PathBuf, PathBuf)> {
    let built = folder(paths).join(format!("pgrx-{major}"));
    if built.exists() {
        fs::remove_dir_all(&built)?;
    }
    let mut command = setup::cargo(paths, paths.cargo_pgrx());
    command.args([
        "pgrx",
        "package",
        "--no-default-features",
        "--features",
        &format!("pg{major}"),
    ]);
    command
        .arg("--pg-config")
        .arg(pg_config(major))
        .arg("--out-dir")
        .arg(&built);
    command.env("PGRX_PG_CONFIG_PATH", pg_config(major));
    let log = paths.logs().join(format!("package-build-{major}.log"));
    progress::run(&format!("extension for PostgreSQL {major}"), command, &log)?;
    Ok((
        built.join(format!("usr/lib/postgresql/{major}/lib/pg_jetstream.so")),
        built.join(format!("usr/share/postgresql/{major}/extension")),
    ))
}

/// Where the toolchain is that the repository is built with.
fn rust(paths: &Paths) -> Result<PathBuf> {
    let mut command = Command::new("rustc");
    command.args(["--print", "sysroot"]).current_dir(&paths.root);
    output(&mut command).map(PathBuf::from)
}

/// Where cargo keeps the sources of crates.
fn cargo_home() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CARGO_HOME") {
        return Ok(folder.into());
    }
    let home = std::env::home_dir().context("there is no home folder")?;
    Ok(home.join(".cargo"))
}

/// Makes the archive for PGXN from what is committed; the file, or none without git or its repository.
pub fn pgxn(paths: &Paths) -> Result<Option<PathBuf>> {
    if !paths.root.join(".git").exists() || packages::on_path("git").is_none() {
        return Ok(None);
    }
    let stem = format!("pg_jetstream-{}", release::version(paths)?);
    let file = folder(paths).join(format!("{stem}.zip"));
    fs::create_dir_all(folder(paths))?;
    let mut archive = Command::new("git");
    archive.current_dir(&paths.root).args(["archive", "--format=zip"]);
    archive
        .arg(format!("--prefix={stem}/"))
        .arg("-o")
        .arg(&file)
        .arg("HEAD");
    output(&mut archive)?;
    Ok(Some(file))
}

/// The packages that bring the libraries this one needs, in the versions it needs.
fn library_packages(workshop: &Workshop, library: &Path) -> Result<String> {
    // dpkg-shlibdeps wants to stand in a source package.
    let source = folder(workshop.paths).join("source");
    fs::create_dir_all(source.join("debian"))?;
    fs::write(
        source.join("debian/control"),
        "Source: pg-jetstream\n\nPackage: pg-jetstream\nArchitecture: any\n",
    )?;
    let mut command = workshop.command("/usr/bin/env");
    command.arg(format!("--chdir={}", source.display()));
    command.args(["dpkg-shlibdeps", "-O", "--warnings=0"]);
    let text = output(command.arg(format!("-e{}", library.display())))?;
    fs::remove_dir_all(source)?;
    let depends = text.strip_prefix("shlibs:Depends=");
    Ok(depends
        .with_context(|| format!("dpkg-shlibdeps says {text:?}"))?
        .to_owned())
}

/// Copies the files of a folder, and not its folders.
fn put_files(from: &Path, to: &Path) -> Result<()> {
    for file in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let file = file?;
        if file.file_type()?.is_file() {
            put(&file.path(), &to.join(file.file_name()))?;
        }
    }
    Ok(())
}

/// Copies a file, readable by all.
fn put(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("no folder")?;
    fs::create_dir_all(folder)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o644))?)
}

fn size_kb(folder: &Path) -> Result<String> {
    let text = output(Command::new("du").arg("-sk").arg(folder))?;
    Ok(text.split_whitespace().next().unwrap_or("0").to_owned())
}

/// What a command prints, without the last line's end; an error with what it complains about if it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
