//! Where a name or an address leads: a Service port with its routes and backends, or one pod.

use std::{collections::BTreeMap, net::IpAddr};

use heddle_api::v1::{self, AppProtocol};

use super::{
    Compiled, Dep, Deps, Mesh,
    facts::ServicePort,
    name::{Asked, BackendKey, parse},
    protocol::{declared, opaque_by_number},
    route::{Flat, Needed},
};
use crate::object::Name;

impl Mesh {
    /// Where a name leads for a caller of a namespace; `None`: not in the mesh.
    #[must_use]
    pub fn destination(&self, caller_namespace: &str, name: &str) -> Compiled<v1::Destination> {
        let mut deps = Deps::default();
        let asked = parse(name, caller_namespace, &self.options.cluster_domain);
        let value = match asked {
            None => None,
            Some(Asked::Service(service, port)) => {
                self.service_destination(caller_namespace, &service, port, &mut deps)
            }
            Some(Asked::Pod { hostname, service, port }) => {
                self.named_pod(&hostname, &service, port, &mut deps)
            }
            Some(Asked::Address(ip, port)) => self.address_destination(caller_namespace, ip, port, &mut deps),
        };
        deps.compiled(value)
    }

    fn service_destination(
        &self,
        caller: &str,
        name: &Name,
        number: u16,
        deps: &mut Deps,
    ) -> Option<v1::Destination> {
        deps.add(Dep::service(name));
        let (_, port) = self.service_port(name, number)?;
        let attached = self.attached(name, port, caller);
        deps.add_policies(&name.namespace);
        let protocol = self.protocol(name, port, !attached.http.is_empty(), attached.tcp.is_some());
        let mut needed = Needed::at(&name.namespace);
        let flat = match protocol {
            // Declared as something else; `check` says so to the routes' owner.
            AppProtocol::Opaque => Flat::default(),
            _ => self.flatten(&attached.http, &mut needed),
        };
        let routed = std::mem::take(&mut needed.backends);
        let tcp_backends =
            attached.tcp.map(|route| self.tcp_backends(&route, &mut needed)).unwrap_or_default();
        let default_backend = BackendKey::Service(name.clone(), number, None).to_string();
        let mut backends = BTreeMap::new();
        for (service, number) in &needed.backends {
            self.add_backend(service, *number, false, &mut backends);
        }
        for (service, number) in &routed {
            self.add_backend(service, *number, true, &mut backends);
        }
        let own = v1::Backend {
            key: default_backend.clone(),
            protocol: protocol.into(),
            policy: self.traffic_policy(name),
        };
        backends.insert(default_backend.clone(), own);
        for service in &needed.services {
            deps.add(Dep::service(service));
            deps.add_policies(&service.namespace);
        }
        Some(v1::Destination {
            service: default_backend.clone(),
            protocol: protocol.into(),
            http_routes: flat.routes,
            http_rules: flat.rules,
            tcp_backends,
            backends: backends.into_values().collect(),
            default_backend,
        })
    }

    /// `http`: an HTTP route leads here, so a number that would be opaque by default is not.
    fn add_backend(
        &self,
        name: &Name,
        number: u16,
        http: bool,
        backends: &mut BTreeMap<String, v1::Backend>,
    ) {
        let Some((_, port)) = self.service_port(name, number) else { return };
        let protocol = if http {
            declared(port).unwrap_or(AppProtocol::Unspecified)
        } else {
            self.protocol(name, port, false, false)
        };
        let key = BackendKey::Service(name.clone(), number, None).to_string();
        let policy = self.traffic_policy(name);
        backends.insert(key.clone(), v1::Backend { key, protocol: protocol.into(), policy });
    }

    /// What a Service port speaks: what it declares, else what the routes attached to it say, else its number.
    pub(super) fn protocol(&self, service: &Name, port: &ServicePort, http: bool, tcp: bool) -> AppProtocol {
        if let Some(declared) = declared(port) {
            return declared;
        }
        if http {
            AppProtocol::Http
        } else if tcp || opaque_by_number(port, &self.defaults(&service.namespace).opaque_ports) {
            AppProtocol::Opaque
        } else {
            AppProtocol::Unspecified
        }
    }

