//! What is wrong with objects in the light of the others: targets that do not exist, rivals for one place.
//!
//! Looked for again only where a change may have mended or made it.

use std::collections::{BTreeMap, BTreeSet};

use heddle_api::{
    SIDECAR_ANNOTATION,
    resources::{TargetKind, TargetRef},
    v1::AppProtocol,
};

use super::{
    Mesh,
    apply::{policy_name, services_of},
    facts::{ServicePort, Target},
    protocol::declared,
    route::{Unresolved, backend_refs, holds_at, no_port, parent_is, parent_name, parents, seniority},
};
use crate::{
    diagnostics::{FieldError, Reason},
    object::{Kind, Name, ObjectRef, route::Route},
};

impl Mesh {
    /// Replaces what is known of these objects' problems.
    pub(super) fn look_for_problems(&mut self, suspects: BTreeSet<ObjectRef>) {
        for object in suspects {
            let errors = match self.unusable.get(&object) {
                Some(errors) => errors.clone(),
                None => self.problems_of(&object),
            };
            let place = self.places.get(&object);
            let found: Vec<_> = errors.into_iter().map(|error| error.of(&object, place)).collect();
            let changed = if found.is_empty() {
                self.problems.remove(&object).is_some()
            } else {
                self.problems.get(&object) != Some(&found) && {
                    self.problems.insert(object, found);
                    true
                }
            };
            self.problems_version += u64::from(changed);
        }
    }

    fn problems_of(&self, object: &ObjectRef) -> Vec<FieldError> {
        let name = Name::new(&object.namespace, &object.name);
        match object.kind {
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute => {
                self.routes.get(object).map(|route| self.route_problems(route)).unwrap_or_default()
            }
            Kind::TrafficPolicy => self.traffic_policy_problems(&name),
            Kind::AccessPolicy => self.access_policy_problems(&name),
            Kind::MeshPolicy => self.mesh_policy_problems(&name),
            Kind::Service => self.target_port_problems(&name),
            Kind::Pod => self.pod_problems(&name),
            Kind::NetworkPolicy => self.network_policy_problems(&name),
            Kind::Namespace | Kind::Node | Kind::EndpointSlice | Kind::ReferenceGrant => Vec::new(),
        }
    }

    /// A named target port that none of the pods has leads nowhere.
    fn target_port_problems(&self, name: &Name) -> Vec<FieldError> {
        let Some(service) = self.service(name) else { return Vec::new() };
        let pods: Vec<_> = self.selection.pods(name).filter_map(|pod| self.pods.get(pod)).collect();
        let mut errors = Vec::new();
        for port in &service.ports {
            if let Target::Named(target) = &port.target
                && !pods.is_empty()
                && !pods.iter().any(|pod| pod.ports.contains_key(target))
            {
                let message = format!(
                    "no pod that it selects has a port named {target:?}: port {} leads nowhere",
                    port.number
                );
                errors.push(FieldError::error("spec.ports.targetPort", message));
            }
        }
        errors
    }

    fn missing_targets(&self, refs: &[TargetRef], targets: &BTreeSet<Name>) -> Vec<FieldError> {
        let missing = targets.iter().filter(|target| self.service(target).is_none());
        let error = |target: &Name| {
            let message = format!("{}: nothing follows from it", self.not_in_the_mesh(target));
            FieldError::error(target_field(refs, target), message).because(Reason::TargetNotFound)
        };
        missing.map(error).collect()
    }

    /// Why there is no such Service in the mesh.
    pub(super) fn not_in_the_mesh(&self, service: &Name) -> String {
        match self.services.contains_key(service) {
            true => format!("Service {service} is only a DNS alias (ExternalName)"),
            false => format!("Service {service} does not exist"),
        }
    }

