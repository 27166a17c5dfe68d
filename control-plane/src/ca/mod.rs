//! The certificate authority: a root in the state directory, and the leafs it signs.
//!
//! What a leaf says comes from the caller of this module, never from the CSR, of which only the public key is taken
//! (`csr`). Who may have which identity is decided elsewhere (`identity`).
//!
//! The state directory holds `ca.pem` (the roots; readable by everyone) and `ca-key.pem` (the key of one of them;
//! mode 0600). `ca.pem` may hold several certificates: all are trusted and handed out, and the one that belongs to the
//! key signs. So a root is rotated by appending the new certificate, later replacing the key, later removing the old, with
//! a restart after each step, which sidecars do not notice.

pub mod csr;
pub mod files;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;

use heddle_api::identity::{CONTROL_PLANE_DNS_NAME, POD_ATTRIBUTE, PodName, SpiffeId};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The roots, PEM, in the state directory (contract: users give this file to sidecars).
pub const ROOTS_FILE: &str = "ca.pem";
/// The signing key, PEM, in the state directory.
pub const KEY_FILE: &str = "ca-key.pem";

/// The longest life of a leaf.
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest life of a leaf: certificates count in seconds, and a renewal must fit in.
pub const MIN_LIFETIME: Duration = Duration::from_secs(3);
/// A root's life: ten years.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How far a leaf's beginning lies in the past at most, so that a peer whose clock is behind takes it at once.
const MAX_BACKDATE: Duration = Duration::from_secs(60);
/// Roots in `ca.pem` at most; two are enough to rotate.
const MAX_ROOTS: usize = 8;

/// Why the authority could not start or sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the state directory could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// A file of the state directory holds something else than it should.
    #[error("{path}: {problem}")]
    Content {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The CSR cannot be signed.
    #[error("the certificate request cannot be used: {0}")]
    Csr(#[from] csr::CsrError),
    /// The root's own time is over.
    #[error(
        "the root in {ROOTS_FILE} has expired: append a new root to it and put that one's key into {KEY_FILE}"
    )]
    RootExpired,
    /// The cryptographic library refused.
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
}

/// A signed leaf.
#[derive(Debug)]
pub struct Issued {
    /// Leaf first, DER, then what lies between it and the root, which is not in it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Beginning, whole seconds.
    pub not_before: SystemTime,
    /// End, whole seconds.
    pub not_after: SystemTime,
}

/// The authority of one trust domain.
#[derive(Clone, Debug)]
pub struct Authority {
    issuer: Arc<Issuer<'static, KeyPair>>,
    /// Between leafs and root; empty where the root itself signs.
    intermediates: Vec<CertificateDer<'static>>,
    /// When the signing certificate ends.
    root_not_after: SystemTime,
    roots: Vec<CertificateDer<'static>>,
    trust_domain: String,
    lifetime: Duration,
}

impl Authority {
    /// Opens the authority in `dir`, and makes it there first where there is none.
    ///
    /// Safe against being killed at any moment and against a second process doing the same: the key comes first, each
    /// file appears whole or not at all, and whoever loses the race uses the winner's.
    ///
    /// # Errors
    /// When a file cannot be read or written, does not parse, or belongs to another trust domain.
    pub fn open(
        dir: &Path,
        trust_domain: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let (roots_path, key_path) = (dir.join(ROOTS_FILE), dir.join(KEY_FILE));
        if roots_path.exists() && !key_path.exists() {
            let problem =
                format!("there is {ROOTS_FILE} but not its key: restore it, or remove both for a new root");
            return Err(CaError::Content { path: key_path, problem });
        }
        let key = files::key(&key_path)?;
        if !roots_path.exists() {
            let root = self_signed(&key, trust_domain, now)?;
            files::create_once(&roots_path, 0o644, root.as_bytes())
                .map_err(|source| CaError::File { path: roots_path.clone(), source })?;
        }
        let content = |problem| CaError::Content { path: roots_path.clone(), problem };
        let roots = CertificateDer::pem_file_iter(&roots_path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| content(format!("not PEM certificates: {error}")))?;
        if roots.len() > MAX_ROOTS {
            return Err(content(format!("{} certificates; at most {MAX_ROOTS} are taken", roots.len())));
        }
        let (root, root_not_after) = signing_root(&roots, &key, trust_domain).map_err(content)?;
        let issuer = Arc::new(Issuer::from_ca_cert_der(root, key)?);
        let trust_domain = trust_domain.to_owned();
        Ok(Self { issuer, intermediates: Vec::new(), root_not_after, roots, trust_domain, lifetime })
    }

