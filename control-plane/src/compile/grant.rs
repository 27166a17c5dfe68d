//! ReferenceGrants: which routes may lead to a Service of another namespace (GEP-709).

use std::sync::Arc;

use gateway_api::experimental::referencegrants::ReferenceGrant;

use super::{Dep, Mesh, apply::Touched};
use crate::object::{Kind, Name, ObjectRef};

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

impl Mesh {
    /// Whether a grant of the Service's namespace lets routes of this kind and namespace lead to it.
    pub(super) fn is_granted(&self, route: &ObjectRef, service: &Name) -> bool {
        self.grants
            .get(&service.namespace)
            .into_iter()
            .flat_map(|grants| grants.values())
            .any(|grant| grants(grant, route, service))
    }

    pub(super) fn set_grant(
        &mut self,
        name: &Name,
        grant: Option<Arc<ReferenceGrant>>,
        touched: &mut Touched,
    ) {
        let known = self.grants.get(&name.namespace).and_then(|grants| grants.get(&name.name));
        if known.map(|known| &known.spec) == grant.as_ref().map(|grant| &grant.spec) {
            return;
        }
        let grants = self.grants.entry(name.namespace.clone()).or_default();
        match grant {
            Some(grant) => grants.insert(name.name.clone(), grant),
            None => grants.remove(&name.name),
        };
        if grants.is_empty() {
            self.grants.remove(&name.namespace);
        }
        // Grants change seldom, so the Services that routes and policies name are looked through rather than indexed by
        // namespace.
        for (service, referrers) in &self.referrers {
            if service.namespace != name.namespace {
                continue;
            }
            let abroad = |object: &&ObjectRef| object.namespace != service.namespace && is_route(object.kind);
            for route in referrers.iter().filter(abroad) {
                touched.deps.insert(Dep::service(service));
                touched.suspects.insert(route.clone());
            }
        }
    }
}

const fn is_route(kind: Kind) -> bool {
    matches!(kind, Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute)
}

fn grants(grant: &ReferenceGrant, route: &ObjectRef, service: &Name) -> bool {
    let from = grant.spec.from.iter().any(|from| {
        from.group == GATEWAY_GROUP && from.kind == route.kind.as_str() && from.namespace == route.namespace
    });
    // Without a name every Service of the namespace is meant.
    let to = grant.spec.to.iter().any(|to| {
        to.group.is_empty()
            && to.kind == "Service"
            && to.name.as_ref().is_none_or(|name| *name == service.name)
    });
    from && to
}
