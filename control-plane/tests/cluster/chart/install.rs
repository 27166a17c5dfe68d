//! The chart in a cluster: installed, upgraded and taken away by Helm, with a control plane that has its rights and no more.

use std::collections::BTreeSet;

use heddle_control_plane::{cluster::rights::RIGHTS, run::Running};
use serde_json::{Value, json};

use super::engine::{Engine, matrix};
use crate::{
    client,
    replica::start_in,
    server::{SYSTEM, Server, route, service, wait},
};

/// Both, or a word about what is missing.
async fn prepare() -> Option<(Engine, Server)> {
    let server = Server::start().await?;
    if !server.is_own() {
        println!("skipped: needs KUBEBUILDER_ASSETS (somebody else's cluster may have a Heddle of its own)");
        return None;
    }
    let helm = Engine::find()?.of(&server).await;
    Some((helm, server))
}

/// A control plane that may do what the chart's ServiceAccount may.
async fn start(server: &Server, instance: &str) -> Running {
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [], "expirationSeconds": 3600}});
    let uri = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/heddle-control-plane/token");
    let request = http::Request::post(uri)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&body).unwrap())
        .unwrap();
    let answer: Value = server.client.request(request).await.unwrap();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    start_in(server.cluster_as(instance, token)).await
}

/// Helm blocks its thread, and the control plane beside it must go on.
async fn helm(engine: &Engine, operation: Value) -> Value {
    tokio::task::block_in_place(|| engine.one(operation)).unwrap()
}

fn manifest(kind: &str, name: &str) -> String {
    let (version, namespace) = match kind {
        "Deployment" => ("apps/v1", SYSTEM),
        "MutatingWebhookConfiguration" => ("admissionregistration.k8s.io/v1", ""),
        "CustomResourceDefinition" => ("apiextensions.k8s.io/v1", ""),
        "TrafficPolicy" => ("heddle.dev/v1alpha1", "shop"),
        _ => ("v1", SYSTEM),
    };
    let namespace = if namespace.is_empty() { String::new() } else { format!(", namespace: {namespace}") };
    format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: {name}{namespace}}}}}")
}

/// Uid and version of an object.
async fn state(server: &Server, kind: &str, name: &str) -> Option<(Option<String>, Option<String>)> {
    let found = server.get(&manifest(kind, name)).await?;
    Some((found.metadata.uid, found.metadata.resource_version))
}

/// What the API server knows the webhooks by, once each has it.
async fn bundles(server: &Server) -> Vec<Value> {
    wait("the caBundle", async || {
        let found = server.get(&manifest("MutatingWebhookConfiguration", "heddle-injector")).await?;
        let webhooks = found.data["webhooks"].as_array()?.clone();
        let bundles = webhooks.iter().map(|webhook| webhook["clientConfig"]["caBundle"].clone());
        let bundles: Vec<Value> = bundles.collect();
        bundles.iter().all(Value::is_string).then_some(bundles)
    })
    .await
}

