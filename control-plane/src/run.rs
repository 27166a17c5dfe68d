//! Puts the control plane together, starts it, and stops it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc::{self, Sender},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin,
    ca::{Authority, files},
    compile,
    discovery::DiscoveryService,
    hub::{self, Hub},
    identity::IdentityService,
    metrics::Metrics,
    source::{self, Batch},
    tls::{ServingTls, serve::Server},
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
    /// Directory of keys and certificates.
    pub state_dir: PathBuf,
    /// Where sidecars connect.
    pub listen: SocketAddr,
    /// Where operators look.
    pub admin_listen: SocketAddr,
    /// Life of a workload's certificate.
    pub certificate_lifetime: Duration,
    /// Trust domain.
    pub trust_domain: String,
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
    // Ends with `Running`.
    _others: JoinSet<()>,
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
    let authority = Arc::new(authority);
    let tokens = TokenAuthority::open(&options.state_dir)?;
    let (tls, due) = ServingTls::new(Arc::clone(&authority), now)?;
    let listener = bind("--listen", options.listen).await?;
    let admin_listener = bind("--admin-listen", options.admin_listen).await?;
    let (address, admin_address) = (listener.local_addr()?, admin_listener.local_addr()?);

    let metrics = Metrics::new();
    let stop = CancellationToken::new();
    let mesh = compile::Options {
        trust_domain: options.trust_domain.clone(),
        cluster_domain: CLUSTER_DOMAIN.to_owned(),
    };
    let hub = Hub::new(mesh, authority.roots(), Arc::clone(&metrics));
    let (tx, rx) = mpsc::channel(BATCHES);
    let source = tokio::spawn(source(tx));
    let mut others = JoinSet::new();
    others.spawn(hub::run(Arc::clone(&hub), rx));
    others.spawn(Arc::clone(&tls).rotate(due));
    others.spawn(admin::run(admin_listener, Arc::clone(&hub), Arc::clone(&metrics), stop.clone()));

    let discovery = DiscoveryService::new(Arc::clone(&hub), Arc::clone(&metrics), stop.clone());
    let identity = IdentityService::new(hub, authority, tokens, Arc::clone(&metrics));
    let server = Server::new(tls, options.trust_domain, discovery, identity, metrics, stop.clone());
    let server = tokio::spawn(server.run(listener));
    tracing::info!(%address, admin = %admin_address, "control plane started");
    Ok(Running { address, admin_address, stop, server, source, _others: others })
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

    /// Stops in good order, within [`STOP_TIMEOUT`].
    pub async fn stop(self) {
        self.stop.cancel();
        self.source.abort();
        if tokio::time::timeout(STOP_TIMEOUT, self.server).await.is_err() {
            tracing::warn!("connections did not end within {STOP_TIMEOUT:?}");
        }
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
