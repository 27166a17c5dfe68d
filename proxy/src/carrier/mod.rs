//! The one carrier between sidecars: HTTP/2 streams (the `h2` crate at both ends) over mutual TLS.
//!
//! [`Pool`] is the calling side, one per worker; [`server`] the answering side of one accepted connection.
//! A connection can be made before it is needed ([`Pool::connect_ahead`], [`Pool::ask_ahead`]).
//! A request is a stream ([`Pool::send`]), opaque TCP is a CONNECT stream ([`Pool::tunnel`]), an HTTP/1 upgrade is an
//! extended CONNECT stream ([`Pool::upgrade`]). What a connection is for stands in its TLS server name and who is at
//! its ends in the certificates, so no header says either. It knows nothing of routes, policies or retries.
//!
//! A stream must not hurt its neighbours: [`settings`] holds the windows and limits that see to it, with the sum of
//! the memory they allow, and [`meter`](crate::meter) the limits by rate that `h2` does not have.

pub mod ahead;
mod body;
mod connection;
pub mod copy;
mod corked;
mod dial;
mod keeper;
mod peer;
mod pool;
mod pump;
pub mod server;
pub mod settings;
pub mod tunnel;
pub mod upgrade;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use body::CarrierBody;
pub use copy::{both_ways, both_ways_until};
pub use peer::{Peer, SendError, Sent};
pub use pool::Pool;
pub use pump::{respond, unless_reset};
pub use tunnel::Tunnel;
pub use upgrade::Upgraded;
