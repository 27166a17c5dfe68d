//! Puts the control plane together, starts it, and stops it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use heddle_api::SYSTEM_NAMESPACE;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc::{self, Sender},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin,
    ca::{Authority, CurrentAuthority, files},
    cluster::{Cluster, review::TokenReviewer, webhook},
    compile,
    discovery::{DiscoveryService, spread},
    hub::{self, Hub},
    identity::{IdentityService, Verifier},
    metrics::Metrics,
    object::Name,
    source::{self, Batch},
    tls::{self, serve::Server, serving::ServingTls},
    token::TokenAuthority,
};

/// The domain of Services' names.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// Batches that the source may be ahead.
const BATCHES: usize = 16;
/// A stop takes no longer than this.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What `run` is told on the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of keys and certificates; not used in a cluster, where they are in a Secret.
    pub state_dir: PathBuf,
    /// Where sidecars connect.
    pub listen: SocketAddr,
    /// Where operators look.
    pub admin_listen: SocketAddr,
    /// Life of a workload's certificate.
    pub certificate_lifetime: Duration,
    /// Trust domain.
    pub trust_domain: String,
    /// In a cluster, a new root signs once it has been trusted for so long.
    pub root_adopt_after: Duration,
}

/// A running control plane.
pub struct Running {
    /// Where sidecars connect.
    pub address: SocketAddr,
    /// Where operators look.
    pub admin_address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
    source: JoinHandle<anyhow::Result<()>>,
    cluster: Option<InCluster>,
    // Ends with `Running`.
    others: JoinSet<()>,
}

/// What a control plane in a cluster has besides.
struct InCluster {
    lease: JoinHandle<()>,
    webhook: JoinHandle<()>,
    webhook_address: SocketAddr,
    /// Its [`webhook::Options::grace`].
    grace: Duration,
}

/// Starts it with a directory of manifests as the source. Once this returns, both ports are open.
///
/// # Errors
/// When the manifests or the state directory cannot be used, or a port is taken.
pub async fn start(options: Options, manifests: PathBuf) -> anyhow::Result<Running> {
    if !manifests.is_dir() {
        return Err(anyhow!("--manifests {}: there is no such directory", manifests.display()));
    }
    let state = options.state_dir.clone();
    start_with(options, |batches| source::directory::run(manifests, state, batches)).await
}

/// Starts it with any source: a future that sends batches for as long as it lives.
///
/// # Errors
/// When the state directory cannot be used or a port is taken.
pub async fn start_with<F>(
    options: Options,
    source: impl FnOnce(Sender<Batch>) -> F,
) -> anyhow::Result<Running>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let now = SystemTime::now();
    files::state_dir(&options.state_dir)?;
    let authority =
        Authority::open(&options.state_dir, &options.trust_domain, options.certificate_lifetime, now)?;
    let tokens = TokenAuthority::open(&options.state_dir)?;
    let (tx, rx) = mpsc::channel(BATCHES);
    let prepared =
        Prepared::new(&options, CurrentAuthority::new(authority), Verifier::JoinToken(tokens)).await?;
    Ok(prepared.start(options, tokio::spawn(source(tx)), rx, JoinSet::new(), SYSTEM_NAMESPACE))
}

/// Starts it with a cluster as the source, and as what proves pods and holds the root. Once this returns, all three ports
/// are open.
///
/// # Errors
/// When a port is taken.
pub async fn start_in_cluster(
    options: Options,
    injection: webhook::Options,
    cluster: Cluster,
) -> anyhow::Result<Running> {
    // Before the root is waited for: a port that is taken is said at once.
    let listener = bind("--webhook-listen", injection.listen).await?;
    let (root, authority) =
        cluster.root(&options.trust_domain, options.certificate_lifetime, options.root_adopt_after).await;
    let verifier = Verifier::TokenReview(TokenReviewer::new(cluster.client.clone()));
    let prepared = Prepared::new(&options, Arc::clone(&authority), verifier).await?;
    let (tx, rx) = mpsc::channel(BATCHES);
    let grace = injection.grace;
    let opened = webhook::Opened::new(injection, listener, &authority, &cluster.namespace)?;
    let webhook_address = opened.address;
    let (ledger, namespace) = (Arc::default(), cluster.namespace.clone());
    let source = tokio::spawn(source::kubernetes::run(cluster.client.clone(), Arc::clone(&ledger), tx));
    let Prepared { hub, metrics, stop, .. } = &prepared;
    let client = cluster.client.clone();
    let (lease, mut tasks) =
        cluster.spawn(root, Arc::clone(&authority), Arc::clone(&ledger), hub, metrics, stop.clone());
    let webhook = opened.spawn(client, authority, ledger, Arc::clone(metrics), stop.clone(), &mut tasks);
    tracing::info!(address = %webhook_address, "the injector's webhook started");
    let cluster = Some(InCluster { lease, webhook, webhook_address, grace });
    Ok(Running { cluster, ..prepared.start(options, source, rx, tasks, &namespace) })
}

