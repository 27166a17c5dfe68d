//! How much retries may add: a share of the requests of the last ten seconds, or a few a second where that is more.
//!
//! Counted in ten slots of a second, each a word that says which second it is and how many it counted, so that a
//! slot is never taken for another second's. Lock-free; all workers share it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{balance::clock, config::RetryPolicy};

/// Seconds that the budget looks back, this one included.
const WINDOW: usize = 10;
const COUNT_BITS: u32 = 32;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// What retries of one backend may still be spent.
#[derive(Debug, Default)]
pub struct Budget {
    requests: [AtomicU64; WINDOW],
    retries: [AtomicU64; WINDOW],
}

impl Budget {
    /// Counts a request (its first try) in.
    pub fn deposit(&self) {
        let second = second();
        let slot = &self.requests[slot_of(second)];
        let mut word = slot.load(Ordering::Relaxed);
        while word >> COUNT_BITS != second {
            match slot.compare_exchange_weak(word, second << COUNT_BITS, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(seen) => word = seen,
            }
        }
        slot.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one retry out, if the policy's budget still holds one: its share of the requests of the last ten
    /// seconds, or else its minimum for this second as long as ten times that were not spent in ten seconds.
    #[must_use]
    pub fn withdraw(&self, policy: &RetryPolicy) -> bool {
        let second = second();
        let slot = &self.retries[slot_of(second)];
        let minimum = u64::from(policy.budget_min_per_second);
        let mut word = slot.load(Ordering::Relaxed);
        loop {
            let now = if word >> COUNT_BITS == second { word & COUNT } else { 0 };
            let spent = now + sum(&self.retries, second, slot_of(second));
            let share = sum(&self.requests, second, WINDOW) * u64::from(policy.budget_percent) / 100;
            if spent >= share && (now >= minimum || spent >= minimum * WINDOW as u64) {
                return false;
            }
            // Only this slot takes retries in this second, so that what was summed holds if the slot did not change.
            let next = second << COUNT_BITS | (now + 1);
            match slot.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) => word = seen,
            }
        }
    }
}

/// Seconds of this process; they fit 32 bits for 136 years.
fn second() -> u64 {
    clock::now() / 1_000_000_000
}

fn slot_of(second: u64) -> usize {
    // Below WINDOW.
    (second % WINDOW as u64) as usize
}

/// What the window's slots counted, but for the slot at `except`.
fn sum(slots: &[AtomicU64; WINDOW], second: u64, except: usize) -> u64 {
    slots
        .iter()
        .enumerate()
        .filter(|&(index, _)| index != except)
        .map(|(_, slot)| slot.load(Ordering::Relaxed))
        .filter(|word| second.saturating_sub(word >> COUNT_BITS) < WINDOW as u64)
        .map(|word| word & COUNT)
        .sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn policy(percent: u32, minimum: u32) -> RetryPolicy {
        RetryPolicy { budget_percent: percent, budget_min_per_second: minimum, ..RetryPolicy::default() }
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_backend_may_retry_ten_times_a_second() {
        let budget = Budget::default();
        for _ in 0..3 {
            assert_eq!((0..50).filter(|_| budget.withdraw(&policy(20, 10))).count(), 10);
            pass(1).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_one_may_add_a_fifth_and_not_the_minimum_on_top() {
        let budget = Budget::default();
        for _ in 0..500 {
            budget.deposit();
        }
        assert_eq!((0..1_000).filter(|_| budget.withdraw(&policy(20, 10))).count(), 100);
        pass(1).await;
        assert!(!budget.withdraw(&policy(20, 10)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ten_seconds_old_is_forgotten() {
        let budget = Budget::default();
        for _ in 0..1_000 {
            budget.deposit();
        }
        pass(9).await;
        assert!(budget.withdraw(&policy(20, 0)));
        pass(1).await;
        assert!(!budget.withdraw(&policy(20, 0)));
        pass(300).await;
        assert!(budget.withdraw(&policy(0, 1)));
        assert!(!budget.withdraw(&policy(0, 1)));
        assert!(!budget.withdraw(&policy(0, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn workers_together_do_not_overdraw() {
        // A paused clock is its thread's own, so that the others look at the true one: all within some seconds.
        let budget = Budget::default();
        let second = super::second();
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..20_000).filter(|_| budget.withdraw(&policy(0, 1_000))).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        let seconds = usize::try_from(super::second() - second).unwrap();
        assert!(taken >= 1_000, "{taken}");
        assert!(taken <= 10_000 && seconds == 0, "{taken} in {seconds} s");
    }

    proptest! {
        #[test]
        fn in_no_ten_seconds_is_the_budget_exceeded(
            seconds in prop::collection::vec((0u32..200, 0u32..200, 0u64..4), 1..40),
            percent in 0u32..120, minimum in 0u32..20,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let (budget, policy) = (Budget::default(), policy(percent, minimum));
                let mut log: Vec<(u64, u64, u64)> = Vec::new();
                for (requests, failures, pause) in seconds {
                    for _ in 0..requests {
                        budget.deposit();
                    }
                    let taken = (0..failures).filter(|_| budget.withdraw(&policy)).count() as u64;
                    let now = second();
                    log.push((now, u64::from(requests), taken));
                    let window = log.iter().filter(|(then, ..)| now - then < WINDOW as u64);
                    let (deposits, retries) = window.fold((0, 0), |(d, r), (_, requests, taken)| (d + requests, r + taken));
                    // What was taken was allowed when it was taken; requests of the past may have left the window since,
                    // and their retries with them.
                    let allowed = (deposits * u64::from(percent) / 100).max(u64::from(minimum) * WINDOW as u64);
                    let earlier = log.iter().map(|(.., taken)| *taken).sum::<u64>();
                    prop_assert!(taken == 0 || retries <= allowed, "{retries} of {allowed}, ever {earlier}");
                    tokio::time::advance(std::time::Duration::from_secs(pause)).await;
                }
                Ok(())
            })?;
        }
    }
}
