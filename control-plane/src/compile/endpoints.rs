//! A backend's endpoints: from EndpointSlices, or from the pods that the Service selects where it has none.

use std::{collections::BTreeMap, net::IpAddr};

use heddle_api::v1;

use super::{
    Compiled, Dep, Deps, Mesh,
    facts::{Distribution, Family, PodEntry, ServiceEntry, ServicePort, SliceEndpoint, SliceEntry},
    name::BackendKey,
    policy::Defaults,
};
use crate::object::Name;

/// Where endpoints are sorted and told apart. Without a value: withheld, because its pod is not known there yet.
pub(super) type ByAddress = BTreeMap<(IpAddr, u16), Option<v1::Endpoint>>;

/// Who is behind an endpoint.
#[derive(Clone, Copy)]
enum Behind<'a> {
    /// This pod, which has the address.
    Pod(&'a Name, &'a PodEntry),
    /// A pod without sidecar of which other addresses are known.
    Somebody,
    /// No pod, or one on its node's network: there can be no sidecar.
    Nobody,
}

/// An endpoint of which nothing can be said yet.
struct Withheld;

impl Mesh {
    /// The endpoints of a backend, by its key: `namespace/service:port`, or `…@IP` for one of them.
    #[must_use]
    pub fn endpoints(&self, backend_key: &str) -> Compiled<v1::Endpoints> {
        let mut deps = Deps::default();
        let Some(key) = BackendKey::parse(backend_key) else { return deps.compiled(None) };
        let endpoints = match &key {
            BackendKey::Service(name, number, ip) => {
                deps.add(Dep::endpoints(name));
                deps.add_policies(&name.namespace);
                for pod in self.sliced_pods(name).filter(|pod| pod.namespace != name.namespace) {
                    deps.add_policies(&pod.namespace);
                }
                self.service_port(name, *number).map(|(service, port)| {
                    let mut endpoints = self.endpoints_of(name, service, port, &mut deps);
                    if let Some(ip) = ip {
                        endpoints.retain(|(address, _), _| address == ip);
                        // Who asks for one pod means it, ready or not.
                        if endpoints.is_empty() {
                            endpoints.extend(self.selected_pod(name, port, *ip));
                        }
                    }
                    endpoints
                })
            }
            BackendKey::Pod(name, number, ip) => {
                deps.add(Dep::pod(name));
                deps.add_policies(&name.namespace);
                self.pods.get(name).filter(|pod| pod.ips.contains(ip)).map(|pod| {
                    let defaults = self.defaults(&name.namespace);
                    let mut endpoints = ByAddress::new();
                    if let Some(state) = pod_state(pod, true) {
                        let endpoint = self.endpoint(*ip, *number, Behind::Pod(name, pod), &defaults, state);
                        endpoints.insert((*ip, *number), Some(endpoint));
                    }
                    endpoints
                })
            }
        };
        deps.compiled(endpoints.map(|map| v1::Endpoints { endpoints: map.into_values().flatten().collect() }))
    }

    /// A Service in the mesh. One that is only a DNS alias (ExternalName) is not, whatever selector, ports and slices it kept
    /// from before.
    pub(super) fn service(&self, name: &Name) -> Option<&ServiceEntry> {
        self.services.get(name).filter(|service| !service.external)
    }

    /// A Service in the mesh and one of its ports.
    pub(super) fn service_port(&self, name: &Name, number: u16) -> Option<(&ServiceEntry, &ServicePort)> {
        let service = self.service(name)?;
        Some((service, service.port(number)?))
    }

    fn selected_pod(
        &self,
        service: &Name,
        port: &ServicePort,
        ip: IpAddr,
    ) -> Option<((IpAddr, u16), Option<v1::Endpoint>)> {
        let pods = self.selection.pods(service).filter_map(|name| Some((name, self.pods.get(name)?)));
        // Of one that is being taken away and one that got its address the latter is there.
        let (name, pod) = pods
            .filter(|(_, pod)| pod.ips.contains(&ip))
            .min_by_key(|(_, pod)| (pod.finished, pod.terminating))?;
        let state = pod_state(pod, true)?;
        let number = pod.target(port)?;
        let defaults = self.defaults(&service.namespace);
        Some(((ip, number), Some(self.endpoint(ip, number, Behind::Pod(name, pod), &defaults, state))))
    }

