//! What is said of objects that do not fit the others, and that it is unsaid once they do.

use std::path::Path;

use heddle_api::v1;

use super::{SHOP, mesh, removals, upserts};
use crate::{
    compile::Mesh,
    diagnostics::Place,
    object::{Change, Kind, Object, ObjectRef},
};

fn problems(mesh: &Mesh) -> Vec<String> {
    mesh.diagnostics().iter().map(ToString::to_string).collect()
}

fn route(parent: &str, backend: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r, namespace: shop}}, spec: {{parentRefs: [{parent}], rules: [{{backendRefs: [{backend}]}}]}}}}"
    )
}

#[test]
fn each_reference_that_leads_nowhere_is_named() {
    let parent = "{group: '', kind: Service, name: reviews}";
    let backend = "{name: reviews-v1, port: 9080}";
    for (route, expected) in [
        (route(parent, backend), &[][..]),
        (
            route("{group: '', kind: Service, name: nobody}", backend),
            &[
                "HTTPRoute shop/r: spec.parentRefs[0].name: Service shop/nobody does not exist: the route has no effect here",
            ],
        ),
        (
            route("{kind: Service, name: reviews}", backend),
            &[
                "HTTPRoute shop/r: spec.parentRefs[0].group: must be \"\" for a Service; the route has no effect here",
            ],
        ),
        (
            route("{group: '', kind: Service, name: reviews, port: 81}", backend),
            &["HTTPRoute shop/r: spec.parentRefs[0].port: Service shop/reviews has no port 81; it has 9080"],
        ),
        (
            route(parent, "{name: nobody, port: 80}"),
            &[
                "HTTPRoute shop/r: spec.rules[0].backendRefs[0]: Service shop/nobody does not exist: its share of the requests gets 500",
            ],
        ),
        (
            route(parent, "{name: reviews-v1, port: 81}"),
            &[
                "HTTPRoute shop/r: spec.rules[0].backendRefs[0]: Service shop/reviews-v1 has no port 81; it has 9080: its share of the requests gets 500",
            ],
        ),
        (
            route(parent, "{name: reviews-v1}"),
            &[
                "HTTPRoute shop/r: spec.rules[0].backendRefs[0]: no port is given, and a Service (shop/reviews-v1) needs one: its share of the requests gets 500",
            ],
        ),
        (
            route(parent, "{name: x, namespace: elsewhere, port: 80}"),
            &[
                "HTTPRoute shop/r: spec.rules[0].backendRefs[0]: Service elsewhere/x is in another namespace than the route, and no ReferenceGrant of elsewhere lets HTTPRoutes of shop lead there: its share of the requests gets 500",
            ],
        ),
    ] {
        assert_eq!(problems(&mesh(&format!("{SHOP}\n---\n{route}"))), expected);
    }
}

#[test]
fn a_problem_goes_when_what_was_missing_comes_and_says_where_it_is_written() {
    let reviews = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let mut mesh = mesh(SHOP);
    mesh.apply(upserts(&route("{group: '', kind: Service, name: reviews}", "{name: late, port: 80}")));
    let object = ObjectRef { kind: Kind::HttpRoute, namespace: "shop".into(), name: "r".into() };
    mesh.apply(vec![Change::Place(object, Place { file: Path::new("m/r.yaml").into(), line: 7 })]);
    assert_eq!(
        problems(&mesh),
        [
            "m/r.yaml:7: HTTPRoute shop/r: spec.rules[0].backendRefs[0]: Service shop/late does not exist: its share of the requests gets 500"
        ]
    );
    mesh.apply(upserts(reviews));
    assert!(problems(&mesh).is_empty());
    mesh.apply(removals(reviews));
    assert_eq!(problems(&mesh).len(), 1);
}

