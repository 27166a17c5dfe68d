//! Outcomes, and when they put an endpoint out.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use super::{clock, stats::InFlight};
use crate::config::Backend;

/// How an exchange with an endpoint ended, as far as the endpoint is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, and not with a server error.
    Success,
    /// A server error, a reset, a failed connect, a timeout.
    Failure,
    /// It says nothing of the endpoint: the client went away, say.
    Neutral,
}

/// What a cold endpoint whose first request fails is taken to need, so that failing fast attracts nothing.
const LATENCY_OF_FAILURE: Duration = Duration::from_secs(1);

/// A backend's cursor and its claim to eject.
#[derive(Debug, Default)]
pub struct BalancerState {
    pub(super) turn: AtomicU64,
    /// Held while one worker counts who is out and ejects: nobody waits for it, so it is no lock.
    ejecting: AtomicBool,
}

/// Counts the request in while it lives; move it into the response's body.
///
/// Dropped without a word of how the exchange went, it was given up by who asked: then it took at least so long. Callers who
/// give up by themselves are all that is ever heard of an endpoint that hangs.
#[derive(Debug)]
pub struct LoadGuard {
    in_flight: InFlight,
    /// On [`clock`]; none once it is known how the exchange went.
    waits_since: Option<u64>,
}

impl LoadGuard {
    pub(super) fn new(in_flight: InFlight, now: u64) -> Self {
        Self { in_flight, waits_since: Some(now) }
    }

    /// Nobody waits for the answer, so that its time says nothing.
    pub fn without_judgement(&mut self) {
        self.waits_since = None;
    }

    /// Learns from how an exchange ended. `latency` is the time to the response's headers, or to the failure. True
    /// when this put the endpoint out.
    pub fn judge(&mut self, backend: &Backend, outcome: Outcome, latency: Duration) -> bool {
        self.waits_since = None;
        let stats = self.in_flight.stats();
        let now = clock::now();
        let nanos = clock::nanos(latency);
        match outcome {
            Outcome::Success => {
                stats.latency.observe(nanos, now);
                stats.succeeded();
                false
            }
            Outcome::Neutral => {
                stats.took_at_least(nanos, now);
                false
            }
            // Sent before it was put out: that is known, and must not count against it on its return.
            Outcome::Failure if stats.is_ejected_at(now) => false,
            Outcome::Failure => {
                let known = stats.latency.get(now).is_some();
                let floor = if known { 0 } else { clock::nanos(LATENCY_OF_FAILURE) };
                stats.latency.observe_at_least(nanos.max(floor), now);
                let failures = stats.failed();
                failures >= backend.policy.ejection.consecutive_failures && self.eject(backend, now)
            }
        }
    }

    /// Puts the endpoint out if the ceiling allows it. When not, the next failure asks again.
    fn eject(&self, backend: &Backend, now: u64) -> bool {
        let claim = &backend.state.balancer.ejecting;
        if claim.swap(true, Ordering::Acquire) {
            return false;
        }
        let stats = self.in_flight.stats();
        let policy = &backend.policy.ejection;
        let set = backend.state.endpoints.load();
        let out = set.candidates.iter().filter(|e| e.stats.is_ejected_at(now)).count();
        // Asked again under the claim, since another worker may just have done it.
        let ejects = !stats.is_ejected_at(now) && out < ceiling(set.candidates.len(), policy.max_percent);
        if ejects {
            stats.eject(policy, now);
        }
        claim.store(false, Ordering::Release);
        ejects
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        if let Some(since) = self.waits_since {
            let now = clock::now();
            self.in_flight.stats().took_at_least(now.saturating_sub(since), now);
        }
    }
}

/// How many of `endpoints` may be out at once: the share, but at least one and never all.
fn ceiling(endpoints: usize, max_percent: u32) -> usize {
    let share = endpoints as u64 * u64::from(max_percent) / 100;
    let share = usize::try_from(share).unwrap_or(usize::MAX);
    share.max(1).min(endpoints.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_is_at_least_one_and_never_all() {
        let cases = [
            (0, 50, 0),
            (1, 100, 0),
            (2, 10, 1),
            (2, 100, 1),
            (3, 50, 1),
            (4, 50, 2),
            (10, 100, 9),
            (5, 0, 1),
        ];
        for (endpoints, percent, expected) in cases {
            assert_eq!(ceiling(endpoints, percent), expected, "{endpoints} at {percent} %");
        }
    }
}
