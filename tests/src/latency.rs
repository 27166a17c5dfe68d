//! Latencies, kept whole and read as percentiles.

use std::time::Duration;

/// A bag of durations.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    micros: Vec<u32>,
}

impl Latencies {
    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        self.micros.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.micros.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.micros.is_empty()
    }

    /// The duration that `share` (0.0 to 1.0) of them do not exceed; zero when there are none.
    #[must_use]
    pub fn percentile(&self, share: f64) -> Duration {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).map_or(Duration::ZERO, |&m| Duration::from_micros(m.into()))
    }

    /// Adds all of another bag's.
    pub fn add(&mut self, other: &Self) {
        self.micros.extend_from_slice(&other.micros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_latency_that_was_seen() {
        let mut all = Latencies::default();
        assert_eq!(all.percentile(0.5), Duration::ZERO);
        for ms in 1..=100 {
            all.record(Duration::from_millis(ms));
        }
        assert_eq!(all.percentile(0.5), Duration::from_millis(50));
        assert_eq!(all.percentile(0.99), Duration::from_millis(99));
        assert_eq!(all.percentile(1.0), Duration::from_millis(100));
    }
}