#[test]
fn of_two_policies_for_one_target_the_first_by_name_holds_and_both_are_named() {
    let policy = |name: &str, request: &str| {
        format!(
            "{{apiVersion: heddle.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {{targetRefs: [{{kind: Service, name: reviews}}], timeouts: {{request: {request}}}}}}}"
        )
    };
    let mut mesh = mesh(&format!("{SHOP}\n---\n{}", policy("b", "2s")));
    assert!(problems(&mesh).is_empty());
    let timeout = |mesh: &Mesh| {
        let backends = mesh.destination("shop", "reviews:9080").value.unwrap().backends;
        backends.iter().find_map(|backend| backend.policy.as_ref()?.request_timeout_ms)
    };
    mesh.apply(upserts(&policy("a", "1s")));
    assert_eq!(
        problems(&mesh),
        [
            "TrafficPolicy shop/b: spec.targetRefs[0]: Service shop/reviews has TrafficPolicy shop/a, which goes first; this one (shop/b) has no effect on it"
        ]
    );
    assert_eq!(timeout(&mesh), Some(1000));
    mesh.apply(removals(&policy("a", "1s")));
    assert!(problems(&mesh).is_empty());
    assert_eq!(timeout(&mesh), Some(2000));
}

#[test]
fn two_mesh_policies_and_two_tcp_routes_are_rivals_too() {
    let rivals = "
{apiVersion: heddle.dev/v1alpha1, kind: MeshPolicy, metadata: {name: a, namespace: shop}, spec: {mtls: Strict}}
---
{apiVersion: heddle.dev/v1alpha1, kind: MeshPolicy, metadata: {name: b, namespace: shop}, spec: {}}
---
{apiVersion: gateway.networking.k8s.io/v1alpha2, kind: TCPRoute, metadata: {name: a, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: db}], rules: [{backendRefs: [{name: db, port: 5432}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1alpha2, kind: TCPRoute, metadata: {name: b, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: db}], rules: [{backendRefs: [{name: db, port: 5432}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {ports: [{port: 5432}]}}
";
    assert_eq!(
        problems(&mesh(rivals)),
        [
            "TCPRoute shop/b: spec.parentRefs: port 5432 of Service shop/db has TCPRoute shop/a, which goes first; this one (shop/b) has no effect on it",
            "MeshPolicy shop/b: metadata.name: namespace shop has MeshPolicy shop/a, which goes first; this one (shop/b) has no effect",
        ]
    );
}

#[test]
fn a_named_port_that_no_pod_has_is_named_until_a_pod_brings_it() {
    let service = "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {selector: {app: s}, ports: [{port: 80, targetPort: web}]}}";
    let pod = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: shop, labels: {{app: s}}}}, spec: {{containers: [{{name: c, ports: [{{name: {name}, containerPort: 8080}}]}}]}}}}"
        )
    };
    let mut mesh = mesh(&format!("{service}\n---\n{}", pod("wbe")));
    assert_eq!(
        problems(&mesh),
        [
            "Service shop/s: spec.ports.targetPort: no pod that it selects has a port named \"web\": port 80 leads nowhere"
        ]
    );
    mesh.apply(upserts(&pod("web")));
    assert!(problems(&mesh).is_empty());
}

/// A directory refuses such a policy when it is read; the compiler does not count on every source to do so.
#[test]
fn an_access_policy_that_cannot_be_used_denies_instead_of_vanishing() {
    let mut mesh = mesh(SHOP);
    let text = "{apiVersion: heddle.dev/v1alpha1, kind: AccessPolicy, metadata: {name: p, namespace: shop}, spec: {targetRefs: [{kind: Service, name: reviews}], action: Allow, rules: [{to: [{methods: [GET]}]}]}}";
    let Some(Change::Upsert(Object::AccessPolicy(policy))) = upserts(text).pop() else { panic!("no policy") };
    let action = |mesh: &Mesh| {
        let inbound = mesh.inbound(&"shop/reviews-v1-0".parse().unwrap()).value.unwrap();
        inbound.ports[0].access[0].action()
    };
    mesh.apply(vec![Change::Upsert(Object::AccessPolicy(policy.clone()))]);
    assert_eq!(action(&mesh), v1::AccessAction::Allow);
    let mut wrong = (*policy).clone();
    wrong.spec.rules[0].to[0].methods[0] = "get".to_owned();
    mesh.apply(vec![Change::Upsert(Object::AccessPolicy(wrong.into()))]);
    assert_eq!(action(&mesh), v1::AccessAction::Unspecified);
    assert_eq!(
        problems(&mesh),
        ["AccessPolicy shop/p: spec.rules[0].to[0].methods[0]: \"get\" is not a method in capitals"]
    );
}

