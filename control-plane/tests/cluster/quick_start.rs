//! The quick starts for Kubernetes, of the README and of docs/kubernetes.md, line by line against an API server: Helm by its own
//! engine, and what `kubectl` would ask of the API server asked as it would. No kubelet and no controller runs there, so the
//! pods of a restarted Deployment are made by the test, from its template.

use serde_json::{Value, json};

use super::chart::Engine;
use crate::{
    replica::start,
    server::{SYSTEM, Server, wait},
};

/// The commands of the first fenced block after a heading.
fn commands(text: &str, heading: &str) -> Vec<String> {
    let section = text.split_once(&format!("\n{heading}\n")).expect("the heading is there").1;
    let block = section.split_once("```sh\n").expect("a fenced block follows").1;
    let block = block.split_once("\n```").expect("the block ends").0;
    block.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Does what a line says. Every line must be understood: a new one in the documentation wants its arm here.
async fn perform(line: &str, engine: &Engine, server: &Server) {
    println!("$ {line}");
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["docker", "build", ..] => {
            println!("not run: no images are built here; .github/workflows/ci.yml builds them");
        }
        ["helm", "install", "heddle", "charts/heddle", "-n", SYSTEM, "--create-namespace"] => {
            let done = tokio::task::block_in_place(|| engine.one(json!({"do": "install"}))).unwrap();
            assert_eq!(done["status"], "deployed", "{done}");
        }
        ["kubectl", "label", "namespace", namespace, label] => {
            let (key, value) = label.split_once('=').unwrap();
            let labelled = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {key: value}}});
            server.apply(&labelled.to_string()).await;
        }
        ["kubectl", "-n", namespace, "rollout", "restart", "deployment"] => {
            // As kubectl does it: an annotation on the template, which makes it another.
            let deployment = json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": namespace},
                "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"},
                    "annotations": {"kubectl.kubernetes.io/restartedAt": "2026-11-21T00:00:00Z"}},
                    "spec": {"containers": [{"name": "web", "image": "web:1"}]}}}});
            server.apply(&deployment.to_string()).await;
        }
        _ => panic!("the test does not know what to do for {line:?}"),
    }
}

/// The webhook's Service leads to this process, which an API server without a network of pods cannot find out by itself.
async fn lead_here(server: &Server, port: u16) {
    server
        .replace(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: heddle-injector, namespace: {SYSTEM}}}, spec: {{type: ExternalName, externalName: localhost}}}}"
        ))
        .await;
    let name = "{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingWebhookConfiguration, metadata: {name: heddle-injector}}";
    // The control plane writes its `caBundle` into it at the same time.
    server
        .edit(name, |found| {
            for webhook in found.data["webhooks"].as_array_mut().unwrap() {
                webhook["clientConfig"]["service"]["port"] = port.into();
            }
        })
        .await;
}

async fn follow(text: &str, heading: &str) {
    let Some(server) = Server::start().await else { return };
    if !server.is_own() {
        println!("skipped: needs KUBEBUILDER_ASSETS (somebody else's cluster may have a Heddle of its own)");
        return;
    }
    let Some(engine) = Engine::find() else { return };
    let engine = engine.of(&server).await;
    let lines = commands(text, heading);
    assert!(lines.len() >= 3, "{lines:?}");
    for line in &lines {
        perform(line, &engine, &server).await;
    }
    // What the quick start promises: the pods come back with sidecars.
    let replica = start(&server, "a").await;
    lead_here(&server, replica.webhook_address().unwrap().port()).await;
    let deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}}";
    let template = server.get(deployment).await.unwrap().data["spec"]["template"].clone();
    let mut tries = 0;
    let pod = wait("a pod with a sidecar", async || {
        tries += 1;
        let mut pod = template.clone();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["name"] = format!("web-{tries}").into();
        pod["metadata"]["namespace"] = "shop".into();
        pod["spec"]["serviceAccountName"] = "default".into();
        // While the webhook is not reached, the pod waits to be made.
        let made = server.try_apply(&pod.to_string()).await.inspect_err(|error| println!("{error}")).ok()?;
        made.data["spec"]["initContainers"].is_array().then_some(made)
    })
    .await;
    let containers = pod.data["spec"]["initContainers"].as_array().unwrap();
    let names: Vec<&Value> = containers.iter().map(|container| &container["name"]).collect();
    assert_eq!(names, ["heddle-redirect", "heddle-proxy"]);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readmes_quick_start_on_kubernetes_gives_pods_their_sidecars() {
    follow(include_str!("../../../README.md"), "## On Kubernetes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_install_of_the_documentation_gives_pods_their_sidecars() {
    follow(include_str!("../../../docs/kubernetes.md"), "## Install").await;
}
