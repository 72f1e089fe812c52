//! Programs that are fetched below `target/` run on any machine: what else is installed there plays no part.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use lab::paths::Paths;
use lab::{debs, tools};

/// Parts of the C library, which is the machine's.
const C_LIBRARY: [&str; 6] = ["libc", "libdl", "libm", "libpthread", "libresolv", "librt"];
/// Parts of the C++ compiler, which building the extension takes.
const COMPILER: [&str; 3] = ["libgcc_s", "libstdc++", "libatomic"];

/// The libraries that a program takes from outside `target/`, the C library aside.
fn foreign_libraries(paths: &Paths, program: &Path, environment: &[(&str, &Path)]) -> Vec<String> {
    let output = Command::new("ldd")
        .arg(program)
        .env_remove("LD_LIBRARY_PATH")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(why.contains("not a dynamic executable"), "{}: {why}", program.display());
        return Vec::new();
    }
    let target = paths.target.display().to_string();
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("linux-vdso") && !line.contains(&target))
        .filter(|line| line.ends_with("not found") || !belongs_to(line, &C_LIBRARY))
        .map(str::to_owned)
        .collect()
}

/// Whether a line such as `libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)` is of one of these libraries.
fn belongs_to(line: &str, libraries: &[&str]) -> bool {
    let file = line.split_whitespace().next().unwrap_or_default();
    let name = file.rsplit('/').next().unwrap_or_default();
    let stem = name.split(".so").next().unwrap_or_default();
    stem.starts_with("ld-linux") || libraries.contains(&stem)
}

#[test]
fn chromium_takes_nothing_from_the_machine() {
    let paths = Paths::ready().unwrap();
    let chromium = debs::chromium(&paths).unwrap();
    let environment: Vec<(&str, &Path)> = chromium
        .environment
        .iter()
        .map(|(name, value)| (*name, value.as_path()))
        .collect();
    let foreign = foreign_libraries(&paths, &chromium.program, &environment);
    assert!(foreign.is_empty(), "{foreign:#?}");
    // Without the variables the machine's libraries are used, or none are found: the check above can fail.
    assert!(!foreign_libraries(&paths, &chromium.program, &[]).is_empty());
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(&chromium.program)
        .args(["--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg("data:text/html,<p>drawn</p><script>document.body.append(new Intl.NumberFormat('de').format(1234.5))</script>")
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let page = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(
        page.contains("<p>drawn</p>") && page.contains("1.234,5"),
        "{page}\n{why}"
    );
}

#[test]
fn the_other_programs_take_nothing_but_the_compiler_s_libraries() {
    let paths = Paths::ready().unwrap();
    let programs = [
        debs::prometheus(&paths),
        debs::promtool(&paths),
        debs::postgres_exporter(&paths),
        debs::sql_exporter(&paths),
        tools::node(&paths),
        tools::go(&paths),
        tools::hadolint(&paths),
    ];
    for command in programs {
        let command = command.unwrap();
        let mut foreign = foreign_libraries(&paths, Path::new(command.get_program()), &[]);
        foreign.retain(|line| line.ends_with("not found") || !belongs_to(line, &COMPILER));
        assert!(foreign.is_empty(), "{command:?}: {foreign:#?}");
    }
}
