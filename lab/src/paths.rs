//! The files and folders that the lab uses. All of them are in `target/`, except for the servers' files if the user who
//! runs the servers cannot enter it (see [`crate::setup`]).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The paths of this checkout, for one major version of PostgreSQL.
#[derive(Clone, Debug)]
pub struct Paths {
    pub root: PathBuf,
    /// `target/`.
    pub target: PathBuf,
    /// `target/lab`: logs, the env file, and the servers' files unless `base` is elsewhere.
    pub lab: PathBuf,
    /// Folder of the copied PostgreSQL tree and the clusters. The user who runs the servers can enter it.
    pub base: PathBuf,
    pub major: u32,
}

impl Paths {
    /// The current paths. The major version is `PG_MAJOR`, or the one that has been copied, or the one that is
    /// installed.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the lab crate has no parent")?
            .to_path_buf();
        let target = root.join("target");
        let lab = target.join("lab");
        let base = base_dir(&lab);
        let major = match env::var("PG_MAJOR") {
            Ok(text) => text
                .trim()
                .parse()
                .with_context(|| format!("PG_MAJOR={text:?} is not a number"))?,
            Err(_) => newest_major(&base.join("pg/usr/lib/postgresql"))
                .or_else(|| newest_major(Path::new(DEBIAN_LIB)))
                .unwrap_or(DEFAULT_MAJOR),
        };
        if !SUPPORTED.contains(&major) {
            bail!(
                "PostgreSQL {major} is not supported, only {} to {}",
                SUPPORTED.start(),
                SUPPORTED.end()
            );
        }
        // A major version other than this machine's may have been fetched (see `second_major`).
        let fetched = base.join(format!("major-{major}"));
        let copied = base.join(format!("pg/usr/lib/postgresql/{major}"));
        let base = if fetched.exists() && !copied.exists() {
            fetched
        } else {
            base
        };
        Ok(Self {
            root,
            target,
            lab,
            base,
            major,
        })
    }

    /// Like [`Paths::find`], but fails if `make setup` has not been run.
    pub fn ready() -> Result<Self> {
        let paths = Self::find()?;
        if !paths.pg_config().exists() {
            bail!("no PostgreSQL at {}: run `make setup` first", paths.pg_tree().display());
        }
        Ok(paths)
    }

    /// The copy of Debian's PostgreSQL tree. It has the layout of `/`.
    pub fn pg_tree(&self) -> PathBuf {
        self.base.join("pg")
    }

    /// The `bin` folder of the copied PostgreSQL.
    pub fn pg_bin(&self) -> PathBuf {
        self.pg_tree().join(format!("usr/lib/postgresql/{}/bin", self.major))
    }

    /// `pg_config` of the copied PostgreSQL.
    pub fn pg_config(&self) -> PathBuf {
        self.pg_bin().join("pg_config")
    }

    /// The library folder of the copied PostgreSQL, which gets `pg_jetstream.so`.
    pub fn pg_lib(&self) -> PathBuf {
        self.pg_tree().join(format!("usr/lib/postgresql/{}/lib", self.major))
    }

    /// The folder of extension control files and scripts in the copied PostgreSQL.
    pub fn pg_extension(&self) -> PathBuf {
        self.pg_tree()
            .join(format!("usr/share/postgresql/{}/extension", self.major))
    }

    /// Full logs of the commands that the lab runs.
    pub fn logs(&self) -> PathBuf {
        self.lab.join("log")
    }

    /// Results of the bench.
    pub fn bench(&self) -> PathBuf {
        self.target.join("bench")
    }

    /// Clusters that live as long as a test.
    pub fn run(&self) -> PathBuf {
        self.base.join("run")
    }

    /// Servers started by `make up`. `LAB_UP` sets another folder, which then also holds the env file.
    pub fn up(&self) -> PathBuf {
        env::var_os("LAB_UP").map_or_else(|| self.base.join("up"), PathBuf::from)
    }

    /// The shell `export` lines that `make up` writes.
    pub fn env_file(&self) -> PathBuf {
        env::var_os("LAB_UP").map_or_else(|| self.lab.join("env"), |folder| PathBuf::from(folder).join("env"))
    }

    /// Folder in which cargo-pgrx and pgrx-pg-sys find the PostgreSQL to build for.
    pub fn pgrx_home(&self) -> PathBuf {
        self.target.join("pgrx")
    }

    pub fn cargo_pgrx(&self) -> PathBuf {
        self.target.join("tools/bin/cargo-pgrx")
    }

    /// The Python environment that contains nats-server.
    pub fn venv(&self) -> PathBuf {
        self.target.join("venv")
    }

    pub fn nats_server(&self) -> PathBuf {
        self.venv().join("bin/nats-server")
    }

    /// The cargo feature of the extension for this major version.
    pub fn feature(&self) -> String {
        format!("pg{}", self.major)
    }
}

/// Folder in which Debian keeps one subfolder per installed major version.
pub const DEBIAN_LIB: &str = "/usr/lib/postgresql";

/// The major versions that the extension supports.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 13..=18;

const DEFAULT_MAJOR: u32 = 15;

/// The file with the path of the folder used instead of `target/lab`.
pub(crate) fn base_file(lab: &Path) -> PathBuf {
    lab.join("base")
}

/// The value of [`Paths::base`] for this machine's PostgreSQL.
pub(crate) fn base_dir(lab: &Path) -> PathBuf {
    fs::read_to_string(base_file(lab))
        .map(|text| PathBuf::from(text.trim()))
        .ok()
        .filter(|dir| dir.is_dir())
        .unwrap_or_else(|| lab.to_path_buf())
}

/// The newest supported major version with a `bin/postgres` in `dir`.
pub(crate) fn newest_major(dir: &Path) -> Option<u32> {
    fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|major| SUPPORTED.contains(major) && dir.join(format!("{major}/bin/postgres")).exists())
        .max()
}
