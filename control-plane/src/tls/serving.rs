//! A serving side's TLS configuration, which is replaced at two thirds of its certificate's life and when the authority is.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use super::TlsError;
use crate::ca::{Authority, CurrentAuthority, Issued};

/// After a failed rotation, until the next try.
const RETRY: Duration = Duration::from_secs(5);
/// How often the wall clock is looked at.
const STEP: Duration = Duration::from_secs(30);

/// Makes a configuration of what the authority is now, and says when it must be replaced.
type Make = dyn Fn(&Authority, SystemTime) -> Result<(Arc<ServerConfig>, SystemTime), TlsError> + Send + Sync;

/// The configuration, replaced while connections use the former one.
pub struct ServingTls {
    authority: Arc<CurrentAuthority>,
    /// Whose certificate it is, for the log.
    whose: &'static str,
    make: Box<Make>,
    config: ArcSwap<ServerConfig>,
}

impl ServingTls {
    /// Makes the first configuration. Returns when it must be replaced as well.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn new(
        authority: Arc<CurrentAuthority>,
        whose: &'static str,
        now: SystemTime,
        make: impl Fn(&Authority, SystemTime) -> Result<(Arc<ServerConfig>, SystemTime), TlsError>
        + Send
        + Sync
        + 'static,
    ) -> Result<(Arc<Self>, SystemTime), TlsError> {
        let (config, due) = make(&authority.load(), now)?;
        let tls = Self { authority, whose, make: Box::new(make), config: ArcSwap::new(config) };
        Ok((Arc::new(tls), due))
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
            match (self.make)(&self.authority.load(), SystemTime::now()) {
                Ok((config, next)) => {
                    self.config.store(config);
                    due = next;
                    tracing::debug!("{} was replaced", self.whose);
                }
                Err(error) => {
                    tracing::error!(%error, "{} could not be replaced; trying again in {RETRY:?}", self.whose);
                    due = SystemTime::now() + RETRY;
                }
            }
        }
    }
}

/// When a certificate must be replaced: at two thirds of its life.
#[must_use]
pub fn due(issued: &Issued) -> SystemTime {
    let life = issued.not_after.duration_since(issued.not_before).unwrap_or_default();
    issued.not_before + life * 2 / 3
}
