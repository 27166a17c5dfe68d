//! Finds the mesh's programs, building them first when needed.
//!
//! `cargo test` builds the binaries of the package under test alone, so a test of this crate would run against
//! stale ones or none. The first world of a test run therefore calls `cargo build` for them, with the profile and
//! target directory of the running test executable, under a file lock. `HEDDLE_BIN_DIR` names a directory of
//! finished binaries instead, and then nothing is built.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, ensure};

/// The control plane's program.
pub const CONTROL_PLANE: &str = "heddle-control-plane";
/// The sidecar's program.
pub const PROXY: &str = "heddle-proxy";
/// The program for people.
pub const HEDDLE: &str = "heddle";

static DIRECTORY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
static SHIP_SIDECAR: AtomicBool = AtomicBool::new(false);
static SHIPPED_SIDECAR: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// Takes the mesh's programs from `directory`, as `HEDDLE_BIN_DIR` does. It comes too late after the first [`path`].
pub fn take_from(directory: &Path) {
    let _ = DIRECTORY.set(Ok(directory.to_owned()));
}

/// From now on [`path`] gives the sidecar as it is shipped, which `proxy/release/build` makes, and not cargo's plain one.
pub fn ship_sidecar() {
    SHIP_SIDECAR.store(true, Ordering::Relaxed);
}

fn shipped_sidecar() -> anyhow::Result<PathBuf> {
    let directory = own_directory()?;
    let target = directory.parent().context("a profile directory lies in a target directory")?;
    let mut build = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/release/build"));
    build.arg(target).stderr(Stdio::inherit());
    forget_this_package(&mut build);
    let output = build.output().context("cannot run proxy/release/build")?;
    ensure!(output.status.success(), "proxy/release/build failed: {}", output.status);
    let path = String::from_utf8(output.stdout).context("proxy/release/build prints a path")?;
    Ok(path.trim_end().into())
}

/// The path of a program of this package, which cargo puts beside the running one.
///
/// # Errors
/// When it is not there.
pub fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let path = own_directory()?.join(name);
    ensure!(
        path.is_file(),
        "no program {}; `cargo build --package heddle-tests --bins` makes it",
        path.display()
    );
    Ok(path)
}

/// Where cargo put the running program, or what this test is of.
fn own_directory() -> anyhow::Result<PathBuf> {
    let executable = std::env::current_exe().context("where is the running program?")?;
    let mut directory = executable.parent().context("a program has a directory")?.to_owned();
    if directory.ends_with("deps") {
        directory.pop();
    }
    Ok(directory)
}

/// The path of one of the mesh's programs, up to date.
///
/// # Errors
/// When the build fails or the program is not where it should be.
pub fn path(name: &str) -> anyhow::Result<PathBuf> {
    if name == PROXY && SHIP_SIDECAR.load(Ordering::Relaxed) {
        return once(&SHIPPED_SIDECAR, shipped_sidecar).cloned();
    }
    let path = once(&DIRECTORY, directory)?.join(name);
    ensure!(path.is_file(), "no program {}; HEDDLE_BIN_DIR names a directory that has it", path.display());
    Ok(path)
}

fn directory() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os("HEDDLE_BIN_DIR") {
        return Ok(given.into());
    }
    let directory = own_directory()?;
    build(&directory)?;
    Ok(directory)
}

/// What `make` gave the first time.
fn once(
    kept: &'static OnceLock<Result<PathBuf, String>>,
    make: fn() -> anyhow::Result<PathBuf>,
) -> anyhow::Result<&'static PathBuf> {
    let made = kept.get_or_init(|| make().map_err(|e| format!("{e:#}")));
    made.as_ref().map_err(|e| anyhow::anyhow!("{e}"))
}

/// Runs `cargo build` once per test run. Each test of nextest is a process of its own, and they tell each other
/// through the lock file that this run (`NEXTEST_RUN_ID`) has built.
fn build(directory: &Path) -> anyhow::Result<()> {
    let target = directory.parent().context("a profile directory lies in a target directory")?;
    let path = target.join("heddle-tests-build.lock");
    let mut lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| {
            format!("cannot open {}; set HEDDLE_BIN_DIR to a directory of finished binaries", path.display())
        })?;
    lock.lock()?;
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_default();
    let mut built = String::new();
    lock.read_to_string(&mut built)?;
    if !run.is_empty() && built == run {
        return Ok(());
    }

    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace's, not the two packages alone: with these features everything was built already.
    cargo.args(["build", "--quiet", "--workspace", "--bins"]);
    cargo.arg("--target-dir").arg(target);
    match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some("release") => drop(cargo.arg("--release")),
        Some(profile) => drop(cargo.args(["--profile", profile])),
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    forget_this_package(&mut cargo);
    let status = cargo.status().context("cannot run cargo to build the mesh's programs")?;
    ensure!(status.success(), "cargo build of {CONTROL_PLANE} and {PROXY} failed: {status}");

    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(run.as_bytes())?;
    Ok(())
}

/// What cargo told this package must not become what it tells those that `command` builds.
fn forget_this_package(command: &mut Command) {
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("CARGO_PKG_")) {
        command.env_remove(key);
    }
}
