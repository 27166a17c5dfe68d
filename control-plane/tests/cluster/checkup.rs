//! NetworkPolicies that keep the mesh out, and what `heddle check` says of a cluster.

use std::process::Command;

use heddle_control_plane::checkup::{Level, Report, cli};
use serde_json::{Value, json};

use crate::{
    replica::start,
    server::{SYSTEM, Server, pod, service, wait},
};

const TRAP: &str = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: reviews-only-8080, namespace: shop}, \
                    spec: {podSelector: {matchLabels: {app: reviews}}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]}}";

/// The Events on the NetworkPolicy, with how often each came.
async fn events(server: &Server) -> Vec<(Value, Value, i64)> {
    let uri = "/apis/events.k8s.io/v1/namespaces/shop/events";
    let request = http::Request::get(uri).body(Vec::new()).unwrap();
    let events: Value = server.client.request(request).await.unwrap();
    let all = events["items"].as_array().unwrap().iter();
    let ours = all.filter(|event| event["regarding"]["name"] == "reviews-only-8080");
    ours.map(|e| (e["reason"].clone(), e["note"].clone(), e["series"]["count"].as_i64().unwrap_or(1)))
        .collect()
}

#[tokio::test]
async fn a_network_policy_without_the_meshs_port_gets_one_event_that_says_what_to_add() {
    let Some(server) = Server::start().await else { return };
    server.define_all().await;
    server.apply(&service("reviews", "reviews")).await;
    server.apply(&pod("reviews-0", "reviews", "10.244.0.1", "n1")).await;
    server.apply(TRAP).await;
    let running = start(&server, "a").await;
    let found =
        wait("the Event", async || Some(events(&server).await).filter(|found| !found.is_empty())).await;
    assert_eq!(found[0].0, "MeshPortBlocked");
    let note = found[0].1.as_str().unwrap();
    assert!(
        note.starts_with("spec.ingress[0].ports: admits port \"http\" of reviews-0 but not 15008"),
        "{note}"
    );
    // What changes nothing about it is no reason to say it again: another of the pods, another Service.
    server.apply(&service("unrelated", "reviews")).await;
    server.apply("{apiVersion: heddle.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: late, namespace: shop}, spec: {targetRefs: [{kind: Service, name: nobody}]}}").await;
    let late =
        "{apiVersion: heddle.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: late, namespace: shop}}";
    wait("a later status", async || {
        server.get(late).await?.data["status"]["ancestors"].is_array().then_some(())
    })
    .await;
    assert_eq!(events(&server).await, found);
    running.stop().await;
}

/// `level check` of each finding that is not good, in its order.
fn bad(report: &Report) -> Vec<String> {
    let bad = report.findings.iter().filter(|finding| finding.level != Level::Ok);
    bad.map(|finding| format!("{:?} {}", finding.level, finding.check)).collect()
}

#[tokio::test]
async fn a_cluster_is_checked_before_and_after_an_install() {
    let Some(server) = Server::start().await else { return };
    if !server.is_own() {
        println!("skipped: needs KUBEBUILDER_ASSETS (somebody else's cluster may have a Heddle of its own)");
        return;
    }
    let check = async || cli::cluster(server.client.clone(), SYSTEM).await.unwrap();
    let before = check().await;
    println!("before:\n{before}");
    assert_eq!(bad(&before), ["Note definitions", "Note gateway-api", "Note control-plane"], "{before}");

    // Somebody who may nothing is told what an install needs, and what could not be looked at.
    let account = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: nobody, namespace: shop}}";
    server.apply(account).await;
    let request = http::Request::post("/api/v1/namespaces/shop/serviceaccounts/nobody/token")
        .header("content-type", "application/json")
        .body(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [], "expirationSeconds": 3600}}).to_string().into_bytes())
        .unwrap();
    let token: Value = server.client.request(request).await.unwrap();
    let nobody = server.cluster_as("nobody", token["status"]["token"].as_str().unwrap().to_owned());
    let told = cli::cluster(nobody.client, SYSTEM).await.unwrap();
    let rights = told.findings.iter().find(|finding| finding.check == "rights").expect("it is told");
    for right in [
        "create apiextensions.k8s.io/customresourcedefinitions",
        "create get apps/deployments in heddle-system",
        "get list watch networking.k8s.io/networkpolicies",
    ] {
        assert!(rights.message.contains(right), "{}", rights.message);
    }
    assert!(
        told.findings
            .iter()
            .any(|f| f.level == Level::Note && f.message.contains("could not all be looked at")),
        "{told}"
    );

    // As Helm leaves it, but for a webhook without bundle, rights, and a Deployment that nobody runs.
    server.define_all().await;
    server.apply(&format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: heddle-control-plane, namespace: {SYSTEM}, labels: {{app.kubernetes.io/version: {}}}}}, \
         spec: {{replicas: 2, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{{name: c, image: c}}]}}}}}}}}",
        env!("CARGO_PKG_VERSION")
    )).await;
    server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/inject: enabled, pod-security.kubernetes.io/enforce: privileged}}}").await;
    server.apply(&service("reviews", "reviews")).await;
    server
        .apply(
            &pod("bare", "web", "10.244.0.9", "n1")
                .replace("annotations: {heddle.dev/sidecar: 'true'}", "annotations: {}"),
        )
        .await;
    let injected = pod("reviews-0", "reviews", "10.244.0.1", "n1").replace(
        "containers: [",
        "initContainers: [{name: heddle-proxy, image: 'heddle-proxy:0.0.9', restartPolicy: Always}], containers: [",
    );
    server.apply(&injected).await;
    server.apply(TRAP).await;
    let after = check().await;
    println!("after:\n{after}");
    let found = bad(&after);
    for expected in [
        "Error control-plane",
        "Error webhook",
        "Error rights",
        "Warning injection",
        "Warning sidecars",
        "Error network-policies",
    ] {
        assert!(found.contains(&expected.to_owned()), "{expected}: {after}");
    }
    // What the API server made of the definitions is what they were.
    let good = after.findings.iter().find(|finding| finding.check == "definitions").unwrap();
    assert_eq!(
        (good.level, &*good.message),
        (Level::Ok, "TrafficPolicy, AccessPolicy, MeshPolicy defined as this version has them")
    );

    // The program itself: its output and its exit code.
    let run = |arguments: &[&str]| {
        let kubeconfig = server.kubeconfig();
        let output = Command::new(env!("CARGO_BIN_EXE_heddle"))
            .args(["check", "--kubeconfig", kubeconfig.to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = run(&[]);
    assert_eq!(code, Some(1));
    assert_eq!(text.trim_end(), after.to_string());
    let (code, text) = run(&["-o", "json"]);
    let read: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, read["errors"].as_u64()), (Some(1), Some(after.count(Level::Error) as u64)));
    let (code, _) = run(&["--context", "nowhere"]);
    assert_eq!(code, Some(1));
}