/// What both kinds of control plane have, its ports open.
struct Prepared {
    listener: TcpListener,
    admin_listener: TcpListener,
    authority: Arc<CurrentAuthority>,
    verifier: Verifier,
    tls: Arc<ServingTls>,
    due: SystemTime,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    address: SocketAddr,
    admin_address: SocketAddr,
}

impl Prepared {
    async fn new(
        options: &Options,
        authority: Arc<CurrentAuthority>,
        verifier: Verifier,
    ) -> anyhow::Result<Self> {
        let (tls, due) = tls::for_sidecars(Arc::clone(&authority), SystemTime::now())?;
        let listener = bind("--listen", options.listen).await?;
        let admin_listener = bind("--admin-listen", options.admin_listen).await?;
        let (address, admin_address) = (listener.local_addr()?, admin_listener.local_addr()?);
        let metrics = Metrics::new();
        let mesh = compile::Options {
            trust_domain: options.trust_domain.clone(),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
        };
        let hub = Hub::new(mesh, authority.load().roots(), Arc::clone(&metrics));
        let stop = CancellationToken::new();
        Ok(Self {
            listener,
            admin_listener,
            authority,
            verifier,
            tls,
            due,
            hub,
            metrics,
            stop,
            address,
            admin_address,
        })
    }

    fn start(
        self,
        options: Options,
        source: JoinHandle<anyhow::Result<()>>,
        batches: mpsc::Receiver<Batch>,
        mut others: JoinSet<()>,
        namespace: &str,
    ) -> Running {
        let Self { hub, metrics, stop, tls, address, admin_address, .. } = self;
        others.spawn(hub::run(Arc::clone(&hub), batches));
        others.spawn(Arc::clone(&tls).rotate(self.due));
        let service = Name::new(namespace, spread::SERVICE);
        others.spawn(spread::run(Arc::clone(&hub), service, Arc::clone(&metrics)));
        others.spawn(admin::run(self.admin_listener, Arc::clone(&hub), Arc::clone(&metrics), stop.clone()));

        let discovery = DiscoveryService::new(Arc::clone(&hub), Arc::clone(&metrics), stop.clone());
        let identity = IdentityService::new(hub, self.authority, self.verifier, Arc::clone(&metrics));
        let server = Server::new(tls, options.trust_domain, discovery, identity, metrics, stop.clone());
        let server = tokio::spawn(server.run(self.listener));
        tracing::info!(%address, admin = %admin_address, "control plane started");
        Running { address, admin_address, stop, server, source, cluster: None, others }
    }
}

impl Running {
    /// Waits for SIGTERM or SIGINT, then stops in good order: streams are ended with a word, connections with GOAWAY.
    ///
    /// # Errors
    /// When the source or the server ended by itself.
    pub async fn until_signalled(mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            ended = &mut self.source => {
                return Err(match ended {
                    Ok(Ok(())) => anyhow!("the source of objects ended"),
                    Ok(Err(error)) => error.context("the source of objects failed"),
                    Err(error) => anyhow!(error).context("the source of objects failed"),
                });
            }
            ended = &mut self.server => return Err(anyhow!("the server ended: {ended:?}")),
        }
        self.stop().await;
        Ok(())
    }

    /// Where the API server asks about pods; none without a cluster.
    #[must_use]
    pub fn webhook_address(&self) -> Option<SocketAddr> {
        self.cluster.as_ref().map(|cluster| cluster.webhook_address)
    }

    /// Stops in good order, within [`STOP_TIMEOUT`]; in a cluster after the webhook's grace.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.source.abort();
        if tokio::time::timeout(STOP_TIMEOUT, self.server).await.is_err() {
            tracing::warn!("connections did not end within {STOP_TIMEOUT:?}");
        }
        if let Some(InCluster { lease, webhook, grace, .. }) = self.cluster.take() {
            // Given back, so that another replica leads at once.
            if tokio::time::timeout(STOP_TIMEOUT, lease).await.is_err() {
                tracing::warn!("the lease was not given back within {STOP_TIMEOUT:?}");
            }
            if tokio::time::timeout(grace + STOP_TIMEOUT, webhook).await.is_err() {
                tracing::warn!("the webhook's connections did not end within {STOP_TIMEOUT:?}");
            }
        }
        self.others.shutdown().await;
    }
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow!("{flag} {address}: the address is in use; is another control plane running? Give another {flag}")
        }
        _ => anyhow!("{flag} {address}: {error}"),
    })
}
