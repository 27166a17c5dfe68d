//! A backend's endpoints.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_api::{identity::SpiffeId, v1};

use super::{ConvertError, each, enumeration, port};
use crate::{
    balance::EndpointStats,
    config::{Endpoint, EndpointSet, Hints},
};

/// Checks the endpoints of a backend. Those that stay (same address, port and identity) keep their load and health.
///
/// # Errors
/// Names the field that cannot be used, and why.
pub fn endpoints(message: &v1::Endpoints, previous: &EndpointSet) -> Result<EndpointSet, ConvertError> {
    let known: HashMap<_, _> = previous.all.iter().map(|endpoint| (endpoint.address, endpoint)).collect();
    let mut seen = HashSet::with_capacity(message.endpoints.len());
    let all = each("endpoints", &message.endpoints, |message| {
        let new = endpoint(message)?;
        if !seen.insert(new.address) {
            return Err(ConvertError::new("address", format!("{} comes twice", new.address)));
        }
        Ok(Arc::new(match known.get(&new.address) {
            Some(old) if old.identity == new.identity => Endpoint { stats: Arc::clone(&old.stats), ..new },
            _ => new,
        }))
    })?;
    Ok(EndpointSet::new(all))
}

fn endpoint(message: &v1::Endpoint) -> Result<Endpoint, ConvertError> {
    let address: IpAddr = message
        .address
        .parse()
        .map_err(|_| ConvertError::new("address", format!("{:?} is not an IP address", message.address)))?;
    let identity = match message.identity.as_str() {
        "" => None,
        text => {
            Some(text.parse::<SpiffeId>().map_err(|error| ConvertError::new("identity", error.to_string()))?)
        }
    };
    let draining = match enumeration(message.state, v1::EndpointState::Draining) {
        v1::EndpointState::Unspecified | v1::EndpointState::Serving => false,
        v1::EndpointState::Draining => true,
    };
    Ok(Endpoint {
        address: SocketAddr::new(address, port("port", message.port)?),
        identity,
        must_be_meshed: message.must_be_meshed,
        draining,
        weight: message.weight.max(1),
        zone: message.zone.as_str().into(),
        pod: message.pod.as_str().into(),
        hints: (!message.for_zones.is_empty() || !message.for_nodes.is_empty())
            .then(|| Box::new(Hints { zones: message.for_zones.clone(), nodes: message.for_nodes.clone() })),
        stats: Arc::new(EndpointStats::default()),
    })
}
