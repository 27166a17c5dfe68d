//! The webhook of a whole control plane, asked as an API server asks it: at the address of its Service, known by the bundle
//! of its registration.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    api::ApiServer,
    cluster::{CONFIGURATION, bundles, start},
};

/// Sends an AdmissionReview as the API server does, which trusts `bundle` alone.
async fn review(address: SocketAddr, bundle: &str, object: &Value) -> std::io::Result<Value> {
    let mut roots = RootCertStore::empty();
    // Base64 in base64: the bundle is PEM.
    let pem: k8s_openapi::ByteString = serde_json::from_value(bundle.into()).unwrap();
    for root in CertificateDer::pem_slice_iter(&pem.0) {
        roots.add(root.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("heddle-injector.heddle-system.svc").unwrap();
    let io = TcpStream::connect(address).await?;
    let io = TlsConnector::from(Arc::new(config)).connect(name, io).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let question = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "1", "operation": "CREATE", "namespace": "shop", "name": "web", "dryRun": false,
        "kind": {"group": "", "version": "v1", "kind": "Pod"}, "resource": {"group": "", "version": "v1", "resource": "pods"},
        "userInfo": {}, "object": object}});
    let request = Request::post("/inject/namespace")
        .header("host", "heddle-injector.heddle-system.svc")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(question.to_string())))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    Ok(serde_json::from_slice::<Value>(&body).unwrap()["response"].take())
}

fn pod(spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_a_labelled_namespace_is_mutated_by_whoever_the_bundle_makes_known() {
    let server = ApiServer::start();
    server.apply(CONFIGURATION);
    let (first, second) = tokio::join!(start(&server, "a"), start(&server, "b"));
    let bundle = bundles(&server).await.remove(0);
    let plain = pod(&json!({"containers": [{"name": "web", "image": "none"}]}));
    // Both replicas answer, whoever leads; and so does the one that is left.
    for replica in [&first, &second] {
        let answer = review(replica.webhook_address().unwrap(), &bundle, &plain).await.unwrap();
        assert_eq!(answer["allowed"], true, "{answer}");
        let patch: k8s_openapi::ByteString = serde_json::from_value(answer["patch"].clone()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch.0).unwrap();
        let mut injected = plain.clone();
        json_patch::patch(&mut injected, &patch).unwrap();
        let names = injected["spec"]["initContainers"].as_array().unwrap();
        assert!(names.iter().any(|container| container["name"] == "heddle-proxy"), "{injected}");
        assert_eq!(injected["metadata"]["labels"]["heddle.dev/sidecar-version"], env!("CARGO_PKG_VERSION"));
    }
    let gone = first.webhook_address().unwrap();
    first.stop().await;
    assert!(review(gone, &bundle, &plain).await.is_err());
    let host = pod(&json!({"hostNetwork": true, "containers": [{"name": "web", "image": "none"}]}));
    let refused = review(second.webhook_address().unwrap(), &bundle, &host).await.unwrap();
    assert_eq!(refused["allowed"], false);
    assert!(refused["status"]["message"].as_str().unwrap().contains("hostNetwork"), "{refused}");
    second.stop().await;
}
