//! PostgreSQL refuses to run as root, so that root hands its servers to an ordinary user.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User, chown};

/// The user the servers run as, if that is not the one who runs the lab.
#[derive(Clone, Debug)]
pub struct ServerUser(Option<User>);

impl ServerUser {
    /// `postgres` or `nobody` for root; everybody else is who they are.
    pub fn find() -> Result<Self> {
        if !Uid::effective().is_root() {
            return Ok(Self(None));
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name).with_context(|| format!("cannot look up user {name}"))? {
                return Ok(Self(Some(user)));
            }
        }
        bail!("run by root, and there is neither a user `postgres` nor `nobody` to run PostgreSQL as")
    }

    /// The numeric user id that owns the servers' files.
    pub fn uid(&self) -> u32 {
        self.0.as_ref().map_or(Uid::effective(), |user| user.uid).as_raw()
    }

    /// A command that runs as this user, without the supplementary groups of root (std clears them with the uid).
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

    /// Gives one file or folder (not what is in it) to this user.
    pub fn own(&self, path: &Path) -> Result<()> {
        if let Some(user) = &self.0 {
            chown(path, Some(user.uid), Some(user.gid)).with_context(|| format!("cannot chown {}", path.display()))?;
        }
        Ok(())
    }
}
