//! The definitions of Heddle's kinds, and what they refuse.

use heddle_api::resources::{AccessPolicy, MeshPolicy, TrafficPolicy};
use kube::CustomResourceExt as _;

use crate::server::Server;

#[tokio::test]
async fn the_api_server_takes_the_definitions_and_refuses_nonsense_with_a_sentence() {
    let Some(server) = Server::start().await else { return };
    server.define(&[TrafficPolicy::crd(), AccessPolicy::crd(), MeshPolicy::crd()]).await;
    let policy = |kind: &str, spec: &str| {
        format!(
            "{{apiVersion: heddle.dev/v1alpha1, kind: {kind}, metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
        )
    };
    let target = "targetRefs: [{kind: Service, name: reviews}]";
    for (kind, spec) in [
        (
            "TrafficPolicy",
            format!(
                "{{{target}, retries: {{attempts: 2, on: [5xx], backoff: {{base: 25ms, max: 1s}}}}, timeouts: {{request: 10s, connect: 1s}}}}"
            ),
        ),
        (
            "AccessPolicy",
            format!(
                "{{{target}, action: Allow, rules: [{{from: [{{anyone: true}}], to: [{{methods: [GET], paths: ['/a/*']}}]}}]}}"
            ),
        ),
        ("AccessPolicy", "{targetRefs: [{kind: Namespace, name: shop}], action: Allow}".to_owned()),
        ("MeshPolicy", "{mtls: Strict, ports: [{port: 9090, mtls: Permissive}]}".to_owned()),
    ] {
        server.apply(&policy(kind, &spec)).await;
    }
    for (kind, spec, sentence) in [
        ("TrafficPolicy", "{targetRefs: []}".to_owned(), "spec.targetRefs"),
        (
            "TrafficPolicy",
            "{targetRefs: [{kind: Namespace, name: shop}]}".to_owned(),
            "a TrafficPolicy is attached to Services, not to a Namespace",
        ),
        (
            "TrafficPolicy",
            "{targetRefs: [{group: apps, kind: Service, name: a}]}".to_owned(),
            "a Service or Namespace is in the group \"\"; leave group out",
        ),
        ("TrafficPolicy", format!("{{{target}, timeouts: {{connect: 0s}}}}"), "must be longer than 0s"),
        ("TrafficPolicy", format!("{{{target}, timeouts: {{connect: soon}}}}"), "spec.timeouts.connect"),
        (
            "TrafficPolicy",
            format!("{{{target}, retries: {{backoff: {{base: 1s, max: 500ms}}}}}}"),
            "base is longer than max",
        ),
        (
            "TrafficPolicy",
            format!("{{{target}, loadBalancing: {{algorithm: Best}}}}"),
            "supported values: \"PeakEwma\"",
        ),
        (
            "AccessPolicy",
            format!("{{{target}, action: Allow, rules: [{{from: [{{}}]}}]}}"),
            "names nobody: give serviceAccounts, namespaces, cidrs or anyone",
        ),
        (
            "AccessPolicy",
            format!("{{{target}, action: Allow, rules: [{{to: [{{}}]}}]}}"),
            "names nothing: give methods or paths",
        ),
        (
            "AccessPolicy",
            format!("{{{target}, action: Allow, rules: [{{to: [{{methods: [get]}}]}}]}}"),
            "methods[0]",
        ),
        (
            "MeshPolicy",
            "{mtls: Maybe}".to_owned(),
            "supported values: \"Permissive\", \"Strict\", \"Disabled\"",
        ),
        ("MeshPolicy", "{ports: [{port: 0, mtls: Strict}]}".to_owned(), "spec.ports[0].port"),
    ] {
        let error = server.try_apply(&policy(kind, &spec)).await.expect_err(&spec).to_string();
        assert!(error.contains(sentence), "{kind} {spec}: {error}");
    }
}
