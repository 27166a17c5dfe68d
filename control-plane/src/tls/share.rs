//! How many connections one pod, or one address that has not said who it is, may have at once, so that none can take
//! them all.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// Who has how many.
pub(crate) struct Shares<K> {
    taken: Arc<Mutex<HashMap<K, usize>>>,
    each: usize,
}

/// One has as many as it may.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{who} has {each} connections already")]
pub(crate) struct TooMany<K: fmt::Display> {
    who: K,
    each: usize,
}

/// One connection, while it lives.
#[derive(Debug)]
pub(crate) struct Share<K: Hash + Eq> {
    taken: Arc<Mutex<HashMap<K, usize>>>,
    who: K,
}

impl<K: Hash + Eq + Clone + fmt::Display> Shares<K> {
    /// `each` has at most so many.
    pub(crate) fn new(each: usize) -> Self {
        Self { taken: Arc::default(), each }
    }

    /// Counts one more connection of `who`.
    pub(crate) fn take(&self, who: &K) -> Result<Share<K>, TooMany<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(who.clone()).or_default();
        if *count >= self.each {
            return Err(TooMany { who: who.clone(), each: self.each });
        }
        *count += 1;
        Ok(Share { taken: Arc::clone(&self.taken), who: who.clone() })
    }
}

impl<K: Hash + Eq> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use heddle_api::identity::PodName;

    use super::*;

    #[test]
    fn a_pod_with_all_its_connections_gets_another_when_one_ends_and_others_are_not_concerned() {
        let (shares, web, api): (_, PodName, PodName) =
            (Shares::new(16), "shop/web-0".parse().unwrap(), "shop/api-0".parse().unwrap());
        let mut taken: Vec<_> = (0..16).map(|_| shares.take(&web).unwrap()).collect();
        let refused = shares.take(&web).unwrap_err();
        assert_eq!(refused.to_string(), "shop/web-0 has 16 connections already");
        assert!(shares.take(&api).is_ok());
        taken.pop();
        assert!(shares.take(&web).is_ok());
        taken.clear();
        assert!(shares.taken.lock().unwrap().is_empty());
    }
}
