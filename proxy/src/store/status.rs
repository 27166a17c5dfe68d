//! How discovery fares, for people and metrics.

use std::time::SystemTime;

/// The state of the discovery stream and of what came over it.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Status {
    /// Whether the stream is up.
    pub connected: bool,
    /// Since when it is up, or down; none before the first attempt has ended.
    pub since: Option<SystemTime>,
    /// Why it ended, or could not begin, the last time.
    pub last_error: Option<String>,
    /// Streams that were up, ever.
    pub streams: u64,
    /// Names that the store answers for.
    pub names: usize,
    /// Names asked for and not answered yet.
    pub pending: usize,
    /// Backends whose endpoints are followed.
    pub backends: usize,
    /// Resources that came over the streams, ever.
    pub updates: u64,
    /// Resources that could not be used and were refused (NACK), ever.
    pub refused_updates: u64,
    /// The last of them and why.
    pub last_refusal: Option<String>,
    /// Names refused because the store was full, ever.
    pub refused_names: u64,
    /// Lookups that ended without an answer, ever.
    pub unanswered_lookups: u64,
}
