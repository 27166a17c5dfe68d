//! A Python with the packages that tests need, in a virtual environment under the target directory.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

/// Installed once, then kept.
const PACKAGES: [&str; 2] = ["grpcio", "websockets"];

/// The interpreter of the tests' environment.
///
/// # Errors
/// With what is missing: Python, its `venv`, or the package index.
pub fn interpreter() -> anyhow::Result<PathBuf> {
    environment("heddle-tests-python", &PACKAGES)
}

/// The interpreter of the environment `name`, which has `packages`. It is made once; a package added later wants
/// another name.
///
/// # Errors
/// As [`interpreter`].
pub fn environment(name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let python = crate::program::find("python3").context("python3")?;
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    std::fs::create_dir_all(&target)?;
    let environment = target.join(name);
    // One test of several makes it, the others wait.
    let lock = File::create(target.join(format!("{name}.lock")))?;
    lock.lock()?;
    let interpreter = environment.join("bin/python");
    let done = environment.join("packages-are-in");
    if !done.exists() {
        run(Command::new(python).args(["-m", "venv"]).arg(&environment)).context("python3 with venv")?;
        run(Command::new(&interpreter).args(["-m", "pip", "install", "--quiet"]).args(packages))
            .with_context(|| format!("the Python packages {}", packages.join(" and ")))?;
        std::fs::write(done, packages.join("\n"))?;
    }
    Ok(interpreter)
}

/// A script of `tests/programs`.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim().to_owned());
    Ok(())
}
