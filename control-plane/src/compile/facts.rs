//! What the compiler needs of an object, taken out once when the object changes.
//!
//! Two states of an object that give the same facts are the same to the mesh: nothing is compiled anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use heddle_api::SIDECAR_ANNOTATION;
use k8s_openapi::{
    api::{
        core::v1::{Node, Pod, Service},
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use smallvec::SmallVec;

use super::selection::Labels;
use crate::object::{Name, name_of};

/// Label that names an EndpointSlice's Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Label (of a Pod or Node) that names its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodEntry {
    pub labels: Arc<Labels>,
    pub ips: SmallVec<[IpAddr; 1]>,
    pub service_account: String,
    pub uid: Option<String>,
    pub meshed: bool,
    /// What the sidecar's annotation says, where that is neither yes nor no.
    pub odd_annotation: Option<String>,
    pub ready: bool,
    pub terminating: bool,
    /// Succeeded or failed: its address may be somebody else's by now.
    pub finished: bool,
    /// Shares its node's address, so the address does not tell it.
    pub host_network: bool,
    pub hostname: String,
    /// What its own label says; otherwise its node's holds.
    pub zone: String,
    /// On which it runs, where that is known.
    pub node: Option<Arc<str>>,
    pub ports: Arc<NamedPorts>,
}

/// Named container ports.
pub(super) type NamedPorts = BTreeMap<String, u16>;

impl PodEntry {
    pub(super) fn new(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let sidecar = meta.annotations.as_ref().and_then(|a| a.get(SIDECAR_ANNOTATION));
        let mut ips = SmallVec::<[IpAddr; 1]>::new();
        let listed = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| &ip.ip);
        for text in status.and_then(|s| s.pod_ip.as_ref()).into_iter().chain(listed) {
            if let Ok(ip) = text.parse()
                && !ips.contains(&ip)
            {
                ips.push(ip);
            }
        }
        let conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        let init = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten();
        let containers = init.chain(spec.into_iter().flat_map(|s| &s.containers));
        let named = containers
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)));
        let labels = meta.labels.clone().unwrap_or_default();
        Self {
            zone: labels.get(ZONE_LABEL).cloned().unwrap_or_default(),
            node: spec.and_then(|s| s.node_name.as_deref()).filter(|node| !node.is_empty()).map(Arc::from),
            labels: Arc::new(labels),
            ips,
            service_account: spec
                .and_then(|s| s.service_account_name.clone())
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            uid: meta.uid.clone(),
            meshed: sidecar.is_some_and(|value| value == "true"),
            odd_annotation: sidecar.filter(|value| !matches!(value.as_str(), "true" | "false")).cloned(),
            ready: conditions.filter(|c| c.type_ == "Ready").all(|c| c.status == "True"),
            terminating: meta.deletion_timestamp.is_some(),
            finished: status
                .and_then(|s| s.phase.as_deref())
                .is_some_and(|phase| phase == "Succeeded" || phase == "Failed"),
            host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
            hostname: spec
                .and_then(|s| s.hostname.clone())
                .unwrap_or_else(|| meta.name.clone().unwrap_or_default()),
            ports: Arc::new(named.collect()),
        }
    }

    pub(super) const fn runs_sidecar(&self) -> bool {
        self.meshed && !self.finished
    }

    /// The pod's port that a Service port leads to.
    pub(super) fn target(&self, port: &ServicePort) -> Option<u16> {
        match &port.target {
            Target::Number(number) => Some(*number),
            Target::Named(name) => self.ports.get(name).copied(),
        }
    }
}

/// A node's zone.
pub(super) fn zone(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE_LABEL).filter(|zone| !zone.is_empty()).cloned()
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceEntry {
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
    pub cluster_ips: Vec<IpAddr>,
    /// IPv6 first, where the Service says so.
    pub family: Option<Family>,
    /// Only a DNS alias: not in the mesh.
    pub external: bool,
    pub publish_not_ready: bool,
    pub distribution: Distribution,
}

/// Which endpoints callers prefer (`spec.trafficDistribution`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Distribution {
    /// None before others; a word that is not known means the same, as it does to Kubernetes.
    #[default]
    Anywhere,
    Zone,
    /// Those on the same node, then those in the same zone.
    Node,
}

impl Distribution {
    fn of(text: Option<&str>) -> Self {
        match text {
            Some("PreferSameZone" | "PreferClose") => Self::Zone,
            Some("PreferSameNode") => Self::Node,
            _ => Self::Anywhere,
        }
    }
}

