//! Real programs that tests run, and what is said when one is missing.

use std::path::PathBuf;

/// Where `name` is, looking where Debian keeps servers too.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<_> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
        versions.sort();
        places.extend(versions.into_iter().rev());
    }
    places.into_iter().map(|place| place.join(name)).find(|file| file.is_file())
}

/// Ends a test that cannot run here, saying what it needs: `skip!("nginx")` prints 'skipped: needs nginx'.
///
/// The line goes to the process's standard error itself, past the test harness's capture, so that a skipped test
/// never looks like one that passed.
#[macro_export]
macro_rules! skip {
    ($needs:expr) => {{
        $crate::program::say_skipped(module_path!(), &$needs.to_string());
        return;
    }};
}

/// A program's path, or the end of the test with 'skipped: needs NAME'.
#[macro_export]
macro_rules! need {
    ($name:expr) => {
        match $crate::program::find($name) {
            Some(path) => path,
            None => $crate::skip!($name),
        }
    };
}

/// Prints the line of [`skip!`].
pub fn say_skipped(test: &str, needs: &str) {
    use std::io::Write;
    // A closed standard error leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "skipped: needs {needs} ({test})");
}
