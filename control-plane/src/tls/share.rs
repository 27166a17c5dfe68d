//! How many connections one pod may have at once, so that none can take them all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use heddle_api::identity::PodName;

/// A sidecar has a stream and now and then a renewal; broken connections linger until their ping goes unanswered.
const PER_POD: usize = 16;

/// Who has how many.
#[derive(Default)]
pub(super) struct Shares(Arc<Mutex<HashMap<PodName, usize>>>);

/// A pod has as many as it may.
#[derive(Debug, thiserror::Error)]
#[error("{0} has {PER_POD} connections already")]
pub(super) struct TooMany(PodName);

/// One connection of a pod, while it lives.
pub(super) struct Share {
    all: Arc<Mutex<HashMap<PodName, usize>>>,
    pod: PodName,
}

impl Shares {
    /// Counts one more connection of `pod`.
    pub(super) fn take(&self, pod: &PodName) -> Result<Share, TooMany> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(pod.clone()).or_default();
        if *count >= PER_POD {
            return Err(TooMany(pod.clone()));
        }
        *count += 1;
        Ok(Share { all: Arc::clone(&self.0), pod: pod.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.pod) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.pod);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_all_its_connections_gets_another_when_one_ends_and_others_are_not_concerned() {
        let (shares, web, api) =
            (Shares::default(), "shop/web-0".parse().unwrap(), "shop/api-0".parse().unwrap());
        let mut taken: Vec<_> = (0..PER_POD).map(|_| shares.take(&web).unwrap()).collect();
        assert!(shares.take(&web).is_err());
        assert!(shares.take(&api).is_ok());
        taken.pop();
        assert!(shares.take(&web).is_ok());
        taken.clear();
        assert!(shares.0.lock().unwrap().is_empty());
    }
}
