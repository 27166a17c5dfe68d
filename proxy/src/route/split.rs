//! Which of several backends gets a request, by weight.

use crate::config::{Split, SplitEntry};

impl Split {
    /// Sums the weights up.
    #[must_use]
    pub fn new(entries: Vec<SplitEntry>) -> Self {
        let total = entries.iter().map(|entry| u64::from(entry.weight)).sum();
        Self { entries, total }
    }

    /// Picks at random by weight; an entry of weight 0 never. None: there are no weights, and the request is
    /// answered 500 (HTTPRoute specification).
    #[must_use]
    pub fn pick(&self) -> Option<&SplitEntry> {
        match self.entries.as_slice() {
            [only] if only.weight > 0 => Some(only),
            _ if self.total == 0 => None,
            _ => self.at(fastrand::u64(0..self.total)),
        }
    }

    fn at(&self, mut point: u64) -> Option<&SplitEntry> {
        self.entries.iter().find(|entry| {
            let weight = u64::from(entry.weight);
            let here = point < weight;
            point = point.saturating_sub(weight);
            here
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(weights: &[u32]) -> Split {
        let entry = |(index, &weight): (usize, &u32)| SplitEntry {
            weight,
            backend: None,
            name: index.to_string().into(),
            filters: Vec::new(),
        };
        Split::new(weights.iter().enumerate().map(entry).collect())
    }

    #[test]
    fn without_weight_nothing_is_picked() {
        assert!(split(&[]).pick().is_none());
        assert!(split(&[0]).pick().is_none());
        assert!(split(&[0, 0]).pick().is_none());
    }

    #[test]
    fn ninety_to_ten_is_ninety_to_ten_within_a_point() {
        fastrand::seed(7);
        let split = split(&[90, 10]);
        let tenth = (0..10_000).filter(|_| &*split.pick().unwrap().name == "1").count();
        assert!((900..=1_100).contains(&tenth), "{tenth}");
    }

    proptest! {
        #[test]
        fn over_all_points_each_entry_has_exactly_its_weight(weights in prop::collection::vec(0u32..40, 0..10)) {
            let split = split(&weights);
            let mut seen = vec![0u32; weights.len()];
            for point in 0..split.total {
                seen[split.at(point).unwrap().name.parse::<usize>().unwrap()] += 1;
            }
            prop_assert_eq!(seen, weights);
            prop_assert!(split.at(split.total).is_none());
        }
    }
}
