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
    time::{Duration, SystemTime, UNIX_EPOCH},
};

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
    /// Leaf first, DER. The root is not in it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Beginning, whole seconds.
    pub not_before: SystemTime,
    /// End, whole seconds.
    pub not_after: SystemTime,
}

/// The authority of one trust domain.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
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
        let issuer = Issuer::from_ca_cert_der(root, key)?;
        Ok(Self { issuer, root_not_after, roots, trust_domain: trust_domain.to_owned(), lifetime })
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
        Ok(Issued { chain: vec![leaf.into()], not_before, not_after })
    }
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
        let end = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        signing = Some((root, UNIX_EPOCH + Duration::from_secs(end)));
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
