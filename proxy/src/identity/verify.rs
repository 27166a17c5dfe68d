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
    #[error("the peer's certificate expired at {}", humantime::format_rfc3339_seconds(*.0))]
    Expired(SystemTime),
    /// Its time has not come, or our clock is behind.
    #[error("the peer's certificate is valid only from {}: is a clock wrong?", humantime::format_rfc3339_seconds(*.0))]
    NotYetValid(SystemTime),
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
    let time = |time: UnixTime| UNIX_EPOCH + Duration::from_secs(time.as_secs());
    match error {
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            PeerError::OtherAuthority
        }
        webpki::Error::CertExpired { not_after, .. } => PeerError::Expired(time(not_after)),
        webpki::Error::CertNotValidYet { not_before, .. } => PeerError::NotYetValid(time(not_before)),
        other => PeerError::Unusable(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{ExtendedKeyUsagePurpose, SanType};

    use super::*;
    use crate::identity::testing::{Authority, HOUR};

    const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().unwrap())
    }

    fn word(result: Result<SpiffeId, PeerError>) -> String {
        result.map_or_else(|e| e.as_str().to_owned(), |id| id.to_string())
    }

    #[test]
    fn exactly_the_certificates_of_our_mesh_are_believed() {
        let ours = Authority::new("cluster.local");
        let foreign = Authority::new("cluster.local");
        let trust = ours.trust();
        let now = SystemTime::now();
        let judge = |authority: &Authority, names: Vec<SanType>| {
            word(peer(Some(&[authority.leaf(names, now - HOUR, now + HOUR).0]), &trust, now))
        };
        let cases = [
            ("a good one", judge(&ours, vec![uri(ID)]), ID),
            ("another authority of the same name", judge(&foreign, vec![uri(ID)]), "OtherAuthority"),
            (
                "two URIs",
                judge(&ours, vec![uri(ID), uri("spiffe://cluster.local/ns/shop/sa/root")]),
                "NotSpiffe",
            ),
            ("the same URI twice", judge(&ours, vec![uri(ID), uri(ID)]), "NotSpiffe"),
            ("a DNS name beside", judge(&ours, vec![uri(ID), dns("bank.example")]), "NotSpiffe"),
            ("a DNS name alone", judge(&ours, vec![dns("control-plane.heddle.internal")]), "NotSpiffe"),
            (
                "an address beside",
                judge(&ours, vec![SanType::IpAddress([127, 0, 0, 1].into()), uri(ID)]),
                "NotSpiffe",
            ),
            ("no name", judge(&ours, vec![]), "NotSpiffe"),
            ("not a SPIFFE ID", judge(&ours, vec![uri("https://cluster.local/ns/shop/sa/web")]), "NotSpiffe"),
            (
                "a SPIFFE ID that is no workload's",
                judge(&ours, vec![uri("spiffe://cluster.local")]),
                "NotSpiffe",
            ),
            (
                "another trust domain",
                judge(&ours, vec![uri("spiffe://other.example/ns/shop/sa/web")]),
                "OtherTrustDomain",
            ),
        ];
        for (what, got, expected) in cases {
            assert_eq!(got, expected, "{what}");
        }
    }

    #[test]
    fn a_certificate_counts_from_its_first_to_its_last_second() {
        let ours = Authority::new("cluster.local");
        let now = SystemTime::now();
        let leaf = [ours.leaf(vec![uri(ID)], now, now + HOUR).0];
        let at = |time| word(peer(Some(&leaf), &ours.trust(), time));
        assert_eq!(at(now - HOUR), "NotYetValid");
        assert_eq!(at(now + HOUR / 2), ID);
        assert_eq!(at(now + 2 * HOUR), "Expired");
        let late = peer(Some(&leaf), &ours.trust(), UNIX_EPOCH + 1_000_000 * HOUR).unwrap_err().to_string();
        let expiry = humantime::format_rfc3339_seconds(now + HOUR).to_string();
        assert!(late.ends_with(&expiry), "{late:?} and not {expiry}");
    }

    #[test]
    fn no_certificate_and_no_sense_are_told_apart() {
        let trust = Authority::new("cluster.local").trust();
        let now = SystemTime::now();
        assert_eq!(peer(None, &trust, now), Err(PeerError::NoCertificate));
        assert_eq!(peer(Some(&[]), &trust, now), Err(PeerError::NoCertificate));
        let garbage = [CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])];
        assert_eq!(word(peer(Some(&garbage), &trust, now)), "Unusable");
    }

    #[test]
    fn an_authority_is_no_workload() {
        let ours = Authority::new("cluster.local");
        assert_eq!(word(peer(Some(&[ours.root()]), &ours.trust(), SystemTime::now())), "Unusable");
    }

    #[test]
    fn a_workload_cannot_sign_for_others() {
        let ours = Authority::new("cluster.local");
        let now = SystemTime::now();
        let (leaf, forged) = ours.forged_by_a_leaf(vec![uri(ID)]);
        assert_eq!(word(peer(Some(&[forged, leaf]), &ours.trust(), now)), "Unusable");
    }

    #[test]
    fn a_certificate_made_for_something_else_is_not_usable() {
        let ours = Authority::new("cluster.local");
        let leaf = ours.leaf_for(vec![uri(ID)], vec![ExtendedKeyUsagePurpose::CodeSigning]);
        assert_eq!(word(peer(Some(&[leaf]), &ours.trust(), SystemTime::now())), "Unusable");
    }

    #[test]
    fn while_roots_rotate_both_count() {
        let (old, new) = (Authority::new("cluster.local"), Authority::new("cluster.local"));
        let both = Trust::new("cluster.local", &[old.root(), new.root()]).unwrap();
        let now = SystemTime::now();
        for authority in [old, new] {
            assert_eq!(
                word(peer(Some(&[authority.leaf(vec![uri(ID)], now - HOUR, now + HOUR).0]), &both, now)),
                ID
            );
        }
    }

    #[test]
    fn a_certificate_in_which_any_byte_was_changed_is_not_believed() {
        let ours = Authority::new("cluster.local");
        let (trust, now) = (ours.trust(), SystemTime::now());
        let good = ours.leaf(vec![uri(ID)], now - HOUR, now + HOUR).0;
        for index in 0..good.len() {
            let mut bytes = good.to_vec();
            bytes[index] ^= 1;
            let result = peer(Some(&[bytes.into()]), &trust, now);
            assert!(result.is_err(), "byte {index}: {result:?}");
        }
    }
}
