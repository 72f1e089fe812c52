//! The user who runs PostgreSQL. PostgreSQL refuses to run as root, so root runs its servers as an ordinary user.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User, chown};

/// The user who runs the servers, if it is not the user who runs the lab.
#[derive(Clone, Debug)]
pub struct ServerUser(Option<User>);

impl ServerUser {
    /// For root, this is `postgres` or `nobody`. Any other user runs the servers directly.
    pub fn find() -> Result<Self> {
        if !Uid::effective().is_root() {
            return Ok(Self(None));
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name).with_context(|| format!("cannot look up user {name}"))? {
                return Ok(Self(Some(user)));
            }
        }
        bail!("root cannot run PostgreSQL, and neither user `postgres` nor `nobody` exists")
    }

    /// The numeric user id that owns the servers' files.
    pub fn uid(&self) -> u32 {
        self.0.as_ref().map_or(Uid::effective(), |user| user.uid).as_raw()
    }

    /// A command that runs as this user. std clears root's supplementary groups when it sets the uid.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Some(user) = &self.0 {
            command
                .uid(user.uid.as_raw())
                .gid(user.gid.as_raw())
                .env("HOME", &user.dir)
                .env("USER", &user.name);
        }
        command
    }

    /// Gives one file or folder to this user, but not the content of the folder.
    pub fn own(&self, path: &Path) -> Result<()> {
        if let Some(user) = &self.0 {
            chown(path, Some(user.uid), Some(user.gid)).with_context(|| format!("cannot chown {}", path.display()))?;
        }
        Ok(())
    }
}
