//! Values that are kept once, however many objects have them: all pods of a ReplicaSet have the same labels and ports.

use std::{collections::HashMap, hash::Hash, sync::Arc};

/// Each value once, with how many objects have it: who else holds a clone for a moment does not count.
#[derive(Debug)]
pub(super) struct Once<T>(HashMap<Arc<T>, usize>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> Once<T> {
    /// One more object has the value. Returns it as it is kept.
    pub(super) fn keep(&mut self, value: Arc<T>) -> Arc<T> {
        let kept = self.0.get_key_value(&value).map_or(value, |(kept, _)| Arc::clone(kept));
        *self.0.entry(Arc::clone(&kept)).or_default() += 1;
        kept
    }

    /// An object that had it has it no more; forgotten with the last one.
    pub(super) fn let_go(&mut self, value: &T) {
        if let Some(count) = self.0.get_mut(value) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(value);
            }
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
        assert_eq!(once.len(), 1);
        once.let_go(&second);
        assert_eq!(once.len(), 0, "though somebody looks at it still");
        once.let_go(&second);
        assert_eq!(once.len(), 0);
    }
}
