//! A histogram of durations with fixed bounds.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in microseconds. From 5 ms on they are those that the OpenTelemetry HTTP metrics conventions advise
/// for `http.*.request.duration`. The four below are ours: a call within a node takes well under a millisecond, and
/// with a first bucket of 5 ms every quantile of a healthy mesh would be a guess between 0 and 5 ms.
const BOUNDS_MICROS: [u64; 18] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000,
    1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000,
];

/// The bounds and infinity.
pub(super) const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// Counts of durations by bucket, and their sum. The count is the sum of the buckets, so it is not kept.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_nanos: AtomicU64,
}

impl Histogram {
    pub(super) fn record(&self, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| bound * 1_000 < nanos);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn totals(&self) -> Totals {
        Totals {
            buckets: array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed)),
            sum_nanos: self.sum_nanos.load(Ordering::Relaxed),
        }
    }
}

/// What a histogram held at one moment; workers' are added up.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    buckets: [u64; BUCKETS],
    sum_nanos: u64,
}

impl Totals {
    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine = mine.wrapping_add(theirs);
        }
        self.sum_nanos = self.sum_nanos.wrapping_add(other.sum_nanos);
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub(super) fn sum_seconds(&self) -> f64 {
        self.sum_nanos as f64 / 1e9
    }

    /// Upper bound in seconds and count of each bucket (of that bucket alone).
    pub(super) fn buckets(&self) -> [(f64, u64); BUCKETS] {
        array::from_fn(|i| {
            let bound = BOUNDS_MICROS.get(i).map_or(f64::INFINITY, |micros| *micros as f64 / 1e6);
            (bound, self.buckets[i])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_belongs_below_it() {
        let histogram = Histogram::default();
        for micros in [5_000, 5_001, 10_000_000, 10_000_001] {
            histogram.record(Duration::from_micros(micros));
        }
        let held: Vec<_> = histogram.totals().buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(held, [(0.005, 1), (0.01, 1), (10.0, 1), (f64::INFINITY, 1)]);
    }

    #[test]
    fn totals_add_up() {
        let (one, two) = (Histogram::default(), Histogram::default());
        one.record(Duration::from_millis(1_500));
        two.record(Duration::from_millis(500));
        two.record(Duration::from_micros(1));
        let mut sum = one.totals();
        sum.add(&two.totals());
        assert_eq!(sum.count(), 3);
        assert!((sum.sum_seconds() - 2.000_001).abs() < 1e-9);
    }
}
