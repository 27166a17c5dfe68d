//! Values with a unit and a range. Reading one checks it; the message says what was given and what is meant.

use std::{borrow::Cow, fmt, net::IpAddr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A whole number within `$min..=$max`.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $int:ty, $min:expr, $max:expr, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        pub struct $name($int);

        impl $name {
            /// The number.
            #[must_use]
            pub const fn get(self) -> $int {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let number = i64::deserialize(deserializer)?;
                match <$int>::try_from(number) {
                    Ok(value) if ($min..=$max).contains(&value) => Ok(Self(value)),
                    _ => Err(de::Error::custom(format_args!(
                        "{number} is not {} ({} to {})", $what, $min, $max
                    ))),
                }
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "integer", "minimum": $min, "maximum": $max })
            }
        }
    };
}

number!(
    /// A share of a whole, 0 to 100.
    Percent, u32, 0, 100, "a percentage"
);
number!(
    /// A share of a whole that is not nothing, 1 to 100.
    Share, u32, 1, 100, "a percentage above nothing"
);
number!(
    /// How often something is tried or counted, 0 to 1000.
    Attempts, u32, 0, 1000, "a count"
);
number!(
    /// A rate or threshold, 1 to 1,000,000.
    Amount, u32, 1, 1_000_000, "an amount"
);
number!(
    /// A port number, 1 to 65535.
    Port, u16, 1, 65535, "a port number"
);

/// A value written as a string that is checked when it is read; `$check` says what is wrong.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $check:expr, $pattern:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        pub struct $name(String);

        impl $name {
            /// The text as it was written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(meant) => Err(de::Error::custom(format_args!("{text:?} is not {meant}"))),
                }
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

text!(
    /// An address range, "10.0.0.0/8", or one address.
    Cidr,
    |text| {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let meant = "an address or address range such as 10.0.0.0/8 or fd00::/8";
        let address: IpAddr = address.parse().map_err(|_| meant)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        // One spelling for one number: no sign, no leading zero.
        let plain = |text: &str| text.parse().ok().filter(|number: &u8| number.to_string() == text);
        match bits.map(plain) {
            None => Ok(()),
            Some(Some(bits)) if bits <= most => Ok(()),
            Some(_) => Err(meant),
        }
    },
    "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"
);
text!(
    /// A path, exact or a prefix with one `*` at the end.
    PathPattern,
    |text| {
        let body = text.strip_suffix('*').unwrap_or(text);
        if body.starts_with('/') && !body.contains(['*', '?', '#']) {
            Ok(())
        } else {
            Err("a path that begins with / and has * at the end only")
        }
    },
    r"^/[^*?#]*\*?$"
);
text!(
    /// A service account, "namespace/name".
    ServiceAccount,
    |text| {
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() <= 253
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };
        match text.split_once('/') {
            Some((namespace, name)) if plain(namespace) && plain(name) => Ok(()),
            _ => Err("a service account written namespace/name"),
        }
    },
    "^[a-z0-9.-]+/[a-z0-9.-]+$"
);

/// A length of time as the Gateway API writes it (GEP-2257): "500ms", "30s", "1h30m".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Duration(u64);

/// At most four parts of at most five digits each.
const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

impl Duration {
    /// In milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Reads one; `None` when the text is not a duration of GEP-2257.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut total: u64 = 0;
        for part in 0.. {
            if rest.is_empty() {
                return (part > 0).then_some(Self(total));
            }
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            if part == 4 || digits == 0 || digits > 5 {
                return None;
            }
            let number: u64 = rest[..digits].parse().ok()?;
            let unit = &rest[digits..];
            let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
            let millis = match &unit[..end] {
                "h" => 3_600_000,
                "m" => 60_000,
                "s" => 1000,
                "ms" => 1,
                _ => return None,
            };
            total += number * millis;
            rest = &unit[end..];
        }
        None
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut left = self.0;
        for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if left >= millis {
                write!(f, "{}{unit}", left / millis)?;
                left %= millis;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format_args!("{text:?} is not a duration such as 500ms, 30s or 1h (GEP-2257)"))
        })
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": DURATION_PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_read_as_gep_2257_writes_it() {
        let millis = |text| Duration::parse(text).map(Duration::as_millis);
        assert_eq!(millis("500ms"), Some(500));
        assert_eq!(millis("30s"), Some(30_000));
        assert_eq!(millis("1h30m"), Some(5_400_000));
        assert_eq!(millis("0s"), Some(0));
        for bad in ["", "5", "1.5s", "-1s", "100000s", "1d", "1us", "1s2s3s4s5s", "s", "1s ", "1é"] {
            assert_eq!(millis(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_duration_writes_back_to_what_reads_the_same() {
        for text in ["0s", "500ms", "30s", "1h30m", "1h1ms"] {
            assert_eq!(Duration::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_what_was_meant() {
        let message = |text: &str| serde_json::from_str::<Percent>(text).unwrap_err().to_string();
        assert_eq!(message("150"), "150 is not a percentage (0 to 100)");
        assert_eq!(message("-1"), "-1 is not a percentage (0 to 100)");
        assert!(serde_json::from_str::<Percent>("100").is_ok());
        assert!(serde_json::from_str::<Port>("0").is_err());
        assert!(serde_json::from_str::<Port>("65536").is_err());
    }

    #[test]
    fn access_values_are_checked() {
        let cidr = |text: &str| serde_json::from_value::<Cidr>(text.into()).is_ok();
        assert!(cidr("10.0.0.0/8") && cidr("::1") && cidr("fd00::/8"));
        assert!(!cidr("10.0.0.0/33") && !cidr("10.0.0/8") && !cidr("10.0.0.0/") && !cidr("web"));
        assert!(!cidr("10.0.0.0/+8") && !cidr("10.0.0.0/08"));
        let path = |text: &str| serde_json::from_value::<PathPattern>(text.into()).is_ok();
        assert!(path("/a") && path("/a/*") && path("/*"));
        assert!(!path("a") && !path("/a/*/b") && !path("/a**") && !path("*") && !path("/a?b"));
        let account = |text: &str| serde_json::from_value::<ServiceAccount>(text.into()).is_ok();
        assert!(account("shop/web"));
        assert!(!account("web") && !account("shop/") && !account("shop/web/x") && !account("Shop/web"));
    }
}