    /// Makes the authority of what a Secret holds, all PEM: the signing certificate and what is between it and its root
    /// (`chain`, `tls.crt`), its key (`tls.key`, PKCS#8 or SEC 1), and the roots (`bundle`, `ca.crt`). This is how
    /// cert-manager lays out the Secret of a CA certificate; there the chain may be the root itself.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        bundle: &[u8],
        trust_domain: &str,
        lifetime: Duration,
    ) -> Result<Self, String> {
        let certificates = |field: &str, pem: &[u8]| {
            let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
            let all = all.map_err(|error| format!("{field} has no PEM certificates: {error}"))?;
            if all.is_empty() { Err(format!("{field} has no PEM certificate")) } else { Ok(all) }
        };
        let (mut intermediates, roots) = (certificates("tls.crt", chain)?, certificates("ca.crt", bundle)?);
        if roots.len() > MAX_ROOTS {
            return Err(format!("ca.crt has {} certificates; at most {MAX_ROOTS} are taken", roots.len()));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("tls.key: {error}"))?;
        let key = KeyPair::try_from(&key).map_err(|error| format!("tls.key: {error}"))?;
        let (root, root_not_after) = if let Ok(found) = signing_root(&roots, &key, trust_domain) {
            intermediates.clear();
            found
        } else {
            let (signing, mut end) = signing_root(&intermediates[..1], &key, trust_domain)
                .map_err(|_| "tls.key belongs neither to the first certificate of tls.crt nor to one of ca.crt, or they are not of an authority of this trust domain".to_owned())?;
            let last = intermediates.last().unwrap_or(signing);
            let top = roots.iter().find(|root| issued_by(last, root));
            let top = top.ok_or_else(|| no_issuer(last, &roots))?;
            for certificate in intermediates.iter().chain([top]) {
                let (_, parsed) =
                    X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
                end = end.min(end_of(&parsed));
            }
            (signing, end)
        };
        let issuer = Issuer::from_ca_cert_der(root, key).map_err(|error| error.to_string())?;
        let (issuer, trust_domain) = (Arc::new(issuer), trust_domain.to_owned());
        Ok(Self { issuer, intermediates, root_not_after, roots, trust_domain, lifetime })
    }

    /// The same that trusts and hands out other roots.
    #[must_use]
    pub fn with_roots(&self, roots: Vec<CertificateDer<'static>>) -> Self {
        Self { roots, ..self.clone() }
    }

    /// When the signing certificate, or what is above it, ends.
    #[must_use]
    pub const fn not_after(&self) -> SystemTime {
        self.root_not_after
    }

    /// How long its leafs live.
    #[must_use]
    pub const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// The roots of these to which what it signs chains.
    #[must_use]
    pub fn signs_under<'a>(&self, roots: &'a [CertificateDer<'static>]) -> Vec<&'a CertificateDer<'static>> {
        let public = self.issuer.key().subject_public_key_info();
        let under = |root: &&CertificateDer<'static>| match self.intermediates.last() {
            Some(last) => issued_by(last, root),
            None => {
                X509Certificate::from_der(root).is_ok_and(|(_, parsed)| parsed.public_key().raw == public)
            }
        };
        roots.iter().filter(under).collect()
    }

    /// The trust bundle.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Signs a workload's leaf: one URI name, `id`; the pod in the subject; the key of the CSR.
    ///
    /// # Errors
    /// When the CSR is unusable or the root has expired.
    pub fn workload(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        pod: &PodName,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let key = csr::public_key(csr)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CustomDnType(POD_ATTRIBUTE.to_vec()), pod.to_string());
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.leaf(params, &key, now)
    }

    /// Signs a serving certificate of the control plane for a fresh key: its one name is
    /// [`CONTROL_PLANE_DNS_NAME`], and it is good for serving alone.
    ///
    /// # Errors
    /// When the root has expired.
    pub fn serving(&self, now: SystemTime) -> Result<(Issued, PrivateKeyDer<'static>), CaError> {
        self.serving_as("Heddle control plane", &[CONTROL_PLANE_DNS_NAME.to_owned()], now)
    }

    /// Signs a certificate for a fresh key that is good for serving these DNS names alone. Sidecars take the control
    /// plane for who it is by [`CONTROL_PLANE_DNS_NAME`], so nothing else may have that one.
    ///
    /// # Errors
    /// When the root has expired or a name is none.
    pub fn serving_as(
        &self,
        common_name: &str,
        names: &[String],
        now: SystemTime,
    ) -> Result<(Issued, PrivateKeyDer<'static>), CaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let issued = self.leaf(params, &key, now)?;
        Ok((issued, key.into()))
    }

    /// What is common to all leafs. The backdating is part of the life, so none outlives [`MAX_LIFETIME`].
    fn leaf(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let now = whole_seconds(now);
        let not_before = now - whole(MAX_BACKDATE.min(self.lifetime / 10));
        let not_after = (not_before + whole(self.lifetime)).min(self.root_not_after);
        if not_after <= now {
            return Err(CaError::RootExpired);
        }
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        let leaf = params.signed_by(key, &self.issuer)?;
        let chain = std::iter::once(leaf.into()).chain(self.intermediates.iter().cloned()).collect();
        Ok(Issued { chain, not_before, not_after })
    }
}

