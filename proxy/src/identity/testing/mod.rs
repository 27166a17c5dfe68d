//! For tests: a certificate authority in memory, and credentials of its making.

pub(crate) mod control_plane;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_api::identity::PodName;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Credentials, Trust};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// The certificate authority of one trust domain.
pub(crate) struct Authority {
    domain: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Two of one domain have the same name and different keys.
    pub(crate) fn new(domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { domain: domain.to_owned(), issuer }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub(crate) fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn trust(&self) -> Arc<Trust> {
        Arc::new(Trust::new(&self.domain, &[self.root()]).unwrap())
    }

    pub(crate) fn leaf(
        &self,
        names: Vec<SanType>,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        (leaf.der().clone(), private(&key))
    }

    /// A leaf of limited use.
    pub(crate) fn leaf_for(
        &self,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.extended_key_usages = usages;
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
    }

    /// A leaf, and another that was signed with the first one's key.
    pub(crate) fn forged_by_a_leaf(
        &self,
        names: Vec<SanType>,
    ) -> (CertificateDer<'static>, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names.clone_from(&names);
        params.distinguished_name.push(DnType::CommonName, "a workload");
        let leaf = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let forged = params.signed_by(&KeyPair::generate().unwrap(), &leaf).unwrap();
        (leaf.der().clone(), forged.der().clone())
    }

    /// Credentials of `id` that live for an hour.
    pub(crate) fn credentials(&self, id: &str) -> Credentials {
        let now = SystemTime::now();
        let (leaf, key) = self.leaf(vec![SanType::URI(id.try_into().unwrap())], now - HOUR, now + HOUR);
        Credentials::new(vec![leaf], key, pod(), self.trust()).unwrap()
    }

    /// Signs a request as the control plane does: nothing but the key is taken from it.
    pub(crate) fn certify(
        &self,
        csr: &[u8],
        names: Vec<SanType>,
        lifetime: Duration,
    ) -> CertificateDer<'static> {
        let mut request = rcgen::CertificateSigningRequestParams::from_der(&csr.to_vec().into()).unwrap();
        request.params = CertificateParams::default();
        request.params.subject_alt_names = names;
        request.params.not_before = (SystemTime::now() - Duration::from_secs(1)).into();
        request.params.not_after = (SystemTime::now() + lifetime).into();
        request.signed_by(&self.issuer).unwrap().der().clone()
    }
}

pub(crate) fn pod() -> PodName {
    "shop/web-0".parse().unwrap()
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}