/// The family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A port of a Service; TCP only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePort {
    pub name: String,
    pub number: u16,
    pub target: Target,
    pub app_protocol: Option<String>,
}

/// Where a Service port leads on a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Number(u16),
    Named(String),
}

impl ServiceEntry {
    pub(super) fn new(service: &Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let ports = spec.ports.into_iter().flatten().filter_map(|port| {
            if port.protocol.is_some_and(|protocol| protocol != "TCP") {
                return None;
            }
            let number = u16::try_from(port.port).ok().filter(|number| *number != 0)?;
            let target = match port.target_port {
                Some(IntOrString::Int(target)) => Target::Number(u16::try_from(target).ok()?),
                Some(IntOrString::String(name)) => name.parse().map_or(Target::Named(name), Target::Number),
                None => Target::Number(number),
            };
            Some(ServicePort {
                name: port.name.unwrap_or_default(),
                number,
                target,
                app_protocol: port.app_protocol,
            })
        });
        let mut cluster_ips: Vec<IpAddr> = spec
            .cluster_ip
            .iter()
            .chain(spec.cluster_ips.iter().flatten())
            .filter_map(|ip| ip.parse().ok())
            .collect();
        cluster_ips.sort_unstable();
        cluster_ips.dedup();
        Self {
            ports: ports.collect(),
            selector: spec.selector.unwrap_or_default(),
            cluster_ips,
            family: spec.ip_families.and_then(|families| match families.first()?.as_str() {
                "IPv4" => Some(Family::V4),
                "IPv6" => Some(Family::V6),
                _ => None,
            }),
            external: spec.type_.as_deref() == Some("ExternalName"),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            distribution: Distribution::of(spec.traffic_distribution.as_deref()),
        }
    }

    pub(super) fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SliceEntry {
    pub service: Option<Name>,
    /// By the Service port's name.
    pub ports: BTreeMap<String, u16>,
    pub endpoints: Vec<SliceEndpoint>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SliceEndpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub zone: Box<str>,
    /// None: no hints, or empty ones.
    pub hints: Option<Box<Hints>>,
    /// The pod that it is said to be of: its name, and before it `namespace/` where that is another than the slice's.
    target: Option<Box<str>>,
}

impl SliceEndpoint {
    /// Namespace and name of the pod that it is said to be of, by a slice of this namespace.
    pub(super) fn target<'a>(&'a self, namespace: &'a str) -> Option<(&'a str, &'a str)> {
        let target = self.target.as_deref()?;
        Some(target.split_once('/').unwrap_or((namespace, target)))
    }
}

/// `targetRef`, where it means a Pod.
fn target(endpoint: &Endpoint, namespace: &str) -> Option<Box<str>> {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
    let name = target.name.as_deref().filter(|name| !name.is_empty())?;
    Some(match target.namespace.as_deref().filter(|other| !other.is_empty() && *other != namespace) {
        Some(other) => format!("{other}/{name}").into(),
        None => name.into(),
    })
}

/// Whose callers an endpoint is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hints {
    pub zones: Vec<String>,
    pub nodes: Vec<String>,
}

impl Hints {
    fn of(endpoint: &Endpoint) -> Option<Box<Self>> {
        let hints = endpoint.hints.as_ref()?;
        let zones: Vec<_> = hints.for_zones.iter().flatten().map(|zone| zone.name.clone()).collect();
        let nodes: Vec<_> = hints.for_nodes.iter().flatten().map(|node| node.name.clone()).collect();
        (!zones.is_empty() || !nodes.is_empty()).then(|| Box::new(Self { zones, nodes }))
    }
}

impl SliceEntry {
    pub(super) fn new(slice: &EndpointSlice) -> Self {
        let namespace = name_of(&slice.metadata).namespace;
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
        let ports =
            slice.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        let number = |port: &k8s_openapi::api::discovery::v1::EndpointPort| {
            Some((port.name.clone().unwrap_or_default(), u16::try_from(port.port?).ok()?))
        };
        let endpoints = slice.endpoints.iter().flatten().filter_map(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            Some(SliceEndpoint {
                // All addresses of one endpoint are alike; the first is used (EndpointSlice API).
                address: endpoint.addresses.first()?.parse().ok()?,
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                zone: endpoint.zone.clone().unwrap_or_default().into(),
                hints: Hints::of(endpoint),
                target: target(endpoint, &namespace),
            })
        });
        Self {
            endpoints: endpoints.collect(),
            service: service.map(|name| Name::new(namespace, name)),
            ports: ports.filter_map(number).collect(),
        }
    }

    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.endpoints.iter().map(|endpoint| endpoint.address).collect()
    }
}
