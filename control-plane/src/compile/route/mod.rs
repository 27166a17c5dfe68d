//! Routes that are attached to Services: which hold for a caller, and what they come to.
//!
//! A route in its Service's namespace is a *producer* route and holds for every caller; one in another namespace is a
//! *consumer* route, holds for the callers of its namespace alone, and there takes the place of all producer routes
//! (GEP-1426).

mod filter;
mod http;
mod precedence;

use std::{collections::BTreeSet, sync::Arc};

use heddle_api::v1;

pub(super) use self::http::Flat;
use super::{
    Mesh, Seniority,
    facts::{ServiceEntry, ServicePort},
    name::BackendKey,
};
use crate::{
    diagnostics::Reason,
    object::{
        Kind, Name,
        route::{BackendRef, Filter, ParentRef, Route},
    },
};

/// The Services that a route is attached to, or would be if they existed.
pub(super) fn parents(route: &Route) -> BTreeSet<Name> {
    let parents = route.spec.parent_refs.iter().filter(|parent| parent.is_service());
    parents.map(|parent| parent_name(route, parent)).collect()
}

/// Which Service a parent reference means.
pub(super) fn parent_name(route: &Route, parent: &ParentRef) -> Name {
    Name::new(parent.namespace.as_ref().unwrap_or(&route.object.namespace), &parent.name)
}

/// All Services that a route names: parents, backends, mirrors.
pub(super) fn services(route: &Route) -> BTreeSet<Name> {
    let mut names = parents(route);
    names.extend(backend_refs(route).into_iter().map(|(_, backend)| backend_name(route, backend)));
    names
}

/// Which Service a backend reference means.
pub(super) fn backend_name(route: &Route, backend: &BackendRef) -> Name {
    Name::new(backend.namespace.as_ref().unwrap_or(&route.object.namespace), &backend.name)
}

/// All backend references of a route, mirrors included, each with its field.
pub(super) fn backend_refs(route: &Route) -> Vec<(String, &BackendRef)> {
    fn mirrors<'a>(at: &str, filters: &'a [Filter], found: &mut Vec<(String, &'a BackendRef)>) {
        for (f, filter) in filters.iter().enumerate() {
            if let Some(mirror) = &filter.request_mirror {
                found.push((format!("{at}.filters[{f}].requestMirror.backendRef"), &mirror.backend_ref));
            }
        }
    }
    let mut found = Vec::new();
    for (r, rule) in route.spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{r}]");
        mirrors(&at, &rule.filters, &mut found);
        for (b, backend) in rule.backend_refs.iter().enumerate() {
            let at = format!("{at}.backendRefs[{b}]");
            mirrors(&at, &backend.filters, &mut found);
            found.push((at, backend));
        }
    }
    found
}

/// Why a backend reference leads nowhere.
#[derive(Debug)]
pub(super) struct Unresolved {
    pub reason: Reason,
    /// A sentence without its full stop.
    pub message: String,
}

impl Unresolved {
    const fn new(reason: Reason, message: String) -> Self {
        Self { reason, message }
    }
}

/// Which routes hold at a Service port for a caller.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// HTTPRoutes and GRPCRoutes.
    pub http: Vec<Arc<Route>>,
    /// The TCPRoute that holds; of several the senior one.
    pub tcp: Option<Arc<Route>>,
}

impl Mesh {
    /// Which routes hold at a Service port for the callers of a namespace.
    pub(super) fn attached(&self, service: &Name, port: &ServicePort, caller: &str) -> Attached {
        let routes = self.routes_of.get(service).into_iter().flatten();
        let here: Vec<_> = routes
            .filter_map(|reference| self.routes.get(reference))
            .filter(|route| holds_at(route, service, port))
            .collect();
        let choose = |tcp: bool| {
            let of = |namespace: &str| -> Vec<Arc<Route>> {
                let kind = |route: &&&Arc<Route>| (route.object.kind == Kind::TcpRoute) == tcp;
                let from = |route: &&&Arc<Route>| route.object.namespace == namespace;
                here.iter().filter(kind).filter(from).map(|route| (*route).clone()).collect()
            };
            let consumer = of(caller);
            if consumer.is_empty() { of(&service.namespace) } else { consumer }
        };
        Attached { http: choose(false), tcp: choose(true).into_iter().min_by_key(|route| seniority(route)) }
    }

