//! Benchmarks: what the mesh costs, measured from outside on its real programs.

pub mod control_plane;