/// The authority that signs now; replaced when the root rotates.
#[derive(Debug)]
pub struct CurrentAuthority {
    authority: ArcSwap<Authority>,
    changed: tokio::sync::watch::Sender<()>,
}

impl CurrentAuthority {
    /// Begins with one.
    #[must_use]
    pub fn new(authority: Authority) -> Arc<Self> {
        let changed = tokio::sync::watch::Sender::new(());
        Arc::new(Self { authority: ArcSwap::from_pointee(authority), changed })
    }

    /// The one that signs now.
    #[must_use]
    pub fn load(&self) -> Arc<Authority> {
        self.authority.load_full()
    }

    /// Replaces it.
    pub fn replace(&self, authority: Authority) {
        self.authority.store(Arc::new(authority));
        self.changed.send_replace(());
    }

    /// Tells when it is replaced.
    #[must_use]
    pub fn changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// A fresh root of a trust domain and its key, both PEM.
///
/// # Errors
/// When the cryptographic library refuses.
pub fn fresh_root(trust_domain: &str, now: SystemTime) -> Result<(String, String), CaError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    Ok((self_signed(&key, trust_domain, now)?, key.serialize_pem()))
}

/// By name and by signature: a root that was made anew often has the name of the one before.
fn issued_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let parse = |der| X509Certificate::from_der(der).map(|(_, parsed)| parsed);
    let (Ok(certificate), Ok(issuer)) = (parse(certificate), parse(issuer)) else { return false };
    let key = &issuer.public_key().subject_public_key.data;
    let (signed, signature) = (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data);
    // All that sidecars know, of which only the right one finds the signature good.
    let mut algorithms =
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all.iter();
    certificate.issuer() == issuer.subject()
        && algorithms.any(|algorithm| algorithm.verify_signature(key, signed, signature).is_ok())
}

/// Why none of `roots` is the issuer of the last certificate of a chain.
fn no_issuer(last: &CertificateDer<'_>, roots: &[CertificateDer<'_>]) -> String {
    let Ok((_, last)) = X509Certificate::from_der(last) else {
        return "the last certificate of tls.crt does not parse".to_owned();
    };
    let issuer = last.issuer();
    let is_namesake =
        |root| X509Certificate::from_der(root).is_ok_and(|(_, parsed)| parsed.subject() == issuer);
    if roots.iter().any(|root| is_namesake(root)) {
        format!(
            "the certificate {issuer} of ca.crt did not sign the last one of tls.crt, which another key of that name \
             signed: put that one's certificate into ca.crt"
        )
    } else {
        format!("no certificate of ca.crt is {issuer}, the issuer of the last one of tls.crt")
    }
}

fn end_of(certificate: &X509Certificate<'_>) -> SystemTime {
    let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(end)
}

/// Makes a root, PEM. Its URI name is the trust domain (SPIFFE X509-SVID, section 2), so that a state directory is not
/// used for another one by mistake.
fn self_signed(key: &KeyPair, trust_domain: &str, now: SystemTime) -> Result<String, CaError> {
    let mut params = CertificateParams::default();
    let begin = whole_seconds(now) - MAX_BACKDATE;
    params.not_before = begin.into();
    params.not_after = (begin + ROOT_LIFETIME).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "Heddle root");
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    Ok(params.self_signed(key)?.pem())
}

/// The root that belongs to `key`, and its end; all roots are checked on the way.
fn signing_root<'a>(
    roots: &'a [CertificateDer<'static>],
    key: &KeyPair,
    trust_domain: &str,
) -> Result<(&'a CertificateDer<'static>, SystemTime), String> {
    let public = key.subject_public_key_info();
    let mut signing = None;
    for (index, root) in roots.iter().enumerate() {
        let number = index + 1;
        let (_, parsed) = X509Certificate::from_der(root)
            .map_err(|error| format!("certificate {number} does not parse: {error}"))?;
        if !parsed.is_ca() {
            return Err(format!("certificate {number} is not of an authority (basic constraints)"));
        }
        if parsed.public_key().raw != public {
            continue;
        }
        let expected = format!("spiffe://{trust_domain}");
        if let Some(other) = uri_names(&parsed).find(|name| *name != expected) {
            return Err(format!("the root is of {other}, not {expected}: give --trust-domain as before"));
        }
        signing = Some((root, end_of(&parsed)));
    }
    signing
        .ok_or_else(|| format!("none of its {} certificates belongs to the key in {KEY_FILE}", roots.len()))
}

fn uri_names<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a str> {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.into_iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    })
}

/// A random serial number: 127 bits, positive (RFC 5280, section 4.1.2.2).
fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    bytes[0] &= 0x7f;
    bytes[15] |= 1;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Certificates count in seconds (RFC 5280, section 4.1.2.5).
fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + whole(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn whole(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs())
}

#[cfg(test)]
mod tests;