    /// The Service port that a backend reference means for who calls a Service of the namespace `parent`.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn resolve(
        &self,
        route: &Route,
        parent: &str,
        backend: &BackendRef,
    ) -> Result<(Name, u16), Unresolved> {
        let name = backend_name(route, backend);
        if !backend.group.is_empty() || backend.kind != "Service" {
            let message =
                format!("{} {} is not supported as a backend, a Service is", backend.kind, backend.name);
            return Err(Unresolved::new(Reason::InvalidKind, message));
        }
        // A consumer route may lead back to where it was called: those callers may do so without a route as well. Another
        // parent's callers may not, whatever the route names beside it.
        let granted = name.namespace == route.object.namespace
            || name.namespace == parent
            || self.is_granted(&route.object, &name);
        if !granted {
            return Err(Unresolved::new(
                Reason::RefNotPermitted,
                format!(
                    "Service {name} is in another namespace than the route, and no ReferenceGrant of {} lets {}s of {} lead there",
                    name.namespace, route.object.kind, route.object.namespace
                ),
            ));
        }
        let missing = |message| Err(Unresolved::new(Reason::BackendNotFound, message));
        let Some(number) = backend.port.and_then(|port| u16::try_from(port).ok()) else {
            return missing(format!("no port is given, and a Service ({name}) needs one"));
        };
        match self.services.get(&name) {
            None => missing(self.not_in_the_mesh(&name)),
            Some(service) if service.external => {
                Err(Unresolved::new(Reason::UnsupportedProtocol, self.not_in_the_mesh(&name)))
            }
            Some(service) if service.port(number).is_none() => missing(no_port(&name, service, number)),
            Some(_) => Ok((name, number)),
        }
    }

    /// The weighted backends of a TCPRoute.
    pub(super) fn tcp_backends(&self, route: &Route, needed: &mut Needed) -> Vec<v1::WeightedBackend> {
        let rules = route.spec.rules.iter().flat_map(|rule| &rule.backend_refs);
        rules.map(|backend| self.weighted(route, backend, needed)).collect()
    }

    fn weighted(&self, route: &Route, backend: &BackendRef, needed: &mut Needed) -> v1::WeightedBackend {
        v1::WeightedBackend {
            backend: self.backend_key(route, backend, needed),
            // Checked when the route was read: 0 to 1,000,000.
            weight: u32::try_from(backend.weight).unwrap_or(0),
            filters: backend.filters.iter().filter_map(|f| self.filter(route, f, needed)).collect(),
        }
    }

    /// The key of a backend; of one that does not exist too, so that its share gets its 500.
    fn backend_key(&self, route: &Route, backend: &BackendRef, needed: &mut Needed) -> String {
        needed.services.insert(backend_name(route, backend));
        match self.resolve(route, &needed.parent, backend) {
            Ok((name, port)) => {
                let key = BackendKey::Service(name.clone(), port, None).to_string();
                needed.backends.insert((name, port));
                key
            }
            // Not the key of a Service: that one may be there for another reason, and would get the share.
            Err(_) => {
                format!("{} {}:{}", backend.kind, backend_name(route, backend), backend.port.unwrap_or(0))
            }
        }
    }
}

/// What routes need of other Services.
#[derive(Debug)]
pub(super) struct Needed {
    /// The namespace of the Service that is called.
    pub parent: String,
    /// Those that were looked for.
    pub services: BTreeSet<Name>,
    /// Those that exist.
    pub backends: BTreeSet<(Name, u16)>,
}

impl Needed {
    /// By the callers of a Service of this namespace; nothing yet.
    pub(super) fn at(parent: &str) -> Self {
        Self { parent: parent.to_owned(), services: BTreeSet::new(), backends: BTreeSet::new() }
    }
}

/// Which of two routes goes first where nothing else decides.
pub(super) fn seniority(route: &Route) -> Seniority {
    Seniority::new(route.created.clone(), Name::new(&route.object.namespace, &route.object.name))
}

/// Whether one of a route's parents is this port.
pub(super) fn holds_at(route: &Route, service: &Name, port: &ServicePort) -> bool {
    let parents = route.spec.parent_refs.iter().filter(|parent| parent.is_service());
    parents.filter(|parent| parent_name(route, parent) == *service).any(|parent| parent_is(parent, port))
}

/// Whether a parent reference to this port's Service means this port.
pub(super) fn parent_is(parent: &ParentRef, port: &ServicePort) -> bool {
    parent.port.is_none_or(|number| number == i64::from(port.number))
        && parent.section_name.as_ref().is_none_or(|name| *name == port.name)
}

/// Says that a Service lacks a port, and which it has.
pub(super) fn no_port(name: &Name, service: &ServiceEntry, number: impl std::fmt::Display) -> String {
    let has: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
    match &has[..] {
        [] => format!("Service {name} has no port {number}; it has none"),
        _ => format!("Service {name} has no port {number}; it has {}", has.join(", ")),
    }
}
