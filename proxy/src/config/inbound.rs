//! The sidecar's own side: its pod's ports and who may use them.

use std::{collections::HashMap, sync::Arc};

use heddle_api::identity::SpiffeId;

use super::{AppProtocol, Place};
use crate::access::AccessRules;

/// What the control plane says of this pod.
#[derive(Debug)]
pub struct Inbound {
    /// This pod's identity.
    pub identity: SpiffeId,
    /// By the application's port.
    pub ports: HashMap<u16, Arc<InboundPort>>,
    /// For every other port.
    pub other: Arc<InboundPort>,
    /// The pod is going: drain, still serving what comes.
    pub terminating: bool,
    /// What goes into the access log.
    pub access_log: AccessLog,
    /// Ports that are opaque unless declared, besides the built-in ones.
    pub opaque_ports: Vec<u16>,
    /// Where the pod runs.
    pub place: Place,
}

impl Inbound {
    /// What holds for one of the pod's ports.
    #[must_use]
    pub fn port(&self, port: u16) -> &Arc<InboundPort> {
        self.ports.get(&port).unwrap_or(&self.other)
    }

    /// The port that an authority of the pod's own Services names; authorities are lower-case, with port.
    #[must_use]
    pub fn port_of_authority(&self, authority: &str) -> Option<u16> {
        self.ports.iter().find(|(_, p)| p.authorities.iter().any(|a| a == authority)).map(|(port, _)| *port)
    }
}

/// One port of the pod.
#[derive(Debug, Default)]
pub struct InboundPort {
    /// What it speaks.
    pub protocol: AppProtocol,
    /// Whether plaintext may come in.
    pub mtls: MtlsMode,
    /// Who may call.
    pub access: AccessRules,
    /// Names by which plaintext HTTP may ask for it in explicit mode.
    pub authorities: Vec<String>,
}

/// Whether plaintext may come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum MtlsMode {
    /// Beside mTLS.
    #[default]
    Permissive,
    /// Never.
    Strict,
    /// Callers are told to use plaintext; both are accepted.
    Disabled,
}

/// Which requests are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum AccessLog {
    /// None.
    Off,
    /// Refused ones and server errors.
    #[default]
    Errors,
    /// All.
    All,
}
