//! Which endpoint gets the next request. Pure decisions over shared atomics: no lock, no socket.
//!
//! [`pick`] draws among those that serve, are not ejected and were not tried, first those that are meant for callers here;
//! where there are none it gives in step by step, so that it comes back empty-handed only when there is no endpoint at all.

pub(crate) mod clock;
mod eject;
mod latency;
mod stats;
mod wheel;

#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

pub use eject::{BalancerState, LoadGuard, Outcome};
pub use stats::EndpointStats;
pub use wheel::Wheel;

use crate::config::{Algorithm, Backend, Endpoint, EndpointSet};

/// The endpoint that gets the request.
#[derive(Debug)]
pub struct Picked {
    /// Where to send it.
    pub endpoint: Arc<Endpoint>,
    /// Counts the request in while it lives.
    pub load: LoadGuard,
}

/// Draws before the members are gone through one by one.
const DRAWS: usize = 4;
/// The load of an endpoint that has been asked and has answered nothing yet, in nanoseconds: more than any that
/// answers, so that it gets one request at a time until its latency is known.
const UNKNOWN_LATENCY: f32 = 60e9;
/// Where weights differ, the second of two draws wins only by being better by this factor: among near-equals the
/// weights decide, and the weights sit in the drawing.
const CLEARLY: f32 = 1.25;

/// Picks from `set`, the backend's endpoints. Avoids those in `tried` and the ejected ones while there are others;
/// when all are out, all are used. None: there are no endpoints.
#[must_use]
pub fn pick(backend: &Backend, set: &EndpointSet, tried: &[SocketAddr]) -> Option<Picked> {
    let draw =
        Draw { algorithm: backend.policy.algorithm, state: &backend.state.balancer, now: clock::now() };
    let healthy = |e: &Endpoint| !e.must_be_meshed && !e.stats.is_ejected_at(draw.now);
    let fresh = |e: &Endpoint| !tried.contains(&e.address);
    let all = &set.candidates;
    let endpoint = set
        .near
        .as_ref()
        .and_then(|near| {
            let usable = |e: &Endpoint| healthy(e) && fresh(e);
            let drawn = draw.pick(&near.members, &near.wheel, usable).cloned();
            drawn.or_else(|| draw.pick_among(&near.members, usable))
        })
        .or_else(|| draw.pick(all, &set.wheel, |e| healthy(e) && fresh(e)).cloned())
        .or_else(|| draw.pick_among(all, |e| healthy(e) && fresh(e)))
        .or_else(|| draw.pick_among(all, healthy))
        .or_else(|| draw.pick_among(all, fresh))
        .or_else(|| draw.pick_among(all, |_| true))?;
    let load = LoadGuard::new(endpoint.stats.begin(), draw.now);
    Some(Picked { endpoint, load })
}

/// One draw of one backend.
struct Draw<'a> {
    algorithm: Algorithm,
    state: &'a BalancerState,
    now: u64,
}

impl Draw<'_> {
    /// A member that may be used; may miss one when few of them may.
    fn pick<'m>(
        &self,
        members: &'m [Arc<Endpoint>],
        wheel: &Wheel,
        usable: impl Fn(&Endpoint) -> bool,
    ) -> Option<&'m Arc<Endpoint>> {
        let drawn = |next: &dyn Fn() -> Option<usize>| {
            (0..DRAWS).filter_map(|_| next()).find(|&index| usable(&members[index]))
        };
        match self.algorithm {
            // A turn that falls on one who may not is lost: the next one takes the next.
            Algorithm::RoundRobin => {
                drawn(&|| wheel.turn(self.state.turn.fetch_add(1, Ordering::Relaxed))).map(|i| &members[i])
            }
            Algorithm::Random => drawn(&|| wheel.random()).map(|i| &members[i]),
            Algorithm::LeastRequest | Algorithm::PeakEwma => {
                let first = drawn(&|| wheel.random())?;
                let second = drawn(&|| wheel.second(first));
                let (first, second) = (&members[first], second.map(|index| &members[index]));
                Some(second.filter(|second| self.better(second, first, wheel.uniform())).unwrap_or(first))
            }
        }
    }

    /// Goes through all of them: for when a draw found nothing.
    fn pick_among(
        &self,
        members: &[Arc<Endpoint>],
        usable: impl Fn(&Endpoint) -> bool,
    ) -> Option<Arc<Endpoint>> {
        let members: Vec<_> = members.iter().filter(|e| usable(e)).cloned().collect();
        let wheel = Wheel::new(members.iter().map(|e| e.weight));
        self.pick(&members, &wheel, |_| true).cloned()
    }

    /// Whether `second` is to be preferred to `first`, which was drawn before it.
    fn better(&self, second: &Endpoint, first: &Endpoint, uniform: bool) -> bool {
        let load = |e: &Endpoint| e.stats.in_flight() as f32 / e.weight as f32;
        match self.algorithm {
            Algorithm::LeastRequest => load(second) < load(first),
            _ if uniform => self.cost(second, 1.0) < self.cost(first, 1.0),
            _ => {
                // Load counts per share, so that twice the weight carries twice the load at the same cost.
                let mean = (first.weight as f32 + second.weight as f32) / 2.0;
                let cost = |e: &Endpoint| self.cost(e, mean / e.weight as f32);
                cost(second) * CLEARLY < cost(first)
            }
        }
    }

    /// Latency times what would wait for it.
    fn cost(&self, endpoint: &Endpoint, share: f32) -> f32 {
        let in_flight = endpoint.stats.in_flight();
        match endpoint.stats.latency.get(self.now) {
            Some(latency) => latency * (in_flight as f32 * share + 1.0),
            // Idle it costs nothing and is tried at once, so that it does not starve.
            None => UNKNOWN_LATENCY * (in_flight as f32 * share),
        }
    }
}
