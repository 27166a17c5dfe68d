//! From the wire's messages to the sidecar's config: every field is checked here, once.
//!
//! Absent fields mean what the comments in `resources.proto` say, and so do numbers of an enum that only a newer control
//! plane knows: nothing is lost of the rest. A match or a filter of an unknown kind has no safe meaning; it refuses what
//! it is part of, and the last good one stays.

mod destination;
mod endpoints;
mod error;
mod filter;
mod inbound;
mod policy;

#[cfg(test)]
mod skew_tests;
#[cfg(test)]
mod tests;

pub use destination::destination;
pub use endpoints::endpoints;
pub use error::ConvertError;
pub(crate) use error::{Within, each};
pub use inbound::inbound;

use heddle_api::v1;

use super::AppProtocol;

/// A number as an enum of the protocol; one that this version does not know counts as `otherwise`.
fn enumeration<E: TryFrom<i32>>(number: i32, otherwise: E) -> E {
    E::try_from(number).unwrap_or(otherwise)
}

/// A port from 1 to 65535.
fn port(field: &str, number: u32) -> Result<u16, ConvertError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(ConvertError::new(field, format!("{number} is not a port from 1 to 65535"))),
    }
}

fn protocol(number: i32) -> AppProtocol {
    match enumeration(number, v1::AppProtocol::Unspecified) {
        v1::AppProtocol::Unspecified => AppProtocol::Detect,
        v1::AppProtocol::Http => AppProtocol::Http,
        v1::AppProtocol::Http1 => AppProtocol::Http1,
        v1::AppProtocol::Http2 => AppProtocol::Http2,
        v1::AppProtocol::Opaque => AppProtocol::Opaque,
    }
}
