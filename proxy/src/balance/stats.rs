//! What is known of one endpoint: load, latency, failures in a row, ejection. Shared by all workers as atomics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{clock, latency::Latency};
use crate::config::Ejection;

/// An ejection lasts no longer than this, or than the base where that is longer.
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// Of an endpoint not known yet, a wait that was given up sooner says nothing: a moment would make it the fastest of all.
const LONG_FOR_A_COLD_ONE: Duration = Duration::from_millis(100);

/// Load and health of one endpoint. Outlives every config that names the endpoint.
#[derive(Debug, Default)]
pub struct EndpointStats {
    in_flight: AtomicU32,
    pub(super) latency: Latency,
    failures: AtomicU32,
    /// On [`clock`]; 0: never was.
    ejected_until: AtomicU64,
    /// Ejections that are not forgotten, as of `ejected_until`.
    ejections: AtomicU32,
}

impl EndpointStats {
    /// Requests or connections that it has now.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The peak-sensitive average of its latency. None: it has answered nothing yet.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        // Nanoseconds, finite and not negative; below a microsecond the fraction does not matter.
        self.latency.get(clock::now()).map(|average| Duration::from_nanos(average as u64))
    }

    /// Failures since the last success.
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether it is left out of balancing now.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.is_ejected_at(clock::now())
    }

    pub(super) fn is_ejected_at(&self, now: u64) -> bool {
        // 0 stands for most endpoints most of the time, and is before any moment.
        self.ejected_until.load(Ordering::Relaxed) > now
    }

    /// Counts one request in until the guard goes.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// An exchange of which nobody saw the end had lasted for so many nanoseconds.
    pub(super) fn took_at_least(&self, nanos: u64, now: u64) {
        let known = self.latency.get(now).is_some();
        if known || nanos >= clock::nanos(LONG_FOR_A_COLD_ONE) {
            self.latency.observe_at_least(nanos, now);
        }
    }

    /// Gives the failures in a row, this one among them.
    pub(super) fn failed(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    pub(super) fn succeeded(&self) {
        // Written only when it changes: every worker reads this cache line on each pick.
        if self.consecutive_failures() != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Leaves it out for a while: the n-th time in a row n times as long. Only under the backend's ejection claim.
    pub(super) fn eject(&self, policy: &Ejection, now: u64) {
        let returned = self.ejected_until.load(Ordering::Relaxed);
        let behaved = now.saturating_sub(returned) / clock::nanos(policy.interval).max(1);
        let forgotten = u32::try_from(behaved).unwrap_or(u32::MAX);
        let times = self.ejections.load(Ordering::Relaxed).saturating_sub(forgotten).saturating_add(1);
        let pause = policy.base.saturating_mul(times).min(LONGEST_EJECTION.max(policy.base));
        self.ejections.store(times, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        // What it was while it failed says nothing of what it will be: on its return it is tried like a new one.
        self.latency.forget();
        self.ejected_until.store(now.saturating_add(clock::nanos(pause)), Ordering::Relaxed);
    }
}

/// One request counted in, until dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<EndpointStats>);

impl InFlight {
    pub(super) fn stats(&self) -> &EndpointStats {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
