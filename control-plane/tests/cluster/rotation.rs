//! The root in its Secret is replaced step by step while pods join and connect all along, knowing the control plane by
//! the roots that their kubelet brought them a moment ago.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    client::{connect, join},
    identity::{bundle, token},
    replica::start_that_adopts_after,
    server::{SYSTEM, Server, pod, wait},
};

/// What `--root-adopt-after` says here; three minutes by default.
const ADOPT_AFTER: Duration = Duration::from_secs(4);
/// What the kubelet takes to bring a changed ConfigMap into a pod, less than that.
const KUBELET: Duration = Duration::from_secs(1);

/// Whether the certificate was signed with this root's key.
fn signed_by(leaf: &CertificateDer<'_>, root: &str) -> bool {
    let root = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
    let [leaf, root] = [leaf, &root].map(|der| X509Certificate::from_der(der).unwrap().1);
    leaf.verify_signature(Some(root.public_key())).is_ok()
}

async fn write(server: &Server, (root, key): (&str, &str), trusted: &str) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "heddle-root", "namespace": SYSTEM},
        "stringData": {"tls.crt": root, "tls.key": key, "ca.crt": trusted}});
    server.apply(&secret.to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_root_is_trusted_first_and_signs_when_its_time_has_come_and_no_handshake_fails() {
    let Some(server) = Server::start().await else { return };
    server.define_all().await;
    server.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}}").await;
    let uid = server.apply(&pod("web-0", "web", "10.244.0.1", "n1")).await.metadata.uid.unwrap();
    let fresh = || heddle_control_plane::ca::fresh_root("cluster.local", SystemTime::now()).unwrap();
    let ((old, old_key), (new, new_key)) = (fresh(), fresh());
    write(&server, (&old, &old_key), &old).await;
    let running = start_that_adopts_after(server.cluster("a"), ADOPT_AFTER).await;
    let address = running.address;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, wait("the roots", async || bundle(&server, "shop").await).await).unwrap();
    let own = token(&server, "web", Some(("web-0", &uid)), "heddle.dev").await;
    let first =
        wait("the first certificate", async || join(address, &ca, &own, "shop/web-0").await.ok()).await;
    assert!(signed_by(&first.chain[0], &old));

    // Pods that join, and connect with what they got, one after the other.
    let over = Arc::new(AtomicBool::new(false));
    let joining = tokio::spawn({
        let (over, ca, own) = (Arc::clone(&over), ca.clone(), own.clone());
        async move {
            let (mut leafs, mut former) = (Vec::new(), first);
            while !over.load(Ordering::Relaxed) {
                let leaf =
                    join(address, &ca, &own, "shop/web-0").await.expect("a handshake, and a certificate");
                for leaf in [&leaf, &former] {
                    drop(connect(address, &ca, Some(leaf)).await.expect("a handshake with a certificate"));
                }
                leafs.push(leaf.chain[0].clone());
                former = leaf;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            leafs
        }
    });
    // The kubelet of these pods.
    let brings = async |roots: usize| {
        let text = wait("the bundle", async || {
            bundle(&server, "shop").await.filter(|text| text.matches("BEGIN CERTIFICATE").count() == roots)
        })
        .await;
        tokio::time::sleep(KUBELET).await;
        let beside = dir.path().join("next");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, &ca).unwrap();
    };

    let both = format!("{old}{new}");
    write(&server, (&old, &old_key), &both).await;
    brings(2).await;
    write(&server, (&new, &new_key), &both).await;
    wait("a certificate under the new root", async || {
        let leaf = join(address, &ca, &own, "shop/web-0").await.unwrap();
        signed_by(&leaf.chain[0], &new).then_some(())
    })
    .await;
    // The old one is taken out while certificates under it live: it stays trusted.
    write(&server, (&new, &new_key), &new).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    brings(2).await;
    over.store(true, Ordering::Relaxed);
    let leafs = joining.await.unwrap();

    let switched = leafs.iter().position(|leaf| signed_by(leaf, &new)).expect("some under the new root");
    println!("{} pods joined without a failed handshake, {switched} of them under the old root", leafs.len());
    assert!(switched > 5 && leafs.len() > switched + 5, "{switched} of {}", leafs.len());
    assert!(leafs[switched..].iter().all(|leaf| signed_by(leaf, &new)), "and never back");
    running.stop().await;
}
