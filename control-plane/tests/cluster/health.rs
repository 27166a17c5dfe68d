//! How the root fares, as a condition of the control plane's Deployment.

use std::time::{Duration, SystemTime};

use heddle_control_plane::cluster::status::health::CONDITION;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use serde_json::Value;

use crate::{
    replica::start,
    server::{SYSTEM, Server, wait},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const DEPLOYMENT: &str = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: heddle-control-plane, namespace: heddle-system}, \
    spec: {selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {containers: [{name: a, image: none}]}}}, \
    status: {conditions: [{type: Available, status: 'True', reason: MinimumReplicasAvailable}]}}";

/// A root that a user brings, which ends after so long.
fn secret(left: Duration) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + left).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local".try_into().unwrap())];
    let root = params.self_signed(&key).unwrap().pem();
    secret_of(&root, &key.serialize_pem())
}

fn secret_of(root: &str, key: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "heddle-root", "namespace": SYSTEM},
        "stringData": {"tls.crt": root, "tls.key": key, "ca.crt": root},
    })
    .to_string()
}

async fn conditions(server: &Server) -> Vec<Value> {
    let found = server.get(DEPLOYMENT).await.unwrap();
    found.data["status"]["conditions"].as_array().cloned().unwrap_or_default()
}

/// The condition, once it has this reason.
async fn until(server: &Server, reason: &str) -> Value {
    wait(reason, async || {
        let all = conditions(server).await;
        all.into_iter().find(|one| one["type"] == CONDITION && one["reason"] == reason)
    })
    .await
}

#[tokio::test]
async fn a_root_that_ends_soon_or_cannot_be_used_is_a_condition_of_the_deployment() {
    let Some(server) = Server::start().await else { return };
    server.define_all().await;
    server.apply(DEPLOYMENT).await;
    server.apply(&secret(20 * DAY)).await;
    let running = start(&server, "a").await;
    let ends = until(&server, "RootExpires").await;
    assert_eq!(ends["status"], "False");
    assert!(
        ends["message"].as_str().unwrap().contains("add a new one to ca.crt of Secret heddle-root"),
        "{ends}"
    );
    let others: Vec<_> =
        conditions(&server).await.into_iter().filter(|one| one["type"] != CONDITION).collect();
    assert_eq!(others.len(), 1, "the Deployment's own conditions stay");
    assert_eq!(others[0]["type"], "Available");

    // A slip of the hand; the root that was there goes on.
    server.apply(&secret_of("no certificate", "no key")).await;
    let unusable = until(&server, "RootUnusable").await;
    assert_eq!(unusable["lastTransitionTime"], ends["lastTransitionTime"], "it was False before");
    server.apply(&secret(3000 * DAY)).await;
    until(&server, "RootExpires").await;
    running.stop().await;

    // A replica that starts signs with what is there now; nothing is written twice.
    let running = start(&server, "b").await;
    assert_eq!(until(&server, "RootValid").await["status"], "True");
    let version = server.get(DEPLOYMENT).await.unwrap().metadata.resource_version;
    server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: unrelated, labels: {heddle.dev/inject: enabled}}}").await;
    // The same replica has seen it and looked again.
    wait("the roots in the namespace", async || {
        server
            .get("{apiVersion: v1, kind: ConfigMap, metadata: {name: heddle-ca, namespace: unrelated}}")
            .await
    })
    .await;
    assert_eq!(server.get(DEPLOYMENT).await.unwrap().metadata.resource_version, version);
    running.stop().await;
}
