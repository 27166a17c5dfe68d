//! Objects in, findings out.

use heddle_api::resources::{AccessPolicy, MeshPolicy, TrafficPolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// `level check: first words -> first words` of each finding.
fn short(findings: impl IntoIterator<Item = Finding>) -> Vec<String> {
    let words = |text: &str, count: usize| text.split(' ').take(count).collect::<Vec<_>>().join(" ");
    let one = |finding: Finding| {
        let fix = finding.fix.map_or(String::new(), |fix| format!(" -> {}", words(&fix, 6)));
        format!("{:?} {}: {}{fix}", finding.level, finding.check, words(&finding.message, 6))
    };
    findings.into_iter().map(one).collect()
}

const NOTHING: [&str; 0] = [];

fn established(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    definition.status = Some(read(json!({"conditions": [{"type": "Established", "status": "True"}]})));
    definition
}

#[allow(clippy::needless_pass_by_value, reason = "literals read better at the calls")]
fn namespace(name: &str, labels: Value) -> Namespace {
    read(json!({"metadata": {"name": name, "labels": labels}}))
}

/// Of Deployment `web` in `shop`, with a sidecar of this version and image where there is one.
fn pod(name: &str, sidecar: Option<(&str, &str)>) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"pod-template-hash": "5d9c"}, "annotations": {},
            "creationTimestamp": "2026-01-02T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d9c", "uid": "u", "controller": true}]},
        "spec": {"containers": [{"name": "app", "image": "web:7"}]}, "status": {"phase": "Running"}});
    if let Some((version, image)) = sidecar {
        pod["metadata"]["annotations"]["heddle.dev/sidecar"] = "true".into();
        pod["metadata"]["labels"]["heddle.dev/sidecar-version"] = version.into();
        pod["spec"]["initContainers"] =
            json!([{"name": "heddle-proxy", "image": image, "restartPolicy": "Always"}]);
    }
    pod
}

fn deployment(replicas: i32, ready: i32) -> Deployment {
    read(json!({
        "metadata": {"name": "heddle-control-plane", "labels": {"app.kubernetes.io/version": env!("CARGO_PKG_VERSION")}},
        "spec": {"replicas": replicas, "selector": {}, "template": {"spec": {"containers": [
            {"name": "c", "args": ["run", format!("--sidecar-image=heddle-proxy:{}", env!("CARGO_PKG_VERSION"))]}]}}},
        "status": {"readyReplicas": ready}}))
}

/// An installed Heddle, and a shop that is labelled.
fn installed() -> Facts {
    Facts {
        system: "heddle-system".to_owned(),
        deployment: Some(deployment(2, 2)),
        namespaces: vec![namespace("shop", json!({"heddle.dev/inject": "enabled"}))],
        ..Facts::default()
    }
}

#[test]
fn an_old_kubernetes_is_an_error_and_one_with_the_gate_is_none() {
    let with = |minor| {
        let facts = Facts { version: Some((1, minor, format!("v1.{minor}.2"))), ..Facts::default() };
        short(install::version(&facts))
    };
    assert_eq!(
        with(28),
        ["Error kubernetes: v1.28.2 has no native sidecars: an -> upgrade the cluster to Kubernetes 1.29"]
    );
    assert_eq!(with(29), ["Ok kubernetes: v1.29.2 has native sidecars, unless the"]);
    assert_eq!(with(33), ["Ok kubernetes: v1.33.2 has native sidecars"]);
}

#[test]
fn definitions_are_missing_idle_of_another_version_or_right() {
    let all = [TrafficPolicy::crd(), AccessPolicy::crd(), MeshPolicy::crd()];
    let mut facts = installed();
    let missing = "Error definitions: TrafficPolicy, AccessPolicy, MeshPolicy not defined: policies -> kubectl apply --server-side --force-conflicts -f charts/heddle/crds/";
    assert_eq!(short(install::definitions(&facts)), [missing]);
    facts.definitions = all.clone().map(established).to_vec();
    let good = "Ok definitions: TrafficPolicy, AccessPolicy, MeshPolicy defined as this";
    assert_eq!(short(install::definitions(&facts)), [good]);
    facts.definitions[0] = all[0].clone();
    let schema = facts.definitions[1].spec.versions[0].schema.as_mut().unwrap();
    schema.open_api_v3_schema.as_mut().unwrap().properties.as_mut().unwrap().remove("spec");
    assert_eq!(
        short(install::definitions(&facts)),
        [
            "Error definitions: TrafficPolicy defined but not served: the -> kubectl apply --server-side --force-conflicts -f charts/heddle/crds/",
            "Warning definitions: AccessPolicy defined as another version of -> kubectl apply --server-side --force-conflicts -f charts/heddle/crds/",
            "Ok definitions: MeshPolicy defined as this version has",
        ]
    );
    // Before an install nothing else is to be expected.
    facts = Facts::default();
    assert_eq!(
        short(install::definitions(&facts)),
        ["Note definitions: TrafficPolicy, AccessPolicy, MeshPolicy not defined yet:"]
    );
}

