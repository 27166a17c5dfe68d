//! Placeholder of branch `store` until `pure` delivers: turns the proto messages into what requests read.

use std::sync::Arc;

use heddle_api::v1;

use super::{BackendState, Destination, EndpointSet, Inbound};

/// Why a message cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConvertError(String);

/// A destination.
///
/// # Errors
/// When it has no service.
pub fn destination(
    message: &v1::Destination,
    backends: &mut dyn FnMut(&str) -> Arc<BackendState>,
) -> Result<Destination, ConvertError> {
    if message.service.is_empty() {
        return Err(ConvertError("no service".to_owned()));
    }
    let default = message.backends.iter().find(|b| b.key == message.default_backend).map(|b| {
        Arc::new(super::Backend {
            key: b.key.as_str().into(),
            protocol: super::AppProtocol::Detect,
            policy: super::Policy::default(),
            state: backends(&b.key),
        })
    });
    Ok(Destination {
        service: message.service.as_str().into(),
        protocol: super::AppProtocol::Detect,
        routes: Vec::new(),
        rules: Vec::new(),
        tcp: None,
        default,
    })
}

/// Endpoints.
///
/// # Errors
/// When an address is none.
pub fn endpoints(message: &v1::Endpoints, previous: &EndpointSet) -> Result<EndpointSet, ConvertError> {
    let one = |e: &v1::Endpoint| {
        let ip: std::net::IpAddr =
            e.address.parse().map_err(|_| ConvertError(format!("bad address {:?}", e.address)))?;
        let address = (ip, u16::try_from(e.port).map_err(|_| ConvertError("bad port".to_owned()))?).into();
        let stats =
            previous.all.iter().find(|p| p.address == address).map(|p| p.stats.clone()).unwrap_or_default();
        Ok(Arc::new(super::Endpoint {
            address,
            identity: None,
            must_be_meshed: e.must_be_meshed,
            draining: false,
            weight: e.weight.max(1),
            zone: e.zone.as_str().into(),
            pod: e.pod.as_str().into(),
            stats,
        }))
    };
    Ok(EndpointSet::new(message.endpoints.iter().map(one).collect::<Result<_, _>>()?))
}

/// The pod's own side.
///
/// # Errors
/// When the identity is none.
pub fn inbound(message: &v1::Inbound) -> Result<Inbound, ConvertError> {
    Ok(Inbound {
        identity: message.identity.parse().map_err(|e| ConvertError(format!("{e}")))?,
        ports: std::collections::HashMap::new(),
        other: Arc::default(),
        terminating: message.terminating,
        access_log: super::inbound::AccessLog::Errors,
        opaque_ports: Vec::new(),
    })
}
