//! What a change touches, and that nothing else changes.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::{SHOP, mesh, removals, upserts};
use crate::compile::{Compiled, Dep, Mesh, Options};

fn touches<T>(touched: &HashSet<Dep>, compiled: &Compiled<T>) -> bool {
    compiled.deps.iter().any(|dep| touched.contains(dep))
}

const OTHER: &str = "
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: shop}
spec: {selector: {app: ratings}, clusterIP: 127.1.0.9, ports: [{port: 9080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ratings-0, namespace: shop, labels: {app: ratings}}
spec: {containers: []}
status: {podIP: 127.0.0.9}
";

#[test]
fn an_endpoint_that_changes_touches_the_endpoints_of_its_service_and_no_route() {
    let mut mesh = mesh(&format!("{SHOP}---{OTHER}"));
    let reviews = mesh.endpoints("shop/reviews:9080");
    let routed = mesh.destination("shop", "reviews:9080");
    let ratings = mesh.endpoints("shop/ratings:9080");
    let touched = mesh.apply(upserts(
        "apiVersion: v1
kind: Pod
metadata: {name: reviews-v1-0, namespace: shop, labels: {app: reviews, version: v1}, deletionTimestamp: '2026-01-01T00:00:00Z', annotations: {heddle.dev/sidecar: 'true'}}
spec: {serviceAccountName: reviews, containers: []}
status: {podIP: 127.0.0.3}
",
    ));
    assert!(touches(&touched, &reviews));
    assert!(!touches(&touched, &routed));
    assert!(!touches(&touched, &ratings));
    assert_ne!(mesh.endpoints("shop/reviews:9080").value, reviews.value);
    assert_eq!(mesh.endpoints("shop/ratings:9080"), ratings);
}

#[test]
fn a_weight_that_changes_touches_the_route_and_no_endpoints() {
    let mut mesh = mesh(SHOP);
    let endpoints = mesh.endpoints("shop/reviews:9080");
    let routed = mesh.destination("shop", "reviews:9080");
    let by_address = mesh.destination("other", "127.1.0.3:9080");
    let touched = mesh.apply(upserts(&SHOP.replace("weight: 90", "weight: 10")));
    assert!(touches(&touched, &routed) && touches(&touched, &by_address));
    assert!(!touches(&touched, &endpoints));
    assert_ne!(mesh.destination("shop", "reviews:9080").value, routed.value);
}

#[test]
fn labels_and_ports_that_no_pod_has_any_more_are_forgotten() {
    let pod = |name: &str, hash: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: web-{hash}-{name}, namespace: shop, labels: {{app: web, pod-template-hash: {hash}}}, annotations: {{heddle.dev/sidecar: 'true'}}}}
spec: {{containers: [{{name: a, ports: [{{name: p{hash}, containerPort: 80}}]}}]}}
status: {{podIP: 127.0.0.{name}}}
"
        )
    };
    let mut mesh = Mesh::new(Options::default());
    mesh.apply(upserts(&(pod("1", "old") + &pod("2", "old"))));
    assert_eq!((mesh.labels.len(), mesh.named_ports.len()), (1, 1));
    mesh.apply(upserts(&(pod("3", "new") + &pod("4", "new"))));
    assert_eq!((mesh.labels.len(), mesh.named_ports.len()), (2, 2));
    mesh.apply(removals(&(pod("1", "old") + &pod("2", "old"))));
    assert_eq!((mesh.labels.len(), mesh.named_ports.len()), (1, 1));
}

#[test]
fn the_same_again_touches_nothing() {
    let policies = include_str!("../golden/policies.yaml");
    let routes = include_str!("../golden/routes.yaml");
    for manifests in [OTHER, SHOP, policies, routes] {
        assert_eq!(mesh(manifests).apply(upserts(manifests)), HashSet::new());
    }
}

#[test]
fn what_is_absent_is_touched_when_it_comes() {
    let mut mesh = Mesh::new(Options::default());
    let absent = [
        mesh.destination("shop", "ratings:9080"),
        mesh.destination("shop", "127.1.0.9:9080"),
        mesh.destination("shop", "127.0.0.9:9080"),
    ];
    assert!(absent.iter().all(|compiled| compiled.value.is_none()));
    let endpoints = mesh.endpoints("shop/ratings:9080");
    let inbound = mesh.inbound(&"shop/ratings-0".parse().unwrap());
    let touched = mesh.apply(upserts(OTHER));
    assert!(absent.iter().all(|compiled| touches(&touched, compiled)));
    assert!(touches(&touched, &endpoints) && touches(&touched, &inbound));
    assert!(mesh.destination("shop", "ratings:9080").value.is_some());
}