#[test]
fn the_gateway_api_is_said_by_what_of_it_is_there() {
    use gateway_api::experimental::{
        grpcroutes::GrpcRoute, httproutes::HttpRoute, referencegrants::ReferenceGrant, tcproutes::TcpRoute,
    };
    let mut all = vec![HttpRoute::crd(), GrpcRoute::crd(), TcpRoute::crd(), ReferenceGrant::crd()];
    for definition in &mut all {
        let bundle = ("gateway.networking.k8s.io/bundle-version".to_owned(), "v1.5.0".to_owned());
        definition.metadata.annotations = Some([bundle].into());
    }
    let said = |definitions: &[CustomResourceDefinition]| {
        short(install::gateway(&Facts { definitions: definitions.to_vec(), ..Facts::default() }))
    };
    let fix = "-> kubectl apply --server-side -f the experimental-install.yaml";
    assert_eq!(said(&all), ["Ok gateway-api: v1.5.0, with all kinds that Heddle"]);
    assert_eq!(said(&[]), [format!("Note gateway-api: the cluster has no Gateway API: {fix}")]);
    assert_eq!(
        said(&[&all[..2], &all[3..]].concat()),
        [format!("Note gateway-api: no TCPRoute: the mesh works without {fix}")]
    );
    all[1].spec.versions[0].served = false;
    all[1].metadata.annotations =
        Some([("gateway.networking.k8s.io/bundle-version".to_owned(), "v1.0.0".to_owned())].into());
    assert_eq!(
        said(&all),
        [
            format!("Error gateway-api: GRPCRoute: no version that Heddle reads {fix}"),
            format!("Warning gateway-api: its definitions are of different releases: {fix}"),
        ]
    );
}

#[test]
fn a_control_plane_is_ready_short_of_replicas_away_or_not_there() {
    let with = |ready| {
        short(install::control_plane(&Facts { deployment: Some(deployment(2, ready)), ..installed() }))
    };
    assert_eq!(with(2), ["Ok control-plane: 2 of 2 replicas are ready"]);
    assert_eq!(with(1)[0].split(" ->").next(), Some("Warning control-plane: 1 of 2 replicas are ready"));
    assert_eq!(with(0)[0].split(" ->").next(), Some("Error control-plane: none of 2 replicas is ready:"));
    let before = Facts { system: "heddle-system".to_owned(), ..Facts::default() };
    assert_eq!(
        short(install::control_plane(&before)),
        [
            "Note control-plane: not installed in namespace heddle-system -> helm install heddle charts/heddle -n heddle-system"
        ]
    );
    let mut other = deployment(1, 1);
    other
        .metadata
        .labels
        .as_mut()
        .unwrap()
        .insert("app.kubernetes.io/version".to_owned(), "9.9.9".to_owned());
    let said = short(install::control_plane(&Facts { deployment: Some(other), ..installed() }));
    assert_eq!(
        said[1],
        "Warning control-plane: it is of version 9.9.9, and -> use heddle 9.9.9, or helm upgrade"
    );
}

