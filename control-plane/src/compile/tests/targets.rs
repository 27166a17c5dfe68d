//! Endpoints of an EndpointSlice that says whose they are: Pods and slices come by watches of their own, in any order.

use super::{mesh, removals, upserts};
use crate::compile::Mesh;

const SERVICE: &str = "
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: n}, spec: {selector: {app: s}, clusterIP: None, ports: [{port: 80}]}}
---
{apiVersion: heddle.dev/v1alpha1, kind: MeshPolicy, metadata: {name: p, namespace: n}, spec: {mtls: Permissive}}";

fn slice(endpoints: &str) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: s-1, namespace: n, labels: {{kubernetes.io/service-name: s}}}}, \
         addressType: IPv4, ports: [{{port: 80}}], endpoints: [{endpoints}]}}"
    )
}

fn endpoint(ip: &str, pod: &str) -> String {
    format!("{{addresses: [{ip}], targetRef: {{kind: Pod, name: {pod}, namespace: n}}}}")
}

/// With a sidecar, as `account`.
fn pod(name: &str, more_meta: &str, account: &str, more_spec: &str, status: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: n, labels: {{app: s}}, annotations: {{heddle.dev/sidecar: 'true'}}{more_meta}}}, \
         spec: {{serviceAccountName: {account}, containers: []{more_spec}}}, status: {{{status}}}}}"
    )
}

#[test]
fn what_is_kept_of_an_endpoint_is_small() {
    // There are a hundred thousand of them.
    assert!(size_of::<crate::compile::facts::SliceEndpoint>() <= 64);
}

/// `address pod identity`.
fn endpoints(mesh: &Mesh) -> Vec<String> {
    let found = mesh.endpoints("n/s:80").value.unwrap().endpoints;
    let text = |e: &heddle_api::v1::Endpoint| {
        let account = e.identity.rsplit('/').next().unwrap_or_default();
        format!("{} {} {account}", e.address, e.pod)
    };
    found.iter().map(text).collect()
}

#[test]
fn an_endpoint_is_announced_once_its_pod_is_known_and_never_as_one_without_sidecar_before() {
    let mut mesh = mesh(&format!("{SERVICE}\n---\n{}", slice(&endpoint("10.0.0.1", "a"))));
    let before = (mesh.endpoints("n/s:80"), mesh.destination("n", "10.0.0.1:80"));
    assert!(endpoints(&mesh).is_empty());
    // Not "not in the mesh": that would let callers by address pass in the clear.
    assert_eq!(before.1.value.as_ref().unwrap().default_backend, "n/s:80@10.0.0.1");
    assert!(mesh.endpoints("n/s:80@10.0.0.1").value.unwrap().endpoints.is_empty());

    // Its Pod comes without an address first, as a scheduled one has none.
    mesh.apply(upserts(&pod("a", "", "x", "", "")));
    assert!(endpoints(&mesh).is_empty());
    let waiting = mesh.endpoints("n/s:80");
    let touched = mesh.apply(upserts(&pod("a", "", "x", "", "podIP: 10.0.0.1")));
    assert!(waiting.deps.iter().any(|dep| touched.contains(dep)));
    assert_eq!(endpoints(&mesh), ["10.0.0.1 n/a x"]);
    // Of two watches the Pods' may be the quicker one, too.
    mesh.apply(removals(&pod("a", "", "x", "", "podIP: 10.0.0.1")));
    assert!(endpoints(&mesh).is_empty());
}

#[test]
fn of_two_pods_at_one_address_the_one_counts_that_the_slice_names() {
    // On a node that was lost, so nobody took it away, and its address was given out again.
    let lost = pod("a", ", deletionTimestamp: '2026-01-01T00:00:00Z'", "old", "", "podIP: 10.0.0.1");
    let live = pod("b", "", "new", "", "podIP: 10.0.0.1");
    let both = format!("{SERVICE}\n---\n{lost}\n---\n{live}");
    assert_eq!(
        endpoints(&mesh(&format!("{both}\n---\n{}", slice(&endpoint("10.0.0.1", "b"))))),
        ["10.0.0.1 n/b new"]
    );
    // Without a word of the slice nothing is known better than before.
    assert_eq!(
        endpoints(&mesh(&format!("{both}\n---\n{}", slice("{addresses: [10.0.0.1]}")))),
        ["10.0.0.1 n/a old"]
    );
}

