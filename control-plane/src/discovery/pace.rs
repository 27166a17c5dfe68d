//! How fast a pod's streams may name resources. Pure but for its lock: the clock is passed in.
//!
//! Each name costs the hub a compilation and the stream an answer, and a subscription that comes and goes leaves nothing
//! that [`MAX_SUBSCRIPTIONS`](super::session::MAX_SUBSCRIPTIONS) would bound. The account is the pod's, not the stream's,
//! so a new stream wins nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use heddle_api::identity::PodName;
use tokio::time::Instant;

/// Names a second, for as long as a pod likes. A sidecar names what its application begins to talk to.
pub const RATE: u32 = 2_000;
/// Names at once: two hellos of all that a stream may hold, since a reconnect names everything again.
const BURST: u32 = 2 * super::session::MAX_SUBSCRIPTIONS as u32;
/// Fewer accounts are not looked through for those that are even.
const FEW: usize = 1024;

/// Every pod's account. One that is even again is forgotten, so they are no more than the pods that named something
/// lately.
#[derive(Default)]
pub struct Paces(Mutex<Accounts>);

#[derive(Default)]
struct Accounts {
    /// When what a pod named is paid for (the generic cell rate algorithm, ITU-T I.371).
    paid_at: HashMap<PodName, Instant>,
    /// How many accounts there may be until they are looked through.
    enough: usize,
}

impl Paces {
    /// Counts `names` that `pod` named. Until when it must wait with the next, if it must.
    pub fn spend(&self, pod: &PodName, names: usize, now: Instant) -> Option<Instant> {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Accounts { paid_at, enough } = &mut *accounts;
        if paid_at.len() >= (*enough).max(FEW) {
            paid_at.retain(|_, paid_at| *paid_at > now);
            *enough = 2 * paid_at.len();
        }
        let price = Duration::from_secs(1) / RATE;
        let account = paid_at.entry(pod.clone()).or_insert(now);
        *account = (*account).max(now) + price * u32::try_from(names).unwrap_or(u32::MAX);
        let credit = price * BURST;
        let wait = account.saturating_duration_since(now).saturating_sub(credit);
        (!wait.is_zero()).then(|| now + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> PodName {
        name.parse().unwrap()
    }

    #[test]
    fn two_hellos_pass_at_once_and_what_follows_waits_by_the_rate() {
        let (paces, now, web) = (Paces::default(), Instant::now(), pod("shop/web-0"));
        let hello = super::super::session::MAX_SUBSCRIPTIONS;
        assert_eq!((paces.spend(&web, hello, now), paces.spend(&web, hello, now)), (None, None));
        assert_eq!(paces.spend(&web, RATE as usize, now), Some(now + Duration::from_secs(1)));
        let second = now + Duration::from_secs(1);
        assert_eq!(paces.spend(&web, RATE as usize, second), Some(second + Duration::from_secs(1)));
        assert_eq!(paces.spend(&pod("shop/api-0"), hello, now), None, "another pod");
    }

    #[test]
    fn an_account_is_even_again_after_a_while_and_forgotten() {
        let (paces, now) = (Paces::default(), Instant::now());
        let later = now + Duration::from_secs(60);
        for n in 0..FEW {
            paces.spend(&pod(&format!("shop/web-{n}")), 1, now);
        }
        paces.spend(&pod("shop/late"), BURST as usize, later);
        assert_eq!(paces.0.lock().unwrap().paid_at.len(), 1);
        assert_eq!(paces.spend(&pod("shop/web-0"), BURST as usize, later), None);
    }
}
