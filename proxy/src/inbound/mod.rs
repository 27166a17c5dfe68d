//! From outside into the pod: [`mesh`] serves port 15008 (mTLS from other sidecars), [`plaintext`] port 15006.
//!
//! The way of a request: the port's own file finds out which of the pod's ports is meant, [`door`] asks policy and
//! hands over to the application, [`record`] tells of it when it has ended. Nothing here knows routes, and nothing
//! but the pod's own addresses is ever dialled.

mod body;
mod door;
pub mod mesh;
pub mod plaintext;
mod record;

use std::time::Duration;

/// Of bytes that are not looked into. Callers have a shorter one (TrafficPolicy); this bounds what they forgot.
const TCP_IDLE: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod testing;
