//! The control plane as a sidecar meets it: a real server on loopback, a real gRPC client over TLS.

mod api;
mod client;
mod cluster;
mod discovery;
mod effect;
mod hostile;
mod identity;
mod restart;
mod spread;
mod webhook;
mod world;
