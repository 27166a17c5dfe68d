//! What one worker counts.

use std::sync::Arc;

use super::http::{HttpLabels, HttpSeries, Labels, Room};
use super::table::Table;
use super::{BackendSeries, Counter, Direction, Flow, MAX_HANDLES, OTHER, label};
use crate::identity::verify::PeerError;
use crate::reason::Reason;

/// Why a peer's certificate, or the connection that should have shown one, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRefusal {
    /// It showed none.
    NoCertificate,
    /// It chains to none of our roots.
    OtherAuthority,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// It is of another trust domain.
    OtherTrustDomain,
    /// It does not carry exactly one SPIFFE ID.
    NotSpiffe,
    /// It cannot be read, or is not meant for this.
    Unusable,
    /// It is not the identity that discovery names for that endpoint.
    WrongIdentity,
    /// The server name is not of the mesh, or names what this pod does not serve.
    ServerName,
    /// The TLS handshake failed before any of that could be asked.
    Handshake,
}

impl PeerRefusal {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::NoCertificate,
        Self::OtherAuthority,
        Self::Expired,
        Self::NotYetValid,
        Self::OtherTrustDomain,
        Self::NotSpiffe,
        Self::Unusable,
        Self::WrongIdentity,
        Self::ServerName,
        Self::Handshake,
    ];

    /// The value of the label `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "NoCertificate",
            Self::OtherAuthority => "OtherAuthority",
            Self::Expired => "Expired",
            Self::NotYetValid => "NotYetValid",
            Self::OtherTrustDomain => "OtherTrustDomain",
            Self::NotSpiffe => "NotSpiffe",
            Self::Unusable => "Unusable",
            Self::WrongIdentity => "WrongIdentity",
            Self::ServerName => "ServerName",
            Self::Handshake => "Handshake",
        }
    }
}

impl From<&PeerError> for PeerRefusal {
    fn from(error: &PeerError) -> Self {
        match error {
            PeerError::NoCertificate => Self::NoCertificate,
            PeerError::OtherAuthority => Self::OtherAuthority,
            PeerError::Expired(_) => Self::Expired,
            PeerError::NotYetValid(_) => Self::NotYetValid,
            PeerError::OtherTrustDomain(_) => Self::OtherTrustDomain,
            PeerError::NotSpiffe(_) => Self::NotSpiffe,
            PeerError::Unusable(_) => Self::Unusable,
        }
    }
}

/// One worker's counters. Alone on its cache lines, so that workers do not slow each other.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerMetrics {
    http: Table<Labels, HttpSeries>,
    http_other: [Arc<HttpSeries>; 2],
    room: Arc<Room>,
    backends: Table<Box<str>, BackendSeries>,
    backend_other: Arc<BackendSeries>,
    pub(super) refused: [[Counter; Reason::ALL.len()]; 2],
    /// By direction, then by TLS (no, yes).
    pub(super) opened: [[Counter; 2]; 2],
    pub(super) closed: [[Counter; 2]; 2],
    /// By direction, then by flow.
    pub(super) tcp_bytes: [[Counter; 2]; 2],
    pub(super) header_limit: [Counter; 2],
    pub(super) peer_refused: [[Counter; PeerRefusal::ALL.len()]; 2],
}

impl WorkerMetrics {
    pub(super) fn new() -> Self {
        Self {
            http: Table::new(MAX_HANDLES, true),
            http_other: Direction::ALL.map(HttpSeries::other),
            room: Room::new(),
            // Looked up when something goes wrong and not kept, so being held says nothing of use.
            backends: Table::new(MAX_HANDLES, false),
            backend_other: Arc::new(BackendSeries::new(OTHER)),
            refused: Default::default(),
            opened: Default::default(),
            closed: Default::default(),
            tcp_bytes: Default::default(),
            header_limit: Default::default(),
            peer_refused: Default::default(),
        }
    }

    /// The handle on a series of HTTP requests. Allocates and hashes: keep it by destination and route, or by
    /// connection. A handle that nobody keeps may lose its counts when room runs out.
    pub fn http(&self, direction: Direction, labels: HttpLabels<'_>) -> Arc<HttpSeries> {
        let other = &self.http_other[direction as usize];
        let make =
            |labels: &Labels| HttpSeries::new(labels.clone(), Arc::clone(&self.room), Arc::clone(other));
        self.http
            .get(Labels::new(direction, labels), self.room.is_full(), make)
            .unwrap_or_else(|| Arc::clone(other))
    }

    /// The handle on a backend's counters, by its key. Allocates and hashes, as for a retry one may.
    pub fn backend(&self, key: &str) -> Arc<BackendSeries> {
        self.backends
            .get(label(key), false, |key| BackendSeries::new(key))
            .unwrap_or_else(|| Arc::clone(&self.backend_other))
    }

    /// The sidecar itself refused a request or a connection.
    pub fn refused(&self, direction: Direction, reason: Reason) {
        self.refused[direction as usize][reason as usize].add(1);
    }

    /// A connection was opened, and is open while the guard lives. Inbound: one that came to 15006 (`tls` false) or
    /// 15008 (true). Outbound: one from the application (false), or a carrier to a peer (true).
    #[must_use]
    pub fn connection(self: &Arc<Self>, direction: Direction, tls: bool) -> ConnectionGuard {
        self.opened[direction as usize][usize::from(tls)].add(1);
        ConnectionGuard { worker: Arc::clone(self), direction, tls }
    }

    /// Bytes of an opaque connection passed; call it as they pass, long tunnels should show.
    pub fn tcp_bytes(&self, direction: Direction, flow: Flow, bytes: u64) {
        self.tcp_bytes[direction as usize][flow as usize].add(bytes);
    }

    /// Headers of a request or response were over the limit.
    pub fn header_limit(&self, direction: Direction) {
        self.header_limit[direction as usize].add(1);
    }

    /// A peer was refused for its certificate or server name.
    pub fn peer_refused(&self, direction: Direction, reason: PeerRefusal) {
        self.peer_refused[direction as usize][reason as usize].add(1);
    }

    pub(super) fn http_series(&self) -> Vec<Arc<HttpSeries>> {
        let mut all = self.http.all();
        all.extend(self.http_other.iter().cloned());
        all
    }

    pub(super) fn http_overflow(&self) -> u64 {
        self.http_other.iter().flat_map(|other| other.totals()).map(|(_, totals)| totals.count()).sum()
    }

    pub(super) fn backend_series(&self) -> Vec<Arc<BackendSeries>> {
        let mut all = self.backends.all();
        all.push(Arc::clone(&self.backend_other));
        all
    }
}

/// A connection that is open.
#[derive(Debug)]
pub struct ConnectionGuard {
    worker: Arc<WorkerMetrics>,
    direction: Direction,
    tls: bool,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.worker.closed[self.direction as usize][usize::from(self.tls)].add(1);
    }
}
