//! Pods as the kernel of a node makes them: network namespaces, joined by a bridge, with capture by netfilter.
//!
//! A [`Wire`] is the node's side: a namespace of its own with a bridge, an address that pods use as their router,
//! and the control plane. A [`NetPod`] is a pod: a namespace with one interface, a real sidecar under a user id of
//! its own, and the rules of the real `heddle-proxy redirect` that lead everybody else's connections through it. The namespaces have no names: each
//! lives as long as the process that holds it, so that nothing stays behind, however a test ends. The machine's own
//! network is not touched.

mod family;
mod life;
mod namespace;

use std::{
    fs::Permissions,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;
use heddle_api::ports;

pub use self::{
    family::Family,
    life::{Phase, Slice},
    namespace::Namespace,
};
use crate::{
    World, binaries,
    block::Block,
    client::Client,
    eventually,
    manifest::{self, PodManifest},
    metrics::Scrape,
    process::Process,
    program,
    world::{APP_PORT, clean},
};

/// The user that sidecars run as (contract: `heddle-proxy redirect --proxy-uid 2102`).
const SIDECAR_USER: &str = "2102";
/// Programs without which none of this can be.
const PROGRAMS: [&str; 7] = ["ip", "nft", "nsenter", "unshare", "setpriv", "curl", "ss"];

/// What is missing here to run pods as namespaces; none: nothing.
#[must_use]
pub fn missing() -> Option<String> {
    if !rustix::process::getuid().is_root() {
        return Some("root".to_owned());
    }
    if let Some(name) = PROGRAMS.into_iter().find(|name| program::find(name).is_none()) {
        return Some(name.to_owned());
    }
    // A container's root may not be allowed to.
    let allowed = Command::new("unshare").args(["--net", "nft", "add", "table", "inet", "probe"]).output();
    match allowed {
        Ok(output) if output.status.success() => None,
        _ => Some("a kernel that lets root make network namespaces with nft".to_owned()),
    }
}

/// The bridge's own address. Left to itself a bridge takes the lowest of its ports', so a pod that comes could change it,
/// and what others send to the old one is dropped until they ask again: seconds of silence.
const BRIDGE: &str = "02:00:00:00:00:fe";

/// What a sidecar is told.
#[derive(Clone, Copy, Debug)]
pub enum Flags<'a> {
    /// What every test needs, and these beyond.
    Usual(&'a [String]),
    /// What the injector wrote; only the control plane's address and the two files are where a test has them.
    Injected(&'a [String]),
}

/// What a sidecar proves itself by, and knows the control plane by.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The mesh's roots, in PEM.
    pub ca: PathBuf,
    /// The pod's token.
    pub token: PathBuf,
}

/// The node's side: a bridge in a namespace of its own, and the control plane on it.
#[derive(Debug)]
pub struct Wire {
    /// The manifests, the directory, the logs.
    pub world: World,
    /// Where the bridge is; whoever calls from here has no sidecar.
    pub outside: Namespace,
    family: Family,
    _control_plane: Option<Process>,
}

impl Wire {
    /// A bridge with the wire's first address, and a control plane that is ready and follows the world's manifests.
    ///
    /// # Errors
    /// When a program that this needs fails.
    pub async fn new(family: Family) -> anyhow::Result<Self> {
        let mut wire = Self::bare(family).await?;
        let (manifests, state) = (wire.world.manifests(), wire.world.state());
        let directory = |command: &mut Command| {
            command.arg("--manifests").arg(manifests).arg("--state-dir").arg(state);
        };
        wire.start_control_plane(directory).await?;
        Ok(wire)
    }

    /// The bridge alone.
    ///
    /// # Errors
    /// When a program that this needs fails.
    pub async fn bare(family: Family) -> anyhow::Result<Self> {
        let world = World::on(Block::claim()?, family.host(1))?;
        // Sidecars have a user of their own and must get at their files.
        std::fs::set_permissions(world.directory(), Permissions::from_mode(0o755))?;
        let outside = Namespace::new(&world, "outside").await?;
        outside.must("ip", &["link", "add", "bridge", "address", BRIDGE, "type", "bridge"])?;
        outside.must("ip", &["link", "set", "bridge", "up"])?;
        outside.address(family, &format!("{}/{}", family.host(1), family.prefix()), "bridge")?;
        Ok(Self { world, outside, family, _control_plane: None })
    }

    /// The control plane, told where its objects are, until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_control_plane(&mut self, source: impl FnOnce(&mut Command)) -> anyhow::Result<()> {
        let Self { world, outside, .. } = &*self;
        let program = binaries::path(binaries::CONTROL_PLANE)?;
        let mut command = outside.command(&program.to_string_lossy());
        clean(&mut command);
        command.arg("run");
        source(&mut command);
        command.arg("--listen").arg(world.discovery().to_string());
        command.arg("--admin-listen").arg(world.control_plane_admin().to_string());
        let control_plane = world.run(binaries::CONTROL_PLANE, &command)?;
        wait_until_ready(outside, world.control_plane_admin()).await;
        self._control_plane = Some(control_plane);
        Ok(())
    }

    /// Its addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// A Service for the pods of `app`, at the Service address that ends in `host`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn service(
        &self,
        name: &str,
        host: u8,
        port: u16,
        declares: &str,
        app: &str,
    ) -> anyhow::Result<IpAddr> {
        let ip = self.family.service(host);
        self.save_service(name, &ip.to_string(), port, declares, app)?;
        Ok(ip)
    }

    /// A headless Service: its pods are called at their own addresses.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn headless(&self, name: &str, port: u16, declares: &str, app: &str) -> anyhow::Result<()> {
        self.save_service(name, "None", port, declares, app)
    }

    fn save_service(&self, name: &str, ip: &str, port: u16, declares: &str, app: &str) -> anyhow::Result<()> {
        let family = if self.family == Family::V4 { "IPv4" } else { "IPv6" };
        let yaml = manifest::service(&format!("shop/{name}"), port, declares, &format!("app: {app}"));
        let spec = format!("spec:\n  clusterIP: \"{ip}\"\n  ipFamilies: [{family}]\n");
        self.world.save(&format!("service-{name}.yaml"), &yaml.replace("spec:\n", &spec))
    }

    /// A pod of the namespace `shop` with a sidecar that is ready: its interface, its rules, its processes.
    /// `args` are for the sidecar beyond the usual.
    ///
    /// # Errors
    /// When one of them fails.
    pub async fn pod(&self, name: &str, host: u8, ports: &[u16], args: &[String]) -> anyhow::Result<NetPod> {
        self.pod_with(name, host, ports, &[], &Flags::Usual(args)).await
    }

    /// The same with flags for `redirect`.
    ///
    /// # Errors
    /// When one of them fails.
    pub async fn pod_with(
        &self,
        name: &str,
        host: u8,
        ports: &[u16],
        redirect: &[&str],
        flags: &Flags<'_>,
    ) -> anyhow::Result<NetPod> {
        let manifest = self.manifest(name, host, ports);
        let pod = self.begin_declared(manifest, host, redirect, flags).await?;
        pod.becomes_ready(self).await;
        Ok(pod)
    }

    /// The pod `name` of the namespace `shop` at the address that ends in `host`, running and ready.
    fn manifest(&self, name: &str, host: u8, ports: &[u16]) -> PodManifest {
        let app = name.split_once('-').map_or(name, |(app, _)| app);
        PodManifest {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            service_account: app.to_owned(),
            labels: vec![("app".to_owned(), app.to_owned())],
            ip: self.family.host(host),
            ports: ports.to_vec(),
            meshed: true,
            ready: true,
            terminating: false,
        }
    }

    fn declare(&self, manifest: &PodManifest) -> anyhow::Result<()> {
        let ip = manifest.ip;
        let yaml = manifest.yaml().replace(&format!("podIP: {ip}"), &format!("podIP: \"{ip}\""));
        self.world.save(&manifest.file(), &yaml)
    }

    /// Does not wait until the sidecar is ready.
    async fn begin_declared(
        &self,
        manifest: PodManifest,
        host: u8,
        redirect: &[&str],
        flags: &Flags<'_>,
    ) -> anyhow::Result<NetPod> {
        self.declare(&manifest)?;
        let token = self.world.token("shop", &manifest.service_account, "1h")?;
        let files = Credentials { ca: self.world.state().join("ca.pem"), token };
        let name = format!("shop/{}", manifest.name);
        let pod = self.begin_pod(&name, host, redirect, &files, flags).await?;
        Ok(NetPod { manifest: Some(manifest), ..pod })
    }

    /// A pod `namespace/name` that the control plane knows already.
    ///
    /// # Errors
    /// When one of its programs fails.
    pub async fn start_pod(
        &self,
        full_name: &str,
        host: u8,
        redirect: &[&str],
        files: &Credentials,
        flags: &Flags<'_>,
    ) -> anyhow::Result<NetPod> {
        let pod = self.begin_pod(full_name, host, redirect, files, flags).await?;
        pod.becomes_ready(self).await;
        Ok(pod)
    }

    async fn begin_pod(
        &self,
        full_name: &str,
        host: u8,
        redirect: &[&str],
        files: &Credentials,
        flags: &Flags<'_>,
    ) -> anyhow::Result<NetPod> {
        let (world, family, ip) = (&self.world, self.family, self.family.host(host));
        let inside = Namespace::new(world, &full_name.replace('/', "-")).await?;
        let (port, holder) = (format!("pod{host}"), inside.holder.id().to_string());
        let outside = &self.outside;
        outside
            .must("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &holder])?;
        outside.must("ip", &["link", "set", &port, "master", "bridge", "up"])?;
        inside.must("ip", &["link", "set", "eth0", "up"])?;
        inside.address(family, &format!("{ip}/{}", family.prefix()), "eth0")?;
        let router = family.host(1).to_string();
        inside.must("ip", &[family.flag(), "route", "add", "default", "via", &router])?;
        inside.redirect(redirect)?;

        let command = self.sidecar(&inside, full_name, files, flags)?;
        let sidecar = world.run(full_name, &command)?;
        Ok(NetPod { inside, ip, manifest: None, wire: port, sidecar })
    }

    /// The sidecar's command, and beforehand the files that its user may read.
    fn sidecar(
        &self,
        inside: &Namespace,
        full_name: &str,
        credentials: &Credentials,
        flags: &Flags<'_>,
    ) -> anyhow::Result<Command> {
        let world = &self.world;
        let files = world.directory().join(format!("sidecar-{}", full_name.replace('/', "-")));
        std::fs::create_dir(&files)?;
        let copy = |from: &Path, name: &str| -> anyhow::Result<PathBuf> {
            let to = files.join(name);
            // By a program of its own: were the file open for writing here, another test's thread could fork meanwhile, and
            // what must be executed would be busy (ETXTBSY) until that child is another program.
            let output = Command::new("install").args(["-m", "0755"]).arg(from).arg(&to).output()?;
            let complaint = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "copying {}: {complaint}", from.display());
            Ok(to)
        };
        let program = copy(&binaries::path(binaries::PROXY)?, "heddle-proxy")?;
        let ca = copy(&credentials.ca, "ca.pem")?;
        let token = copy(&credentials.token, "token")?;
        let mut command = inside.command("setpriv");
        // A change of user forgets whom to die with, so that is said again after it.
        command.args(["--reuid", SIDECAR_USER, "--regid", SIDECAR_USER, "--clear-groups"]);
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        let control_plane = format!("https://{}", world.discovery());
        match flags {
            Flags::Usual(more) => {
                command.args(["run", "--control-plane", &control_plane, "--control-plane-ca"]).arg(ca);
                command.arg("--token-file").arg(token).args(["--pod", full_name]);
                command.args(["--workers", "1", "--drain-time", "5s", "--expect-redirect"]).args(*more);
            }
            Flags::Injected(all) => {
                for flag in *all {
                    command.arg(match flag.split_once('=') {
                        Some(("--control-plane", _)) => format!("--control-plane={control_plane}"),
                        Some(("--control-plane-ca", _)) => format!("--control-plane-ca={}", ca.display()),
                        Some(("--token-file", _)) => format!("--token-file={}", token.display()),
                        _ => flag.clone(),
                    });
                }
            }
        }
        clean(&mut command);
        Ok(command)
    }

    /// Records what passes a pod's interface into a file, from now until the process is dropped.
    ///
    /// # Errors
    /// When tcpdump cannot be started.
    pub async fn record(&self, pod: &NetPod) -> anyhow::Result<(Process, PathBuf)> {
        let file = self.world.directory().join(format!("{}.pcap", pod.wire));
        let mut command = self.outside.command("tcpdump");
        command.args(["-i", &pod.wire, "-Z", "root", "-U", "-s", "0", "-w"]).arg(&file);
        let process = self.world.run(&format!("tcpdump-{}", pod.wire), &command)?;
        eventually("tcpdump listens", || async {
            ensure!(process.log().contains("listening on"), "{}", process.log());
            Ok(())
        })
        .await;
        Ok((process, file))
    }
}

