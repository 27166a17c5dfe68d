//! What the authority promises of its root and its leafs.

use heddle_api::identity::{PodName, SpiffeId};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, SanType};

use super::*;
use crate::tls::peer::{Peer, peer};

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn open(dir: &Path, lifetime: Duration) -> Authority {
    Authority::open(dir, "cluster.local", lifetime, now()).unwrap()
}

fn web() -> (SpiffeId, PodName) {
    (SpiffeId::new("cluster.local", "shop", "web").unwrap(), "shop/web-0".parse().unwrap())
}

fn csr(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new(vec![CONTROL_PLANE_DNS_NAME.to_owned()]).unwrap();
    params
        .subject_alt_names
        .push(SanType::URI("spiffe://cluster.local/ns/bank/sa/vault".try_into().unwrap()));
    params.distinguished_name.push(DnType::CommonName, "bank/vault-0");
    params.serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn the_root_is_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), MAX_LIFETIME).roots().to_vec();
    assert_eq!(open(dir.path(), MAX_LIFETIME).roots(), first);
}

#[test]
fn being_killed_between_key_and_certificate_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let key = files::key(&dir.path().join(KEY_FILE)).unwrap();
    let authority = open(dir.path(), MAX_LIFETIME);
    let (_, root) = X509Certificate::from_der(&authority.roots()[0]).unwrap();
    assert_eq!(root.public_key().raw, key.subject_public_key_info());
}

#[test]
fn a_leaf_says_what_the_authority_was_told_and_nothing_that_the_request_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (id, pod) = web();
    let issued = open(dir.path(), MAX_LIFETIME)
        .workload(&csr(&KeyPair::generate().unwrap()), &id, &pod, now())
        .unwrap();
    assert_eq!(peer(&issued.chain, "cluster.local").unwrap(), Peer { id, pod, not_after: issued.not_after });
}

#[test]
fn a_leaf_begins_a_little_in_the_past_and_never_lives_longer_than_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let (id, pod) = web();
    for (seconds, backdate) in [(10, 1), (3600, 60), (24 * 3600, 60)] {
        let lifetime = Duration::from_secs(seconds);
        let issued = open(dir.path(), lifetime)
            .workload(&csr(&KeyPair::generate().unwrap()), &id, &pod, now())
            .unwrap();
        assert_eq!(issued.not_before, now() - Duration::from_secs(backdate));
        assert_eq!(issued.not_after.duration_since(issued.not_before).unwrap(), lifetime);
    }
}

#[test]
fn no_leaf_outlives_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path(), MAX_LIFETIME);
    let (id, pod) = web();
    let request = csr(&KeyPair::generate().unwrap());
    let late = now() + ROOT_LIFETIME - Duration::from_secs(3600);
    let issued = authority.workload(&request, &id, &pod, late).unwrap();
    assert_eq!(issued.not_after, now() - MAX_BACKDATE + ROOT_LIFETIME);
    let after = authority.workload(&request, &id, &pod, now() + ROOT_LIFETIME);
    assert!(matches!(after, Err(CaError::RootExpired)));
}

#[test]
fn a_state_directory_of_another_trust_domain_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), MAX_LIFETIME);
    let error = Authority::open(dir.path(), "other.example", MAX_LIFETIME, now()).unwrap_err().to_string();
    assert!(error.contains("spiffe://cluster.local") && error.contains("--trust-domain"), "{error}");
}

#[test]
fn a_certificate_without_its_key_is_not_replaced_but_named() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), MAX_LIFETIME);
    std::fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
    let error = Authority::open(dir.path(), "cluster.local", MAX_LIFETIME, now()).unwrap_err().to_string();
    assert!(error.contains(KEY_FILE) && error.contains("restore"), "{error}");
}

#[test]
fn a_second_root_is_trusted_and_the_keys_own_one_signs() {
    let (old_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open(old_dir.path(), MAX_LIFETIME);
    open(dir.path(), MAX_LIFETIME);
    let [old, new] =
        [&old_dir, &dir].map(|dir| std::fs::read_to_string(dir.path().join(ROOTS_FILE)).unwrap());
    std::fs::write(dir.path().join(ROOTS_FILE), old + &new).unwrap();
    let authority = open(dir.path(), MAX_LIFETIME);
    assert_eq!(authority.roots().len(), 2);
    let (issued, _) = authority.serving(now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let (_, root) = X509Certificate::from_der(&authority.roots()[1]).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
}

#[test]
fn the_control_planes_own_certificate_is_no_workload_and_no_client() {
    let dir = tempfile::tempdir().unwrap();
    let (issued, _) = open(dir.path(), MAX_LIFETIME).serving(now()).unwrap();
    assert!(peer(&issued.chain, "cluster.local").is_err());
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
}

/// An authority's certificate, PEM, and who signs with it.
fn authority(
    name: &str,
    key: KeyPair,
    above: Option<&Issuer<'static, KeyPair>>,
) -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let signed = match above {
        Some(issuer) => params.signed_by(&key, issuer),
        None => params.self_signed(&key),
    };
    (signed.unwrap().pem(), Issuer::new(params, key))
}

#[test]
fn an_intermediate_that_a_namesake_of_the_root_signed_is_refused() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ECDSA_P521_SHA512] {
        let key = || KeyPair::generate_for(algorithm).unwrap();
        let (old, _) = authority("Company root", key(), None);
        let (new, root) = authority("Company root", key(), None);
        let (other, _) = authority("Another root", key(), None);
        let (chain, signing) = authority("Mesh", key(), Some(&root));
        let open = |bundle: &str| {
            let key = signing.key().serialize_pem();
            let pem = [chain.as_bytes(), key.as_bytes(), bundle.as_bytes()];
            Authority::from_pem(pem[0], pem[1], pem[2], "cluster.local", MAX_LIFETIME)
        };
        let error = open(&old).unwrap_err();
        assert!(error.contains("CN=Company root") && error.contains("did not sign"), "{error}");
        assert!(open(&other).unwrap_err().contains("CN=Company root"));
        let both = open(&(old + &new)).unwrap();
        assert_eq!(both.signs_under(both.roots()), [&both.roots()[1]]);
    }
}
