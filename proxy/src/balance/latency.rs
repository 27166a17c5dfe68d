//! Peak-sensitive moving average of latency: rises at once to a peak, and falls slowly from it.
//!
//! The idea is Finagle's 'peak EWMA': an average weighted by elapsed time, not by number of requests, that takes a
//! higher observation whole. Untouched it decays towards nothing, so that a slow endpoint is tried again some day.

use std::sync::atomic::{AtomicU64, Ordering};

/// Observations this old count for 1/e. Nanoseconds.
const DECAY: f32 = 10e9;
/// Stamps are kept in units of 2^16 ns (66 µs); 32 bits of them last for 78 hours. An endpoint that was idle for
/// longer than that is taken to have been idle for less, which does no harm.
const STAMP_SHIFT: u32 = 16;

/// The average, in one word so that value and age always belong together.
#[derive(Debug, Default)]
pub(super) struct Latency(AtomicU64);

impl Latency {
    /// The average now, in nanoseconds. None: nothing was ever observed.
    pub(super) fn get(&self, now: u64) -> Option<f32> {
        let word = self.0.load(Ordering::Relaxed);
        (word != 0).then(|| decayed(word, now))
    }

    /// Takes an observation in, both in nanoseconds.
    pub(super) fn observe(&self, latency: u64, now: u64) {
        // Never 0, which is the mark of no observation.
        let latency = latency.max(1) as f32;
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let next = if word == 0 {
                latency
            } else {
                let (average, weight) = parts(word, now);
                if latency >= average * weight {
                    latency
                } else if weight == 1.0 {
                    // Within one stamp of the last observation: nothing has elapsed that could carry weight.
                    return;
                } else {
                    average * weight + latency * (1.0 - weight)
                }
            };
            match self.0.compare_exchange_weak(word, packed(next, now), Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }

    /// Takes an observation in only where it is worse than what is known.
    pub(super) fn observe_at_least(&self, latency: u64, now: u64) {
        if self.get(now).is_none_or(|known| latency as f32 > known) {
            self.observe(latency, now);
        }
    }
}

fn packed(average: f32, now: u64) -> u64 {
    // The stamp wraps on purpose.
    u64::from(average.to_bits()) << 32 | u64::from((now >> STAMP_SHIFT) as u32)
}

/// The average as stored, and what is left of it by now.
fn parts(word: u64, now: u64) -> (f32, f32) {
    let average = f32::from_bits((word >> 32) as u32);
    let age = ((now >> STAMP_SHIFT) as u32).wrapping_sub(word as u32);
    // Another thread's clock reading may be a little older than the stamp: then the age is 'negative'.
    let age = if age > u32::MAX / 2 { 0 } else { age };
    (average, if age == 0 { 1.0 } else { (-((u64::from(age) << STAMP_SHIFT) as f32) / DECAY).exp() })
}

fn decayed(word: u64, now: u64) -> f32 {
    let (average, weight) = parts(word, now);
    average * weight
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 1_000 * SECOND;

    #[test]
    fn nothing_is_known_before_the_first_observation() {
        assert_eq!(Latency::default().get(START), None);
    }

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let latency = Latency::default();
        latency.observe(1_000_000, START);
        latency.observe(500_000_000, START + SECOND);
        assert_eq!(latency.get(START + SECOND), Some(500e6));
        latency.observe(1_000_000, START + 2 * SECOND);
        let soon = latency.get(START + 2 * SECOND).unwrap();
        assert!(soon > 400e6 && soon < 500e6, "{soon}");
        for second in 3..120 {
            latency.observe(1_000_000, START + second * SECOND);
        }
        let late = latency.get(START + 120 * SECOND).unwrap();
        assert!(late < 1_100_000.0, "{late}");
    }

    #[test]
    fn what_is_not_observed_decays() {
        let latency = Latency::default();
        latency.observe(SECOND, START);
        let later = latency.get(START + 100 * SECOND).unwrap();
        assert!(later < 50_000.0, "{later}");
    }

    #[test]
    fn only_what_is_worse_counts_when_asked_so() {
        let latency = Latency::default();
        latency.observe_at_least(5_000, START);
        latency.observe_at_least(1_000, START + SECOND);
        assert!(latency.get(START + SECOND).unwrap() > 4_000.0);
        latency.observe_at_least(9_000, START + SECOND);
        assert_eq!(latency.get(START + SECOND), Some(9_000.0));
    }

    #[test]
    fn a_clock_reading_older_than_the_stamp_is_taken_as_now() {
        let latency = Latency::default();
        latency.observe(7_000, START);
        assert_eq!(latency.get(START - SECOND), Some(7_000.0));
    }
}
