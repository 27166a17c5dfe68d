//! The benchmarks behind `cargo bench-mesh`: real processes on loopback, measured from outside.
//!
//! [`data_plane`] measures pairs of proxies under load, beside peers in the same topology and the same run. Figures that
//! others are compared by are CPU time per request, which survives a noisy machine, and ratios within one round, never a
//! figure of one run beside a figure of another. [`control_plane`] measures what a mesh costs its control plane, which
//! simulated sidecars ask.

pub mod control_plane;
pub mod data_plane;
pub mod stats;
