//! A pod's own side: its ports, who may use them, and by which names.

use std::collections::BTreeMap;

use heddle_api::{
    identity::PodName,
    v1::{self, AppProtocol},
};

use super::{
    Compiled, Dep, Deps, Mesh,
    facts::{PodEntry, ServiceEntry, ServicePort},
};
use crate::object::Name;

/// The Services that lead to one of the pod's ports.
type Leads<'a> = Vec<(&'a Name, &'a ServiceEntry, &'a ServicePort)>;

impl Mesh {
    /// What a pod's sidecar is told of its own side; `None`: there is no such pod.
    #[must_use]
    pub fn inbound(&self, pod: &PodName) -> Compiled<v1::Inbound> {
        let name = Name::new(&pod.namespace, &pod.name);
        let mut deps = Deps::default();
        deps.add(Dep::pod(&name));
        let Some(entry) = self.pods.get(&name) else { return deps.compiled(None) };
        deps.add_policies(&name.namespace);
        let mut leads: BTreeMap<u16, Leads<'_>> = BTreeMap::new();
        for service in self.selection.services(&name) {
            deps.add(Dep::service(service));
            let Some(service_entry) = self.service(service) else { continue };
            for port in &service_entry.ports {
                if let Some(number) = entry.target(port) {
                    leads.entry(number).or_default().push((service, service_entry, port));
                }
            }
        }
        self.sliced_leads(&name, entry, &mut leads, &mut deps);
        let defaults = self.defaults(&name.namespace);
        // Ports that only a MeshPolicy names differ from the rest, too.
        for (number, _) in &defaults.modes.ports {
            leads.entry(*number).or_default();
        }
        for leads in leads.values_mut() {
            leads.sort_by(|a, b| (a.0, a.2.number).cmp(&(b.0, b.2.number)));
        }
        let port = |(number, leads): (u16, Leads<'_>)| {
            let services: Vec<&Name> = leads.iter().map(|(service, ..)| *service).collect();
            v1::InboundPort {
                port: u32::from(number),
                protocol: self.inbound_protocol(&leads).into(),
                mtls: defaults.modes.at(number).into(),
                access: self.access_rules(&services, &name.namespace),
                authorities: self.authorities(entry, &leads),
            }
        };
        let value = v1::Inbound {
            mtls: defaults.modes.mtls.into(),
            ports: leads.into_iter().map(port).collect(),
            terminating: entry.terminating,
            access: self.access_rules(&[], &name.namespace),
            identity: self.identity(&name, entry).map(|id| id.to_string()).unwrap_or_default(),
            access_log: defaults.access_log.into(),
            opaque_ports: defaults.opaque_ports,
            zone: self.zone(entry),
            node: entry.node.as_deref().unwrap_or_default().to_owned(),
        };
        deps.compiled(Some(value))
    }

    /// The Services that lead to the pod by their EndpointSlices' word. A slice never makes an identity, but who guards a
    /// Service guards whatever it leads to, so its word counts here, within the pod's own namespace: another's must
    /// neither open nor close what this one guards.
    fn sliced_leads<'a>(
        &'a self,
        name: &Name,
        entry: &PodEntry,
        leads: &mut BTreeMap<u16, Leads<'a>>,
        deps: &mut Deps,
    ) {
        for ip in &entry.ips {
            deps.add(Dep::Address(*ip));
            let slices = self.addresses.get(ip).into_iter().flat_map(|holders| &holders.slices);
            let slices = slices.map(|(service, slice)| (&**service, slice));
            for (service, slice) in slices.filter(|(service, _)| service.namespace == name.namespace) {
                deps.add(Dep::service(service));
                let (Some(service_entry), Some(slice)) = (self.service(service), self.slices.get(slice))
                else {
                    continue;
                };
                for port in &service_entry.ports {
                    let Some(number) = slice.ports.get(&port.name) else { continue };
                    let known = leads.entry(*number).or_default();
                    if !known.iter().any(|(other, _, p)| *other == service && p.number == port.number) {
                        known.push((service, service_entry, port));
                    }
                }
            }
        }
    }

    /// The first Service (by name) that says something decides.
    fn inbound_protocol(&self, leads: &Leads<'_>) -> AppProtocol {
        let protocols = leads.iter().map(|(service, _, port)| {
            let attached = self.attached(service, port, &service.namespace);
            self.protocol(service, port, !attached.http.is_empty(), attached.tcp.is_some())
        });
        protocols
            .into_iter()
            .find(|protocol| *protocol != AppProtocol::Unspecified)
            .unwrap_or(AppProtocol::Unspecified)
    }

    /// Every name that callers may write in Host.
    fn authorities(&self, pod: &PodEntry, leads: &Leads<'_>) -> Vec<String> {
        let domain = &self.options.cluster_domain;
        let mut all = Vec::new();
        for (Name { namespace, name }, service, port) in leads {
            let number = port.number;
            let full = format!("{name}.{namespace}");
            let of_pod = format!("{}.{full}", pod.hostname);
            all.extend([format!("{name}:{number}"), format!("{full}:{number}")]);
            for host in [full, of_pod] {
                all.extend([format!("{host}.svc:{number}"), format!("{host}.svc.{domain}:{number}")]);
            }
            for ip in &service.cluster_ips {
                all.push(std::net::SocketAddr::new(*ip, number).to_string());
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}
