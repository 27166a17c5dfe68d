//! The webhook's own certificate, made at start, and replaced at two thirds of its life and when the authority is. The
//! mesh's authority signs it: all replicas have the same root, so one `caBundle` is right for each of them, and a new
//! certificate needs no new bundle.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{ServerConfig, crypto::aws_lc_rs};

use crate::{
    ca::{Authority, CurrentAuthority},
    tls::TlsError,
};

/// After a failed rotation, until the next try.
const RETRY: Duration = Duration::from_secs(5);
/// How often the wall clock is looked at.
const STEP: Duration = Duration::from_secs(30);

/// The configuration, replaced while connections use the former one.
pub struct WebhookTls {
    authority: Arc<CurrentAuthority>,
    names: Vec<String>,
    config: ArcSwap<ServerConfig>,
}

impl WebhookTls {
    /// Issues the first certificate, for these DNS names. Returns when it must be replaced as well.
    ///
    /// # Errors
    /// When the authority cannot sign, or a name is none.
    pub fn new(
        authority: Arc<CurrentAuthority>,
        names: Vec<String>,
        now: SystemTime,
    ) -> Result<(Arc<Self>, SystemTime), TlsError> {
        let (config, due) = configure(&authority.load(), &names, now)?;
        Ok((Arc::new(Self { authority, names, config: ArcSwap::new(config) }), due))
    }

    /// The names under which the API server reaches a Service.
    #[must_use]
    pub fn names_of(service: &str, namespace: &str) -> Vec<String> {
        vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")]
    }

    /// The configuration for the next connection.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Replaces the certificate whenever it is due and when the authority is replaced, for ever.
    pub async fn rotate(self: Arc<Self>, mut due: SystemTime) {
        let mut changes = self.authority.changes();
        loop {
            // By the wall clock, in steps: a machine that was suspended wakes to what is due.
            let left = due.duration_since(SystemTime::now()).unwrap_or_default();
            if !left.is_zero() {
                // The sender is in `self`, so it does not go away.
                let changed = tokio::time::timeout(left.min(STEP), changes.changed()).await;
                if changed.is_err() {
                    continue;
                }
            }
            match configure(&self.authority.load(), &self.names, SystemTime::now()) {
                Ok((config, next)) => {
                    self.config.store(config);
                    due = next;
                    tracing::debug!("the webhook's certificate was replaced");
                }
                Err(error) => {
                    tracing::error!(%error, "the webhook's certificate could not be replaced; trying again in {RETRY:?}");
                    due = SystemTime::now() + RETRY;
                }
            }
        }
    }
}

fn configure(
    authority: &Authority,
    names: &[String],
    now: SystemTime,
) -> Result<(Arc<ServerConfig>, SystemTime), TlsError> {
    let (issued, key) = authority.serving_as("Heddle webhook", names, now)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(issued.chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let life = issued.not_after.duration_since(issued.not_before).unwrap_or_default();
    Ok((Arc::new(config), issued.not_before + life * 2 / 3))
}
