//! The trust bundle: whose certificates count. Several roots, so that they rotate without a gap.

use rustls_pki_types::{CertificateDer, TrustAnchor};

/// A trust domain and its roots.
#[derive(Debug)]
pub struct Trust {
    domain: String,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// Why a list of roots is no trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTrust {
    /// Nothing would be trusted.
    #[error("the trust bundle of {domain} has no roots")]
    Empty {
        /// The trust domain.
        domain: String,
    },
    /// One of them is not a certificate.
    #[error("root {index} of the trust bundle of {domain} is not a usable certificate: {source}")]
    Root {
        /// The trust domain.
        domain: String,
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong with it.
        source: webpki::Error,
    },
}

impl Trust {
    /// Reads the roots (DER).
    ///
    /// # Errors
    /// When there is none, or one is not a certificate: half a bundle would refuse peers for no reason that shows.
    pub fn new<R: AsRef<[u8]>>(domain: &str, roots: &[R]) -> Result<Self, BadTrust> {
        if roots.is_empty() {
            return Err(BadTrust::Empty { domain: domain.to_owned() });
        }
        let roots: Vec<_> = roots.iter().map(|der| CertificateDer::from(der.as_ref().to_vec())).collect();
        let anchor = |(index, root)| {
            webpki::anchor_from_trusted_cert(root)
                .map(|anchor| anchor.to_owned())
                .map_err(|source| BadTrust::Root { domain: domain.to_owned(), index, source })
        };
        let anchors = roots.iter().enumerate().map(anchor).collect::<Result<_, _>>()?;
        Ok(Self { domain: domain.to_owned(), roots, anchors })
    }

    /// The trust domain, without scheme.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The roots as they came.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}