    fn access_policy_problems(&self, name: &Name) -> Vec<FieldError> {
        let Some(policy) = self.access.get(name) else { return Vec::new() };
        let targets = services_of(&policy.spec.target_refs, &name.namespace);
        let mut errors = self.missing_targets(&policy.spec.target_refs, &targets);
        for target in &targets {
            let pods: BTreeSet<&Name> = self.selection.pods(target).chain(self.sliced_pods(target)).collect();
            let alive = |pod: &&Name| self.pods.get(*pod).is_some_and(|entry| !entry.finished);
            let (own, others): (Vec<_>, Vec<_>) =
                pods.into_iter().filter(alive).partition(|pod| pod.namespace == target.namespace);
            let bare: Vec<_> = own
                .into_iter()
                .filter(|pod| self.pods.get(*pod).is_some_and(|entry| !entry.meshed))
                .collect();
            for (pods, why) in [
                (bare, "without a sidecar, which is what enforces it"),
                (others, "of another namespace, whose own policies say who may call there"),
            ] {
                let more = match &pods[..] {
                    [] => continue,
                    [_] => String::new(),
                    more => format!(" and {} more", more.len() - 1),
                };
                let message = format!("has no effect on Pod {}{more} of Service {target}: {why}", pods[0]);
                errors.push(FieldError::warning("spec.targetRefs", message));
            }
        }
        errors
    }

    fn pod_problems(&self, name: &Name) -> Vec<FieldError> {
        let value = self.pods.get(name).and_then(|pod| pod.odd_annotation.as_ref());
        let error = |value: &String| {
            FieldError::warning(
                format!("metadata.annotations[{SIDECAR_ANNOTATION}]"),
                format!("{value:?} is neither \"true\" nor \"false\": the pod counts as one without sidecar"),
            )
        };
        value.map(error).into_iter().collect()
    }

    fn traffic_policy_problems(&self, name: &Name) -> Vec<FieldError> {
        let Some(policy) = self.traffic.get(name) else { return Vec::new() };
        let targets = services_of(&policy.spec.target_refs, &name.namespace);
        let mut errors = self.missing_targets(&policy.spec.target_refs, &targets);
        for target in &targets {
            let first = self.traffic_of.get(target).and_then(|rivals| rivals.values().next());
            if let Some(first) = first.map(|first| policy_name(first)).filter(|first| first != name) {
                errors.push(FieldError::error(
                    target_field(&policy.spec.target_refs, target),
                    format!("Service {target} has TrafficPolicy {first}, which goes first; this one ({name}) has no effect on it"),
                )
                .because(Reason::Conflicted));
            }
        }
        errors
    }

    fn mesh_policy_problems(&self, name: &Name) -> Vec<FieldError> {
        let first = self.mesh_policies.get(&name.namespace).and_then(|rivals| rivals.keys().next());
        match first.filter(|first| first.name != *name) {
            Some(first) => vec![
                FieldError::error(
                    "metadata.name",
                    format!(
                        "namespace {} has MeshPolicy {}, which goes first; this one ({name}) has no effect",
                        name.namespace, first.name
                    ),
                )
                .because(Reason::Conflicted),
            ],
            None => Vec::new(),
        }
    }

    fn route_problems(&self, route: &Route) -> Vec<FieldError> {
        let mut errors = route.warnings.clone();
        for (i, parent) in route.spec.parent_refs.iter().enumerate() {
            let field = |name: &str| format!("spec.parentRefs[{i}].{name}");
            if !parent.is_service() {
                if parent.kind.as_deref() == Some("Service") {
                    errors.push(FieldError::error(
                        field("group"),
                        "must be \"\" for a Service; the route has no effect here",
                    ));
                }
                continue;
            }
            let name = parent_name(route, parent);
            let Some(service) = self.service(&name) else {
                let message = format!("{}: the route has no effect here", self.not_in_the_mesh(&name));
                errors.push(FieldError::error(field("name"), message).because(Reason::NoMatchingParent));
                continue;
            };
            let ports: Vec<_> = service.ports.iter().filter(|port| parent_is(parent, port)).collect();
            if ports.is_empty() {
                let (part, asked) = match (&parent.port, &parent.section_name) {
                    (Some(port), _) => ("port", port.to_string()),
                    (None, Some(section)) => ("sectionName", section.clone()),
                    (None, None) => ("name", "at all".to_owned()),
                };
                errors.push(
                    FieldError::error(field(part), no_port(&name, service, asked))
                        .because(Reason::NoMatchingParent),
                );
            }
            // A parent without port means every port, and those of a Service that are not HTTP are then not meant: nothing is
            // wrong unless they are all that there is.
            let opaque = |port: &ServicePort| declared(port) == Some(AppProtocol::Opaque);
            let some_http = ports.iter().any(|port| !opaque(port));
            for port in ports {
                let tcp = route.object.kind == Kind::TcpRoute;
                if opaque(port) && !tcp && !some_http {
                    errors.push(FieldError::error(
                        field("name"),
                        format!("port {} of Service {name} declares that it is not HTTP: the route has no effect on it", port.number),
                    )
                    .because(Reason::UnsupportedValue));
                } else if tcp && !opaque(port) && declared(port).is_some() {
                    errors.push(FieldError::warning(
                        field("name"),
                        format!("port {} of Service {name} declares HTTP: the route has an effect on other connections only", port.number),
                    ));
                }
            }
        }
        errors.extend(self.backend_problems(route));
        if route.object.kind == Kind::TcpRoute {
            errors.extend(self.tcp_rivals(route));
        }
        errors
    }

