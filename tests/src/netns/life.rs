//! How pods come, go, die and lose each other, and what Kubernetes' controllers write about it meanwhile.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::Context;
use heddle_api::ports;

use super::{Flags, NetPod, Wire, wait_until_ready};
use crate::{manifest::PodManifest, process::Process};

const NOT_DECLARED: &str = "this pod's manifest is not the wire's to change";

/// What an EndpointSlice says of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its pod is not ready yet.
    Starting,
    /// Ready and serving.
    Ready,
    /// Its pod has a deletionTimestamp, and serves what comes.
    Terminating,
}

impl Phase {
    fn conditions(self) -> &'static str {
        match self {
            Self::Starting => "{ready: false, serving: false, terminating: false}",
            Self::Ready => "{ready: true, serving: true, terminating: false}",
            Self::Terminating => "{ready: false, serving: true, terminating: true}",
        }
    }
}

/// The EndpointSlice of a Service with one port, as its controller keeps it.
#[derive(Debug)]
pub struct Slice {
    service: String,
    port: u16,
    endpoints: BTreeMap<IpAddr, Phase>,
}

impl Slice {
    /// An empty one, not written yet, for a Service that [`Wire::service`] made.
    #[must_use]
    pub fn of(service: &str, port: u16) -> Self {
        Self { service: service.to_owned(), port, endpoints: BTreeMap::new() }
    }

    /// Writes that a pod's endpoint is in this phase; none: it is not there any more.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set(&mut self, wire: &Wire, ip: IpAddr, phase: Option<Phase>) -> anyhow::Result<()> {
        match phase {
            Some(phase) => self.endpoints.insert(ip, phase),
            None => self.endpoints.remove(&ip),
        };
        let service = &self.service;
        wire.world.save(&format!("slice-{service}.yaml"), &self.yaml())
    }

    fn yaml(&self) -> String {
        let Self { service, port, endpoints } = self;
        let family = if endpoints.keys().any(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" };
        let endpoints: String = endpoints
            .iter()
            .map(|(ip, phase)| format!("\n- {{addresses: [\"{ip}\"], conditions: {}}}", phase.conditions()))
            .collect();
        let endpoints = if endpoints.is_empty() { " []".to_owned() } else { endpoints };
        format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {service}-x7k2p, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}
addressType: {family}
ports: [{{name: main, port: {port}, protocol: TCP}}]
endpoints:{endpoints}
"
        )
    }
}

impl Wire {
    /// A pod as it comes into being: with an address and its processes, and not ready.
    ///
    /// # Errors
    /// When one of its parts cannot be made.
    pub async fn begin(&self, name: &str, host: u8, ports: &[u16]) -> anyhow::Result<NetPod> {
        let manifest = PodManifest { ready: false, ..self.manifest(name, host, ports) };
        self.begin_declared(manifest, host, &[], &Flags::Usual(&[])).await
    }
}

impl NetPod {
    /// Waits until its sidecar is ready.
    ///
    /// # Panics
    /// When it does not become so.
    pub async fn becomes_ready(&self, wire: &Wire) {
        wait_until_ready(&wire.outside, self.port(ports::METRICS)).await;
    }

    /// Its sidecar's process.
    pub fn sidecar(&mut self) -> &mut Process {
        &mut self.sidecar
    }

    /// Writes that its Ready condition is true.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn is_ready(&mut self, wire: &Wire) -> anyhow::Result<()> {
        let manifest = self.manifest.as_mut().context(NOT_DECLARED)?;
        manifest.ready = true;
        wire.declare(manifest)
    }

    /// Writes its deletionTimestamp.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn is_deleted(&mut self, wire: &Wire) -> anyhow::Result<()> {
        let manifest = self.manifest.as_mut().context(NOT_DECLARED)?;
        manifest.terminating = true;
        wire.declare(manifest)
    }

    /// The sidecar gets SIGTERM, as the last of the pod's processes, and ends within `limit`; then the pod is no more.
    ///
    /// # Errors
    /// When it does not end, or not with 0.
    pub async fn ends(mut self, wire: &Wire, limit: Duration) -> anyhow::Result<()> {
        self.sidecar.terminate()?;
        let code = self.sidecar.wait(limit).await?;
        let manifest = self.manifest.context(NOT_DECLARED)?;
        anyhow::ensure!(code == 0, "the sidecar of {} ended with {code}", manifest.name);
        wire.world.remove(&manifest.file())
    }

    /// The node loses its wire: whatever comes or goes vanishes without a word.
    ///
    /// # Errors
    /// When it has none any more.
    pub fn unplug(&self, wire: &Wire) -> anyhow::Result<()> {
        wire.outside.must("ip", &["link", "delete", &self.wire]).map(drop)
    }

    /// What passes between this pod and `other`, at this port of either if one is said, vanishes until
    /// [`NetPod::heal`].
    ///
    /// # Errors
    /// When nft refuses.
    pub fn part(&self, other: IpAddr, port: Option<u16>) -> anyhow::Result<()> {
        let family = if other.is_ipv4() { "ip" } else { "ip6" };
        let at = |end: &str| port.map_or_else(String::new, |port| format!(" tcp {end} {port}"));
        let rules: String = ["dport", "sport"]
            .iter()
            .map(|end| {
                let at = at(end);
                format!(
                    "add rule inet parted in {family} saddr {other}{at} drop
add rule inet parted out {family} daddr {other}{at} drop
"
                )
            })
            .collect();
        self.inside.nft(&format!(
            "add table inet parted
add chain inet parted in {{ type filter hook input priority -300; }}
add chain inet parted out {{ type filter hook output priority -300; }}
{rules}"
        ))
    }

    /// Undoes [`NetPod::part`].
    ///
    /// # Errors
    /// When it was not parted.
    pub fn heal(&self) -> anyhow::Result<()> {
        self.inside.nft("delete table inet parted")
    }
}
