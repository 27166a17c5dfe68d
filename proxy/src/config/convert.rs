//! From the wire's messages to the sidecar's config: every field is checked here, once.
//!
//! Absent fields mean what the comments in `resources.proto` say. A number of an enum that this version does not
//! know is refused, but for an access action, which denies everything.

mod destination;
mod endpoints;
mod error;
mod filter;
mod inbound;
mod policy;

#[cfg(test)]
mod tests;

pub use destination::destination;
pub use endpoints::endpoints;
pub use error::ConvertError;
pub(crate) use error::{Within, each};
pub use inbound::inbound;

use heddle_api::v1;

use super::AppProtocol;

/// A number as an enum of the protocol.
fn enumeration<E: TryFrom<i32>>(field: &str, number: i32) -> Result<E, ConvertError> {
    E::try_from(number)
        .map_err(|_| ConvertError::new(field, format!("{number} is a value that this version does not know")))
}

/// A port from 1 to 65535.
fn port(field: &str, number: u32) -> Result<u16, ConvertError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(ConvertError::new(field, format!("{number} is not a port from 1 to 65535"))),
    }
}

fn protocol(number: i32) -> Result<AppProtocol, ConvertError> {
    Ok(match enumeration("protocol", number)? {
        v1::AppProtocol::Unspecified => AppProtocol::Detect,
        v1::AppProtocol::Http => AppProtocol::Http,
        v1::AppProtocol::Http1 => AppProtocol::Http1,
        v1::AppProtocol::Http2 => AppProtocol::Http2,
        v1::AppProtocol::Opaque => AppProtocol::Opaque,
    })
}
