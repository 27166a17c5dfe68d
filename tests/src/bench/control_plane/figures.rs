//! What the kernel says of a process: CPU time and memory.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Context as _;

/// CPU time that a process has used so far, in user and system mode, of all its threads, also those that ended.
///
/// The kernel counts in hundredths of a second here, but the threads that live are known to the nanosecond: their
/// sum is taken where it is larger.
pub(super) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat has a name")?;
    let field = |n: usize| rest.split_whitespace().nth(n - 3).and_then(|text| text.parse::<u64>().ok());
    let ticks = field(14).zip(field(15)).map(|(user, system)| user + system).context("utime and stime")?;
    let coarse = Duration::from_millis(ticks * 1000 / TICKS_A_SECOND);
    Ok(coarse.max(fine(pid)))
}

/// `sysconf(_SC_CLK_TCK)`, which Linux has at 100 on every architecture that matters here.
const TICKS_A_SECOND: u64 = 100;

fn fine(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let files: Vec<PathBuf> = threads.map(|thread| thread.path().join("schedstat")).collect();
    // A thread that ends meanwhile is as good as none.
    let nanoseconds = files
        .into_iter()
        .filter_map(|file| fs::read_to_string(file).ok()?.split_whitespace().next()?.parse::<u64>().ok());
    Duration::from_nanos(nanoseconds.sum())
}
