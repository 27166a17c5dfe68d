//! What a control plane in a cluster does beside following objects: it proves pods by [`review`], keeps the [`root`] in
//! a Secret, elects one replica by a [`lease`], has that one write [`status`], and serves the injector's [`webhook`]. What it
//! asks of the API server for all this is listed in [`rights`].

pub mod lease;
mod publish;
pub mod review;
pub mod rights;
pub mod root;
pub mod status;
pub mod trust;
pub mod webhook;

use std::{sync::Arc, time::Duration};

use kube::{Client, Config};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use self::root::Root;
use crate::{ca::CurrentAuthority, hub::Hub, metrics::Metrics, source::kubernetes::ledger::Ledger};

/// A watch without a word for so long is begun anew from where it was. The API server sends a bookmark each minute.
const SILENCE: Duration = Duration::from_secs(100);
/// After a root that could not be read.
const RETRY: Duration = Duration::from_secs(2);

/// A connection to the cluster's API server.
#[derive(Clone)]
pub struct Cluster {
    /// Speaks to the API server.
    pub client: Client,
    /// The control plane's namespace.
    pub namespace: String,
    /// This replica's name.
    pub instance: String,
}

impl Cluster {
    /// The cluster that this process runs in, or the one that `KUBECONFIG` names.
    ///
    /// # Errors
    /// When neither is there.
    pub async fn infer() -> anyhow::Result<Self> {
        let config = Config::infer().await.map_err(|error| {
            anyhow::anyhow!("not in a cluster ({error}): give --manifests DIR, or a KUBECONFIG")
        })?;
        Self::of(config)
    }

    /// The cluster of a configuration.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn of(mut config: Config) -> anyhow::Result<Self> {
        config.read_timeout = Some(SILENCE);
        let namespace = config.default_namespace.clone();
        let instance = std::env::var("HOSTNAME").unwrap_or_default();
        let instance = if instance.is_empty() { "heddle-control-plane".to_owned() } else { instance };
        // Two processes on one machine are two replicas.
        let instance = format!("{instance}-{}", std::process::id());
        Ok(Self { client: Client::try_from(config)?, namespace, instance })
    }

    /// The root, waited for as long as it takes: a control plane without one is of no use, and one that gives up only
    /// starts again.
    pub(crate) async fn root(
        &self,
        trust_domain: &str,
        lifetime: Duration,
        adopt_after: Duration,
    ) -> (Root, Arc<CurrentAuthority>) {
        loop {
            let settings = root::Settings {
                client: self.client.clone(),
                namespace: self.namespace.clone(),
                trust_domain: trust_domain.to_owned(),
                lifetime,
                adopt_after,
            };
            match Root::open(settings).await {
                Ok(opened) => return opened,
                Err(error) => tracing::error!("no root yet: {error:#}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Starts what runs beside the source. What comes back ends once the lease is given back.
    pub(crate) fn spawn(
        self,
        root: Root,
        authority: Arc<CurrentAuthority>,
        ledger: Arc<Ledger>,
        hub: &Arc<Hub>,
        metrics: &Arc<Metrics>,
        stop: CancellationToken,
    ) -> (JoinHandle<()>, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let (leading, leads) = watch::channel(false);
        let (problem, problems) = watch::channel(None);
        let lease = {
            let Self { client, namespace, instance } = self.clone();
            async move { lease::run(client, &namespace, instance, leading, stop).await }
        };
        let lease = tokio::spawn(lease);
        let (hub, metrics) = (Arc::clone(hub), Arc::clone(metrics));
        tasks.spawn(root.follow(
            Arc::clone(&authority),
            Arc::clone(&hub),
            Arc::clone(&ledger),
            Arc::clone(&metrics),
            problem,
            leads.clone(),
        ));
        tasks.spawn(status::Writer::new(self, hub, ledger, authority, problems, metrics).run(leads));
        (lease, tasks)
    }
}
