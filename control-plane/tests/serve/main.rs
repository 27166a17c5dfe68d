//! The control plane as a sidecar meets it: a real server on loopback, a real gRPC client over TLS.

mod client;
mod discovery;
mod effect;
mod hostile;
mod identity;
mod restart;
mod spread;
mod world;
