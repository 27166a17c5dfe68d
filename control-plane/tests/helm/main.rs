//! The chart `charts/heddle` through Helm's own engine (`helm-python-sdk`, installed below `target/`), and against an API
//! server where `KUBEBUILDER_ASSETS` names one. No kubelet runs: what is installed is objects, and the control plane of these
//! tests runs in their process, with the rights of the chart's ServiceAccount.

#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "these tests need only a part of it")]
mod client;
mod engine;
mod install;
mod render;
#[path = "../kubernetes/server.rs"]
#[allow(dead_code, reason = "these tests need only a part of it")]
mod server;
mod world {
    //! What `client` and `server` take from their own tests.

    /// Whatever a test waits for comes within this, or the test fails.
    pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
}
