//! The harness of the end-to-end tests and of the demo: a whole mesh of real processes on loopback.
//!
//! A [`World`] is one small mesh: a directory of manifests, a control plane, and pods, each with its own
//! 127.x.y.z address, its own sidecar process and an application that is scripted in this process or a real
//! program. Everything a World starts ends with it, also when the test panics or is killed. Worlds share nothing,
//! so tests run in parallel. Nothing here knows how the mesh works inside: it types what users type.
//!
//! | variable | meaning |
//! |---|---|
//! | `HEDDLE_BIN_DIR` | where finished binaries are; without it they are built, see [`binaries`] |
//! | `HEDDLE_KEEP` | set: a failed test keeps its directory and says where |
//! | `HEDDLE_SOAK_SECONDS`, `HEDDLE_SOAK_RATE` | length and requests a second of the soak; 15 and 2000 |

pub mod app;
pub mod bench;
pub mod binaries;
pub mod block;
pub mod client;
pub mod echo;
pub mod latency;
pub mod load;
pub mod manifest;
pub mod metrics;
pub mod middleman;
pub mod netns;
pub mod peer;
pub mod process;
pub mod program;
pub mod python;
pub mod wait;
pub mod world;

pub use wait::eventually;
pub use world::{Pod, World};
