//! What the admin pages ask of the rest of the sidecar.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use heddle_api::identity::SpiffeId;

use crate::config::Inbound;
use crate::identity::Identity;
use crate::store::{Lookup, Status, Store};

/// What the sidecar knows at the moment. Reading it marks nothing as used.
pub trait Live: fmt::Debug + Send + Sync {
    /// The names that the application used, and where they lead.
    fn names(&self) -> Vec<(String, Lookup)>;
    /// The pod's own side.
    fn inbound(&self) -> Option<Arc<Inbound>>;
    /// How discovery fares.
    fn discovery(&self) -> Status;
    /// The certificate in use.
    fn certificate(&self) -> Option<CertificateFacts>;
    /// Why there is no newer one, if the last attempt failed.
    fn certificate_problem(&self) -> Option<String>;
    /// Certificates that were asked for, ever: (got, in vain).
    fn certificate_requests(&self) -> (u64, u64);
}

/// What may be told of a certificate.
#[derive(Clone, Debug)]
pub struct CertificateFacts {
    /// Whom it names.
    pub identity: SpiffeId,
    /// When it expires.
    pub not_after: SystemTime,
    /// How many roots are trusted.
    pub roots: usize,
}

/// The running sidecar.
#[derive(Clone, Debug)]
pub struct Running {
    /// What it holds of the mesh.
    pub store: Arc<Store>,
    /// Who it is.
    pub identity: Arc<Identity>,
}

impl Live for Running {
    fn names(&self) -> Vec<(String, Lookup)> {
        self.store.names().iter().map(|slot| (slot.name().to_owned(), slot.peek())).collect()
    }

    fn inbound(&self) -> Option<Arc<Inbound>> {
        self.store.inbound()
    }

    fn discovery(&self) -> Status {
        self.store.status()
    }

    fn certificate(&self) -> Option<CertificateFacts> {
        let credentials = self.identity.current()?;
        Some(CertificateFacts {
            identity: credentials.id.clone(),
            not_after: credentials.not_after,
            roots: credentials.trust.roots().len(),
        })
    }

    fn certificate_problem(&self) -> Option<String> {
        self.identity.problem()
    }

    fn certificate_requests(&self) -> (u64, u64) {
        self.identity.requests()
    }
}
