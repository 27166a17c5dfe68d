//! Who this sidecar is: its key, its certificate and what it trusts, renewed while traffic flows.
//!
//! [`Identity`] publishes [`Credentials`] through arc-swap: a new connection takes the newest, a connection that is
//! up keeps what it began with. The private key is made here, lives in memory alone and is new for each certificate.
//! [`join`] obtains and renews, [`verify`] judges peers after every handshake, [`tls`] makes the TLS configurations,
//! [`control_plane`] connects to the control plane. Nothing here knows of requests or of the mesh's services.

pub mod backoff;
pub mod control_plane;
pub mod join;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub mod trust;
pub mod verify;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use heddle_api::identity::{PodName, SpiffeId};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

pub use control_plane::ControlPlaneConfig;
pub use trust::Trust;

use crate::store::Store;

/// Begins to be somebody: spawns, on the current runtime (the control runtime, never a worker's), the task that joins
/// and renews and the one that follows the discovery stream. Both wait for a control plane that is not there yet.
#[must_use]
pub fn start(config: ControlPlaneConfig) -> (Arc<Identity>, Arc<Store>) {
    warm_up();
    let identity = Arc::new(Identity::new());
    tokio::spawn(join::run(config.clone(), identity.clone()));
    let store = Store::start(config, identity.clone());
    (identity, store)
}

/// Draws the process's first random bytes: aws-lc seeds itself at the first draw, which takes 30 ms (more on a busy
/// machine) that no request should wait for. Later draws take a microsecond, a thread's first ten.
fn warm_up() {
    // Failing to be random here is no reason to stop: the handshakes will say so.
    if aws_lc_rs::rand::fill(&mut [0; 32]).is_err() {
        tracing::error!("the system gives no random bytes");
    }
}

/// The sidecar's certificate as it is at the moment. One, shared by all workers.
#[derive(Debug)]
pub struct Identity {
    current: ArcSwapOption<Credentials>,
    // Counts publications, for those who wait.
    changed: watch::Sender<u64>,
    // The trust bundle of the discovery stream. Once there is one it wins over what came with a certificate, since
    // it is the newer word. The lock orders the two tasks that publish; requests never take it.
    bundle: Mutex<Option<Arc<Trust>>>,
    problem: Mutex<Option<String>>,
    issued: AtomicU64,
    failed: AtomicU64,
}

impl Default for Identity {
    fn default() -> Self {
        Self::new()
    }
}

impl Identity {
    /// Nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
            bundle: Mutex::new(None),
            problem: Mutex::new(None),
            issued: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// The newest credentials; none before the first certificate.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.current.load_full()
    }

    /// Waits for the first certificate.
    pub async fn ready(&self) {
        self.wait_for(|_| true).await;
    }

    /// Waits until there is a certificate that has not expired.
    pub async fn usable(&self) -> Arc<Credentials> {
        self.wait_for(|credentials| credentials.not_after > SystemTime::now()).await
    }

    async fn wait_for(&self, enough: impl Fn(&Credentials) -> bool) -> Arc<Credentials> {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(credentials) = self.current()
                && enough(&credentials)
            {
                return credentials;
            }
            // The sender is in `self`, so it cannot be gone.
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Replaces the credentials.
    pub fn publish(&self, mut credentials: Credentials) {
        let bundle = self.bundle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trust) = bundle.as_ref().filter(|t| t.domain() == credentials.trust.domain()) {
            credentials.trust = trust.clone();
        }
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.issued.fetch_add(1, Ordering::Relaxed);
        self.current.store(Some(Arc::new(credentials)));
        self.changed.send_modify(|count| *count += 1);
    }

    /// Replaces what is trusted, from the next handshake on.
    pub fn trust(&self, trust: Arc<Trust>) {
        let mut bundle = self.bundle.lock().unwrap_or_else(PoisonError::into_inner);
        *bundle = Some(trust.clone());
        if let Some(credentials) = self.current() {
            self.current.store(Some(Arc::new(Credentials { trust, ..(*credentials).clone() })));
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Why there is no newer certificate, if the last attempt failed. For people.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Certificates that were asked for, ever: (got, in vain).
    #[must_use]
    pub fn requests(&self) -> (u64, u64) {
        (self.issued.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// An attempt was in vain.
    pub(crate) fn failed(&self, problem: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    }
}

/// One certificate with its key, and the trust that peers are judged by.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// This sidecar's identity, as its certificate says.
    pub id: SpiffeId,
    /// Its pod.
    pub pod: PodName,
    /// When the certificate expires.
    pub not_after: SystemTime,
    /// For connections to other sidecars.
    pub client: Arc<rustls::ClientConfig>,
    /// For connections from other sidecars.
    pub server: Arc<rustls::ServerConfig>,
    /// For [`verify::peer`], after every handshake.
    pub trust: Arc<Trust>,
    /// For connections to the control plane.
    pub(crate) key: Arc<CertifiedKey>,
}

/// Why a certificate cannot be used as one's own.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It would not be believed: a peer would refuse it for the same reason.
    #[error("the certificate that was issued is not one that peers would accept: {0}")]
    Certificate(#[from] verify::PeerError),
    /// Key and certificate do not belong together, or TLS cannot use them.
    #[error("TLS cannot use the certificate and its key: {0}")]
    Tls(#[from] rustls::Error),
}

impl Credentials {
    /// Checks a chain (leaf first) as a peer would, and makes the TLS configurations from it.
    ///
    /// # Errors
    /// When peers would refuse the chain, or key and chain do not belong together.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        pod: PodName,
        trust: Arc<Trust>,
    ) -> Result<Self, CredentialsError> {
        let id = verify::peer(Some(&chain), &trust, SystemTime::now())?;
        let not_after = verify::not_after(&chain[0])?;
        let key = Arc::new(CertifiedKey::from_der(chain, key, tls::provider())?);
        Ok(Self { id, pod, not_after, client: tls::client(&key)?, server: tls::server(&key)?, trust, key })
    }

    /// What is left of the certificate's life; zero when it has expired.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.not_after.duration_since(SystemTime::now()).unwrap_or_default()
    }
}
