//! A child process whose output goes to a file and whose life ends with ours.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, appending what it prints to `log`.
    ///
    /// Should the thread that calls this end without unwinding (a test killed for its time), the kernel kills the
    /// child: `setpriv` of util-linux asks for that, since in Rust it would take unsafe code. Without `setpriv`
    /// only dropping ends it.
    ///
    /// # Errors
    /// When the program cannot be started or the log not be written.
    pub fn spawn(name: &str, command: &Command, log: &Path) -> anyhow::Result<Self> {
        let out = File::options().append(true).create(true).open(log)?;
        let mut tied = tie_to_this_thread(command);
        tied.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child =
            tied.spawn().with_context(|| format!("cannot start {:?} for {name}", command.get_program()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The name it was started under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only for a child that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM; [`Process::wait`] then sees it end.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGQUIT, by which some servers (nginx) are told to end in good order.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn quit(&self) -> anyhow::Result<()> {
        self.signal(Signal::QUIT)
    }

    /// SIGSTOP: it lives, holds its connections and says nothing.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT after [`Process::freeze`].
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("a child has a process id")?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} to {}", self.name))
    }

    /// Waits for its end and gives its exit code.
    ///
    /// # Errors
    /// When it still runs after `limit`, or a signal ended it.
    pub async fn wait(&mut self, limit: Duration) -> anyhow::Result<i32> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return status.code().with_context(|| format!("{} ended with {status}", self.name));
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {limit:?}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The memory that it holds now, in bytes: its resident set.
    ///
    /// # Errors
    /// When it is not there any more, or the system does not say.
    pub fn memory(&self) -> anyhow::Result<u64> {
        self.status("VmRSS:")
    }

    /// The most memory that it ever held at once, in bytes.
    ///
    /// # Errors
    /// As [`Process::memory`].
    pub fn peak_memory(&self) -> anyhow::Result<u64> {
        self.status("VmHWM:")
    }

    /// A line of `/proc/PID/status` that is in kB.
    fn status(&self, key: &str) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024)
    }

    /// What it printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The same command, run so that it dies with the thread that starts it.
fn tie_to_this_thread(command: &Command) -> Command {
    match crate::program::find("setpriv") {
        Some(_) => wrap("setpriv", &["--pdeathsig", "KILL", "--"], command),
        None => copy(command, Command::new(command.get_program())),
    }
}

/// The same command, run by `program`, which takes these arguments before it.
#[must_use]
pub fn wrap(program: &str, args: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(program);
    outer.args(args).arg(command.get_program());
    copy(command, outer)
}

fn copy(from: &Command, mut to: Command) -> Command {
    to.args(from.get_args());
    if let Some(directory) = from.get_current_dir() {
        to.current_dir(directory);
    }
    for (key, value) in from.get_envs() {
        match value {
            Some(value) => to.env(key, value),
            None => to.env_remove(key),
        };
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_child_prints_is_kept_and_its_exit_code_given() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo $WORD; exit 3"]).env("WORD", "shuttle");
        let mut child = Process::spawn("sh", &command, &directory.path().join("log")).unwrap();
        assert_eq!(child.wait(Duration::from_secs(10)).await.unwrap(), 3);
        assert_eq!(child.log(), "shuttle\n");
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let child = Process::spawn("sleep", &command, &directory.path().join("log")).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(proc.exists());
        drop(child);
        assert!(!proc.exists());
    }
}
