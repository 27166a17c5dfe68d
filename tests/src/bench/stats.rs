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

/// Between which of `values` the median of all that could be measured lies, with 95 % confidence, whatever their
/// distribution: the order statistics around the middle (Conover, Practical Nonparametric Statistics, 3.2, by the normal
/// approximation). `None` of fewer than eight.
#[must_use]
pub fn median_interval(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    if sorted.len() < 8 {
        return None;
    }
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    // Rounded outwards.
    let rank = ((count - 1.96 * count.sqrt()) / 2.0).floor() as usize;
    Some((sorted[rank - 1], sorted[sorted.len() - rank]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_median_narrows_with_the_square_root_of_the_values() {
        assert_eq!(median_interval((0..7).map(f64::from)), None);
        // The published ranks for a hundred: the 40th and the 61st.
        assert_eq!(median_interval((1..=100).map(f64::from)), Some((40.0, 61.0)));
        assert_eq!(median_interval((1..=8).map(f64::from)), Some((1.0, 8.0)));
    }

    #[test]
    fn one_wild_value_moves_the_median_little() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 1000.0]), Some(3.0));
        assert_eq!(median([4.0, 1.0, 2.0, 1000.0]), Some(3.0));
    }
}
