//! The control plane under test: the real program, with a state directory of its own.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use heddle_api::ports;
use tempfile::TempDir;

use super::{figures, report::ColdStart};
use crate::{binaries, block::Block, client::Client, process::Process, world::clean};

/// The largest cluster is read within this on any machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is asked whether it is ready.
const ASK: Duration = Duration::from_millis(10);

pub(super) struct Server {
    directory: TempDir,
    block: Block,
    process: Option<Process>,
}

impl Server {
    /// One that does not run yet.
    pub(super) fn new() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("heddle-bench-").tempdir()?;
        Ok(Self { directory, block: Block::claim()?, process: None })
    }

    /// Where sidecars connect.
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.block.address(2), ports::DISCOVERY)
    }

    fn admin(&self) -> SocketAddr {
        SocketAddr::new(self.block.address(2), 15014)
    }

    /// Starts the program.
    pub(super) fn spawn(&mut self, manifests: PathBuf) -> anyhow::Result<()> {
        let mut command = Command::new(binaries::path(binaries::CONTROL_PLANE)?);
        clean(&mut command);
        command.arg("run").arg("--manifests").arg(manifests);
        command.arg("--state-dir").arg(self.directory.path().join("state"));
        command.arg("--listen").arg(self.address().to_string());
        command.arg("--admin-listen").arg(self.admin().to_string());
        command.args(["--log", "warn"]);
        let log = self.directory.path().join("log");
        self.process = Some(Process::spawn(binaries::CONTROL_PLANE, &command, &log)?);
        Ok(())
    }

    /// Starts the program, waits until it has read and compiled all objects, and then until it has settled.
    pub(super) async fn start(&mut self, manifests: PathBuf, settle: Duration) -> anyhow::Result<ColdStart> {
        let begin = Instant::now();
        self.spawn(manifests)?;
        self.until_ready(begin + PATIENCE).await?;
        let seconds = begin.elapsed().as_secs_f64();
        let cpu_seconds = self.cpu()?.as_secs_f64();
        tokio::time::sleep(settle).await;
        Ok(ColdStart { seconds, cpu_seconds, memory: self.memory()?, peak_memory: self.peak_memory()? })
    }

    async fn until_ready(&mut self, deadline: Instant) -> anyhow::Result<()> {
        let admin = self.admin();
        loop {
            let process = self.process()?;
            let id = process.id();
            if let Ok(mut client) = Client::http1(admin).await
                && let Ok(answer) = client.get(&admin.to_string(), "/ready").await
                && answer.status == 200
            {
                return Ok(());
            }
            let log = || self.process.as_ref().map(Process::log).unwrap_or_default();
            ensure!(std::path::Path::new(&format!("/proc/{id}")).exists(), "it ended: {}", log());
            if Instant::now() >= deadline {
                bail!("not ready within {PATIENCE:?}: {}", log());
            }
            tokio::time::sleep(ASK).await;
        }
    }

    /// A join token.
    pub(super) fn token(&self, namespace: &str, service_account: &str) -> anyhow::Result<String> {
        let mut command = Command::new(binaries::path(binaries::CONTROL_PLANE)?);
        clean(&mut command);
        command.arg("token").arg("--state-dir").arg(self.directory.path().join("state"));
        command.args(["--namespace", namespace, "--service-account", service_account, "--ttl", "4h"]);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        self.process = None;
    }

    fn process(&self) -> anyhow::Result<&Process> {
        self.process.as_ref().context("the control plane does not run")
    }

    /// CPU time used since its start.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        figures::cpu(self.process()?.id())
    }

    /// Its resident set, in bytes.
    pub(super) fn memory(&self) -> anyhow::Result<u64> {
        self.process()?.memory()
    }

    /// The largest that its resident set ever was, in bytes.
    pub(super) fn peak_memory(&self) -> anyhow::Result<u64> {
        self.process()?.peak_memory()
    }

    /// What it uses of one core while nothing happens, in percent.
    pub(super) async fn idle_cpu(&self, watched: Duration) -> anyhow::Result<f64> {
        let (before, begin) = (self.cpu()?, Instant::now());
        tokio::time::sleep(watched).await;
        Ok((self.cpu()? - before).as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0)
    }
}
