//! Certificates for the peers that have no control plane to ask: one authority and one leaf that both proxies show, ECDSA
//! P-256 as Heddle's are.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// The name in the leaf.
const NAME: &str = "bench";

/// Writes `ca.pem`, `cert.pem`, `key.pem`, and `both.pem` with the last two in one.
///
/// # Errors
/// When the disk refuses.
pub fn write(directory: &Path) -> anyhow::Result<()> {
    let mut authority = CertificateParams::default();
    // A name of its own: OpenSSL's kin take a leaf with its issuer's name for self-signed.
    authority.distinguished_name.push(DnType::CommonName, "benchmark authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new([NAME.to_owned()])?;
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = leaf.signed_by(&key, &authority)?;
    std::fs::create_dir_all(directory)?;
    std::fs::write(directory.join("ca.pem"), authority.pem())?;
    std::fs::write(directory.join("cert.pem"), leaf.pem())?;
    std::fs::write(directory.join("key.pem"), key.serialize_pem())?;
    std::fs::write(directory.join("both.pem"), leaf.pem() + &key.serialize_pem())?;
    Ok(())
}