    /// Where a Service's port leads, to what is withheld too.
    pub(super) fn endpoints_of(
        &self,
        name: &Name,
        service: &ServiceEntry,
        port: &ServicePort,
        deps: &mut Deps,
    ) -> ByAddress {
        let defaults = self.defaults(&name.namespace);
        let mut endpoints = match self.slices_of.get(name) {
            Some(slices) => self.slice_endpoints(slices.iter(), name, service, port, &defaults, deps),
            None => self.pod_endpoints(name, service, port, &defaults),
        };
        if let Some(family) = service.family
            && endpoints.keys().any(|(ip, _)| Family::of(*ip) == family)
        {
            // Both families of one pod are one endpoint, not two.
            endpoints.retain(|(ip, _), _| Family::of(*ip) == family);
        }
        endpoints
    }

    fn slice_endpoints<'a>(
        &self,
        slices: impl Iterator<Item = &'a Name>,
        name: &Name,
        service: &ServiceEntry,
        port: &ServicePort,
        defaults: &Defaults,
        deps: &mut Deps,
    ) -> ByAddress {
        let mut endpoints = ByAddress::new();
        for slice in slices.filter_map(|name| self.slices.get(name)) {
            let Some(number) = slice.ports.get(&port.name).copied() else { continue };
            for endpoint in &slice.endpoints {
                let state = match endpoint {
                    e if e.terminating && e.serving => v1::EndpointState::Draining,
                    e if e.terminating => continue,
                    e if e.ready || service.publish_not_ready => v1::EndpointState::Serving,
                    _ => continue,
                };
                let known = endpoints.entry((endpoint.address, number)).or_default();
                let Ok(behind) = self.behind(endpoint, &name.namespace, deps) else { continue };
                let theirs = match behind {
                    Behind::Pod(pod, _) if pod.namespace != name.namespace => {
                        Some(self.defaults(&pod.namespace))
                    }
                    _ => None,
                };
                let defaults = theirs.as_ref().unwrap_or(defaults);
                let mut made = self.endpoint(endpoint.address, number, behind, defaults, state);
                if !endpoint.zone.is_empty() {
                    made.zone = endpoint.zone.to_string();
                }
                // The controller of EndpointSlices makes them of `trafficDistribution`, and knows when not to.
                if let Some(hints) = &endpoint.hints {
                    made.for_zones.clone_from(&hints.zones);
                    made.for_nodes.clone_from(&hints.nodes);
                }
                // An address may be in two slices while it moves from one to the other; serving wins.
                if known.as_ref().is_none_or(|known| known.state() == v1::EndpointState::Draining) {
                    *known = Some(made);
                }
            }
        }
        endpoints
    }

    /// Who is at the address of a slice's endpoint. The slice says which of several, and that a pod is to be
    /// there: Pods and slices come by watches of their own, and until the Pod is here nobody knows whether it has a sidecar.
    fn behind(
        &self,
        endpoint: &SliceEndpoint,
        namespace: &str,
        deps: &mut Deps,
    ) -> Result<Behind<'_>, Withheld> {
        let holders = self.addresses.get(&endpoint.address).into_iter();
        let mut at_address = holders
            .flat_map(|holders| &holders.pods)
            .filter_map(|name| Some((&**name, self.pods.get(name)?)))
            .filter(|(_, pod)| !pod.finished);
        let mut named = at_address.clone();
        let mut first = |otherwise| at_address.next().map_or(otherwise, |(name, pod)| Behind::Pod(name, pod));
        let Some(target) = endpoint.target(namespace) else { return Ok(first(Behind::Nobody)) };
        if let Some((name, pod)) = named.find(|(name, _)| (&*name.namespace, &*name.name) == target) {
            return Ok(Behind::Pod(name, pod));
        }
        let target = Name::new(target.0, target.1);
        deps.add(Dep::pod(&target));
        match self.pods.get(&target).filter(|pod| !pod.finished && !pod.ips.is_empty()) {
            // It shares its node's address, which does not tell it.
            Some(pod) if pod.host_network => Ok(first(Behind::Nobody)),
            // It may have another network beside what its Pod says, and gets plaintext wherever it is.
            Some(pod) if !pod.meshed => Ok(first(Behind::Somebody)),
            // Not there yet, without an address yet, or its Pod is late to say that it is another now.
            _ => Err(Withheld),
        }
    }

    fn pod_endpoints(
        &self,
        name: &Name,
        service: &ServiceEntry,
        port: &ServicePort,
        defaults: &Defaults,
    ) -> ByAddress {
        let mut endpoints = ByAddress::new();
        for pod_name in self.selection.pods(name) {
            let Some(pod) = self.pods.get(pod_name) else { continue };
            let Some(state) = pod_state(pod, service.publish_not_ready) else { continue };
            let Some(number) = pod.target(port) else { continue };
            let own_family = |ip: &&IpAddr| service.family.is_none_or(|family| Family::of(**ip) == family);
            let Some(ip) = pod.ips.iter().find(own_family).or(pod.ips.first()) else { continue };
            let mut endpoint = self.endpoint(*ip, number, Behind::Pod(pod_name, pod), defaults, state);
            self.hint(&mut endpoint, service.distribution, pod);
            endpoints.insert((*ip, number), Some(endpoint));
        }
        endpoints
    }

    /// What the controller of EndpointSlices would write, where there are none: each endpoint is for its own zone and node.
    fn hint(&self, endpoint: &mut v1::Endpoint, distribution: Distribution, pod: &PodEntry) {
        if distribution != Distribution::Anywhere {
            endpoint.for_zones.extend(Some(self.zone(pod)).filter(|zone| !zone.is_empty()));
        }
        if distribution == Distribution::Node {
            endpoint.for_nodes.extend(pod.node.as_deref().map(str::to_owned));
        }
    }

    /// The pods, of whatever namespace, that have an address in one of a Service's EndpointSlices.
    pub(super) fn sliced_pods(&self, service: &Name) -> impl Iterator<Item = &Name> {
        let slices = self.slices_of.get(service).into_iter().flatten();
        let slices = slices.filter_map(|slice| self.slices.get(slice));
        let holders = slices.flat_map(SliceEntry::addresses).filter_map(|ip| self.addresses.get(&ip));
        holders.flat_map(|holders| &holders.pods).map(|pod| &**pod)
    }

    /// The zone of a pod, or empty.
    pub(super) fn zone(&self, pod: &PodEntry) -> String {
        if pod.zone.is_empty() {
            pod.node.as_deref().and_then(|node| self.zones.get(node)).cloned().unwrap_or_default()
        } else {
            pod.zone.clone()
        }
    }

    /// `defaults`: of the pod's namespace, or of the Service's where no pod is known at the address.
    fn endpoint(
        &self,
        ip: IpAddr,
        port: u16,
        behind: Behind<'_>,
        defaults: &Defaults,
        state: v1::EndpointState,
    ) -> v1::Endpoint {
        let (pod, could_be_meshed) = match behind {
            Behind::Pod(name, pod) => (Some((name, pod)), !pod.host_network),
            Behind::Somebody => (None, true),
            Behind::Nobody => (None, false),
        };
        let meshed = pod.filter(|(_, pod)| pod.meshed);
        // Whatever an EndpointSlice says, only an annotated pod at this address has an identity.
        let identity = meshed
            .filter(|_| defaults.modes.at(port) != v1::MtlsMode::Disabled)
            .and_then(|(name, pod)| self.identity(name, pod))
            .map(|id| id.to_string())
            .unwrap_or_default();
        v1::Endpoint {
            address: ip.to_string(),
            port: u32::from(port),
            must_be_meshed: identity.is_empty() && defaults.must_be_meshed(port, could_be_meshed),
            identity,
            zone: pod.map(|(_, pod)| self.zone(pod)).unwrap_or_default(),
            weight: 1,
            state: state.into(),
            pod: pod.map(|(name, _)| name.to_string()).unwrap_or_default(),
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        }
    }
}

/// Whether a pod serves: `None` when it gets nothing at all.
fn pod_state(pod: &PodEntry, not_ready_too: bool) -> Option<v1::EndpointState> {
    if pod.finished || !(pod.ready || not_ready_too && !pod.terminating) {
        return None;
    }
    Some(if pod.terminating { v1::EndpointState::Draining } else { v1::EndpointState::Serving })
}
