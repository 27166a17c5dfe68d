//! Judges a peer's certificate after the handshake: chain, time, and exactly one SPIFFE ID of our trust domain.
//!
//! The TLS library has then proved that the peer holds the key (see [`super::tls`]); whose key it is, is decided
//! here and nowhere else, so that a refusal has a name. Whether the identity is the *expected* one is the carrier's
//! question. Must run after every handshake, before a byte is believed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_api::identity::SpiffeId;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use super::Trust;

/// Why a peer is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It showed none.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// Its chain ends at no root that we trust, or a signature in it is false.
    #[error("the peer's certificate is of another authority than ours")]
    OtherAuthority,
    /// Its time is over.
    #[error("the peer's certificate expired at {0} (seconds since 1970)")]
    Expired(u64),
    /// Its time has not come, or our clock is behind.
    #[error("the peer's certificate is valid only from {0} (seconds since 1970): is a clock wrong?")]
    NotYetValid(u64),
    /// The authority is ours, the trust domain is not.
    #[error("the peer {0} is of another trust domain")]
    OtherTrustDomain(SpiffeId),
    /// Its names are not exactly one SPIFFE ID.
    #[error("the peer's certificate does not carry exactly one SPIFFE ID: {0}")]
    NotSpiffe(String),
    /// It cannot be read, or is not meant for this.
    #[error("the peer's certificate is not usable: {0}")]
    Unusable(String),
}

impl PeerError {
    /// One word, for metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NoCertificate => "NoCertificate",
            Self::OtherAuthority => "OtherAuthority",
            Self::Expired(_) => "Expired",
            Self::NotYetValid(_) => "NotYetValid",
            Self::OtherTrustDomain(_) => "OtherTrustDomain",
            Self::NotSpiffe(_) => "NotSpiffe",
            Self::Unusable(_) => "Unusable",
        }
    }
}

/// Who the peer is, from the certificates it showed (leaf first).
///
/// # Errors
/// [`PeerError`] says which check failed.
pub fn peer(
    certs: Option<&[CertificateDer<'_>]>,
    trust: &Trust,
    now: SystemTime,
) -> Result<SpiffeId, PeerError> {
    let [leaf, intermediates @ ..] = certs.unwrap_or_default() else {
        return Err(PeerError::NoCertificate);
    };
    let end_entity = webpki::EndEntityCert::try_from(leaf).map_err(refusal)?;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    // X.509-SVID (4.4): a leaf that limits its use names both server and client, so asking for one tells enough.
    let usage = webpki::KeyUsage::client_auth();
    end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            trust.anchors(),
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .map_err(refusal)?;
    let id = spiffe_id(leaf)?;
    if id.trust_domain() == trust.domain() { Ok(id) } else { Err(PeerError::OtherTrustDomain(id)) }
}

/// When a certificate expires.
pub(super) fn not_after(leaf: &CertificateDer<'_>) -> Result<SystemTime, PeerError> {
    let seconds = parse(leaf)?.validity().not_after.timestamp();
    Ok(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn parse<'a>(
    leaf: &'a CertificateDer<'_>,
) -> Result<x509_parser::certificate::X509Certificate<'a>, PeerError> {
    match x509_parser::certificate::X509Certificate::from_der(leaf) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(PeerError::Unusable(error.to_string())),
    }
}

/// The one name. X.509-SVID (2) asks for exactly one URI; our authority never writes a name of another kind beside
/// it, and a DNS name would let a workload pass for a server that is known by its DNS name.
fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    let certificate = parse(leaf)?;
    let names = certificate.subject_alternative_name().map_err(|e| PeerError::NotSpiffe(e.to_string()))?;
    match names.as_ref().map(|extension| &extension.value.general_names[..]) {
        Some([GeneralName::URI(uri)]) => uri.parse().map_err(|e| PeerError::NotSpiffe(format!("{e}"))),
        Some(names) if !names.is_empty() => Err(PeerError::NotSpiffe(format!("it names {names:?}"))),
        _ => Err(PeerError::NotSpiffe("it names nobody".to_owned())),
    }
}

fn refusal(error: webpki::Error) -> PeerError {
    match error {
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            PeerError::OtherAuthority
        }
        webpki::Error::CertExpired { not_after, .. } => PeerError::Expired(not_after.as_secs()),
        webpki::Error::CertNotValidYet { not_before, .. } => PeerError::NotYetValid(not_before.as_secs()),
        other => PeerError::Unusable(format!("{other:?}")),
    }
}
