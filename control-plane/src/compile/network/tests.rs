//! Policies in, what is said of them out.

use std::fmt::Write as _;

use super::super::tests::{mesh, removals, upserts};
use crate::compile::Mesh;

/// Namespace `shop` with meshed `web` and `reviews` (a Service leads there; ports `http` 8080 and `metrics` 9090) and
/// a bare `batch`, `front` that is labelled, and `monitoring` without sidecars.
const AROUND: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/inject: enabled, team: shop}}
---
apiVersion: v1
kind: Namespace
metadata: {name: front, labels: {heddle.dev/inject: enabled, team: front}}
---
apiVersion: v1
kind: Namespace
metadata: {name: monitoring, labels: {team: o11y}}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}, annotations: {heddle.dev/sidecar: 'true'}}
spec: {containers: [{name: a}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: reviews-v1-5d9c-abcde
  namespace: shop
  labels: {app: reviews, version: v1, pod-template-hash: 5d9c}
  annotations: {heddle.dev/sidecar: 'true'}
spec: {containers: [{name: a, ports: [{name: http, containerPort: 8080}, {name: metrics, containerPort: 9090}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: batch-0, namespace: shop, labels: {app: batch}}
spec: {containers: [{name: a}]}
";

const REPLICA: &str = "
apiVersion: v1
kind: Pod
metadata: {name: heddle-control-plane-0, namespace: heddle-system, labels: {app.kubernetes.io/name: heddle-control-plane}}
spec: {containers: [{name: a}]}
status: {podIP: 10.9.0.1}
";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

/// `policy field severity: first words` of everything that is said of NetworkPolicies.
fn said(mesh: &Mesh) -> Vec<String> {
    let one = |problem: crate::diagnostics::Diagnostic| {
        let object = problem.object?;
        let words: Vec<_> = problem.message.split(' ').take(5).collect();
        (object.kind == crate::object::Kind::NetworkPolicy).then(|| {
            let field = problem.field.unwrap_or_default();
            format!("{} {field} {:?}: {}", object.name, problem.severity, words.join(" "))
        })
    };
    mesh.diagnostics().into_iter().filter_map(one).collect()
}

/// Of these policies, by name and spec.
fn of(policies: &[(&str, &str)]) -> Vec<String> {
    let mut text = AROUND.to_owned();
    for (name, spec) in policies {
        write!(text, "{}", policy(name, spec)).unwrap();
    }
    said(&mesh(&text))
}

const REVIEWS: &str = "podSelector: {matchLabels: {app: reviews}}";

fn ingress(rules: &str) -> String {
    format!("{{{REVIEWS}, ingress: {rules}}}")
}

const TRAP: &str = "p spec.ingress[0].ports Error: admits port 8080 of reviews-v1";

#[test]
fn a_policy_for_the_applications_port_alone_is_named_with_the_field_and_what_to_add() {
    let from_web = "from: [{podSelector: {matchLabels: {app: web}}}]";
    assert_eq!(of(&[("p", &ingress(&format!("[{{{from_web}, ports: [{{port: 8080}}]}}]")))]), [TRAP]);
    let whole = mesh(&format!("{AROUND}{}", policy("p", &ingress("[{ports: [{port: 8080}]}]"))));
    let problem = &whole.diagnostics()[0];
    assert_eq!(
        problem.to_string(),
        "NetworkPolicy shop/p: spec.ingress[0].ports: admits port 8080 of reviews-v1 but not 15008, where their \
         sidecars are reached: meshed callers that it means to let in cannot connect; add {port: 15008}, and say \
         with an AccessPolicy who may call what"
    );
    assert_eq!(problem.reason.as_str(), "MeshPortBlocked");
}

#[test]
fn what_admits_the_meshs_port_in_any_way_is_right() {
    let everyone: [&str; 0] = [];
    for rules in [
        "[{ports: [{port: 8080}, {port: 15008}]}]",
        "[{ports: [{port: 8080}, {protocol: TCP, port: 15008}]}]",
        "[{ports: [{port: 8000, endPort: 16000}]}]",
        "[{ports: [{protocol: TCP}]}]",
        "[{}]",
        "[{from: [{podSelector: {}}]}]",
        // Nothing that goes by the mesh.
        "[{ports: [{protocol: UDP, port: 8080}]}]",
        "[{ports: [{port: 15020}]}]",
        "[{ports: [{port: nothing-of-this-name}]}]",
    ] {
        assert_eq!(of(&[("p", &ingress(rules))]), everyone, "{rules}");
    }
    for (rules, first) in [
        ("[{ports: [{port: http}]}]", "p spec.ingress[0].ports Error: admits port \"http\" of reviews-v1"),
        (
            "[{ports: [{port: 8000, endPort: 9000}]}]",
            "p spec.ingress[0].ports Error: admits port 8000-9000 of reviews-v1",
        ),
        ("[{ports: [{port: 8080}, {protocol: UDP, port: 15008}]}]", TRAP),
    ] {
        assert_eq!(of(&[("p", &ingress(rules))]), [first], "{rules}");
    }
}

#[test]
fn callers_that_are_not_in_the_mesh_need_no_port_of_it() {
    let everyone: [&str; 0] = [];
    for from in [
        "{namespaceSelector: {matchLabels: {team: o11y}}}",
        "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}, podSelector: {}}",
        "{ipBlock: {cidr: 10.0.0.0/8}}",
    ] {
        let rules = format!("[{{from: [{from}], ports: [{{port: 8080}}]}}]");
        assert_eq!(of(&[("p", &ingress(&rules))]), everyone, "{from}");
    }
    for from in [
        "{namespaceSelector: {matchLabels: {team: front}}}",
        "{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [o11y]}]}}",
        "{namespaceSelector: {}}",
        "{podSelector: {}}",
    ] {
        let rules = format!("[{{from: [{from}], ports: [{{port: 8080}}]}}]");
        assert_eq!(of(&[("p", &ingress(&rules))]), [TRAP], "{from}");
    }
}

#[test]
fn policies_add_up_and_whom_one_lets_in_another_may_let_in_to_the_mesh() {
    let p = ingress("[{from: [{podSelector: {matchLabels: {app: web, tier: a}}}], ports: [{port: 8080}]}]");
    let everyone: [&str; 0] = [];
    for also in [
        "{podSelector: {}, ingress: [{ports: [{port: 15008}]}]}",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 15008}]}]}",
        "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 15008}]}]}",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 15008}]}]}",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [web, api]}]}}], ports: [{port: 15008}]}]}",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}], ports: [{port: 15008}]}]}",
    ] {
        assert_eq!(of(&[("also", also), ("p", &p)]), everyone, "{also}");
    }
    for also in [
        // Others, another namespace, another pod, another direction.
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 15008}]}]}",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web, tier: a, x: y}}}], ports: [{port: 15008}]}]}",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}}], ports: [{port: 15008}]}]}",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: front}}}], ports: [{port: 15008}]}]}",
        "{podSelector: {matchLabels: {app: batch}}, ingress: [{ports: [{port: 15008}]}]}",
        "{podSelector: {}, policyTypes: [Egress], ingress: [{ports: [{port: 15008}]}]}",
    ] {
        assert!(of(&[("also", also), ("p", &p)]).contains(&TRAP.to_owned()), "{also}");
    }
}