    /// Backends that lead nowhere: for every parent, or where a parent has no right to them for that one.
    fn backend_problems(&self, route: &Route) -> Vec<FieldError> {
        let parents: Vec<_> = route.spec.parent_refs.iter().enumerate().collect();
        let services = parents.into_iter().filter(|(_, parent)| parent.is_service());
        let mut services: Vec<_> =
            services.map(|(i, parent)| (i, parent_name(route, parent).namespace)).collect();
        if services.is_empty() {
            // Attached to a Gateway, whose controller knows better; what leads nowhere does so everywhere.
            services.push((0, route.object.namespace.clone()));
        }
        let mut errors = Vec::new();
        for (field, backend) in backend_refs(route) {
            let consequence = match route.object.kind {
                _ if field.ends_with("requestMirror.backendRef") => "nothing is mirrored",
                Kind::TcpRoute => "its share of the connections is refused",
                _ => "its share of the requests gets 500",
            };
            let unresolved = |(i, parent): &(usize, String)| {
                let Unresolved { reason, message } = self.resolve(route, parent, backend).err()?;
                Some((*i, reason, format!("{message}: {consequence}")))
            };
            let mut failed: Vec<_> = services.iter().filter_map(unresolved).collect();
            let everywhere =
                failed.len() == services.len() && failed.iter().all(|(_, r, _)| *r == failed[0].1);
            if everywhere {
                let (_, reason, message) = failed.swap_remove(0);
                errors.push(FieldError::error(field, message).because(reason));
                continue;
            }
            errors.extend(failed.into_iter().map(|(i, reason, message)| {
                FieldError::error(format!("spec.parentRefs[{i}]"), format!("{field}: {message}"))
                    .because(reason)
            }));
        }
        errors
    }

    /// At one port a single TCPRoute holds.
    fn tcp_rivals(&self, route: &Route) -> Vec<FieldError> {
        let mut lost = BTreeMap::new();
        for service in parents(route) {
            for port in self.service(&service).into_iter().flat_map(|service| &service.ports) {
                let others = self.routes_of.get(&service).into_iter().flatten();
                let first = others
                    .filter(|other| other.kind == Kind::TcpRoute && other.namespace == route.object.namespace)
                    .filter_map(|other| self.routes.get(other))
                    .filter(|other| holds_at(other, &service, port))
                    .min_by_key(|other| seniority(other));
                if let Some(first) =
                    first.filter(|first| holds_at(route, &service, port) && first.object != route.object)
                {
                    lost.insert((service.clone(), port.number), first.name());
                }
            }
        }
        let error = |((service, port), first): ((Name, u16), String)| {
            let own = route.name();
            FieldError::error(
                "spec.parentRefs",
                format!(
                    "port {port} of Service {service} has TCPRoute {first}, which goes first; this one ({own}) has no effect on it"
                ),
            )
            .because(Reason::Conflicted)
        };
        lost.into_iter().map(error).collect()
    }
}

/// Where a policy names a Service.
fn target_field(refs: &[TargetRef], target: &Name) -> String {
    let own = |other: &TargetRef| other.kind == TargetKind::Service && other.name == target.name;
    refs.iter()
        .position(own)
        .map_or("spec.targetRefs".to_owned(), |index| format!("spec.targetRefs[{index}]"))
}