/// Objects that have to do with each other in every way; each step puts one in, or takes it out.
const PIECES: &[&str] = &[
    "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n, labels: {app: a}}, status: {podIP: 10.0.0.1}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n, labels: {app: b}, annotations: {heddle.dev/sidecar: 'true'}}, status: {podIP: 10.0.0.1}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: n, labels: {app: a}, annotations: {heddle.dev/sidecar: 'true'}}, status: {podIP: 10.0.0.2}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: n, labels: {app: b}}, status: {podIP: 10.0.0.1}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: m, annotations: {heddle.dev/sidecar: 'yes'}}, status: {podIP: 10.0.0.1}}",
    "{apiVersion: heddle.dev/v1alpha1, kind: AccessPolicy, metadata: {name: c, namespace: n}, spec: {targetRefs: [{kind: Service, name: c}], action: Allow}}",
    "{apiVersion: heddle.dev/v1alpha1, kind: MeshPolicy, metadata: {name: p, namespace: m}, spec: {mtls: Strict}}",
    "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: n}, spec: {selector: {app: a}, clusterIP: 10.1.0.1, ports: [{port: 80}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: n}, spec: {selector: {app: b}, clusterIP: 10.1.0.2, ports: [{port: 80, targetPort: 81}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: b, namespace: n}, spec: {selector: {app: b}, ports: [{port: 80, appProtocol: http}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: c, namespace: n}, spec: {ports: [{port: 80}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: n}, spec: {selector: {app: a}, trafficDistribution: PreferSameNode, ports: [{port: 80}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: n}, spec: {type: ExternalName, externalName: x.y, selector: {app: a}, ports: [{port: 80}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: c, namespace: n}, spec: {type: ExternalName, externalName: x.y, ports: [{port: 80}]}}",
    "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}}",
    "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z2}}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n, labels: {app: a}, annotations: {heddle.dev/sidecar: 'true'}}, spec: {nodeName: n1, containers: []}, status: {podIP: 10.0.0.1}}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: c-1, namespace: n, labels: {kubernetes.io/service-name: c}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1], hints: {forZones: [{name: z1}]}}]}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: c-1, namespace: n, labels: {kubernetes.io/service-name: c}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1]}]}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: c-1, namespace: n, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.2]}]}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: c-1, namespace: n, labels: {kubernetes.io/service-name: c}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: a, namespace: n}}]}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: c-2, namespace: n, labels: {kubernetes.io/service-name: c}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.2], targetRef: {kind: Pod, name: a, namespace: m}}]}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, namespace: n, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: b}}, {addresses: [10.0.0.3], targetRef: {kind: Pod, name: a}}]}",
    "{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: n, labels: {app: a}}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: n, labels: {app: a}, annotations: {heddle.dev/sidecar: 'true'}}, spec: {hostNetwork: true, containers: []}, status: {podIP: 10.0.0.1}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n, labels: {app: a}, deletionTimestamp: '2026-01-01T00:00:00Z', annotations: {heddle.dev/sidecar: 'true'}}, status: {podIP: 10.0.0.3}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: n, labels: {app: b}}, status: {podIP: 10.0.0.1, phase: Failed}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: n}, spec: {parentRefs: [{group: '', kind: Service, name: a}], rules: [{backendRefs: [{name: b, port: 80}, {name: c, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: n}, spec: {parentRefs: [{group: '', kind: Service, name: b}], rules: [{backendRefs: [{name: a, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: m}, spec: {parentRefs: [{group: '', kind: Service, name: a, namespace: n}], rules: [{backendRefs: [{name: b, namespace: n, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1alpha2, kind: TCPRoute, metadata: {name: t, namespace: n}, spec: {parentRefs: [{group: '', kind: Service, name: c}], rules: [{backendRefs: [{name: a, port: 80}]}]}}",
    "{apiVersion: heddle.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: p, namespace: n}, spec: {targetRefs: [{kind: Service, name: a}], timeouts: {request: 1s}}}",
    "{apiVersion: heddle.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: q, namespace: n}, spec: {targetRefs: [{kind: Service, name: a}, {kind: Service, name: b}], timeouts: {request: 2s}}}",
    "{apiVersion: heddle.dev/v1alpha1, kind: AccessPolicy, metadata: {name: p, namespace: n}, spec: {targetRefs: [{kind: Service, name: b}], action: Allow}}",
    "{apiVersion: heddle.dev/v1alpha1, kind: AccessPolicy, metadata: {name: q, namespace: n}, spec: {targetRefs: [{kind: Namespace, name: n}], action: Deny}}",
    "{apiVersion: heddle.dev/v1alpha1, kind: MeshPolicy, metadata: {name: p, namespace: n}, spec: {mtls: Strict, opaquePorts: [80]}}",
    "{apiVersion: heddle.dev/v1alpha1, kind: MeshPolicy, metadata: {name: p, namespace: heddle-system}, spec: {mtls: Strict}}",
    "{apiVersion: heddle.dev/v1alpha1, kind: MeshPolicy, metadata: {name: p, namespace: heddle-system}, spec: {mtls: Disabled, ports: [{port: 81, mtls: Strict}]}}",
];

