//! The pod's own side.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use heddle_api::{identity::SpiffeId, v1};

use super::{ConvertError, each, enumeration, port, protocol};
use crate::{
    access::AccessRules,
    config::{
        AppProtocol, Place,
        inbound::{AccessLog, Inbound, InboundPort, MtlsMode},
    },
};

/// Checks an Inbound.
///
/// # Errors
/// Names the field that cannot be used, and why.
pub fn inbound(message: &v1::Inbound) -> Result<Inbound, ConvertError> {
    let identity = message
        .identity
        .parse::<SpiffeId>()
        .map_err(|error| ConvertError::new("identity", error.to_string()))?;
    let mut ports = HashMap::with_capacity(message.ports.len());
    each("ports", &message.ports, |message| {
        let number = port("port", message.port)?;
        let Entry::Vacant(place) = ports.entry(number) else {
            return Err(ConvertError::new("port", format!("{number} comes twice")));
        };
        place.insert(Arc::new(InboundPort {
            protocol: protocol(message.protocol),
            mtls: mtls(message.mtls),
            access: AccessRules::new(&message.access)?,
            authorities: message.authorities.iter().map(|text| text.to_ascii_lowercase()).collect(),
        }));
        Ok(())
    })?;
    let other = Arc::new(InboundPort {
        protocol: AppProtocol::Detect,
        mtls: mtls(message.mtls),
        access: AccessRules::new(&message.access)?,
        authorities: Vec::new(),
    });
    let access_log = match enumeration(message.access_log, v1::AccessLog::Unspecified) {
        v1::AccessLog::Unspecified => AccessLog::default(),
        v1::AccessLog::Off => AccessLog::Off,
        v1::AccessLog::Errors => AccessLog::Errors,
        v1::AccessLog::All => AccessLog::All,
    };
    let opaque_ports = each("opaque_ports", &message.opaque_ports, |&number| port("", number))?;
    let place = Place { zone: message.zone.clone(), node: message.node.clone() };
    Ok(Inbound { identity, ports, other, terminating: message.terminating, access_log, opaque_ports, place })
}

/// An unknown mode is taken for Strict: Permissive would open what may have been closed.
fn mtls(number: i32) -> MtlsMode {
    match enumeration(number, v1::MtlsMode::Strict) {
        v1::MtlsMode::Unspecified | v1::MtlsMode::Permissive => MtlsMode::Permissive,
        v1::MtlsMode::Strict => MtlsMode::Strict,
        v1::MtlsMode::Disabled => MtlsMode::Disabled,
    }
}