#[test]
fn a_webhook_needs_the_meshs_roots() {
    let pem = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    let with = |bundle: Option<String>, policy: &str| {
        let mut client = json!({"service": {"name": "heddle-injector", "namespace": "heddle-system"}});
        if let Some(bundle) = bundle {
            client["caBundle"] = serde_json::to_value(k8s_openapi::ByteString(bundle.into_bytes())).unwrap();
        }
        let webhook = read(json!({"metadata": {"name": "heddle-injector"}, "webhooks": [{
            "name": "a.heddle.dev", "clientConfig": client, "failurePolicy": policy, "sideEffects": "None", "admissionReviewVersions": ["v1"]}]}));
        let facts = Facts { webhook: Some(webhook), roots: Some(pem("AAAA") + &pem("BBBB")), ..installed() };
        short(install::webhook(&facts))
            .into_iter()
            .map(|text| text.split(" ->").next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(with(Some(pem("AA\nAA")), "Fail"), ["Ok webhook: registered, with the mesh's roots"]);
    assert_eq!(with(None, "Fail"), ["Error webhook: a.heddle.dev has no caBundle: the API"]);
    assert_eq!(
        with(Some(pem("CCCC")), "Ignore"),
        [
            "Error webhook: a.heddle.dev has a caBundle without any",
            "Note webhook: a.heddle.dev has failurePolicy Ignore: pods that"
        ]
    );
    assert_eq!(
        short(install::webhook(&installed())),
        [
            "Error webhook: there is no MutatingWebhookConfiguration heddle-injector: no -> helm upgrade heddle charts/heddle -n heddle-system"
        ]
    );
    assert_eq!(short(install::webhook(&Facts::default())), NOTHING);
}

#[test]
fn a_pod_without_sidecar_is_named_by_its_workload_with_the_reason() {
    let said = |change: &dyn Fn(&mut Value), facts: Facts| {
        let mut value = pod("web-5d9c-a", None);
        change(&mut value);
        let found = pods::without_sidecar(&Facts { pods: vec![read(value)], ..facts });
        found
            .into_iter()
            .map(|finding| (finding.level, finding.message, finding.fix.unwrap_or_default()))
            .next()
    };
    let restart = "kubectl -n shop rollout restart deployment/web";
    let (level, message, fix) = said(&|_| {}, installed()).unwrap();
    assert_eq!((level, &*fix), (Level::Warning, restart));
    assert!(
        message.starts_with(
            "no sidecar in namespace shop: Deployment web: made while the webhook was not asked"
        ),
        "{message}"
    );
    // The API server writes down when a label came.
    let labelled = read(
        json!({"metadata": {"name": "shop", "labels": {"heddle.dev/inject": "enabled"}, "managedFields": [
        {"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "time": "2026-01-03T00:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:heddle.dev/inject": {}}}}}]}}),
    );
    let (_, message, _) = said(&|_| {}, Facts { namespaces: vec![labelled], ..installed() }).unwrap();
    assert!(message.contains("older than the label heddle.dev/inject of its namespace"), "{message}");
    let (level, message, fix) = said(&|pod| pod["spec"]["hostNetwork"] = true.into(), installed()).unwrap();
    assert!(level == Level::Warning && message.contains("hostNetwork: true") && fix.is_empty(), "{message}");
    let disabled = |pod: &mut Value| pod["metadata"]["annotations"]["heddle.dev/inject"] = "disabled".into();
    assert_eq!(said(&disabled, installed()).map(|said| said.0), Some(Level::Note));
    let claims = |pod: &mut Value| pod["metadata"]["annotations"]["heddle.dev/sidecar"] = "true".into();
    assert_eq!(said(&claims, installed()).map(|said| said.0), Some(Level::Error));
    let over = |pod: &mut Value| pod["status"]["phase"] = "Succeeded".into();
    assert_eq!(said(&over, installed()), None);
    let unlabelled = || Facts { namespaces: vec![namespace("shop", json!({}))], ..installed() };
    assert_eq!(said(&|_| {}, unlabelled()), None);
    let asks = |pod: &mut Value| pod["metadata"]["annotations"]["heddle.dev/inject"] = "enabled".into();
    assert_eq!(said(&asks, unlabelled()).map(|said| said.0), Some(Level::Warning));
    let (level, ..) = said(&|_| {}, Facts { deployment: None, ..installed() }).unwrap();
    assert_eq!(level, Level::Note, "nothing is wrong before the install");
}

#[test]
fn an_outdated_sidecar_is_told_by_its_label_and_without_one_by_its_image() {
    let own = env!("CARGO_PKG_VERSION");
    let image = format!("heddle-proxy:{own}");
    let said = |sidecar: (&str, &str), unlabelled: bool| {
        let mut value = pod("web-5d9c-a", Some(sidecar));
        if unlabelled {
            value["metadata"]["labels"].as_object_mut().unwrap().remove("heddle.dev/sidecar-version");
        }
        let found = pods::outdated(&Facts { pods: vec![read(value)], ..installed() });
        found.into_iter().map(|finding| finding.message).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(said((own, &image), false), format!("all 1 sidecars are of version {own}"));
    assert_eq!(said((own, &image), true), format!("all 1 sidecars are of version {own}"));
    let old = "outdated in namespace shop: Deployment web run 0.0.9, and the control plane injects";
    assert!(said(("0.0.9", "heddle-proxy:0.0.9"), false).starts_with(old));
    assert!(said(("x", "registry.example:5000/heddle-proxy:0.0.9"), true).starts_with(old));
    let other = said((own, "elsewhere/heddle-proxy:1"), false);
    assert!(other.contains("run image elsewhere/heddle-proxy:1"), "{other}");
    assert_eq!(short(pods::outdated(&Facts::default())), NOTHING, "nobody says what they should be");
}

#[test]
fn a_namespace_whose_labels_work_against_it_is_named() {
    let facts = Facts {
        namespaces: vec![
            namespace("shop", json!({"heddle.dev/inject": "true"})),
            namespace("kube-system", json!({"heddle.dev/inject": "enabled"})),
            namespace(
                "safe",
                json!({"heddle.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "restricted"}),
            ),
            namespace("plain", json!({"pod-security.kubernetes.io/enforce": "restricted"})),
        ],
        ..installed()
    };
    assert_eq!(
        short(pods::labels(&facts)),
        [
            "Warning injection: Namespace shop is labelled heddle.dev/inject=true, which -> kubectl label --overwrite namespace shop heddle.dev/inject=enabled",
            "Warning injection: Namespace kube-system is labelled heddle.dev/inject=enabled, but -> kubectl label namespace kube-system heddle.dev/inject-",
        ]
    );
    assert_eq!(
        short(pods::security(&facts.namespaces)),
        [
            "Error pod-security: Namespace safe enforces \"restricted\", which forbids -> kubectl label --overwrite namespace safe pod-security.kubernetes.io/enforce=privileged",
        ]
    );
}

#[test]
fn a_false_condition_that_the_compiler_does_not_explain_is_said() {
    let route: DynamicObject = read(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "r", "namespace": "shop", "generation": 2},
        "status": {"parents": [
            {"controllerName": "example.com/other", "conditions": [{"type": "Accepted", "status": "False"}]},
            {"controllerName": "heddle.dev/control-plane", "conditions": [
                {"type": "Accepted", "status": "True", "observedGeneration": 2},
                {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "gone", "observedGeneration": 1}]}]}}));
    let facts = Facts { attached: [(Kind::HttpRoute, vec![route])].into(), ..installed() };
    assert_eq!(
        short(objects::conditions(&facts)),
        [
            "Warning objects: HTTPRoute shop/r: ResolvedRefs is False (BackendNotFound): -> the status is of an older"
        ]
    );
}

#[test]
fn what_is_lacking_is_listed_once_and_whose_it_is() {
    let lacking = |verb: &str| Lacking { verb: verb.to_owned(), what: "pods".to_owned() };
    let facts =
        Facts { lacking: vec![lacking("watch"), lacking("list"), lacking("watch")], ..Facts::default() };
    let you = install::rights(&facts).remove(0);
    assert_eq!(you.message, "you may not, and helm install must: list watch pods");
    let facts = Facts { lacking: vec![lacking("watch")], ..installed() };
    assert_eq!(install::rights(&facts).remove(0).message, "the control plane may not: watch pods");
}

#[test]
fn a_report_is_said_to_people_and_to_programs() {
    let findings = vec![
        Finding::new("kubernetes", Level::Ok, "good"),
        Finding::new("webhook", Level::Error, "bad").fix("mend it"),
    ];
    let report = Report { findings };
    let text = "ok      kubernetes       good\nERROR   webhook          bad\n                         -> mend it\n1 error, 0 warnings";
    assert_eq!(report.to_string(), text);
    let value: Value = serde_json::from_str(&report.json().unwrap()).unwrap();
    let expected = json!({"errors": 1, "warnings": 0, "findings": [
        {"check": "kubernetes", "level": "ok", "message": "good"},
        {"check": "webhook", "level": "error", "message": "bad", "fix": "mend it"}]});
    assert_eq!(value, expected);
}

#[test]
fn a_directory_is_checked_without_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let said = |text: &str| {
        std::fs::write(dir.path().join("a.yaml"), text).unwrap();
        short(gather::directory(dir.path()).unwrap().findings)[1..].to_vec()
    };
    let shop = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {heddle.dev/inject: enabled, pod-security.kubernetes.io/enforce: baseline}}\n";
    let policy = "---\napiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\nspec: {targetRefs: [{kind: Service, name: nobody}]}\n";
    let found = said(&format!("{shop}{policy}"));
    assert!(found[0].starts_with("Error pod-security: Namespace shop enforces \"baseline\""), "{found:?}");
    assert!(found[1].starts_with("Error objects: ") && found[1].contains("a.yaml:"), "{found:?}");
    assert_eq!(
        said("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"),
        ["Ok objects: routes and policies fit each other"]
    );
    let trap = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, annotations: {heddle.dev/sidecar: 'true'}}\nspec: {containers: [{name: a}]}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {ingress: [{ports: [{port: 80}]}]}\n";
    std::fs::write(dir.path().join("a.yaml"), trap).unwrap();
    let found = gather::directory(dir.path()).unwrap().findings.remove(1);
    assert_eq!((found.level, found.check), (Level::Error, "network-policies"));
    assert!(
        found.message.contains("a.yaml:6: NetworkPolicy shop/p: spec.ingress[0].ports: admits port 80"),
        "{found:?}"
    );
    std::fs::write(dir.path().join("a.yaml"), trap.replace("port: 80", "port: 80}, {port: 15008")).unwrap();
    assert_eq!(gather::directory(dir.path()).unwrap().findings[1].level, Level::Ok);
    assert!(said("kind: Pod\n  x: [\n")[0].starts_with("Error objects: "));
    assert!(gather::directory(&dir.path().join("nowhere")).is_err());
}