/// Everything that anyone could ask this mesh, with its deps.
fn everything(mesh: &Mesh) -> BTreeMap<String, (Vec<Dep>, String)> {
    let mut all = BTreeMap::new();
    for caller in ["n", "m"] {
        for name in [
            "a:80",
            "a.n:80",
            "b.n:80",
            "c.n.svc:80",
            "10.1.0.1:80",
            "10.1.0.2:80",
            "10.0.0.1:80",
            "10.0.0.1:81",
            "10.0.0.2:80",
            "10.0.0.3:80",
            "b.b.n.svc:80",
        ] {
            let compiled = mesh.destination(caller, name);
            all.insert(
                format!("destination {caller} {name}"),
                (compiled.deps, format!("{:?}", compiled.value)),
            );
        }
    }
    for key in ["n/a:80", "n/b:80", "n/c:80", "n/a:80@10.0.0.1", "n/c:80@10.0.0.2", "n/pod/a:80@10.0.0.1"] {
        let compiled = mesh.endpoints(key);
        all.insert(format!("endpoints {key}"), (compiled.deps, format!("{:?}", compiled.value)));
    }
    for pod in ["n/a", "n/b"] {
        let compiled = mesh.inbound(&pod.parse().unwrap());
        all.insert(format!("inbound {pod}"), (compiled.deps, format!("{:?}", compiled.value)));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// The two promises that the hub lives by: what changed was touched, and the order of changes does not matter.
    #[test]
    fn whatever_changes_was_touched_and_history_leaves_no_trace(
        steps in proptest::collection::vec((0..PIECES.len(), any::<bool>()), 1..25)
    ) {
        let mut mesh = Mesh::new(Options::default());
        let mut present = BTreeMap::new();
        let mut before = everything(&mesh);
        for (piece, put) in steps {
            let change = if put { upserts(PIECES[piece]) } else { removals(PIECES[piece]) };
            let reference = removals(PIECES[piece]);
            present.insert(format!("{reference:?}"), put.then_some(PIECES[piece]));
            let touched = mesh.apply(change);
            let after = everything(&mesh);
            for (question, (deps, value)) in &before {
                let (_, now) = &after[question];
                prop_assert!(
                    value == now || deps.iter().any(|dep| touched.contains(dep)),
                    "{question} changed untouched by {}\nfrom {value}\nto {now}\ndeps {deps:?}\ntouched {touched:?}",
                    PIECES[piece]
                );
            }
            before = after;
        }
        let manifests: Vec<&str> = present.into_values().flatten().collect();
        let anew = super::mesh(&manifests.join("\n---\n"));
        prop_assert_eq!(everything(&anew), before);
        prop_assert_eq!(anew.diagnostics(), mesh.diagnostics());
        let service = crate::object::Name::new("n", "c");
        prop_assert_eq!(anew.census(&service), mesh.census(&service));
    }
}

/// What a change touches is the measure of what it costs, and does not grow with the mesh.
#[test]
fn an_endpoint_that_comes_among_thousands_of_services_touches_its_own() {
    let touched = |services: usize| {
        let mut mesh = mesh(SHOP);
        for number in 0..services {
            let service = OTHER
                .replace("ratings", &format!("s{number}"))
                .replace("127.1.0.9", "")
                .replace("127.0.0.9", "");
            let service = service.replace(", clusterIP: ,", ",").replace("status: {podIP: }", "");
            mesh.apply(upserts(&service));
        }
        let mut touched: Vec<_> =
            mesh.apply(upserts(OTHER.split("---").nth(1).unwrap())).into_iter().collect();
        touched.sort();
        touched
    };
    assert_eq!(touched(0), touched(500));
}
