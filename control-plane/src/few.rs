//! A sorted set of what nearly always has one member, held without an allocation of its own.
//!
//! A `BTreeSet` of one name takes a node for eleven, and there is a set for each pod and each address.

use std::borrow::Borrow;

use smallvec::SmallVec;

/// The set. Members are in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Few<T>(SmallVec<[T; 1]>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(SmallVec::new())
    }
}

impl<T: Ord> Few<T> {
    /// Adds one; `false`: it was there.
    pub(crate) fn insert(&mut self, value: T) -> bool {
        match self.0.binary_search(&value) {
            Ok(_) => false,
            Err(at) => {
                self.0.insert(at, value);
                true
            }
        }
    }

    /// Takes one out; `false`: it was not there.
    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, value: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        let found = self.0.binary_search_by(|member| member.borrow().cmp(value));
        found.is_ok_and(|at| {
            self.0.remove(at);
            true
        })
    }
}

impl<T> Few<T> {
    /// Whether it has no member.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many it has.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// In order.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = smallvec::IntoIter<[T; 1]>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_set_would(steps in proptest::collection::vec((any::<bool>(), 0..6_u8), 0..40)) {
            let (mut few, mut set) = (Few::default(), BTreeSet::new());
            for (add, value) in steps {
                if add {
                    prop_assert_eq!(few.insert(value), set.insert(value));
                } else {
                    prop_assert_eq!(few.remove(&value), set.remove(&value));
                }
                prop_assert!(few.iter().eq(set.iter()));
                prop_assert_eq!((few.is_empty(), few.len()), (set.is_empty(), set.len()));
            }
        }
    }
}
