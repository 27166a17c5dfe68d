//! One small mesh: manifests, a control plane, pods with their sidecars.

mod pod;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use heddle_api::ports;
use tempfile::TempDir;

pub use self::pod::{Pod, PodBuilder};
use crate::{
    binaries,
    block::Block,
    client::Client,
    eventually,
    manifest::{self, PodManifest},
    process::Process,
};

/// The port that scripted HTTP applications listen on.
pub const APP_PORT: u16 = 9080;

/// The ports that a sidecar listens on.
pub const SIDECAR_PORTS: [u16; 5] = ports::SIDECAR;

/// The control plane's admin port.
const ADMIN: u16 = 15014;
/// Which address of the block is the control plane's, and the first of the pods'.
const CONTROL_PLANE_HOST: u8 = 2;
const FIRST_POD_HOST: u8 = 10;

/// A mesh of its own. Dropping it ends everything that it started; after a panic it prints the logs first.
#[derive(Debug)]
pub struct World {
    directory: TempDir,
    block: Block,
    control_plane_ip: IpAddr,
    next_host: u8,
    certificate_lifetime: Option<Duration>,
    sidecars_connect_to: Option<SocketAddr>,
    control_plane: Option<Process>,
    sidecars: BTreeMap<String, (Command, Process)>,
}

impl World {
    /// An empty one, with a directory and a block of addresses.
    ///
    /// # Errors
    /// When either cannot be had.
    pub fn new() -> anyhow::Result<Self> {
        let block = Block::claim()?;
        let control_plane_ip = block.address(CONTROL_PLANE_HOST);
        Self::on(block, control_plane_ip)
    }