#[test]
fn a_policy_that_closes_everything_is_an_error_where_a_service_leads_and_is_said_once() {
    let of_reviews = |name: &str| format!("{name} spec.ingress Error: admits nothing to reviews-v1, to");
    let of_web = |name: &str| format!("{name} spec.ingress Warning: admits nothing to web-0: right");
    for spec in ["{podSelector: {}}", "{}", "{podSelector: {}, policyTypes: [Ingress], ingress: []}"] {
        assert_eq!(of(&[("p", spec)]), [of_reviews("p"), of_web("p")], "{spec}");
    }
    assert_eq!(of(&[("a", "{}"), ("b", "{}")]), [of_reviews("a"), of_web("a")]);
    let selected = "{podSelector: {matchExpressions: [{key: version, operator: DoesNotExist}, {key: app, operator: In, values: [web]}]}}";
    assert_eq!(of(&[("p", selected)]), [of_web("p")]);
    // Egress alone isolates nobody's ingress, and a pod without sidecar is nobody's business.
    let everyone: [&str; 0] = [];
    for spec in ["{podSelector: {}, policyTypes: [Egress]}", "{podSelector: {matchLabels: {app: batch}}}"] {
        assert_eq!(of(&[("p", spec)]), everyone, "{spec}");
    }
    // Another that opens the mesh is the whole cure.
    let open = "{podSelector: {}, ingress: [{ports: [{port: 15008}]}]}";
    assert_eq!(of(&[("deny", "{podSelector: {}}"), ("mesh", open)]), everyone);
}

