//! Where everything lives. All of it is below `target/`, but for the servers' files when the user who runs the servers
//! cannot get there (see [`crate::setup`]).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The places of this checkout, for one PostgreSQL major version.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The repository.
    pub root: PathBuf,
    /// `target/`.
    pub target: PathBuf,
    /// `target/lab`: logs, the env file, and the servers' files unless `base` is elsewhere.
    pub lab: PathBuf,
    /// Where the copied PostgreSQL tree and the clusters are; the user who runs the servers can enter it.
    pub base: PathBuf,
    /// PostgreSQL's major version.
    pub major: u32,
}

impl Paths {
    /// The places as they are now: `PG_MAJOR` if set, else what is copied, else what is installed.
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
                "PostgreSQL {major} is not supported: {} to {} are",
                SUPPORTED.start(),
                SUPPORTED.end()
            );
        }
        // Another major version than this machine's may have been fetched (see `second_major`).
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

    /// The same as [`Paths::find`], but an error if `make setup` has not been run.
    pub fn ready() -> Result<Self> {
        let paths = Self::find()?;
        if !paths.pg_config().exists() {
            bail!("no PostgreSQL at {}: run `make setup` first", paths.pg_tree().display());
        }
        Ok(paths)
    }

    /// The copy of Debian's PostgreSQL tree: what is `/` there is this here.
    pub fn pg_tree(&self) -> PathBuf {
        self.base.join("pg")
    }

    /// The `bin` folder of the copied PostgreSQL.
    pub fn pg_bin(&self) -> PathBuf {
        self.pg_tree().join(format!("usr/lib/postgresql/{}/bin", self.major))
    }

    /// The copied PostgreSQL's own pg_config.
    pub fn pg_config(&self) -> PathBuf {
        self.pg_bin().join("pg_config")
    }

    /// The library folder of the copied PostgreSQL, where `pg_jetstream.so` goes.
    pub fn pg_lib(&self) -> PathBuf {
        self.pg_tree().join(format!("usr/lib/postgresql/{}/lib", self.major))
    }

    /// Where the copied PostgreSQL keeps control files and scripts of extensions.
    pub fn pg_extension(&self) -> PathBuf {
        self.pg_tree()
            .join(format!("usr/share/postgresql/{}/extension", self.major))
    }

    /// Full logs of the commands run on the way.
    pub fn logs(&self) -> PathBuf {
        self.lab.join("log")
    }

    /// What the measurements write.
    pub fn bench(&self) -> PathBuf {
        self.target.join("bench")
    }

    /// Clusters that live as long as a test.
    pub fn run(&self) -> PathBuf {
        self.base.join("run")
    }

    /// What `make up` started; `LAB_UP` names another folder, in which the env file is too.
    pub fn up(&self) -> PathBuf {
        env::var_os("LAB_UP").map_or_else(|| self.base.join("up"), PathBuf::from)
    }

    /// The shell `export` lines that `make up` writes.
    pub fn env_file(&self) -> PathBuf {
        env::var_os("LAB_UP").map_or_else(|| self.lab.join("env"), |folder| PathBuf::from(folder).join("env"))
    }

    /// Where cargo-pgrx and pgrx-pg-sys read which PostgreSQL to build for.
    pub fn pgrx_home(&self) -> PathBuf {
        self.target.join("pgrx")
    }

    /// cargo-pgrx itself.
    pub fn cargo_pgrx(&self) -> PathBuf {
        self.target.join("tools/bin/cargo-pgrx")
    }

    /// The Python environment that nats-server is installed into.
    pub fn venv(&self) -> PathBuf {
        self.target.join("venv")
    }

    /// The NATS server.
    pub fn nats_server(&self) -> PathBuf {
        self.venv().join("bin/nats-server")
    }

    /// The cargo feature of the extension for this major version.
    pub fn feature(&self) -> String {
        format!("pg{}", self.major)
    }
}

/// Where Debian keeps one folder for each installed major version.
pub const DEBIAN_LIB: &str = "/usr/lib/postgresql";

/// The major versions the extension has cargo features for.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 13..=18;

const DEFAULT_MAJOR: u32 = 15;

/// The file that names the folder used instead of `target/lab`.
pub(crate) fn base_file(lab: &Path) -> PathBuf {
    lab.join("base")
}

/// What [`Paths::base`] is for this machine's PostgreSQL.
pub(crate) fn base_dir(lab: &Path) -> PathBuf {
    fs::read_to_string(base_file(lab))
        .map(|text| PathBuf::from(text.trim()))
        .ok()
        .filter(|dir| dir.is_dir())
        .unwrap_or_else(|| lab.to_path_buf())
}

/// The newest supported major version that has a `bin/postgres` below `dir`.
pub(crate) fn newest_major(dir: &Path) -> Option<u32> {
    fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|major| SUPPORTED.contains(major) && dir.join(format!("{major}/bin/postgres")).exists())
        .max()
}
