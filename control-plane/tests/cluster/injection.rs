//! The webhook, asked by a real API server about the pods that it is told to make.

use heddle_control_plane::inject::{
    self,
    webhook::registration::{self, Place},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DynamicObject, ListParams},
};

use crate::{
    replica::start,
    server::{SYSTEM, Server, wait},
};

/// What the API server is told of a control plane that listens on this machine: the Service is another name of it, and the
/// certificate is still that of the Service.
async fn register(server: &Server, port: u16) {
    server
        .apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: heddle-injector, namespace: {SYSTEM}}}, \
             spec: {{type: ExternalName, externalName: localhost}}}}"
        ))
        .await;
    let place = Place { namespace: SYSTEM.to_owned(), service: "heddle-injector".to_owned(), port };
    let mut configuration = serde_json::to_value(registration::configuration(&place, "")).unwrap();
    for webhook in configuration["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    }
    server.apply(&configuration.to_string()).await;
}

const CONFIGURATION: &str = "{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingWebhookConfiguration, metadata: {name: heddle-injector}}";

/// Waits until the control plane has written its roots into both webhooks.
async fn published(server: &Server) {
    wait("the caBundle", async || {
        let found = server.get(CONFIGURATION).await?;
        let webhooks = found.data["webhooks"].as_array()?.clone();
        webhooks.iter().all(|webhook| webhook["clientConfig"]["caBundle"].is_string()).then_some(())
    })
    .await;
}

/// A Pod as it is after the admission of its service account, which these API servers go without.
fn manifest(namespace: &str, name: &str, annotation: &str, spec: &str) -> String {
    let annotations =
        if annotation.is_empty() { String::new() } else { format!("heddle.dev/inject: {annotation}") };
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, annotations: {{{annotations}}}}}, \
         spec: {{serviceAccountName: default, {spec} containers: [{{name: web, image: none, readinessProbe: {{httpGet: {{path: /ok, port: 80}}}}}}]}}}}"
    )
}

fn sidecars(pod: &DynamicObject) -> Vec<String> {
    let containers = pod.data["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
    containers.iter().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_labelled_namespaces_pods_come_back_with_sidecars_and_nobody_elses_do() {
    let Some(server) = Server::start().await else { return };
    if !server.is_own() {
        println!("skipped: needs KUBEBUILDER_ASSETS (a cluster elsewhere does not reach this process)");
        return;
    }
    server.define_all().await;
    for (name, labels) in [
        ("meshed", "heddle.dev/inject: enabled, pod-security.kubernetes.io/warn: restricted"),
        ("plain", "team: a"),
        ("kube-system", "heddle.dev/inject: enabled"),
    ] {
        server
            .apply(&format!(
                "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}"
            ))
            .await;
    }
    let running = start(&server, "a").await;
    register(&server, running.webhook_address().unwrap().port()).await;
    published(&server).await;

    // The API server looks at a new registration within a second or so.
    let mut tries = 0;
    let injected = wait("an injected pod", async || {
        tries += 1;
        let pod = server.apply(&manifest("meshed", &format!("web-{tries}"), "", "")).await;
        (!sidecars(&pod).is_empty()).then_some(pod)
    })
    .await;
    assert_eq!(sidecars(&injected), ["heddle-redirect", "heddle-proxy"]);
    assert_eq!(injected.metadata.annotations.as_ref().unwrap()["heddle.dev/sidecar"], "true");
    let probe = &injected.data["spec"]["containers"][0]["readinessProbe"]["httpGet"];
    assert_eq!((&probe["path"], &probe["port"]), (&"/probe/web/readiness".into(), &15020.into()));
    let sidecar = &injected.data["spec"]["initContainers"][1];
    assert_eq!(sidecar["restartPolicy"], "Always", "the API server keeps it a native sidecar");

    // Who runs another version than this one, as `kubectl get pods -l` asks.
    let other_than = async |version: &str| {
        let label = inject::VERSION_LABEL;
        let params = ListParams::default().labels(&format!("{label},{label}!={version}"));
        let pods: Api<Pod> = Api::namespaced(server.client.clone(), "meshed");
        pods.list(&params).await.unwrap().items.len()
    };
    assert_eq!(other_than(&inject::Settings::default().version).await, 0);
    assert!(other_than("0.0.1").await > 0, "the injected ones, and not those that came before the webhook");

    // The annotation has the last word, and is a matter of match conditions.
    for (namespace, name, annotation, meshed) in [
        ("meshed", "out", "disabled", false),
        ("plain", "bare", "", false),
        ("plain", "in", "enabled", true),
        ("kube-system", "dns", "", false),
        ("kube-system", "dns-too", "enabled", false),
    ] {
        let pod = server.apply(&manifest(namespace, name, annotation, "")).await;
        assert_eq!(!sidecars(&pod).is_empty(), meshed, "{namespace}/{name}");
    }
    assert!(
        server.get(&manifest("plain", "bare", "", "")).await.unwrap().metadata.annotations.is_none(),
        "an unlabelled namespace's pod is as it was written"
    );

    let refused = server.try_apply(&manifest("meshed", "host", "", "hostNetwork: true,")).await.unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("namespace.inject.heddle.dev") && refused.contains("hostNetwork"), "{refused}");
    assert!(server.get(&manifest("meshed", "host", "", "")).await.is_none());
    server.apply(&manifest("plain", "host", "", "hostNetwork: true,")).await;

    // While no replica answers, pods of labelled namespaces wait, and no others do.
    running.stop().await;
    let refused = server.try_apply(&manifest("meshed", "late", "", "")).await.unwrap_err().to_string();
    assert!(refused.contains("failed calling webhook"), "{refused}");
    for (namespace, annotation) in [("meshed", "disabled"), ("plain", ""), (SYSTEM, ""), ("kube-system", "")]
    {
        server.apply(&manifest(namespace, "late", annotation, "")).await;
    }
}

#[tokio::test]
async fn a_ca_bundle_that_was_written_over_is_put_right_when_the_next_replica_starts() {
    let Some(server) = Server::start().await else { return };
    register(&server, 443).await;
    let first = start(&server, "a").await;
    published(&server).await;
    first.stop().await;
    let right = server.get(CONFIGURATION).await.unwrap().data["webhooks"].clone();
    let mut wrong = serde_json::json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "heddle-injector"}, "webhooks": right});
    for webhook in wrong["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    }
    // Somebody's hand: the whole list anew, without the bundle.
    server.replace(&wrong.to_string()).await;
    let second = start(&server, "b").await;
    wait("the bundle", async || (server.get(CONFIGURATION).await?.data["webhooks"] == right).then_some(()))
        .await;
    second.stop().await;
}
