//! The store's tests: [`held`] message by message, [`simulation`] whatever may happen, [`stream`] against a control plane.

mod held;
mod simulation;
mod stream;

use heddle_api::v1::{self, DiscoveryResponse, Resource, ResourceName, ResourceType, resource::Body};

use super::{Lookup, Slot};
use crate::config::EndpointSet;

pub(super) fn name(kind: ResourceType, name: &str) -> ResourceName {
    ResourceName { r#type: kind.into(), name: name.to_owned() }
}

fn resource(kind: ResourceType, named: &str, version: &str, body: Body) -> Resource {
    Resource { name: Some(name(kind, named)), version: version.to_owned(), body: Some(body) }
}

/// A destination whose default backend is the first of `backends`.
pub(super) fn destination(named: &str, version: &str, backends: &[&str]) -> Resource {
    let message = v1::Destination {
        service: backends.first().copied().unwrap_or_default().to_owned(),
        default_backend: backends.first().copied().unwrap_or_default().to_owned(),
        backends: backends
            .iter()
            .map(|b| v1::Backend { key: (*b).to_owned(), ..v1::Backend::default() })
            .collect(),
        ..v1::Destination::default()
    };
    resource(ResourceType::Destination, named, version, Body::Destination(message))
}

/// A destination that no sidecar can use: its route leads to no rule.
pub(super) fn nonsense(named: &str, version: &str) -> Resource {
    let message = v1::Destination {
        service: "shop/reviews:9080".to_owned(),
        http_routes: vec![v1::HttpRoute { rule: 7, ..v1::HttpRoute::default() }],
        ..v1::Destination::default()
    };
    resource(ResourceType::Destination, named, version, Body::Destination(message))
}

pub(super) fn endpoint(address: &str) -> v1::Endpoint {
    v1::Endpoint { address: address.to_owned(), port: 9080, ..v1::Endpoint::default() }
}

pub(super) fn endpoints(key: &str, version: &str, addresses: &[&str]) -> Resource {
    let message = v1::Endpoints { endpoints: addresses.iter().map(|a| endpoint(a)).collect() };
    resource(ResourceType::Endpoints, key, version, Body::Endpoints(message))
}

pub(super) fn delta(key: &str, base: &str, version: &str, upserted: &[&str], removed: &[&str]) -> Resource {
    let message = v1::EndpointsDelta {
        base_version: base.to_owned(),
        upserted: upserted.iter().map(|a| endpoint(a)).collect(),
        removed: removed.iter().map(|a| v1::EndpointKey { address: (*a).to_owned(), port: 9080 }).collect(),
    };
    resource(ResourceType::Endpoints, key, version, Body::EndpointsDelta(message))
}

/// Endpoints that are meant for one zone each: `address zone`.
pub(super) fn zoned(key: &str, version: &str, all: &[(&str, &str)]) -> Resource {
    let one = |(address, zone): &(&str, &str)| v1::Endpoint {
        for_zones: vec![(*zone).to_owned()],
        ..endpoint(address)
    };
    let message = v1::Endpoints { endpoints: all.iter().map(one).collect() };
    resource(ResourceType::Endpoints, key, version, Body::Endpoints(message))
}

/// The pod's own side, and the zone it is in.
pub(super) fn inbound_in(zone: &str, pod: &str, version: &str) -> Resource {
    let identity = "spiffe://cluster.local/ns/shop/sa/web".to_owned();
    let message = v1::Inbound { identity, zone: zone.to_owned(), ..v1::Inbound::default() };
    resource(ResourceType::Inbound, pod, version, Body::Inbound(message))
}

pub(super) fn inbound(pod: &str, version: &str, terminating: bool) -> Resource {
    let identity = "spiffe://cluster.local/ns/shop/sa/web".to_owned();
    let message = v1::Inbound { identity, terminating, ..v1::Inbound::default() };
    resource(ResourceType::Inbound, pod, version, Body::Inbound(message))
}

pub(super) fn trust(version: &str, roots: &[&[u8]]) -> Resource {
    let message = v1::TrustBundle { roots: roots.iter().map(|r| r.to_vec().into()).collect() };
    resource(ResourceType::TrustBundle, "cluster.local", version, Body::TrustBundle(message))
}

pub(super) fn response(nonce: u64, changed: Vec<Resource>, absent: Vec<ResourceName>) -> DiscoveryResponse {
    DiscoveryResponse { nonce, changed, absent, ..DiscoveryResponse::default() }
}

/// The addresses of the default backend, or what the slot says instead.
pub(super) fn addresses(slot: &Slot) -> Vec<String> {
    match slot.peek() {
        Lookup::NotInMesh => vec!["not in the mesh".to_owned()],
        Lookup::Mesh(destination) => {
            let backend = destination.default.as_ref().expect("a default backend");
            let set: &EndpointSet = &backend.state.endpoints.load();
            set.all.iter().map(|e| e.address.ip().to_string()).collect()
        }
    }
}
