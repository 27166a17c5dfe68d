//! Weights laid out for drawing: one at random, or each in its turn.

/// The weights of a list of members. Members of equal weight cost nothing to store and O(1) to draw, others O(log n).
#[derive(Debug, Default, Clone)]
pub struct Wheel {
    members: usize,
    /// Sum of the weights, divided by what they have in common.
    total: u64,
    /// Running sums; empty where all weights are equal.
    sums: Vec<u64>,
    /// Prime to `total` and about 0.618 of it: steps of this length visit every point once, neighbours far apart.
    stride: u64,
}

impl Wheel {
    /// Lays out members by their weights; one of weight 0 is never drawn (unless all are 0: then each is as likely).
    pub fn new(weights: impl Iterator<Item = u32> + Clone) -> Self {
        let members = weights.clone().count();
        let common = weights.clone().fold(0, |common, weight| gcd(common, u64::from(weight)));
        let uniform = weights.clone().all(|weight| u64::from(weight) == common);
        let mut total = members as u64;
        let mut sums = Vec::new();
        if !uniform {
            total = 0;
            sums.extend(weights.map(|weight| {
                total += u64::from(weight) / common;
                total
            }));
        }
        let mut stride = (total as f64 * 0.618_033_988_749_895) as u64 + 1;
        while gcd(stride, total) > 1 {
            stride += 1;
        }
        Self { members, total, sums, stride }
    }

    /// Whether all weights are equal.
    #[must_use]
    pub fn uniform(&self) -> bool {
        self.sums.is_empty()
    }

    /// A member at random, by weight. None: there are none.
    #[must_use]
    pub fn random(&self) -> Option<usize> {
        (self.members > 0).then(|| self.member_at(fastrand::u64(0..self.total)))
    }

    /// The member whose turn it is: over any `total` turns in a row each member comes exactly as often as its
    /// weight says, and its turns lie apart.
    #[must_use]
    pub fn turn(&self, turn: u64) -> Option<usize> {
        if self.members == 0 {
            return None;
        }
        let turn = turn % self.total;
        if self.uniform() {
            return usize::try_from(turn).ok();
        }
        let point = u128::from(turn) * u128::from(self.stride) % u128::from(self.total);
        // Below `total`, which is a u64.
        Some(self.member_at(point as u64))
    }

    fn member_at(&self, point: u64) -> usize {
        if self.uniform() {
            // Below `members`, which is a usize.
            return point as usize;
        }
        self.sums.partition_point(|&sum| sum <= point)
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wheel(weights: &[u32]) -> Wheel {
        Wheel::new(weights.iter().copied())
    }

    #[test]
    fn an_empty_wheel_gives_nothing() {
        assert_eq!(wheel(&[]).random(), None);
        assert_eq!(wheel(&[]).turn(3), None);
    }

    #[test]
    fn equal_weights_take_turns_in_order() {
        let wheel = wheel(&[7, 7, 7]);
        assert!(wheel.uniform());
        assert_eq!((0..5).map(|t| wheel.turn(t).unwrap()).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn the_turns_of_a_heavy_member_lie_apart() {
        let wheel = wheel(&[1, 5]);
        let turns: Vec<_> = (0..12).map(|t| wheel.turn(t).unwrap()).collect();
        let light: Vec<_> = turns.iter().enumerate().filter(|(_, m)| **m == 0).map(|(t, _)| t).collect();
        assert_eq!(light.len(), 2);
        assert_eq!(light[1] - light[0], 6);
    }

    proptest! {
        #[test]
        fn a_round_gives_each_member_exactly_its_weight(
            weights in prop::collection::vec(1u32..50, 1..12), start in 0u64..1_000_000
        ) {
            let wheel = wheel(&weights);
            let mut seen = vec![0u64; weights.len()];
            for turn in start..start + wheel.total {
                seen[wheel.turn(turn).unwrap()] += 1;
            }
            let sum: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            for (seen, weight) in seen.iter().zip(&weights) {
                prop_assert_eq!(seen * sum, u64::from(*weight) * wheel.total);
            }
        }

        #[test]
        fn draws_follow_the_weights(weights in prop::collection::vec(0u32..1000, 1..8), seed: u64) {
            prop_assume!(weights.iter().any(|w| *w > 0));
            fastrand::seed(seed);
            let wheel = wheel(&weights);
            let mut seen = vec![0u32; weights.len()];
            for _ in 0..10_000 {
                seen[wheel.random().unwrap()] += 1;
            }
            let sum: u32 = weights.iter().sum();
            for (seen, weight) in seen.iter().zip(&weights) {
                let expected = f64::from(*weight) / f64::from(sum);
                // Five standard deviations of a binomial at its widest.
                prop_assert!((f64::from(*seen) / 10_000.0 - expected).abs() < 0.025);
                prop_assert!(*weight > 0 || *seen == 0);
            }
        }
    }
}
