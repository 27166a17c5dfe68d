//! What discovery and identity tell: written by their tasks on the control runtime, never by a request.

use std::array;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Counter;

/// The kinds of resource that the control plane sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceKind {
    /// Where a name or address leads.
    Destination,
    /// A backend's endpoints.
    Endpoints,
    /// The pod's own side.
    Inbound,
    /// The roots.
    TrustBundle,
}

impl ResourceKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Destination, Self::Endpoints, Self::Inbound, Self::TrustBundle];

    /// The value of the label `type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Destination => "destination",
            Self::Endpoints => "endpoints",
            Self::Inbound => "inbound",
            Self::TrustBundle => "trust_bundle",
        }
    }
}

/// Discovery and identity.
#[derive(Debug, Default)]
pub struct ControlMetrics {
    connected: AtomicBool,
    connects: Counter,
    updates: [Counter; 4],
    nacks: [Counter; 4],
    held: [AtomicU64; 4],
    certificates_issued: Counter,
    certificates_failed: Counter,
    /// Seconds since the Unix epoch; 0: no certificate yet.
    certificate_expiry: AtomicU64,
}

impl ControlMetrics {
    /// The discovery stream came up or went down.
    pub fn connected(&self, up: bool) {
        if up {
            self.connects.add(1);
        }
        self.connected.store(up, Ordering::Relaxed);
    }

    /// Resources of a kind arrived (changed or absent) and are in use.
    pub fn updates(&self, kind: ResourceKind, resources: u64) {
        self.updates[kind as usize].add(resources);
    }

    /// A resource could not be used and was refused.
    pub fn nack(&self, kind: ResourceKind) {
        self.nacks[kind as usize].add(1);
    }

    /// How many resources of a kind are held now.
    pub fn held(&self, kind: ResourceKind, resources: usize) {
        self.held[kind as usize].store(resources as u64, Ordering::Relaxed);
    }

    /// A certificate was got and is in use.
    pub fn certificate_issued(&self, not_after: SystemTime) {
        let seconds = not_after.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.certificate_expiry.store(seconds, Ordering::Relaxed);
        self.certificates_issued.add(1);
    }

    /// A certificate was asked for in vain.
    pub fn certificate_failed(&self) {
        self.certificates_failed.add(1);
    }

    /// Whether the discovery stream is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// What is written now.
    pub(super) fn totals(&self) -> ControlTotals {
        ControlTotals {
            connected: self.is_connected(),
            connects: self.connects.get(),
            updates: array::from_fn(|i| self.updates[i].get()),
            nacks: array::from_fn(|i| self.nacks[i].get()),
            held: array::from_fn(|i| self.held[i].load(Ordering::Relaxed)),
            certificates: [self.certificates_issued.get(), self.certificates_failed.get()],
            certificate_expiry: self.certificate_expiry.load(Ordering::Relaxed),
        }
    }
}

/// [`ControlMetrics`] at one moment. Arrays are in the order of [`ResourceKind::ALL`].
#[derive(Debug)]
pub(super) struct ControlTotals {
    pub(super) connected: bool,
    pub(super) connects: u64,
    pub(super) updates: [u64; 4],
    pub(super) nacks: [u64; 4],
    pub(super) held: [u64; 4],
    /// Issued and failed.
    pub(super) certificates: [u64; 2],
    /// Seconds since the Unix epoch; 0: none.
    pub(super) certificate_expiry: u64,
}
