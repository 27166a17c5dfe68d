//! What needs a cluster: a real API server, `kube-apiserver` and `etcd` in the directory `KUBEBUILDER_ASSETS` (the convention
//! of Kubernetes' controller tests), or the cluster of the kubeconfig in `HEDDLE_TEST_KUBECONFIG`. Where neither is set every
//! test that needs one says so and does nothing.

mod chart;
mod checkup;
#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "these tests need only a part of it")]
mod client;
mod definitions;
mod follow;
mod health;
mod hints;
mod identity;
mod injection;
mod quick_start;
mod replica;
mod rotation;
mod server;
mod spread;
mod status;
mod world {
    //! What `client` takes from its own tests.

    /// Whatever a test waits for comes within this, or the test fails.
    pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
}
