//! What the kernel says of this process, from `/proc/self` (proc(5)).

use std::fs;

/// Clock ticks a second in `/proc`: Linux shows user space 100 on every architecture that this runs on, whatever the
/// kernel's own rate.
const TICKS_PER_SECOND: f64 = 100.0;

/// What could be read; a sandbox may hide any of it.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) resident_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) cpu_seconds: Option<f64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
}

impl Process {
    pub(super) fn read() -> Self {
        let file = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let status = file("status");
        Self {
            resident_bytes: after(&status, "VmRSS:").map(|kib| kib * 1024),
            threads: after(&status, "Threads:"),
            cpu_seconds: cpu_seconds(&file("stat")),
            // Reading the directory opens one more, which is not counted.
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|entries| entries.count().saturating_sub(1) as u64),
            max_fds: after(&file("limits"), "Max open files"),
        }
    }
}

/// The first number of the line that begins so.
fn after(text: &str, start: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(start))?.split_whitespace().next()?.parse().ok()
}

/// User and system time. The second field is the program's name in parentheses, which may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_a_parenthesis_does_not_shift_the_fields() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 9 0 100 1000 10";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("7 (short) S 1"), None);
    }

    #[test]
    fn this_process_has_threads_memory_and_descriptors() {
        let process = Process::read();
        assert!(process.resident_bytes.unwrap() > 4096);
        assert!(process.threads.unwrap() >= 1);
        assert!(process.open_fds.unwrap() >= 3);
        assert!(process.max_fds.unwrap() >= process.open_fds.unwrap());
        assert!(process.cpu_seconds.unwrap() >= 0.0);
    }
}