#[test]
fn ways_out_that_lead_past_the_mesh_are_named_and_so_is_one_that_misses_the_control_plane() {
    let out = |rules: &str| format!("{{podSelector: {{matchLabels: {{app: web}}}}, egress: {rules}}}");
    // Such a policy closes ingress too, as long as it does not say policyTypes.
    let closed = "p spec.ingress Warning: admits nothing to web-0: right";
    assert_eq!(
        of(&[("p", &out("[{to: [{podSelector: {matchLabels: {app: reviews}}}], ports: [{port: http}]}]"))]),
        [closed, "p spec.egress[0].ports Error: lets web-0 out to port"],
    );
    assert_eq!(
        of(&[("p", &out("[{ports: [{port: 443}]}]"))]),
        [closed, "p spec.egress[0].ports Warning: lets web-0 out to port"]
    );
    assert_eq!(
        of(&[(
            "p",
            &out("[{to: [{namespaceSelector: {}}], ports: [{port: 53}, {port: 53, protocol: UDP}]}]")
        )]),
        [closed]
    );
    let with_replica = |rules: &str| {
        let policy = policy("p", &format!("{{policyTypes: [Egress], egress: {rules}}}"));
        said(&mesh(&format!("{AROUND}---{REPLICA}{policy}")))
    };
    let cut = ["p spec.egress Error: neither it nor another policy"];
    let everyone: [&str; 0] = [];
    let system = "namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: heddle-system}}";
    assert_eq!(with_replica("[]"), cut);
    assert_eq!(with_replica(&format!("[{{to: [{{{system}}}], ports: [{{port: 15012}}]}}]")), cut);
    assert_eq!(with_replica("[{to: [{podSelector: {}}]}]"), cut);
    assert_eq!(with_replica("[{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0/16]}}]}]"), cut);
    assert_eq!(with_replica("[{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]"), everyone);
    assert_eq!(with_replica(&format!("[{{to: [{{{system}}}], ports: [{{port: 15010}}]}}]")), everyone);
    assert_eq!(with_replica("[{}]"), everyone);
}

#[test]
fn it_is_said_and_unsaid_as_pods_namespaces_and_policies_come_and_go() {
    let trap = policy(
        "p",
        &ingress("[{from: [{namespaceSelector: {matchLabels: {team: o11y}}}], ports: [{port: 8080}]}]"),
    );
    let mut mesh = mesh(&format!("{AROUND}{trap}"));
    let nothing: [&str; 0] = [];
    assert_eq!(said(&mesh), nothing);
    // The callers get sidecars.
    let labelled = "apiVersion: v1\nkind: Namespace\nmetadata: {name: monitoring, labels: {team: o11y, heddle.dev/inject: enabled}}";
    mesh.apply(upserts(labelled));
    assert_eq!(said(&mesh), [TRAP]);
    mesh.apply(upserts(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: monitoring, labels: {team: o11y}}",
    ));
    assert_eq!(said(&mesh), nothing);
    let caller = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: monitoring, annotations: {heddle.dev/sidecar: 'true'}}\nspec: {containers: []}";
    mesh.apply(upserts(caller));
    assert_eq!(said(&mesh), [TRAP]);
    // A second replica is nothing new; the last one that goes is.
    let version = mesh.diagnostics_version();
    let reviews = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: reviews-v1-5d9c-{name}, namespace: shop, labels: {{app: reviews, version: v1, pod-template-hash: 5d9c}}, annotations: {{heddle.dev/sidecar: 'true'}}}}\nspec: {{containers: [{{name: a, ports: [{{name: http, containerPort: 8080}}, {{name: metrics, containerPort: 9090}}]}}]}}"
        )
    };
    mesh.apply(upserts(&reviews("zzzzz")));
    mesh.apply(removals(&reviews("abcde")));
    assert_eq!(mesh.diagnostics_version(), version);
    mesh.apply(removals(&reviews("zzzzz")));
    assert_eq!(said(&mesh), nothing);
    mesh.apply(upserts(&reviews("abcde")));
    assert_eq!(said(&mesh), [TRAP]);
    mesh.apply(removals(&trap));
    assert_eq!(said(&mesh), nothing);
}
