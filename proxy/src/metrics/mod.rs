//! What the sidecar counts, and how it is scraped.
//!
//! Every worker has a [`WorkerMetrics`] of its own, which it alone writes to with relaxed atomics; a scrape sums
//! them. A worker resolves a series once ([`WorkerMetrics::http`], [`WorkerMetrics::backend`]) and keeps the handle,
//! so that recording is a few additions and takes no lock. The one lock there is guards a worker's own table of
//! handles, and besides that worker only a scrape takes it. What others know anyway (discovery, the certificate,
//! endpoints, the logs) is not counted a second time: a scrape asks for it ([`Observed`]).
//!
//! Everything is bounded: [`MAX_HISTOGRAMS`] histograms and [`MAX_HANDLES`] handles a worker, values of labels
//! cut at [`MAX_LABEL`] bytes; what does not fit is counted under `other`, and
//! `heddle_metric_series_overflow_total` says so. At the bound a worker's histograms take 0.4 MB, and a scrape is
//! 14 MB where the workers serve the same services, as they do.

mod backend;
mod histogram;
mod http;
mod process;
mod scrape;
mod table;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

pub use self::backend::BackendSeries;
pub use self::http::{HttpLabels, HttpSeries};
pub use self::scrape::Observed;
pub use self::worker::{ConnectionGuard, PeerRefusal, WorkerMetrics};

/// Histograms that one worker may hold: one for each (series, method, status, reason) that occurred.
pub const MAX_HISTOGRAMS: usize = 2_000;
/// Handles that one worker may hold, of HTTP series and of backends each.
pub const MAX_HANDLES: usize = 1_000;
/// Longest value of a label, in bytes; what is longer is cut.
pub const MAX_LABEL: usize = 256;
/// The value of labels of whatever found no room.
pub const OTHER: &str = "other";

/// Which way a connection or request passes this sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To this pod's application.
    Inbound,
    /// From this pod's application.
    Outbound,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The value of the label `direction`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Which way bytes of an opaque connection flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

impl Flow {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ToServer, Self::ToClient];

    /// The value of the label `flow`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ToServer => "to_server",
            Self::ToClient => "to_client",
        }
    }
}

/// All that the sidecar counts. One for the process; cheap to share.
#[derive(Debug)]
pub struct Metrics {
    workers: Box<[Arc<WorkerMetrics>]>,
    started: SystemTime,
}

impl Metrics {
    /// For that many traffic workers, at least one.
    #[must_use]
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            workers: (0..workers.max(1)).map(|_| Arc::new(WorkerMetrics::new())).collect(),
            started: SystemTime::now(),
        })
    }

    /// What the worker of this index (from 0) writes to.
    ///
    /// # Panics
    /// When there is no such worker: the number given to [`Metrics::new`] is the caller's.
    #[must_use]
    pub fn worker(&self, index: usize) -> Arc<WorkerMetrics> {
        Arc::clone(&self.workers[index])
    }

    /// The scrape, as OpenMetrics 1.0 text.
    #[must_use]
    pub fn encode(&self, observed: &Observed) -> String {
        scrape::text(self, observed)
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The text, cut at [`MAX_LABEL`] bytes on a character's border.
fn label(text: &str) -> Box<str> {
    text[..text.floor_char_boundary(MAX_LABEL)].into()
}

#[cfg(test)]
mod tests;
