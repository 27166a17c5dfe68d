//! A backend's endpoints, and the state that outlives every config: load, ejection, budgets.
//!
//! One writer (the store) replaces the [`EndpointSet`]; requests read it through arc-swap. An endpoint that is
//! in the old set and the new one keeps its [`EndpointStats`], so a rollout forgets nothing.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use heddle_api::identity::SpiffeId;

use crate::{
    balance::{BalancerState, EndpointStats, Wheel},
    retry::Budget,
};

/// One place where a backend's application listens.
#[derive(Debug)]
pub struct Endpoint {
    /// The application's address and port.
    pub address: SocketAddr,
    /// Who must answer there. None: no sidecar, plaintext.
    pub identity: Option<SpiffeId>,
    /// No sidecar although its namespace is Strict: refused (`PeerNotMeshed`).
    pub must_be_meshed: bool,
    /// Finishes what it has.
    pub draining: bool,
    /// At least 1.
    pub weight: u32,
    /// The zone, or empty.
    pub zone: Arc<str>,
    /// `namespace/name` of the Pod, or empty.
    pub pod: Arc<str>,
    /// Whose callers it is meant for; none: everybody's.
    pub hints: Option<Box<Hints>>,
    /// Load and health, shared by all workers.
    pub stats: Arc<EndpointStats>,
}

/// Where callers run that an endpoint is meant for (EndpointSlice, `hints`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Hints {
    /// Zones.
    pub zones: Vec<String>,
    /// Nodes.
    pub nodes: Vec<String>,
}

/// Where a sidecar runs; empty: not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The zone.
    pub zone: String,
    /// The node.
    pub node: String,
}

/// The endpoints of a backend at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// Those that may get new requests: serving ones, or all when every one is draining.
    pub candidates: Vec<Arc<Endpoint>>,
    /// All of them.
    pub all: Vec<Arc<Endpoint>>,
    /// The candidates' weights, laid out for drawing.
    pub wheel: Wheel,
    /// Those of the candidates that are meant for callers here. None: no preference.
    pub near: Option<Near>,
}

/// Candidates that are preferred while one of them can be used. Never empty.
#[derive(Debug)]
pub struct Near {
    /// Some of the candidates, and not all.
    pub members: Vec<Arc<Endpoint>>,
    /// Their weights.
    pub wheel: Wheel,
}

impl EndpointSet {
    /// Sorts out who may serve.
    #[must_use]
    pub fn new(all: Vec<Arc<Endpoint>>) -> Self {
        let mut candidates: Vec<_> = all.iter().filter(|e| !e.draining).cloned().collect();
        if candidates.is_empty() {
            candidates.clone_from(&all);
        }
        let wheel = Wheel::new(candidates.iter().map(|e| e.weight));
        Self { candidates, all, wheel, near: None }
    }

    /// Prefers what is meant for callers at `place`, by kube-proxy's rule (`topologyModeFromHints`): hints count when
    /// every serving endpoint has some and one is for this node; or else for this zone; or else not at all. So a half-written
    /// set of hints, or a zone that has nothing, sends nobody into the void.
    #[must_use]
    pub fn seen_from(self, place: &Place) -> Self {
        let all = &self.candidates;
        let hinted = |names: fn(&Hints) -> &[String], here: &str| {
            let of = |e: &Endpoint| e.hints.as_deref().map_or(0, |hints| names(hints).len());
            if here.is_empty() || all.iter().any(|e| e.draining || of(e) == 0) {
                return None;
            }
            let is_here = |e: &Endpoint| {
                e.hints.as_deref().is_some_and(|hints| names(hints).iter().any(|name| name == here))
            };
            let members: Vec<_> = all.iter().filter(|e| is_here(e)).cloned().collect();
            (!members.is_empty()).then_some(members)
        };
        let members =
            hinted(|hints| &hints.nodes, &place.node).or_else(|| hinted(|hints| &hints.zones, &place.zone));
        let near = members.filter(|members| members.len() < all.len()).map(|members| {
            let wheel = Wheel::new(members.iter().map(|e| e.weight));
            Near { members, wheel }
        });
        Self { near, ..self }
    }
}

/// What a backend remembers across configs. Keyed by the backend's name, owned by the store.
#[derive(Debug, Default)]
pub struct BackendState {
    /// Replaced by the store alone.
    pub endpoints: ArcSwap<EndpointSet>,
    /// The balancers' cursor and ejection count.
    pub balancer: BalancerState,
    /// What retries may still be spent.
    pub budget: Budget,
}
