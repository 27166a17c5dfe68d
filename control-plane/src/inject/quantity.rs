//! A quantity of a resource as Kubernetes writes it, read exactly, so that two can be compared. Neither k8s-openapi nor
//! kube reads one.

/// More digits than any quantity needs, and no product of them overflows.
const DIGITS: usize = 20;
/// What Kubernetes cuts off at: 2^63 - 1.
const MOST: u128 = i64::MAX as u128 * NANO;
const NANO: u128 = 1_000_000_000;

/// In billionths, which is as fine as Kubernetes has it; what is finer is rounded up. Never negative: a resource is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Amount(u128);

impl Amount {
    /// `100m`, `1.5Gi`, `2e9`; nothing where the text is no quantity.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || whole.len() + fraction.len() > DIGITS {
            return None;
        }
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let (binary, decimal) = scale(suffix)?;
        let decimal = decimal.checked_add(9)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
        let digits = digits << binary;
        // A power that is too large to be one is also too large for what it is applied to.
        let power = 10_u128.checked_pow(decimal.unsigned_abs()).unwrap_or(u128::MAX);
        let nanos = if decimal < 0 { digits.div_ceil(power) } else { digits.saturating_mul(power) };
        Some(Self(nanos.min(MOST)))
    }
}

/// The powers of two and of ten that a suffix stands for.
fn scale(suffix: &str) -> Option<(u32, i32)> {
    let prefixes = ["K", "M", "G", "T", "P", "E"];
    let scale = match suffix {
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "" => (0, 0),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        _ => match suffix.strip_suffix('i') {
            Some(prefix) => {
                let place = (1..).zip(prefixes).find(|(_, known)| *known == prefix)?.0;
                (10 * place, 0)
            }
            None => (0, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
        },
    };
    Some(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_different_ways_is_the_same() {
        for same in [
            &["1", "1000m", "1.0", "1.", "01", "1e0", "0.1e1", "10E-1", "1000000000n", "1000000u"][..],
            &["1Gi", "1024Mi", "1048576Ki", "1073741824"],
            &["1.5Gi", "1536Mi"],
            &["2G", "2000M", "2e9", "2E+9", "2000000k"],
            // Too fine, and too large.
            &["1n", "0.1n", "1e-30", "1e-99"],
            &["9223372036854775807", "99E", "1e99", "16Ei", "99999999999999999999Ei"],
        ] {
            for text in same {
                assert_eq!(Amount::parse(text), Amount::parse(same[0]), "{text}");
            }
            assert!(Amount::parse(same[0]).is_some());
        }
    }

    #[test]
    fn the_larger_is_larger() {
        let all = ["0", "1n", "100m", "0.2", "1", "1k", "1Ki", "512Mi", "1G", "1Gi", "1T", "7Pi", "7.9E"];
        assert!(all.is_sorted_by_key(|text| Amount::parse(text).unwrap()));
        assert!(Amount::parse("1.1") > Amount::parse("1099m"));
    }

    #[test]
    fn what_is_no_quantity_is_none() {
        for text in [
            "", "-1", "+1", "m", ".5", "1.2.3", "1 Gi", "1gi", "1K", "1mi", "1e", "1e1.5", "1i", "1Gib",
            "many",
        ] {
            assert_eq!(Amount::parse(text), None, "{text}");
        }
    }
}
