//! A network namespace without a name, and what is run in it.

use std::{
    fs::File,
    os::fd::AsFd,
    process::{Command, Output},
    sync::Arc,
};

use anyhow::{Context, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Family, SIDECAR_USER};
use crate::{World, binaries, eventually, process::Process, wait::PATIENCE};

/// A network namespace, and a runtime whose sockets are in it.
#[derive(Debug)]
pub struct Namespace {
    pub(super) holder: Process,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Namespace {
    /// An empty one, with loopback and nothing else.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn new(world: &World, name: &str) -> anyhow::Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]);
        let holder = world.run(&format!("namespace-{name}"), &command)?;
        let path = format!("/proc/{}/ns/net", holder.id());
        let ours = std::fs::read_link("/proc/self/ns/net")?;
        eventually("a network namespace", || async {
            let theirs = std::fs::read_link(&path)?;
            ensure!(theirs != ours, "{path} is still ours");
            Ok(())
        })
        .await;
        let file = Arc::new(File::open(&path).with_context(|| path.clone())?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a namespace that it made");
            })
            .build()?;
        let namespace = Self { holder, runtime: Some(runtime) };
        namespace.must("ip", &["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// `program`, to be run inside.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg("--").arg(program);
        command
    }

    /// Runs a program inside to its end; for those that end by themselves.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn must(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(program).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {args:?}: {complaint}");
        Ok(said)
    }

    pub(super) fn address(&self, family: Family, address: &str, device: &str) -> anyhow::Result<()> {
        let mut args = vec![family.flag(), "address", "add", address, "dev", device];
        if family == Family::V6 {
            // Looking for a duplicate takes seconds, and there is none.
            args.push("nodad");
        }
        self.must("ip", &args).map(drop)
    }

    /// Runs a future whose sockets are then the namespace's.
    ///
    /// # Panics
    /// When the future does.
    pub async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let runtime = self.runtime.as_ref().expect("it is there until the namespace is dropped");
        runtime.spawn(future).await.expect("the future panicked, or the runtime is gone")
    }

    /// Adds nft rules: a file's text.
    ///
    /// # Errors
    /// When nft does not take them.
    pub fn nft(&self, rules: &str) -> anyhow::Result<()> {
        self.must("nft", &[rules]).map(drop)
    }

    /// Runs `heddle-proxy redirect` with these arguments; what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn redirect(&self, args: &[&str]) -> anyhow::Result<String> {
        let program = binaries::path(binaries::PROXY)?;
        self.must(&program.to_string_lossy(), &[&["redirect", "--proxy-uid", SIDECAR_USER], args].concat())
    }

    /// An unmodified curl that knows of no proxy, with these arguments; the whole answer, head and body.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn curl(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command("curl");
        command.args(["--silent", "--show-error", "--include", "--noproxy", "*", "--max-time", "10"]);
        command.args(args);
        let mut command = tokio::process::Command::from(command);
        Ok(tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await??)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Waiting for its threads is not allowed where other futures run.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