async fn wait_until_ready(from: &Namespace, address: SocketAddr) {
    eventually(&format!("{address} is ready"), || {
        from.run(async move {
            let answer = Client::http1(address).await?.get(&address.to_string(), "/ready").await?;
            ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
            Ok(())
        })
    })
    .await;
}

/// A pod in its own namespace.
#[derive(Debug)]
pub struct NetPod {
    /// Its namespace.
    pub inside: Namespace,
    /// Its address.
    pub ip: IpAddr,
    /// As it was declared by its wire; none: somebody else did.
    manifest: Option<PodManifest>,
    /// Its interface's other end, at the bridge.
    wire: String,
    sidecar: Process,
}

impl NetPod {
    /// One of its ports.
    #[must_use]
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// Its application's port.
    #[must_use]
    pub fn app(&self) -> SocketAddr {
        self.port(APP_PORT)
    }

    /// A network that the pod makes within itself, as Docker in a pod or a virtual machine has it: somebody behind a bridge
    /// of the pod's, which forwards.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn within(&self, wire: &Wire) -> anyhow::Result<Namespace> {
        let (family, pod) = (wire.family, &self.inside);
        let [net, router, guest] = ["", "1", "2"].map(|host| match family {
            Family::V4 => format!("10.88.0.{}", if host.is_empty() { "0" } else { host }),
            Family::V6 => format!("fd88::{host}"),
        });
        let prefix = family.prefix();
        let within = Namespace::new(&wire.world, &format!("within-{}", self.wire)).await?;
        let holder = within.holder.id().to_string();
        pod.must("ip", &["link", "add", "inner", "type", "bridge"])?;
        pod.must("ip", &["link", "add", "guest", "type", "veth", "peer", "name", "eth0", "netns", &holder])?;
        pod.must("ip", &["link", "set", "guest", "master", "inner", "up"])?;
        pod.must("ip", &["link", "set", "inner", "up"])?;
        pod.address(family, &format!("{router}/{prefix}"), "inner")?;
        let forward = "echo 1 | tee /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding";
        pod.must("sh", &["-c", forward])?;
        within.must("ip", &["link", "set", "eth0", "up"])?;
        within.address(family, &format!("{guest}/{prefix}"), "eth0")?;
        within.must("ip", &[family.flag(), "route", "add", "default", "via", &router])?;
        // In the place of the address translation that a pod would do.
        let back = [family.flag(), "route", "add", &format!("{net}/{prefix}"), "via", &self.ip.to_string()];
        wire.outside.must("ip", &back)?;
        Ok(within)
    }

    /// The sidecar's metrics, asked for by whoever is outside.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn scrape(&self, wire: &Wire) -> anyhow::Result<Scrape> {
        wire.outside.run(Scrape::of(self.port(ports::METRICS))).await
    }

    /// Waits until the sidecar has refused at least `count` connections or requests for `reason`.
    ///
    /// # Panics
    /// When it does not.
    pub async fn refused(&self, wire: &Wire, direction: &str, reason: &str, count: f64) {
        eventually(&format!("{direction} {reason} is counted"), || async {
            let scrape = self.scrape(wire).await?;
            let found = scrape.sum("heddle_refused_total", &[("direction", direction), ("reason", reason)]);
            ensure!(found >= count, "{found} of {count}:\n{}", scrape.text);
            Ok(())
        })
        .await;
    }
}
