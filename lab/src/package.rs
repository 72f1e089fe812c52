//! `make package`: a Debian package for each major version of PostgreSQL, and the archive for PGXN.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::release;

/// The Debian revision: the first packaging of a version.
const REVISION: u32 = 1;

/// Where packages go.
pub fn folder(paths: &Paths) -> PathBuf {
    paths.target.join("package")
}

/// The name of the package for this major version.
pub fn name(paths: &Paths) -> String {
    format!("postgresql-{}-pg-jetstream", paths.major)
}

/// Makes the Debian package from what is installed in the PostgreSQL at `paths`; the file.
pub fn debian(paths: &Paths) -> Result<PathBuf> {
    let (name, version) = (name(paths), release::version(paths)?);
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let stage = folder(paths).join(&name);
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let library = format!("usr/lib/postgresql/{}/lib/pg_jetstream.so", paths.major);
    let extension = format!("usr/share/postgresql/{}/extension", paths.major);
    put(&paths.pg_lib().join("pg_jetstream.so"), &stage.join(&library))?;
    output(Command::new("strip").arg("--strip-unneeded").arg(stage.join(&library)))?;
    for file in extension_files(paths)? {
        let to = stage.join(&extension).join(file.file_name().context("no file name")?);
        put(&file, &to)?;
    }
    let documents = stage.join("usr/share/doc").join(&name);
    for (file, to) in [
        ("LICENSE", "copyright"),
        ("README.md", "README.md"),
        ("CHANGELOG.md", "CHANGELOG.md"),
    ] {
        put(&paths.root.join(file), &documents.join(to))?;
    }
    let depends = library_packages(paths, &stage.join(&library))?;
    let control = format!(
        "Package: {name}\nVersion: {version}-{REVISION}\nArchitecture: {architecture}\nSection: database\n\
         Priority: optional\nMaintainer: the pg_jetstream authors <noreply@localhost>\n\
         Depends: postgresql-{}, {depends}\nInstalled-Size: {}\n\
         Description: transactional outbox from PostgreSQL {} to NATS JetStream\n \
         SQL inserts messages inside a transaction; a background worker of the\n \
         server publishes what was committed to NATS JetStream, and records what\n \
         happened.\n",
        paths.major,
        size_kb(&stage)?,
        paths.major
    );
    fs::create_dir_all(stage.join("DEBIAN"))?;
    fs::write(stage.join("DEBIAN/control"), control)?;
    let file = folder(paths).join(format!("{name}_{version}-{REVISION}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    output(build.args(["--root-owner-group", "--build"]).arg(&stage).arg(&file))?;
    Ok(file)
}

/// Makes the archive for PGXN from what is committed; the file.
pub fn pgxn(paths: &Paths) -> Result<PathBuf> {
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
    Ok(file)
}

/// Control file and scripts of this version, upgrade scripts included; a tree may hold those of others.
fn extension_files(paths: &Paths) -> Result<Vec<PathBuf>> {
    let mut files = vec![paths.pg_extension().join("pg_jetstream.control")];
    let script = release::installed_script(paths, &release::version(paths)?);
    if !script.exists() {
        bail!("{} is not there: install the extension first", script.display());
    }
    files.push(script);
    for entry in fs::read_dir(paths.root.join("sql"))? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("pg_jetstream--") && name.ends_with(".sql") {
            files.push(paths.root.join("sql").join(&*name));
        }
    }
    Ok(files)
}

/// The packages that bring the libraries this one needs, in the versions it needs.
fn library_packages(paths: &Paths, library: &Path) -> Result<String> {
    // dpkg-shlibdeps wants to stand in a source package.
    let source = folder(paths).join("source");
    fs::create_dir_all(source.join("debian"))?;
    fs::write(
        source.join("debian/control"),
        "Source: pg-jetstream\n\nPackage: pg-jetstream\nArchitecture: any\n",
    )?;
    let mut command = Command::new("dpkg-shlibdeps");
    command.current_dir(&source).args(["-O", "--warnings=0"]);
    let text = output(command.arg(format!("-e{}", library.display())))?;
    let depends = text.strip_prefix("shlibs:Depends=");
    Ok(depends
        .with_context(|| format!("dpkg-shlibdeps says {text:?}"))?
        .to_owned())
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
