//! How the sidecar waits for its control plane: jittered back-off, and saying so now and then, not at every attempt.

use std::time::Duration;

use tokio::time::Instant;

/// Pauses between attempts: they double, and a random half of each is left out, so that a thousand sidecars that lost
/// the same control plane do not come back at one moment.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// The first pause is 250 ms at most, so that a control plane that merely restarted is found at once.
    #[must_use]
    pub const fn new() -> Self {
        Self { base: Duration::from_millis(250), max: Duration::from_secs(10), failures: 0 }
    }

    /// The pause after one more failure.
    pub fn pause(&mut self) -> Duration {
        self.pause_within(self.max)
    }

    /// The same, but no longer than `max`: for who has less time.
    pub fn pause_within(&mut self, max: Duration) -> Duration {
        let pause =
            self.base.saturating_mul(1 << self.failures.min(16)).min(max.max(self.base)).min(self.max);
        self.failures += 1;
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It worked: the next pause is a short one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether it is time to say once more that something is being waited for.
#[derive(Debug, Default)]
pub struct Patience {
    said: Option<Instant>,
}

impl Patience {
    const INTERVAL: Duration = Duration::from_secs(10);

    /// True at first, and then every ten seconds.
    pub fn speak(&mut self) -> bool {
        let due = self.said.is_none_or(|said| said.elapsed() >= Self::INTERVAL);
        if due {
            self.said = Some(Instant::now());
        }
        due
    }

    /// It worked: the next failure is news.
    pub fn reset(&mut self) {
        self.said = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_begin_anew_after_success() {
        let mut backoff = Backoff::new();
        for expected in [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            let pause = backoff.pause().as_millis();
            assert!(pause >= expected / 2 && pause <= expected, "{pause} for {expected}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(250));
    }

    #[test]
    fn who_has_less_time_pauses_less() {
        let mut backoff = Backoff::new();
        for _ in 0..100 {
            assert!(backoff.pause_within(Duration::from_millis(500)) <= Duration::from_millis(500));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_said_at_once_and_then_every_ten_seconds() {
        let mut patience = Patience::default();
        let mut said = 0;
        for _ in 0..21 {
            said += u32::from(patience.speak());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(said, 3);
        patience.reset();
        assert!(patience.speak());
    }
}
