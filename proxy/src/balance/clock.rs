//! Time as one number, so that it fits an atomic. Follows tokio's clock, so that tests pause it.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Where the clock starts: far from zero, which the atomics use for 'never'.
const START: u64 = 86_400 * 1_000_000_000;

/// Nanoseconds on a monotonic clock of this process. Wraps in 584 years.
pub(crate) fn now() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let now = tokio::time::Instant::now().into_std();
    let origin = *ORIGIN.get_or_init(Instant::now);
    match now.checked_duration_since(origin) {
        Some(since) => START + nanos(since),
        // A paused clock may stand a little before the moment at which another thread made the origin.
        None => START - nanos(origin.duration_since(now)).min(START - 1),
    }
}

/// A duration in nanoseconds, at most what a `u64` holds.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
