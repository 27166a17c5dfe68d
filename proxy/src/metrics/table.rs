//! A worker's handles by their labels, bounded.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Handles by labels. The lock is the worker's and the scrape's, which copies the list and lets go.
#[derive(Debug)]
pub(super) struct Table<K, S> {
    handles: Mutex<HashMap<K, Arc<S>, ahash::RandomState>>,
    limit: usize,
    /// Whether handles that nobody keeps any more make room for new ones. Their series end, as those of a target that
    /// was removed do.
    forgets: bool,
}

impl<K: Eq + Hash, S> Table<K, S> {
    pub(super) fn new(limit: usize, forgets: bool) -> Self {
        Self { handles: Mutex::default(), limit, forgets }
    }

    /// The handle for these labels, made if there is room. `crowded`: room is short though the limit is not reached.
    pub(super) fn get(&self, key: K, crowded: bool, make: impl FnOnce(&K) -> S) -> Option<Arc<S>> {
        let mut handles = self.lock();
        if let Some(handle) = handles.get(&key) {
            return Some(Arc::clone(handle));
        }
        if self.forgets && (crowded || handles.len() >= self.limit) {
            handles.retain(|_, handle| Arc::strong_count(handle) > 1);
        }
        if handles.len() >= self.limit {
            return None;
        }
        let handle = Arc::new(make(&key));
        handles.insert(key, Arc::clone(&handle));
        Some(handle)
    }

    pub(super) fn all(&self) -> Vec<Arc<S>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<S>, ahash::RandomState>> {
        // Nothing under the lock leaves the map half changed.
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
