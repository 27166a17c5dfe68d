//! The benchmarks behind `cargo bench-mesh`: real processes on loopback, peers in the same topology and the same run.
//!
//! [`data_plane`] measures pairs of proxies under load. Figures that others are compared by are CPU time per request,
//! which survives a noisy machine, and ratios within one round, never a figure of one run beside a figure of another.

pub mod data_plane;
pub mod stats;
