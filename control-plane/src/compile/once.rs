//! Values that are kept once, however many objects have them: all pods of a ReplicaSet have the same labels and ports.

use std::{collections::HashSet, hash::Hash, sync::Arc};

/// Each value once.
#[derive(Debug)]
pub(super) struct Once<T>(HashSet<Arc<T>>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: Eq + Hash> Once<T> {
    /// The value as it is kept.
    pub(super) fn keep(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(kept) = self.0.get(&value) {
            return Arc::clone(kept);
        }
        self.0.insert(Arc::clone(&value));
        value
    }

    /// Somebody who had it, as it is kept, has it no more; forgotten with the last one.
    pub(super) fn let_go(&mut self, value: &Arc<T>) {
        // Theirs and the set's.
        if Arc::strong_count(value) == 2 {
            self.0.remove(value);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_have_is_kept_once_and_until_both_let_it_go() {
        let mut once = Once::default();
        let first = once.keep(Arc::new("a".to_owned()));
        let second = once.keep(Arc::new("a".to_owned()));
        assert!(Arc::ptr_eq(&first, &second));
        once.let_go(&first);
        drop(first);
        assert_eq!(once.len(), 1);
        once.let_go(&second);
        assert_eq!(once.len(), 0);
    }
}
