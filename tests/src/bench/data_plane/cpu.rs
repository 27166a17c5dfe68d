//! What processes use, by the kernel's account in `/proc`.

use std::{fs, time::Duration};

use anyhow::Context;

/// CPU time of some processes, all their threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// In their own code.
    pub user: Duration,
    /// In the kernel on their behalf.
    pub system: Duration,
}

impl Usage {
    /// What these processes and their children have used since they began.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn of(processes: &[u32]) -> anyhow::Result<Self> {
        let mut sum = Self::default();
        for process in with_children(processes) {
            let path = format!("/proc/{process}/stat");
            let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            let one = Self::read(&stat).with_context(|| format!("{path}: {stat:?}"))?;
            sum = Self { user: sum.user + one.user, system: sum.system + one.system };
        }
        Ok(sum)
    }

    /// Reads `/proc/PID/stat` (proc(5)): utime and stime are its fields 14 and 15, in clock ticks. The name before them,
    /// in parentheses, may hold anything.
    fn read(stat: &str) -> Option<Self> {
        let after_name = &stat[stat.rfind(')')? + 1..];
        let mut fields = after_name.split_whitespace().skip(11);
        let tick = Duration::from_secs(1) / u32::try_from(rustix::param::clock_ticks_per_second()).ok()?;
        let mut next = || fields.next()?.parse::<u32>().ok().map(|ticks| tick * ticks);
        Some(Self { user: next()?, system: next()? })
    }

    /// What was used since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
        }
    }

    /// User and system time together.
    #[must_use]
    pub fn total(self) -> Duration {
        self.user + self.system
    }
}

/// The resident sets of these processes and their children, in bytes.
///
/// # Errors
/// When one of them is gone.
pub fn resident(processes: &[u32]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for process in with_children(processes) {
        let path = format!("/proc/{process}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        sum += line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
    }
    Ok(sum)
}

/// nginx works in a child.
fn with_children(processes: &[u32]) -> Vec<u32> {
    let mut all = processes.to_vec();
    for process in processes {
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
        all.extend(children.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_may_look_like_the_fields_after_it() {
        let stat = "77 (a) R 1 (b)) S 1 77 77 0 -1 4194560 100 0 0 0 250 50 7 7 20 0 1 0 5 1 1";
        let tick = Duration::from_secs(1) / rustix::param::clock_ticks_per_second() as u32;
        assert_eq!(Usage::read(stat), Some(Usage { user: tick * 250, system: tick * 50 }));
    }

    #[test]
    fn work_shows_as_user_time() {
        let own = [std::process::id()];
        let before = Usage::of(&own).unwrap();
        let mut sum = 0u64;
        while Usage::of(&own).unwrap().since(before).user < Duration::from_millis(20) {
            sum = std::hint::black_box((0..100_000).fold(sum, u64::wrapping_add));
        }
        assert!(resident(&own).unwrap() > 0);
    }
}
