//! A replica of the control plane, in the test's process.

use std::time::Duration;

use heddle_control_plane::{
    cluster::{Cluster, webhook},
    inject,
    run::{self, Options, Running},
};

use crate::server::Server;

/// One that may do everything.
pub(crate) async fn start(server: &Server, instance: &str) -> Running {
    start_in(server.cluster(instance)).await
}

/// One that may do what this view of the cluster may.
pub(crate) async fn start_in(cluster: Cluster) -> Running {
    start_that_adopts_after(cluster, Duration::from_secs(180)).await
}

/// The same; a new root signs once it has been trusted for so long.
pub(crate) async fn start_that_adopts_after(cluster: Cluster, root_adopt_after: Duration) -> Running {
    let options = Options {
        state_dir: "/nowhere".into(),
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: ([127, 0, 0, 1], 0).into(),
        certificate_lifetime: Duration::from_secs(3600),
        root_adopt_after,
        trust_domain: "cluster.local".to_owned(),
    };
    let injection = webhook::Options {
        listen: ([127, 0, 0, 1], 0).into(),
        service: "heddle-injector".to_owned(),
        grace: Duration::ZERO,
        settings: inject::Settings::default(),
    };
    run::start_in_cluster(options, injection, cluster).await.unwrap()
}
