//! A cluster as manifests: one file for each Service with its pods, and files of the pods whose sidecars are simulated.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::manifest::{self, PodManifest};

/// Namespace and service account of the simulated sidecars' pods.
pub(super) const SIDECARS: &str = "sidecars";
/// The Service that every sidecar follows.
pub(super) const POPULAR: usize = 0;
/// The Service that few follow.
pub(super) const OBSCURE: usize = 1;
/// Of every Service.
pub(super) const PORT: u16 = 8080;
/// Services of a namespace.
const NAMESPACE: usize = 100;
/// Sidecars' pods in a file.
const PODS_OF_A_FILE: usize = 200;

/// "svc-12".
pub(super) fn service_name(service: usize) -> String {
    format!("svc-{service}")
}

/// "ns-0".
pub(super) fn namespace_of(service: usize) -> String {
    format!("ns-{}", service / NAMESPACE)
}

/// "sidecars/web-7": the pod of a simulated sidecar.
pub(super) fn sidecar_pod(number: usize) -> String {
    format!("{SIDECARS}/web-{number}")
}

/// The manifests of a cluster, in a directory that goes with it.
#[derive(Debug)]
pub(super) struct Cluster {
    directory: TempDir,
    services: usize,
    endpoints_each: usize,
    generation: AtomicU64,
}

impl Cluster {
    /// Writes them.
    pub(super) fn write(services: usize, endpoints_each: usize, sidecars: usize) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("heddle-bench-").tempdir()?;
        fs::create_dir(directory.path().join("manifests"))?;
        let cluster = Self { directory, services, endpoints_each, generation: AtomicU64::new(0) };
        for service in 0..services {
            fs::write(cluster.file(service), cluster.yaml(service, "zone-a"))?;
        }
        for first in (0..sidecars).step_by(PODS_OF_A_FILE) {
            let pods = (first..sidecars.min(first + PODS_OF_A_FILE)).map(|n| sidecar_yaml(n) + "---\n");
            let file = cluster.manifests().join(format!("sidecars-{first}.yaml"));
            fs::write(file, pods.collect::<String>())?;
        }
        Ok(cluster)
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    pub(super) const fn endpoints(&self) -> usize {
        self.services * self.endpoints_each
    }

    /// The next state of a Service's file: its first pod is in another zone.
    pub(super) fn prepare(&self, service: usize) -> anyhow::Result<Change> {
        let mark = format!("g{}", self.generation.fetch_add(1, Ordering::Relaxed));
        let beside = self.directory.path().join("next.yaml");
        fs::write(&beside, self.yaml(service, &mark)).context("writing a manifest")?;
        Ok(Change { mark, beside, file: self.file(service) })
    }

    fn file(&self, service: usize) -> PathBuf {
        self.manifests().join(format!("{}.yaml", service_name(service)))
    }

    fn yaml(&self, service: usize, zone_of_first: &str) -> String {
        let (namespace, name) = (namespace_of(service), service_name(service));
        let full_name = format!("{namespace}/{name}");
        let mut yaml = manifest::service(&full_name, PORT, "http", &format!("app: {name}"));
        for pod in 0..self.endpoints_each {
            let zone = if pod == 0 { zone_of_first } else { "zone-a" };
            let labels = [("app", name.as_str()), ("version", "v1"), ("topology.kubernetes.io/zone", zone)];
            let text = PodManifest {
                namespace: namespace.clone(),
                name: format!("{name}-{pod}"),
                service_account: name.clone(),
                labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
                ip: address([10, 0], service * self.endpoints_each + pod),
                ports: vec![PORT],
                meshed: true,
                ready: true,
                terminating: false,
            }
            .yaml();
            // Writing to a String cannot fail.
            let _written = write!(yaml, "---\n{text}");
        }
        yaml
    }
}

fn sidecar_yaml(number: usize) -> String {
    let full_name = sidecar_pod(number);
    let (namespace, name) = manifest::split(&full_name);
    PodManifest {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        service_account: SIDECARS.to_owned(),
        labels: vec![("app".to_owned(), "web".to_owned())],
        ip: address([11, 0], number),
        ports: vec![PORT],
        meshed: true,
        ready: true,
        terminating: false,
    }
    .yaml()
}

/// The `n`-th address from `a.b.0.1` on. Nothing is ever sent there.
fn address([a, b]: [u8; 2], n: usize) -> IpAddr {
    let first = u32::from(Ipv4Addr::new(a, b, 0, 1));
    Ipv4Addr::from(first + u32::try_from(n).unwrap_or(u32::MAX / 4)).into()
}

/// A change of one endpoint that is written, but not yet in its place.
#[derive(Debug)]
pub(super) struct Change {
    mark: String,
    beside: PathBuf,
    file: PathBuf,
}

impl Change {
    /// The zone that tells this state from all others.
    pub(super) fn mark(&self) -> &str {
        &self.mark
    }

    /// Puts it in its place, in one step.
    pub(super) fn save(&self) -> anyhow::Result<()> {
        fs::rename(&self.beside, &self.file).with_context(|| format!("saving {}", display(&self.file)))
    }
}

fn display(path: &Path) -> String {
    path.display().to_string()
}
