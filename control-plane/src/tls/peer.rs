//! Reads who a verified client certificate is of. The chain and the time were checked by rustls before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_api::identity::{POD_ATTRIBUTE, PodName, SpiffeId};
use rustls_pki_types::CertificateDer;
use x509_parser::{
    der_parser::Oid,
    prelude::{FromDer as _, GeneralName, X509Certificate},
};

/// A workload, by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its identity.
    pub id: SpiffeId,
    /// Its pod.
    pub pod: PodName,
    /// Until when the certificate is good.
    pub not_after: SystemTime,
}

/// Why a certificate is no workload's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Not a certificate.
    #[error("the client certificate does not parse")]
    Malformed,
    /// SPIFFE X509-SVID, section 2: exactly one URI name. We allow no other name beside it.
    #[error("the client certificate must have exactly one name, a SPIFFE ID")]
    Names,
    /// Not the form of a workload's ID.
    #[error("the client certificate's name: {0}")]
    Id(String),
    /// Of another trust domain.
    #[error("the client certificate is of trust domain {0:?}")]
    TrustDomain(String),
    /// No pod in the subject, or one of another namespace.
    #[error("the client certificate's subject does not name a pod of its namespace")]
    Pod,
}

/// Reads the leaf of `chain`.
///
/// # Errors
/// When it is not a workload's leaf of `trust_domain`.
pub fn peer(chain: &[CertificateDer<'_>], trust_domain: &str) -> Result<Peer, PeerError> {
    let leaf = chain.first().ok_or(PeerError::Malformed)?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Malformed)?;
    let names = leaf.subject_alternative_name().map_err(|_| PeerError::Malformed)?.ok_or(PeerError::Names)?;
    let [GeneralName::URI(uri)] = names.value.general_names[..] else { return Err(PeerError::Names) };
    let id: SpiffeId =
        uri.parse().map_err(|error: heddle_api::identity::BadSpiffeId| PeerError::Id(error.to_string()))?;
    if id.trust_domain() != trust_domain {
        return Err(PeerError::TrustDomain(id.trust_domain().to_owned()));
    }
    let attribute = Oid::from(&POD_ATTRIBUTE).map_err(|_| PeerError::Pod)?;
    let mut pods = leaf.subject().iter_by_oid(&attribute);
    let (Some(pod), None) = (pods.next(), pods.next()) else { return Err(PeerError::Pod) };
    let pod: PodName = pod.as_str().ok().and_then(|text| text.parse().ok()).ok_or(PeerError::Pod)?;
    if pod.namespace != id.namespace() {
        return Err(PeerError::Pod);
    }
    let end = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
    Ok(Peer { id, pod, not_after: UNIX_EPOCH + Duration::from_secs(end) })
}
