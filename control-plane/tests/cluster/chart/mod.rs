//! The chart `charts/heddle` through Helm's own engine (`helm-python-sdk`, installed below `target/`), and in a cluster. No
//! kubelet runs: what is installed is objects, and the control plane of these tests runs in their process, with the rights of
//! the chart's ServiceAccount.

mod engine;
mod install;
mod render;

pub(crate) use self::engine::Engine;
