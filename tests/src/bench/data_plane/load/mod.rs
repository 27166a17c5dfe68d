//! Load: what is asked of a pair, and what came of it.

pub mod h2load;
pub mod paced;
pub mod stream;
pub mod tcp;
pub mod wrk;

use std::{net::SocketAddr, time::Duration};

use crate::latency::Latencies;

/// Where HTTP load goes and what it asks for.
#[derive(Clone, Debug)]
pub struct Target {
    /// The outbound proxy's port, or the application's own.
    pub address: SocketAddr,
    /// The authority of the application.
    pub host: String,
    /// The path of each request.
    pub path: String,
}

/// What a load did.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Requests (connections, messages) that ended well.
    pub requests: u64,
    /// Those that did not.
    pub failed: u64,
    /// Bytes of content, where these are what is measured.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// Of those that ended well.
    pub latency: Option<Percentiles>,
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// What 99 of 100 do not exceed.
    pub p99: f64,
    /// What 999 of 1,000 do not exceed, where the load says.
    pub p999: Option<f64>,
}

impl Percentiles {
    /// Of these latencies; none: none.
    #[must_use]
    pub fn of(latencies: &Latencies) -> Option<Self> {
        if latencies.is_empty() {
            return None;
        }
        let at = |share| latencies.percentile(share).as_secs_f64() * 1e3;
        Some(Self { p50: at(0.5), p99: at(0.99), p999: Some(at(0.999)) })
    }
}