#[test]
fn a_share_of_a_backend_that_may_not_be_used_goes_to_no_service_of_that_name() {
    let parent = "{group: '', kind: Service, name: reviews}";
    // The port's own backend is there for its own sake, under the key that the reference would have had.
    let mesh = mesh(&format!(
        "{SHOP}\n---\n{}",
        route(parent, "{group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews, port: 9080}")
    ));
    let destination = mesh.destination("shop", "reviews:9080").value.unwrap();
    let keys: Vec<_> = destination.backends.iter().map(|backend| &backend.key).collect();
    let rule = destination.http_routes.iter().find(|route| route.name == "shop/r").unwrap().rule;
    let share = &destination.http_rules[rule as usize].backends[0];
    assert!(!keys.contains(&&share.backend), "{share:?} is among {keys:?}");
}

#[test]
fn what_would_go_unnoticed_is_said() {
    let nowhere = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, spec: {rules: [{}]}}";
    assert_eq!(
        problems(&mesh(nowhere)),
        [
            "HTTPRoute shop/r: spec.parentRefs: names nothing, so the route has no effect: name a Service, with group: \"\" and kind: Service"
        ]
    );
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop, annotations: {heddle.dev/sidecar: 'yes'}}}";
    assert_eq!(
        problems(&mesh(pod)),
        [
            "Pod shop/p: metadata.annotations[heddle.dev/sidecar]: \"yes\" is neither \"true\" nor \"false\": the pod counts as one without sidecar"
        ]
    );
}

#[test]
fn a_grant_opens_a_backend_of_another_namespace_to_the_routes_that_it_names() {
    let backend = "{name: ledger, namespace: bank, port: 80}";
    let ledger = "{apiVersion: v1, kind: Service, metadata: {name: ledger, namespace: bank}, spec: {ports: [{port: 80}]}}";
    let text = format!(
        "{SHOP}\n---\n{ledger}\n---\n{}",
        route("{group: '', kind: Service, name: reviews}", backend)
    );
    let grant = |from: &str, to: &str| {
        format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {{name: g, namespace: bank}}, \
             spec: {{from: [{{group: gateway.networking.k8s.io, {from}}}], to: [{{group: '', kind: Service{to}}}]}}}}"
        )
    };
    let refused =
        |mesh: &Mesh| problems(mesh).iter().any(|problem| problem.contains("no ReferenceGrant of bank"));
    let mut mesh = mesh(&text);
    assert!(refused(&mesh));
    for (from, to, opens) in [
        ("kind: HTTPRoute, namespace: shop", "", true),
        ("kind: HTTPRoute, namespace: shop", ", name: ledger", true),
        ("kind: HTTPRoute, namespace: shop", ", name: other", false),
        ("kind: GRPCRoute, namespace: shop", "", false),
        ("kind: HTTPRoute, namespace: elsewhere", "", false),
    ] {
        let touched = mesh.apply(upserts(&grant(from, to)));
        assert_eq!(refused(&mesh), !opens, "{from} {to}");
        if opens {
            let destination = mesh.destination("shop", "reviews:9080").value.unwrap();
            assert!(destination.backends.iter().any(|backend| backend.key == "bank/ledger:80"));
        }
        assert!(touched.iter().all(|dep| format!("{dep:?}").contains("ledger")), "{touched:?}");
    }
    mesh.apply(upserts(&grant("kind: HTTPRoute, namespace: shop", "")));
    mesh.apply(removals(&grant("kind: HTTPRoute, namespace: shop", "")));
    assert!(refused(&mesh));
}

