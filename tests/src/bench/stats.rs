//! Medians, and how sure they are.

/// The median of `values`; of an even number, the mean of the middle two. `None` of none.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// A ratio, and between what it lies with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The best guess.
    pub estimate: f64,
    /// No less.
    pub least: f64,
    /// No more.
    pub most: f64,
}

/// By what factor values like `of` are greater than values like `to`, whatever their distribution, given that it is the same
/// but for that factor: the median of the ratios of each to each, and the order statistics of these ratios around it (Hodges
/// and Lehmann's estimator of a shift, Moses' interval; Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 4.2
/// and 4.3, by the normal approximation). `None` of fewer than eight on either side, or of one that is
/// not positive.
#[must_use]
pub fn ratio(of: &[f64], to: &[f64]) -> Option<Ratio> {
    let enough = of.len().min(to.len()) >= 8;
    if !enough || of.iter().chain(to).any(|value| !value.is_finite() || *value <= 0.0) {
        return None;
    }
    let mut ratios: Vec<f64> = of.iter().flat_map(|of| to.iter().map(move |to| of / to)).collect();
    ratios.sort_by(f64::total_cmp);
    let (m, n) = (of.len() as f64, to.len() as f64);
    let from_middle = 1.96 * (m * n * (m + n + 1.0) / 12.0).sqrt();
    // Rounded outwards.
    let rank = (m * n / 2.0 - from_middle).floor() as usize;
    let (least, most) = (ratios[rank - 1], ratios[ratios.len() - rank]);
    Some(Ratio { estimate: median(ratios)?, least, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evenly(count: u32, middle: f64) -> Vec<f64> {
        (0..count).map(|n| middle * (0.8 + 0.4 * (f64::from(n) + 0.5) / f64::from(count))).collect()
    }

    #[test]
    fn the_interval_of_a_ratio_narrows_with_the_square_root_of_the_values() {
        assert_eq!(ratio(&evenly(7, 1.0), &evenly(100, 1.0)), None);
        assert_eq!(ratio(&[0.0; 8], &evenly(8, 1.0)), None);
        let width = |count| {
            let Ratio { estimate, least, most } = ratio(&evenly(count, 3.0), &evenly(count, 2.0)).unwrap();
            assert!((estimate - 1.5).abs() < 0.001, "{estimate}");
            assert!(least < estimate && estimate < most, "{least} {most}");
            most - least
        };
        let narrower = width(50) / width(200);
        assert!((1.9..2.3).contains(&narrower), "{narrower}");
    }

    #[test]
    fn the_interval_of_a_ratio_is_of_the_published_rank() {
        // So that the ratio's exponent says where it stands: the n-th of 64, from nought, has n / 8 and n % 8.
        let of: Vec<f64> = (0..8).map(|n| 10f64.powi(n)).collect();
        let to: Vec<f64> = (0..8).map(|n| 10f64.powf(-f64::from(n) / 10.0)).collect();
        let Ratio { least, most, .. } = ratio(&of, &to).unwrap();
        // The tables of Mann and Whitney's U have the 14th from either end for eight and eight; this is one further out.
        assert!((least.log10() - 1.4).abs() < 1e-9, "{least}");
        assert!((most.log10() - 6.3).abs() < 1e-9, "{most}");
    }

    #[test]
    fn a_wild_value_moves_a_ratio_little() {
        let mut wild = evenly(100, 1.0);
        wild[7] = 1000.0;
        let Ratio { estimate, .. } = ratio(&wild, &evenly(100, 1.0)).unwrap();
        assert!((estimate - 1.0).abs() < 0.01, "{estimate}");
    }

    #[test]
    fn one_wild_value_moves_the_median_little() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 1000.0]), Some(3.0));
        assert_eq!(median([4.0, 1.0, 2.0, 1000.0]), Some(3.0));
    }
}