const POLICY: &str = "{apiVersion: heddle.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: p, namespace: shop}, spec: {targetRefs: [{kind: Service, name: reviews}]}}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_keeps_the_definitions_the_root_and_the_bundle_and_so_does_an_uninstall() {
    let Some((engine, server)) = prepare().await else { return };
    let installed = helm(&engine, json!({"do": "install"})).await;
    assert_eq!(installed["status"], "deployed", "{installed}");
    let running = start(&server, "a").await;
    let written = bundles(&server).await;
    wait("the kind", async || server.try_apply(POLICY).await.ok()).await;
    let root = state(&server, "Secret", "heddle-root").await.expect("the control plane made its root");
    let definition = "trafficpolicies.heddle.dev";
    let (defined, _) = state(&server, "CustomResourceDefinition", definition).await.unwrap();
    let (policy, _) = state(&server, "TrafficPolicy", "p").await.unwrap();

    let values = json!({"controlPlane": {"replicas": 3}, "injection": {"timeoutSeconds": 7}});
    let upgraded = helm(&engine, json!({"do": "upgrade", "values": values})).await;
    assert_eq!((&upgraded["status"], &upgraded["revision"]), (&"deployed".into(), &2.into()));
    let deployment = server.get(&manifest("Deployment", "heddle-control-plane")).await.unwrap();
    assert_eq!(deployment.data["spec"]["replicas"], 3);
    let registered = server.get(&manifest("MutatingWebhookConfiguration", "heddle-injector")).await.unwrap();
    for (webhook, bundle) in registered.data["webhooks"].as_array().unwrap().iter().zip(&written) {
        assert_eq!(webhook["timeoutSeconds"], 7);
        assert_eq!(webhook["clientConfig"]["caBundle"], *bundle, "no moment without it");
    }
    assert_eq!(state(&server, "Secret", "heddle-root").await.as_ref(), Some(&root));

    running.stop().await;
    helm(&engine, json!({"do": "uninstall"})).await;
    assert!(server.get(&manifest("Deployment", "heddle-control-plane")).await.is_none());
    assert!(server.get(&manifest("MutatingWebhookConfiguration", "heddle-injector")).await.is_none());
    assert_eq!(state(&server, "Secret", "heddle-root").await, Some(root));
    assert_eq!(state(&server, "CustomResourceDefinition", definition).await.unwrap().0, defined);
    assert_eq!(state(&server, "TrafficPolicy", "p").await.unwrap().0, policy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_object_of_the_matrix_is_taken_by_an_api_server_to_the_last_field() {
    let Some((engine, server)) = prepare().await else { return };
    for (about, values) in matrix() {
        let objects = tokio::task::block_in_place(|| engine.render(&values));
        for object in objects.0 {
            // The operator that defines it is not there.
            if object["kind"] == "ServiceMonitor" || object["kind"] == "PodMonitor" {
                continue;
            }
            let took = server.would_take(&object).await;
            took.unwrap_or_else(|error| {
                panic!("{about}: {} {}: {error}", object["kind"], object["metadata"]["name"])
            });
        }
    }
}

/// `group/resource/subresource verb` of a request.
fn right(entry: &Value) -> String {
    let text = |name: &str| entry["objectRef"][name].as_str().unwrap_or_default().to_owned();
    let subresource = text("subresource");
    let slash = if subresource.is_empty() { "" } else { "/" };
    format!(
        "{}/{}{slash}{subresource} {}",
        text("apiGroup"),
        text("resource"),
        entry["verb"].as_str().unwrap()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_charts_rights_the_control_plane_does_all_that_it_does_and_uses_each_of_them() {
    let Some((engine, server)) = prepare().await else { return };
    helm(&engine, json!({"do": "install"})).await;
    server.define_all().await;
    let running = start(&server, "a").await;
    bundles(&server).await;
    let bundle = manifest("ConfigMap", "heddle-ca");
    let ca = wait("the roots", async || {
        server.get(&bundle).await?.data["data"]["ca.pem"].as_str().map(str::to_owned)
    })
    .await;

    // A status for every kind that has one, and an Event, which comes again.
    server.apply(&service("reviews", "reviews")).await;
    server.apply(POLICY).await;
    let target = "targetRefs: [{kind: Service, name: reviews}]";
    let gateway = "spec: {parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}]";
    for (version, kind, spec) in [
        ("heddle.dev/v1alpha1", "AccessPolicy", format!("spec: {{{target}, action: Allow}}")),
        ("heddle.dev/v1alpha1", "MeshPolicy", "spec: {mtls: Strict}".to_owned()),
        ("gateway.networking.k8s.io/v1", "GRPCRoute", format!("{gateway}}}")),
        (
            "gateway.networking.k8s.io/v1alpha2",
            "TCPRoute",
            format!("{gateway}, rules: [{{backendRefs: [{{name: reviews, port: 9080}}]}}]}}"),
        ),
    ] {
        server
            .apply(&format!(
                "{{apiVersion: {version}, kind: {kind}, metadata: {{name: x, namespace: shop}}, {spec}}}"
            ))
            .await;
    }
    let broken = route("reviews", "{name: reviews-v2, port: 9080}");
    let resolved = async |status: &str| {
        wait(&format!("ResolvedRefs {status}"), async || {
            let found = server.get(&broken).await?;
            let conditions = found.data["status"]["parents"][0]["conditions"].as_array()?.clone();
            conditions.iter().any(|c| c["type"] == "ResolvedRefs" && c["status"] == status).then_some(())
        })
        .await;
    };
    server.apply(&broken).await;
    resolved("False").await;
    server.apply(&service("reviews-v2", "reviews")).await;
    resolved("True").await;
    server.delete(&service("reviews-v2", "reviews")).await;
    resolved("False").await;
    // A pod that asks who it is.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), ca).unwrap();
    let joined = client::join(running.address, &dir.path().join("ca.pem"), "a.b.c", "shop/web").await;
    let refused = joined.err().unwrap();
    assert!(refused.message().contains("the API server refuses the token"), "{refused}");

    let mut kinds = BTreeSet::new();
    for right in &RIGHTS {
        for resource in right.resources {
            kinds.extend(right.verbs.iter().map(|verb| format!("{}/{resource} {verb}", right.group)));
        }
    }
    let optional = |right: &str| {
        // One object is asked for when there is something to say of it; that of the routes was.
        let looked_up = right.ends_with(" get")
            && !right.contains("/httproutes ")
            && ["/secrets", "/leases", "/configmaps", "/mutatingwebhook"]
                .iter()
                .all(|own| !right.contains(own));
        // Server-side apply of what is not there yet is a patch in the log, and a create to the authorizer.
        looked_up || right == "/configmaps create"
    };
    wait("every right in use", async || {
        let used: BTreeSet<String> = server.audited().iter().map(right).collect();
        let unused: Vec<_> = kinds.iter().filter(|one| !used.contains(*one) && !optional(one)).collect();
        if !unused.is_empty() {
            println!("not used yet: {unused:?}");
        }
        unused.is_empty().then_some(())
    })
    .await;
    running.stop().await;
    for entry in server.audited() {
        let code = entry["responseStatus"]["code"].as_u64();
        assert_ne!(code, Some(403), "{entry}");
        let is_object = entry["objectRef"]["resource"].is_string();
        assert!(!is_object || kinds.contains(&right(&entry)), "{entry}");
    }
}