#[test]
fn a_pod_without_a_zone_of_its_own_has_its_nodes() {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop, labels: {app: z}}, spec: {nodeName: n1, containers: []}, status: {podIP: 10.0.0.9}}";
    let service = "{apiVersion: v1, kind: Service, metadata: {name: z, namespace: shop}, spec: {selector: {app: z}, ports: [{port: 80}]}}";
    let node = |zone: &str| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n1, labels: {{topology.kubernetes.io/zone: {zone}}}}}}}"
        )
    };
    let zone = |mesh: &Mesh| mesh.endpoints("shop/z:80").value.unwrap().endpoints[0].zone.clone();
    let mut mesh = mesh(&format!("{pod}\n---\n{service}"));
    assert_eq!(zone(&mesh), "");
    let touched = mesh.apply(upserts(&node("a")));
    assert_eq!(zone(&mesh), "a");
    assert!(!touched.is_empty());
    mesh.apply(upserts(&node("b")));
    assert_eq!(zone(&mesh), "b");
    assert!(mesh.apply(upserts(&node("b"))).is_empty(), "what is the same touches nothing");
    mesh.apply(removals(&node("b")));
    assert_eq!(zone(&mesh), "");
}

#[test]
fn a_route_for_a_whole_service_minds_ports_of_other_protocols_only_where_there_are_no_others() {
    let service = |ports: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: mixed, namespace: shop}}, spec: {{ports: [{ports}]}}}}"
        )
    };
    let parent = |port: &str| format!("{{group: '', kind: Service, name: mixed{port}}}");
    let of = |ports: &str, port: &str| {
        let text = format!("{}\n---\n{}", service(ports), route(&parent(port), "{name: mixed, port: 443}"));
        problems(&mesh(&text))
    };
    const SECURE: &str = "{name: https, port: 443}, {name: tcp, port: 9090}";
    let complaint = |port: u16| {
        format!(
            "HTTPRoute shop/r: spec.parentRefs[0].name: port {port} of Service shop/mixed declares that it is not HTTP: the route has no effect on it"
        )
    };
    assert!(of(&format!("{{name: http, port: 80}}, {SECURE}"), "").is_empty());
    assert!(of(&format!("{{name: undeclared, port: 80}}, {SECURE}"), "").is_empty());
    assert_eq!(of(SECURE, ""), [complaint(443), complaint(9090)]);
    assert_eq!(of(&format!("{{name: http, port: 80}}, {SECURE}"), ", port: 443"), [complaint(443)]);
}

/// A parent in the backend's namespace says nothing of the callers of another parent.
#[test]
fn a_parent_in_the_backends_namespace_stands_for_no_grant_at_another_parent() {
    let service = |name: &str, namespace: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{ports: [{{port: 80}}]}}}}"
        )
    };
    let route = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: a}, spec: \
        {parentRefs: [{group: '', kind: Service, name: front}, {group: '', kind: Service, name: open, namespace: b}], \
        rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: admin, namespace: b, port: 80}}}], \
        backendRefs: [{name: admin, namespace: b, port: 80}]}]}}";
    let all = [service("front", "a"), service("open", "b"), service("admin", "b"), route.to_owned()];
    let mut mesh = mesh(&all.join("\n---\n"));
    let leads_to_admin = |mesh: &Mesh, name: &str| {
        let destination = mesh.destination("a", name).value.unwrap();
        let rule = &destination.http_rules[0];
        let mirror = rule.filters.iter().any(|filter| format!("{filter:?}").contains("\"b/admin:80\""));
        let backend = rule.backends[0].backend == "b/admin:80";
        assert_eq!(mirror, backend);
        backend && destination.backends.iter().any(|backend| backend.key == "b/admin:80")
    };
    assert!(!leads_to_admin(&mesh, "front:80"), "whoever owns b never let routes of a lead there");
    assert!(leads_to_admin(&mesh, "open.b:80"), "callers of b's Services may call b without a route as well");
    let refused = "Service b/admin is in another namespace than the route, and no ReferenceGrant of b lets HTTPRoutes of a lead there";
    assert_eq!(
        problems(&mesh),
        [
            format!(
                "HTTPRoute a/r: spec.parentRefs[0]: spec.rules[0].filters[0].requestMirror.backendRef: {refused}: nothing is mirrored"
            ),
            format!(
                "HTTPRoute a/r: spec.parentRefs[0]: spec.rules[0].backendRefs[0]: {refused}: its share of the requests gets 500"
            ),
        ]
    );
    mesh.apply(upserts(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: g, namespace: b}, \
         spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}}",
    ));
    assert!(leads_to_admin(&mesh, "front:80") && leads_to_admin(&mesh, "open.b:80"));
    assert!(problems(&mesh).is_empty());
}
