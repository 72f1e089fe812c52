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

/// The Debian revision. 1 is the first packaging of a version.
const REVISION: u32 = 1;

/// Packages of a Debian release that building the extension requires, besides the headers of PostgreSQL.
const BUILD_PACKAGES: [&str; 3] = ["build-essential", "libclang-dev", "pkg-config"];

/// Output folder for packages.
pub fn folder(paths: &Paths) -> PathBuf {
    paths.target.join("package")
}

/// Name of the package for a major version.
pub fn name(major: u32) -> String {
    format!("postgresql-{major}-pg-jetstream")
}

/// Creates the Debian package for a major version and returns the file. It is built on this machine if the headers of
/// this PostgreSQL are installed, otherwise in the Debian release that has this PostgreSQL. Either way, the package
/// depends on the libraries of the Debian release it is for.
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

/// Copies the license, and the documents in a layout that keeps the links between them valid.
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

/// The build environment: this machine, or a Debian in a folder that has the same paths.
struct Workshop<'a> {
    paths: &'a Paths,
    major: u32,
    debian: Option<Debian>,
    /// Folder of the Rust toolchain.
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
                    "building in another Debian release requires Rust from https://rustup.rs, which runs in all releases"
                );
            }
            let outside = vec![paths.root.clone(), workshop.rust.clone(), cargo_home()?];
            let debian = Debian::kept(paths, release, outside)?;
            let headers = format!("postgresql-server-dev-{major}");
            let wanted = [&BUILD_PACKAGES[..], &[&headers]].concat();
            debian.install(
                "build tools",
                &wanted,
                &paths.logs().join(format!("build-{release}.log")),
            )?;
            workshop.debian = Some(debian);
        }
        Ok(workshop)
    }

    /// A command that runs in the build environment.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.debian {
            Some(debian) => debian.command(program),
            None => Command::new(program),
        }
    }

    /// Builds the extension. Returns the library, and the folder of the control file and the scripts, which are the
    /// same for all major versions.
    fn build(&self) -> Result<(PathBuf, PathBuf)> {
        match &self.debian {
            None => pgrx_package(self.paths, self.major),
            Some(debian) => {
                let (_, scripts) = pgrx_package(self.paths, self.paths.major)?;
                Ok((self.build_in(debian)?, scripts))
            }
        }
    }

    /// Builds the library with the headers and the C library of another Debian release, from crates fetched by this
    /// machine.
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
        // The package would strip line tables anyway.
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

/// Path at which Debian installs `pg_config`.
fn pg_config(major: u32) -> PathBuf {
    Path::new(DEBIAN_LIB).join(format!("{major}/bin/pg_config"))
}

/// Builds with `cargo pgrx package` for a PostgreSQL of this machine. Returns the library, and the folder of control
/// file and scripts.
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

/// Folder of the toolchain that builds the repository.
fn rust(paths: &Paths) -> Result<PathBuf> {
    let mut command = Command::new("rustc");
    command.args(["--print", "sysroot"]).current_dir(&paths.root);
    output(&mut command).map(PathBuf::from)
}

/// Folder in which cargo keeps the sources of crates.
fn cargo_home() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CARGO_HOME") {
        return Ok(folder.into());
    }
    let home = std::env::home_dir().context("no home folder")?;
    Ok(home.join(".cargo"))
}

/// Creates the archive for PGXN from the committed files and returns it. `None` without git or a repository.
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

/// The packages that provide the required libraries, with the required versions.
fn library_packages(workshop: &Workshop, library: &Path) -> Result<String> {
    // dpkg-shlibdeps must run in a source package.
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
        .with_context(|| format!("dpkg-shlibdeps prints {text:?}"))?
        .to_owned())
}

/// Copies the files of a folder, but not its subfolders.
fn put_files(from: &Path, to: &Path) -> Result<()> {
    for file in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let file = file?;
        if file.file_type()?.is_file() {
            put(&file.path(), &to.join(file.file_name()))?;
        }
    }
    Ok(())
}

/// Copies a file and makes it readable by everyone.
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

/// Output of a command without the trailing newline. If the command fails, the error includes everything that it
/// printed.
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
