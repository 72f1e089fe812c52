//! Creates data directories. `initdb` runs once, and every cluster is a copy of its result.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::user::ServerUser;

/// Size of a WAL segment in megabytes where disk space matters more than speed. A cluster takes 29 MB with 1, and 39 MB
/// with 16.
pub const SMALL_WAL: u32 = 1;

/// PostgreSQL's default size of a WAL segment, for clusters that are measured.
pub const DEFAULT_WAL: u32 = 16;

/// Creates the data directory `dir` of a new cluster with superuser `postgres`, trusted connections from 127.0.0.1,
/// UTF-8, and locale C.
pub fn create(paths: &Paths, user: &ServerUser, wal_mb: u32, dir: &Path) -> Result<()> {
    let template = template(paths, user, wal_mb)?;
    let status = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(&template)
        .arg(dir)
        .status()?;
    if !status.success() {
        bail!("cannot copy {} to {}", template.display(), dir.display());
    }
    Ok(())
}

/// Creates the data directory `dir` of a streaming standby of the server on `port`.
pub fn follow(paths: &Paths, user: &ServerUser, port: u16, dir: &Path) -> Result<()> {
    let mut command = user.command(paths.pg_bin().join("pg_basebackup"));
    let primary = format!("host=127.0.0.1 port={port} user=postgres application_name=standby");
    command
        .args(["-d", &primary, "-R", "-X", "stream", "-c", "fast", "-D"])
        .arg(dir)
        .current_dir(dir.parent().unwrap_or(dir));
    let output = command.output().context("cannot run pg_basebackup")?;
    if !output.status.success() {
        bail!("pg_basebackup failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn template(paths: &Paths, user: &ServerUser, wal_mb: u32) -> Result<PathBuf> {
    let folder = paths.base.join("template");
    let version = fs::metadata(paths.pg_bin().join("postgres"))?.len();
    let template = folder.join(format!("{}-{version}-{}-{wal_mb}", paths.major, user.uid()));
    if template.exists() {
        return Ok(template);
    }
    fs::create_dir_all(&folder)?;
    let scratch = tempfile::Builder::new().prefix("new-").tempdir_in(&folder)?;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
    user.own(scratch.path())?;
    let data = scratch.path().join("data");
    let mut command = user.command(paths.pg_bin().join("initdb"));
    command.args([
        "--username=postgres",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "-D",
    ]);
    command
        .arg(&data)
        .arg(format!("--wal-segsize={wal_mb}"))
        .current_dir(scratch.path());
    let output = command.output().context("cannot run initdb")?;
    if !output.status.success() {
        bail!(
            "initdb failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // Another process may have created the template first. Its result is as good.
    if let Err(error) = fs::rename(&data, &template)
        && !template.exists()
    {
        return Err(error).with_context(|| format!("cannot make {}", template.display()));
    }
    Ok(template)
}