#[test]
fn by_its_address_the_pod_that_lives_is_met() {
    let lost = pod("a", ", deletionTimestamp: '2026-01-01T00:00:00Z'", "old", "", "podIP: 10.0.0.1");
    let live = pod("b", "", "new", "", "podIP: 10.0.0.1");
    let all = format!("{lost}\n---\n{live}");
    let key = mesh(&all).destination("n", "10.0.0.1:80").value.unwrap().default_backend;
    assert_eq!(key, "n/pod/b:80@10.0.0.1");
    let all = format!("{SERVICE}\n---\n{all}");
    let found = mesh(&all).endpoints("n/s:80@10.0.0.1").value.unwrap().endpoints;
    assert_eq!(found[0].pod, "n/b");
}

#[test]
fn a_pod_that_ended_gets_nothing_under_its_old_address() {
    let ended = pod("a", "", "x", "", "podIP: 10.0.0.1, phase: Failed");
    let text = format!("{SERVICE}\n---\n{ended}\n---\n{}", slice(&endpoint("10.0.0.1", "a")));
    assert!(endpoints(&mesh(&text)).is_empty());
}

#[test]
fn a_pod_on_the_nodes_network_is_announced_without_identity_and_whatever_names_no_pod_stays() {
    let host = pod("a", "", "x", ", hostNetwork: true", "podIP: 10.9.0.1");
    let text = [
        SERVICE.to_owned(),
        host,
        slice(&format!(
            "{}, {{addresses: [10.9.9.9]}}, {{addresses: [10.9.9.8], targetRef: {{kind: Node, name: x}}}}",
            endpoint("10.9.0.1", "a")
        )),
    ];
    assert_eq!(endpoints(&mesh(&text.join("\n---\n"))), ["10.9.0.1  ", "10.9.9.8  ", "10.9.9.9  "]);
}

/// It got another address, and its Pod is late to say so; or it was made anew under its name, as a StatefulSet does.
#[test]
fn a_pod_with_a_sidecar_is_not_sent_plaintext_at_an_address_that_is_not_known_to_be_its() {
    let text = [
        SERVICE.to_owned(),
        pod("a", "", "x", "", "podIP: 10.0.0.1"),
        slice(&format!("{}, {}", endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "a"))),
    ];
    let mut mesh = mesh(&text.join("\n---\n"));
    assert_eq!(endpoints(&mesh), ["10.0.0.1 n/a x"]);
    mesh.apply(upserts(&pod("a", "", "x", "", "podIP: 10.0.0.2")));
    assert_eq!(endpoints(&mesh), ["10.0.0.2 n/a x"]);
}

/// A slice chooses among the pods at an address or withholds; it neither gives nor takes an identity.
#[test]
fn a_slice_that_names_a_pod_of_another_address_takes_no_identity_away() {
    let bare =
        pod("b", "", "y", "", "podIP: 10.0.0.2").replace("app: s", "app: other").replace("true", "false");
    let text = [
        SERVICE.to_owned(),
        pod("a", "", "x", "", "podIP: 10.0.0.1"),
        slice(&format!("{}, {}", endpoint("10.0.0.1", "b"), endpoint("192.168.0.2", "b"))),
    ];
    let mut mesh = mesh(&text.join("\n---\n"));
    assert!(endpoints(&mesh).is_empty());
    let waiting = mesh.endpoints("n/s:80");
    let touched = mesh.apply(upserts(&bare));
    assert!(waiting.deps.iter().any(|dep| touched.contains(dep)), "though it has another address");
    // The latter is of a network that its Pod does not tell of.
    assert_eq!(endpoints(&mesh), ["10.0.0.1 n/a x", "192.168.0.2  "]);
}
