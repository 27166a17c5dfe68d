//! The public key of a certificate request, once the request has proven that its sender holds the private one.
//! Nothing else of it is looked at: names and extensions that it asks for are without effect.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

/// The longest request that is read, in bytes; one with a P-256 key has some 200.
const MAX_BYTES: usize = 8192;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Longer than any real one.
    #[error("it has {0} bytes; at most {MAX_BYTES} are read")]
    TooLong(usize),
    /// Not DER of RFC 2986.
    #[error("it is not a PKCS#10 request in DER")]
    Malformed,
    /// The self-signature does not fit the key in it.
    #[error("its signature does not verify with the key in it")]
    Signature,
    /// Another kind of key.
    #[error("its key is not ECDSA P-256")]
    Algorithm,
}

/// Checks the self-signature and takes the key.
///
/// # Errors
/// When the request is no request, its signature does not verify, or the key is not ECDSA P-256.
pub fn public_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, CsrError> {
    if csr.len() > MAX_BYTES {
        return Err(CsrError::TooLong(csr.len()));
    }
    let (rest, request) = X509CertificationRequest::from_der(csr).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
        .map_err(|_| CsrError::Algorithm)?;
    if rcgen::PublicKeyData::algorithm(&key) != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(CsrError::Algorithm);
    }
    request.verify_signature().map_err(|_| CsrError::Signature)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn request(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn the_key_of_a_good_request_is_taken() {
        let key = KeyPair::generate().unwrap();
        let taken = public_key(&request(&key)).unwrap();
        assert_eq!(rcgen::PublicKeyData::der_bytes(&taken), key.public_key_raw());
    }

    #[test]
    fn a_request_that_was_changed_after_signing_is_refused() {
        let key = KeyPair::generate().unwrap();
        let mut csr = request(&key);
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert_eq!(public_key(&csr).unwrap_err(), CsrError::Signature);
    }

    #[test]
    fn another_kind_of_key_is_refused() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(public_key(&request(&key)).unwrap_err(), CsrError::Algorithm);
    }

    #[test]
    fn what_is_no_request_or_has_something_behind_it_is_refused() {
        let mut csr = request(&KeyPair::generate().unwrap());
        csr.push(0);
        assert_eq!(public_key(&csr).unwrap_err(), CsrError::Malformed);
        assert_eq!(public_key(b"hello").unwrap_err(), CsrError::Malformed);
        assert_eq!(public_key(&[0; MAX_BYTES + 1]).unwrap_err(), CsrError::TooLong(MAX_BYTES + 1));
    }
}
