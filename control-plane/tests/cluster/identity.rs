//! Pods that prove themselves by the API server's word, and the root that signs for them.

use serde_json::{Value, json};
use tonic::Code;

use crate::{
    client::{connect, join},
    replica::start,
    server::{SYSTEM, Server, pod, wait},
};

/// A projected token of a pod, as its kubelet asks for it.
pub(crate) async fn token(
    server: &Server,
    account: &str,
    pod: Option<(&str, &str)>,
    audience: &str,
) -> String {
    let bound = pod.map(|(name, uid)| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}));
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [audience], "expirationSeconds": 600, "boundObjectRef": bound}});
    let uri = format!("/api/v1/namespaces/shop/serviceaccounts/{account}/token");
    let request = http::Request::post(uri)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&body).unwrap())
        .unwrap();
    let answer: Value = server.client.request(request).await.unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

const BUNDLE: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: heddle-ca, namespace: NAMESPACE}}";

/// The roots that are published in a namespace.
pub(crate) async fn bundle(server: &Server, namespace: &str) -> Option<String> {
    let found = server.get(&BUNDLE.replace("NAMESPACE", namespace)).await?;
    found.data["data"]["ca.pem"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_pod_gets_its_certificate_for_its_own_projected_token_and_for_no_other() {
    let Some(server) = Server::start().await else { return };
    server.define_all().await;
    for account in ["web", "api"] {
        let manifest = format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {account}, namespace: shop}}}}"
        );
        server.apply(&manifest).await;
    }
    let mut uids = Vec::new();
    for (name, app, ip) in [("web-0", "web", "10.244.0.1"), ("web-1", "web", "10.244.0.2")] {
        uids.push(server.apply(&pod(name, app, ip, "n1")).await.metadata.uid.unwrap());
    }
    let running = start(&server, "a").await;
    // A namespace with a sidecar has the roots that its pods know the control plane by.
    let roots = wait("the roots in the pods' namespace", async || bundle(&server, "shop").await).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &roots).unwrap();

    let own = token(&server, "web", Some(("web-0", &uids[0])), "heddle.dev").await;
    // The roots are there as soon as the pod was read; a moment later it is compiled.
    let leaf =
        wait("the pod's certificate", async || join(running.address, &ca, &own, "shop/web-0").await.ok())
            .await;
    assert!(connect(running.address, &ca, Some(&leaf)).await.is_ok());
    let renewed = leaf.renew(running.address, &ca).await;
    assert_eq!(
        renewed.err().map(|status| status.code()),
        Some(Code::FailedPrecondition),
        "the token is asked for anew"
    );

    let unbound = token(&server, "web", None, "heddle.dev").await;
    let foreign = token(&server, "web", Some(("web-0", &uids[0])), "elsewhere").await;
    // Not the last character: its lower bits are padding, and another one may say the same.
    let (signed, signature) = own.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{signed}.{first}{}", &signature[1..]);
    for (token, pod, code, says) in [
        (&own, "shop/web-1", Code::PermissionDenied, "the token is of pod shop/web-0"),
        (&own, "bank/web-0", Code::PermissionDenied, "namespace"),
        (&unbound, "shop/web-0", Code::Unauthenticated, "not bound to a pod"),
        (&foreign, "shop/web-0", Code::Unauthenticated, "the API server refuses the token"),
        (&forged, "shop/web-0", Code::Unauthenticated, "the API server refuses the token"),
    ] {
        let refused = join(running.address, &ca, token, pod).await.err();
        let status = refused.unwrap_or_else(|| panic!("{pod} got a certificate: {code}, {says}"));
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(says), "{status}");
    }

    // The pod is replaced by one of its name: the old one's token is worth nothing, the new one's is.
    server.delete("{apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: shop}}").await;
    let uid = server.apply(&pod("web-0", "web", "10.244.0.3", "n1")).await.metadata.uid.unwrap();
    let replaced = join(running.address, &ca, &own, "shop/web-0").await.err().unwrap();
    // The API server remembers a good token for some seconds; then it is the uid that tells, or that the old pod is gone and
    // the new one not known yet.
    let worthless = [Code::Unauthenticated, Code::FailedPrecondition, Code::NotFound];
    assert!(worthless.contains(&replaced.code()), "{replaced}");
    let new = token(&server, "web", Some(("web-0", &uid)), "heddle.dev").await;
    wait("the new pod's certificate", async || join(running.address, &ca, &new, "shop/web-0").await.ok())
        .await;
    running.stop().await;
}

#[tokio::test]
async fn a_root_that_is_taken_out_of_its_secret_stays_trusted_while_certificates_under_it_live() {
    let Some(server) = Server::start().await else { return };
    server.define_all().await;
    let first = start(&server, "a").await;
    let old = wait("the first root", async || bundle(&server, SYSTEM).await).await;
    let count = |text: &str| text.matches("BEGIN CERTIFICATE").count();
    assert_eq!(count(&old), 1);

    let (root, key) =
        heddle_control_plane::ca::fresh_root("cluster.local", std::time::SystemTime::now()).unwrap();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "heddle-root", "namespace": SYSTEM}, "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": root, "tls.key": key, "ca.crt": root}});
    server.apply(&secret.to_string()).await;
    let both =
        wait("both roots", async || bundle(&server, SYSTEM).await.filter(|text| count(text) == 2)).await;
    assert!(both.contains(root.trim()) && both.contains(old.trim()));

    // A replica that starts now trusts both as well, though the Secret has but one.
    first.stop().await;
    let second = start(&server, "b").await;
    wait("the second replica as leader", async || holder(&server).await.filter(|name| name == "b")).await;
    assert_eq!(bundle(&server, SYSTEM).await.map(|text| count(&text)), Some(2));

    // Nonsense changes nothing.
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "heddle-root", "namespace": SYSTEM}, "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": root, "tls.key": "none", "ca.crt": root}});
    server.apply(&secret.to_string()).await;
    wait("the metric", async || {
        let text = crate::status::metrics(second.admin_address).await;
        text.contains("heddle_control_plane_root_unusable 1").then_some(())
    })
    .await;
    assert_eq!(bundle(&server, SYSTEM).await.map(|text| count(&text)), Some(2));
    second.stop().await;
}

/// Who leads.
pub(crate) async fn holder(server: &Server) -> Option<String> {
    let lease = format!(
        "{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: heddle-control-plane, namespace: {SYSTEM}}}}}"
    );
    server.get(&lease).await?.data["spec"]["holderIdentity"].as_str().map(str::to_owned)
}
