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
    /// Load and health, shared by all workers.
    pub stats: Arc<EndpointStats>,
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
        Self { candidates, all, wheel }
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