    /// An empty one with these addresses.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn on(block: Block, control_plane_ip: IpAddr) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("heddle-").tempdir()?;
        for part in ["manifests", "state", "tokens", "logs"] {
            std::fs::create_dir(directory.path().join(part))?;
        }
        Ok(Self {
            directory,
            block,
            control_plane_ip,
            next_host: FIRST_POD_HOST,
            certificate_lifetime: None,
            sidecars_connect_to: None,
            control_plane: None,
            sidecars: BTreeMap::new(),
        })
    }

    /// Workload certificates live this long, from the control plane's next start on.
    pub fn certificates_live(&mut self, lifetime: Duration) {
        self.certificate_lifetime = Some(lifetime);
    }

    /// Sidecars that start from now on are told that the control plane is there.
    pub fn sidecars_connect_to(&mut self, address: SocketAddr) {
        self.sidecars_connect_to = Some(address);
    }

    /// A directory for whatever the test needs; it goes with the world.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where manifests lie.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// The control plane's state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Saves a manifest in one step, as an editor does: written beside, then renamed over.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, file: &str, yaml: &str) -> anyhow::Result<()> {
        let beside = self.directory.path().join(format!("{file}.new"));
        std::fs::write(&beside, yaml)?;
        std::fs::rename(beside, self.manifests().join(file)).with_context(|| format!("saving {file}"))
    }

    /// Removes a manifest.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, file: &str) -> anyhow::Result<()> {
        std::fs::remove_file(self.manifests().join(file)).with_context(|| format!("removing {file}"))
    }

    /// An address that nothing in this world uses yet.
    pub fn new_address(&mut self) -> IpAddr {
        self.next_host += 1;
        self.block.address(self.next_host - 1)
    }

    /// Where the control plane answers sidecars.
    #[must_use]
    pub fn discovery(&self) -> SocketAddr {
        SocketAddr::new(self.control_plane_ip, ports::DISCOVERY)
    }

    /// The control plane's admin pages.
    #[must_use]
    pub fn control_plane_admin(&self) -> SocketAddr {
        SocketAddr::new(self.control_plane_ip, ADMIN)
    }

    /// Starts the control plane, again after [`World::kill_control_plane`], and waits until it answers.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_control_plane(&mut self) -> anyhow::Result<()> {
        self.control_plane = Some(self.control_plane_at(self.control_plane_ip).await?);
        Ok(())
    }

    /// Starts a control plane of this world's files at another address, one of several replicas, and waits until it
    /// answers.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn control_plane_at(&self, ip: IpAddr) -> anyhow::Result<Process> {
        let [listen, admin] = [ports::DISCOVERY, ADMIN].map(|port| SocketAddr::new(ip, port));
        let mut command = Command::new(binaries::path(binaries::CONTROL_PLANE)?);
        clean(&mut command);
        command.arg("run").arg("--manifests").arg(self.manifests()).arg("--state-dir").arg(self.state());
        command.arg("--listen").arg(listen.to_string()).arg("--admin-listen").arg(admin.to_string());
        if let Some(lifetime) = self.certificate_lifetime {
            command.arg("--certificate-lifetime").arg(format!("{}s", lifetime.as_secs()));
        }
        let name = binaries::CONTROL_PLANE;
        let process = Process::spawn(name, &command, &self.log_of(&format!("{name}-{ip}")))?;
        eventually("the control plane is ready", || is_ready(admin)).await;
        Ok(process)
    }

    /// SIGKILL.
    pub fn kill_control_plane(&mut self) {
        self.control_plane = None;
    }

    /// The control plane's process.
    ///
    /// # Errors
    /// When it was not started.
    pub fn control_plane(&mut self) -> anyhow::Result<&mut Process> {
        self.control_plane.as_mut().context("no control plane runs")
    }

    /// What the control plane's `/diagnostics` says.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn diagnostics(&self) -> anyhow::Result<String> {
        let admin = self.control_plane_admin();
        Ok(Client::http1(admin).await?.get(&admin.to_string(), "/diagnostics").await?.text())
    }

    /// Mints a join token and gives the file that holds it.
    ///
    /// # Errors
    /// When the control plane's program refuses.
    pub fn token(&self, namespace: &str, service_account: &str, ttl: &str) -> anyhow::Result<PathBuf> {
        let mut command = Command::new(binaries::path(binaries::CONTROL_PLANE)?);
        clean(&mut command);
        command.arg("token").arg("--state-dir").arg(self.state());
        command.args(["--namespace", namespace, "--service-account", service_account, "--ttl", ttl]);
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "heddle-control-plane token: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let file = self.directory.path().join(format!("tokens/{namespace}-{service_account}-{ttl}"));
        std::fs::write(&file, output.stdout)?;
        Ok(file)
    }

    /// A pod to be: `shop/reviews-v1` has the labels `app: reviews` and `version: v1` and the service account
    /// `reviews`.
    pub fn pod(&mut self, full_name: &str) -> PodBuilder<'_> {
        let (namespace, name) = manifest::split(full_name);
        let (app, version) = name.split_once('-').unwrap_or((name, "v1"));
        let labels = vec![("app".to_owned(), app.to_owned()), ("version".to_owned(), version.to_owned())];
        let manifest = PodManifest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: app.to_owned(),
            labels,
            ip: self.new_address(),
            ports: vec![APP_PORT],
            meshed: true,
            ready: true,
            terminating: false,
        };
        PodBuilder::new(self, manifest)
    }

    /// The sidecar process of a pod.
    ///
    /// # Errors
    /// When it has none.
    pub fn sidecar(&mut self, pod: &str) -> anyhow::Result<&mut Process> {
        Ok(&mut self.sidecars.get_mut(pod).with_context(|| format!("{pod} has no sidecar"))?.1)
    }

    /// Kills a pod's sidecar; its application stays.
    pub fn kill_sidecar(&mut self, pod: &str) {
        self.sidecars.remove(pod);
    }

    /// Starts `command` as part of this world, its output in the world's logs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, name: &str, command: &Command) -> anyhow::Result<Process> {
        Process::spawn(name, command, &self.log_of(name))
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.directory.path().join("logs").join(format!("{}.log", name.replace('/', "-")))
    }

    /// The command that runs a pod's sidecar, with a token in `token`.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn sidecar_command(&self, pod: &str, ip: IpAddr, token: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(binaries::path(binaries::PROXY)?);
        clean(&mut command);
        let control_plane = self.sidecars_connect_to.unwrap_or_else(|| self.discovery());
        command.arg("run").arg("--control-plane").arg(format!("https://{control_plane}"));
        command.arg("--control-plane-ca").arg(self.state().join("ca.pem"));
        command.arg("--token-file").arg(token);
        command.args(["--pod", pod, "--pod-ip", &ip.to_string(), "--workers", "1", "--drain-time", "5s"]);
        Ok(command)
    }

    fn print_logs(&self) {
        const LINES: usize = 60;
        let Ok(logs) = std::fs::read_dir(self.directory.path().join("logs")) else { return };
        let mut logs: Vec<_> = logs.flatten().map(|entry| entry.path()).collect();
        logs.sort();
        for log in logs {
            let text = std::fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().collect();
            let skipped = lines.len().saturating_sub(LINES);
            println!("--- {} ({skipped} lines before)", log.file_name().unwrap_or_default().display());
            for line in &lines[skipped..] {
                println!("{line}");
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
            if std::env::var_os("HEDDLE_KEEP").is_some() {
                self.directory.disable_cleanup(true);
                println!("kept {}", self.directory.path().display());
            }
        }
    }
}

/// The settings of whoever runs the tests are not the mesh's.
pub(crate) fn clean(command: &mut Command) {
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("HEDDLE_")) {
        command.env_remove(key);
    }
}

async fn is_ready(address: SocketAddr) -> anyhow::Result<()> {
    let answer = Client::http1(address).await?.get(&address.to_string(), "/ready").await?;
    ensure!(answer.status == 200, "http://{address}/ready says {} {}", answer.status, answer.text());
    Ok(())
}
