//! TLS of port 15010: our own serving certificate, rotated in place, and clients' certificates checked against the
//! roots. A client may come without one; [`Caller`] is how a method demands it.

pub mod peer;
pub mod serve;
pub mod serving;
pub(crate) mod share;

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tonic::Status;

use self::{
    peer::Peer,
    serving::{ServingTls, due},
};
use crate::{
    ca::{Authority, CaError, CurrentAuthority},
    metrics::{Metrics, Refused},
};

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No serving certificate.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// rustls refuses a root or the certificate.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// rustls refuses the roots.
    #[error("TLS client verification: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Issues the first serving certificate of port 15010. Returns when it must be replaced as well.
///
/// # Errors
/// When the authority cannot sign or rustls refuses its roots.
pub fn for_sidecars(
    authority: Arc<CurrentAuthority>,
    now: SystemTime,
) -> Result<(Arc<ServingTls>, SystemTime), TlsError> {
    ServingTls::new(authority, "the serving certificate", now, configure)
}

/// TLS 1.3, HTTP/2, no resumption: a resumed session would pass by the verification of the client's certificate.
fn configure(authority: &Authority, now: SystemTime) -> Result<(Arc<ServerConfig>, SystemTime), TlsError> {
    let mut roots = RootCertStore::empty();
    for root in authority.roots() {
        roots.add(root.clone())?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()?;
    let (issued, key) = authority.serving(now)?;
    let due = due(&issued);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(issued.chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((Arc::new(config), due))
}

/// Who is at the other end of the connection that a request came on.
#[derive(Clone, Debug)]
pub struct Caller {
    /// From where.
    pub address: SocketAddr,
    /// With which certificate, if any.
    pub peer: Option<Peer>,
}

impl Caller {
    /// Of a request that [`serve`] let in.
    ///
    /// # Errors
    /// None in service: every request gets its caller there.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Status::internal("a request without its connection"))
    }

    /// The client certificate, which must be there and still good: a connection may outlive it.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when it is not; that is counted.
    pub fn identified(&self, metrics: &Metrics) -> Result<&Peer, Status> {
        let Some(peer) = &self.peer else {
            metrics.refused(Refused::NoClientCertificate);
            return Err(Status::unauthenticated("this needs a client certificate: Join with a token first"));
        };
        if peer.not_after <= SystemTime::now() {
            metrics.refused(Refused::ClientCertificate);
            return Err(Status::unauthenticated(
                "the client certificate of this connection has expired: connect anew with the current one",
            ));
        }
        Ok(peer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn caller(not_after: SystemTime) -> Caller {
        let id = heddle_api::identity::SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let peer = Peer { id, pod: "shop/web-0".parse().unwrap(), not_after };
        Caller { address: ([127, 0, 0, 1], 1).into(), peer: Some(peer) }
    }

    #[test]
    fn a_connection_that_outlives_its_client_certificate_proves_nothing_any_more() {
        let (now, metrics) = (SystemTime::now(), Metrics::new());
        assert!(caller(now + Duration::from_secs(60)).identified(&metrics).is_ok());
        let status = caller(now - Duration::from_secs(1)).identified(&metrics).unwrap_err();
        assert!(status.message().contains("expired"), "{status}");
        let nobody = Caller { peer: None, ..caller(now) };
        assert_eq!(nobody.identified(&metrics).unwrap_err().code(), tonic::Code::Unauthenticated);
    }

    #[test]
    fn the_serving_certificate_is_replaced_before_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (life, now) = (Duration::from_secs(3600), SystemTime::now());
        let authority = Authority::open(dir.path(), "cluster.local", life, now).unwrap();
        let (_, due) = for_sidecars(CurrentAuthority::new(authority), now).unwrap();
        assert!(due > now + life / 2 && due < now + life * 3 / 4);
    }
}