    fn address_destination(
        &self,
        caller: &str,
        ip: IpAddr,
        number: u16,
        deps: &mut Deps,
    ) -> Option<v1::Destination> {
        deps.add(Dep::Address(ip));
        let holders = self.addresses.get(&ip)?;
        // Two Services with one cluster IP are a mistake; the first by name that has the port holds.
        for service in &holders.services {
            deps.add(Dep::service(service));
        }
        if let Some(service) =
            holders.services.iter().find(|service| self.service_port(service, number).is_some())
        {
            return self.service_destination(caller, service, number, deps);
        }
        // Of one that is being taken away and one that got its address the latter is there.
        let pods = holders.pods.iter().filter_map(|name| Some((&**name, self.pods.get(name)?)));
        let mut pods: Vec<_> = pods.filter(|(_, pod)| !pod.finished).collect();
        pods.sort_by_key(|(_, pod)| pod.terminating);
        for (name, pod) in &pods {
            deps.add(Dep::pod(name));
            let leads_here = |service: &&Name| {
                let ports = self.service(service).into_iter().flat_map(|service| &service.ports);
                ports.into_iter().find(|port| pod.target(port) == Some(number))
            };
            for service in self.selection.services(name) {
                deps.add(Dep::service(service));
                if let Some(port) = leads_here(&service) {
                    return Some(self.pod_of_service(service, port, ip, deps));
                }
            }
        }
        for (service, _) in &holders.slices {
            deps.add(Dep::service(service));
            deps.add(Dep::endpoints(service));
            let Some(entry) = self.service(service) else { continue };
            for port in &entry.ports {
                if self.endpoints_of(service, entry, port, deps).contains_key(&(ip, number)) {
                    return Some(self.pod_of_service(service, port, ip, deps));
                }
            }
        }
        let (name, _) = *pods.first()?;
        deps.add_policies(&name.namespace);
        let key = BackendKey::Pod(name.clone(), number, ip);
        let bare = ServicePort {
            name: String::new(),
            number,
            target: super::facts::Target::Number(number),
            app_protocol: None,
        };
        let protocol = self.protocol(name, &bare, false, false);
        Some(single(&format!("{}/pod/{}:{number}", name.namespace, name.name), &key, protocol, None))
    }

    /// One pod of a Service by its name: `POD.SERVICE.NAMESPACE.svc`.
    fn named_pod(
        &self,
        hostname: &str,
        service: &Name,
        number: u16,
        deps: &mut Deps,
    ) -> Option<v1::Destination> {
        deps.add(Dep::service(service));
        deps.add(Dep::endpoints(service));
        let pods = self.selection.pods(service).filter_map(|name| Some((name, self.pods.get(name)?)));
        let (name, pod) = pods.into_iter().find(|(_, pod)| pod.hostname == hostname && !pod.finished)?;
        deps.add(Dep::pod(name));
        // DNS leads to the pod itself, so the number is the pod's; the Service's is as clear.
        let ports = &self.service(service)?.ports;
        let by_pod = ports.iter().find(|port| pod.target(port) == Some(number));
        let port = by_pod.or_else(|| ports.iter().find(|port| port.number == number))?;
        Some(self.pod_of_service(service, port, *pod.ips.first()?, deps))
    }

    /// One pod reached by its own address: the Service's policy and protocol, but none of its routes.
    fn pod_of_service(
        &self,
        service: &Name,
        port: &ServicePort,
        ip: IpAddr,
        deps: &mut Deps,
    ) -> v1::Destination {
        deps.add_policies(&service.namespace);
        let key = BackendKey::Service(service.clone(), port.number, Some(ip));
        let protocol = self.protocol(service, port, false, false);
        single(&format!("{service}:{}", port.number), &key, protocol, self.traffic_policy(service))
    }
}

fn single(
    service: &str,
    key: &BackendKey,
    protocol: AppProtocol,
    policy: Option<v1::TrafficPolicy>,
) -> v1::Destination {
    let key = key.to_string();
    v1::Destination {
        service: service.to_owned(),
        protocol: protocol.into(),
        backends: vec![v1::Backend { key: key.clone(), protocol: protocol.into(), policy }],
        default_backend: key,
        ..v1::Destination::default()
    }
}
