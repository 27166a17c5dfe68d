//! The addresses of a wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The family of a wire's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 10.77.0.0/24, Services in 10.96.0.0/24.
    V4,
    /// fd77::/64, Services in fd96::/64.
    V6,
}

impl Family {
    /// An address on the wire.
    #[must_use]
    pub fn host(self, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 77, 0, host).into(),
            Self::V6 => Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// An address that only Services have: nobody is there.
    #[must_use]
    pub fn service(self, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 96, 0, host).into(),
            Self::V6 => Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    pub(super) fn prefix(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}
