//! What the chart renders, without a cluster.

use std::process::Command;

use heddle_control_plane::{
    cluster::rights::{self, Scope},
    inject::{
        self,
        settings::{self, Settings},
        webhook::registration::{self, Place},
    },
};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    apps::v1::Deployment,
    core::v1::Service,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use serde_json::{Value, json};

use super::engine::{Engine, Objects, chart, matrix};

const NAME: &str = "heddle-control-plane";

#[test]
fn helm_finds_nothing_wrong_with_the_chart() {
    let Some(helm) = Engine::find() else { return };
    let operations: Vec<Value> =
        matrix().into_iter().map(|(_, values)| json!({"do": "lint", "values": values})).collect();
    for (result, (about, _)) in helm.all(&operations).into_iter().zip(matrix()) {
        let found = result.unwrap_or_else(|error| panic!("{about}: {error}"));
        assert_eq!(found[1], json!([]), "{about}");
        let worse: Vec<&Value> =
            found[0].as_array().unwrap().iter().filter(|one| one["severity"].as_i64() > Some(1)).collect();
        assert!(worse.is_empty(), "{about}: {worse:?}");
    }
}

#[test]
fn whatever_the_values_are_the_command_lines_are_understood_and_the_pods_keep_to_the_restricted_standard() {
    let Some(helm) = Engine::find() else { return };
    for (about, values) in matrix() {
        let objects = helm.render(&values);
        let deployment: Deployment = objects.typed("Deployment", NAME);
        let mut pods = vec![deployment.spec.unwrap().template.spec.unwrap()];
        // It looks names up, which may take a while where there are none; it is the same with all values.
        if about == "defaults" {
            let test = objects.find("Pod", "heddle-test").unwrap()["spec"].clone();
            pods.push(serde_json::from_value(test).unwrap());
        }
        for pod in pods {
            let container = &pod.containers[0];
            // It ends with 2 for a wrong command line, and with 1 where there is no cluster.
            let ended = Command::new(env!("CARGO_BIN_EXE_heddle-control-plane"))
                .args(container.args.as_ref().unwrap())
                .env_clear()
                .env("KUBECONFIG", "/nowhere")
                .env("HEDDLE_TIMEOUT", "0s")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert_eq!(ended.status.code(), Some(1), "{about}: {said}");
            let security = pod.security_context.as_ref().unwrap();
            assert_eq!(security.run_as_non_root, Some(true));
            assert_eq!(security.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
            let own = container.security_context.as_ref().unwrap();
            assert_eq!(
                (own.allow_privilege_escalation, own.read_only_root_filesystem),
                (Some(false), Some(true))
            );
            assert_eq!(own.capabilities.as_ref().unwrap().drop, Some(vec!["ALL".to_owned()]));
        }
    }
}

#[test]
fn what_is_optional_comes_when_it_is_asked_for() {
    let Some(helm) = Engine::find() else { return };
    let of = |about: &str| {
        let (_, values) = matrix().into_iter().find(|(name, _)| *name == about).unwrap();
        helm.render(&values)
    };
    let optional = |objects: &Objects| -> Vec<String> {
        let all = [
            "HorizontalPodAutoscaler",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "PodMonitor",
            "ServiceMonitor",
        ];
        let kinds = objects.kinds();
        all.into_iter().filter(|kind| kinds.contains(kind)).map(str::to_owned).collect()
    };
    let defaults = of("defaults");
    assert_eq!(optional(&defaults), ["PodDisruptionBudget"]);
    let deployment: Deployment = defaults.typed("Deployment", NAME);
    let spec = deployment.spec.unwrap();
    assert_eq!(spec.replicas, Some(2));
    let pod = spec.template.spec.unwrap();
    assert!(
        pod.affinity
            .unwrap()
            .pod_anti_affinity
            .unwrap()
            .preferred_during_scheduling_ignored_during_execution
            .is_some()
    );
    assert!(pod.containers[0].readiness_probe.is_some() && pod.containers[0].liveness_probe.is_some());

    let scaled = of("autoscaled, on IPv6");
    assert_eq!(optional(&scaled), ["HorizontalPodAutoscaler", "PodDisruptionBudget"]);
    let deployment: Deployment = scaled.typed("Deployment", NAME);
    assert_eq!(deployment.spec.unwrap().replicas, None, "the autoscaler's word is not written over");
    assert_eq!(optional(&of("one replica without a budget")), Vec::<String>::new());
    let everything = of("everything optional");
    assert_eq!(
        optional(&everything),
        ["NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "ServiceMonitor"]
    );
    // It finds what the injector makes: by its label, at its port.
    let monitor = everything.find("PodMonitor", "heddle-proxy").unwrap();
    assert_eq!(monitor["spec"]["selector"]["matchExpressions"][0]["key"], inject::VERSION_LABEL);
    assert_eq!(monitor["spec"]["namespaceSelector"]["any"], true);
    let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}]}});
    let injected = inject::inject(&pod, inject::Asked::ByNamespace, &Settings::default()).unwrap();
    let inject::Outcome::Patched { patch, .. } = injected else { panic!("{injected:?}") };
    let mut pod = pod;
    json_patch::patch(&mut pod, &patch).unwrap();
    let ports = pod["spec"]["initContainers"][1]["ports"].as_array().unwrap();
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert!(ports.iter().any(|port| port["name"] == endpoint["port"] && port["containerPort"] == 15020));
    let own = of("somebody's own registry and scheduling");
    let deployment: Deployment = own.typed("Deployment", NAME);
    let container = deployment.spec.unwrap().template.spec.unwrap().containers.remove(0);
    assert_eq!(container.image.unwrap(), "registry.example/mesh/heddle-control-plane:1.2.3");
    let digest = format!("--sidecar-image=registry.example/mesh/heddle-proxy@sha256:{}", "a".repeat(64));
    assert!(container.args.unwrap().contains(&digest));
}

#[test]
fn a_wrong_value_is_refused_with_its_name() {
    let Some(helm) = Engine::find() else { return };
    let cases = [
        (json!({"controlPlane": {"replica": 3}}), "'replica'"),
        (json!({"controlPlane": {"replicas": 0}}), "/controlPlane/replicas"),
        (json!({"controlPlane": {"replicas": "two"}}), "/controlPlane/replicas"),
        (json!({"controlPlane": {"antiAffinity": "always"}}), "/controlPlane/antiAffinity"),
        (json!({"controlPlane": {"webhookGrace": "1h"}}), "/controlPlane/webhookGrace"),
        (json!({"controlPlane": {"listenAddress": "localhost"}}), "/controlPlane/listenAddress"),
        (
            json!({"controlPlane": {"podDisruptionBudget": {"maxUnavailable": "0%"}}}),
            "/controlPlane/podDisruptionBudget/maxUnavailable",
        ),
        (
            json!({"controlPlane": {"autoscaling": {"enabled": true, "minReplicas": 4, "maxReplicas": 3}}}),
            "controlPlane.autoscaling.minReplicas",
        ),
        (
            json!({"sidecar": {"resources": {"limits": {"memory": "lots"}}}}),
            "/sidecar/resources/limits/memory",
        ),
        (json!({"sidecar": {"resources": {"limit": {}}}}), "'limit'"),
        (json!({"sidecar": {"resources": {"limits": {"cpus": 1}}}}), "'cpus'"),
        (json!({"sidecar": {"logLevel": "warning"}}), "/sidecar/logLevel"),
        (json!({"sidecar": {"logLevel": "heddle_proxy=loud"}}), "/sidecar/logLevel"),
        (json!({"controlPlane": {"logLevel": "info,"}}), "/controlPlane/logLevel"),
        (json!({"sidecar": {"image": {"digest": "latest"}}}), "/sidecar/image/digest"),
        (json!({"image": {"tag": "a b"}}), "/image/tag"),
        (json!({"image": {"pullPolicy": "Sometimes"}}), "/image/pullPolicy"),
        (json!({"trustDomain": "Example.org"}), "/trustDomain"),
        (json!({"certificateLifetime": "25h"}), "/certificateLifetime"),
        (json!({"injection": {"failurePolicy": "Open"}}), "/injection/failurePolicy"),
        (json!({"injection": {"timeoutSeconds": 31}}), "/injection/timeoutSeconds"),
        (json!({"networkPolicy": {"enabled": "yes"}}), "/networkPolicy/enabled"),
        (json!({"serviceMonitor": {"interval": "often"}}), "/serviceMonitor/interval"),
        (json!({"podMonitor": {"port": 1}}), "'port'"),
        (json!({"controlplane": {}}), "'controlplane'"),
    ];
    let operations: Vec<Value> =
        cases.iter().map(|(values, _)| json!({"do": "render", "values": values})).collect();
    for (result, (values, name)) in helm.all(&operations).into_iter().zip(&cases) {
        let error = result.expect_err(&values.to_string());
        assert!(error.contains(name), "{values}: {error}");
    }
    let elsewhere = helm.one(json!({"do": "render", "namespace": "mesh"})).unwrap_err();
    assert!(elsewhere.contains("-n heddle-system --create-namespace"), "{elsewhere}");
}

#[test]
fn the_chart_grants_what_the_code_asks_for_and_nothing_else() {
    let Some(helm) = Engine::find() else { return };
    let objects = helm.render(&json!({}));
    let everywhere: ClusterRole = objects.typed("ClusterRole", NAME);
    assert_eq!(everywhere.rules.unwrap(), rights::rules(Scope::Cluster));
    let own: Role = objects.typed("Role", NAME);
    assert_eq!(own.metadata.namespace.as_deref(), Some("heddle-system"));
    assert_eq!(own.rules.unwrap(), rights::rules(Scope::Own));
    let roles = |kind: &str| objects.kinds().into_iter().filter(|one| *one == kind).count();
    assert_eq!(["ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding"].map(roles), [1; 4]);
    let bound: ClusterRoleBinding = objects.typed("ClusterRoleBinding", NAME);
    let in_own: RoleBinding = objects.typed("RoleBinding", NAME);
    let deployment: Deployment = objects.typed("Deployment", NAME);
    let account = deployment.spec.unwrap().template.spec.unwrap().service_account_name.unwrap();
    for subjects in [bound.subjects.unwrap(), in_own.subjects.unwrap()] {
        assert_eq!(subjects.len(), 1);
        assert_eq!((subjects[0].kind.as_str(), &subjects[0].name), ("ServiceAccount", &account));
        assert_eq!(subjects[0].namespace.as_deref(), Some("heddle-system"));
    }
}

#[test]
fn the_chart_registers_the_webhook_as_the_code_means_it() {
    let Some(helm) = Engine::find() else { return };
    let objects = helm.render(&json!({}));
    let chart: MutatingWebhookConfiguration =
        objects.typed("MutatingWebhookConfiguration", registration::NAME);
    let place =
        Place { namespace: "heddle-system".to_owned(), service: "heddle-injector".to_owned(), port: 443 };
    let mut code = registration::configuration(&place, "").webhooks.unwrap();
    for webhook in &mut code {
        // The control plane writes it.
        webhook.client_config.ca_bundle = None;
    }
    assert_eq!(chart.webhooks.unwrap(), code);
}

#[test]
fn the_services_lead_to_the_ports_that_the_command_line_opens() {
    let Some(helm) = Engine::find() else { return };
    let objects = helm.render(&json!({}));
    let deployment: Deployment = objects.typed("Deployment", NAME);
    let template = deployment.spec.unwrap().template;
    let labels = template.metadata.unwrap().labels.unwrap();
    let container = &template.spec.unwrap().containers[0];
    let args = container.args.as_ref().unwrap();
    for (service, port, name, flag) in [
        (NAME, i32::from(heddle_api::ports::DISCOVERY), "discovery", "--listen"),
        (NAME, 15014, "admin", "--admin-listen"),
        ("heddle-injector", 443, "webhook", "--webhook-listen"),
    ] {
        let spec = objects.typed::<Service>("Service", service).spec.unwrap();
        assert!(spec.selector.unwrap().iter().all(|(key, value)| labels.get(key) == Some(value)));
        let ports = spec.ports.unwrap();
        let leads = ports.iter().find(|one| one.port == port).unwrap();
        let target = serde_json::to_value(leads.target_port.as_ref().unwrap()).unwrap();
        assert_eq!(target, name);
        let opened = container.ports.as_ref().unwrap();
        let opened = opened.iter().find(|one| one.name.as_deref() == Some(name)).unwrap().container_port;
        assert!(args.contains(&format!("{flag}=0.0.0.0:{opened}")), "{flag}: {args:?}");
    }
    let address = format!("--control-plane-address={}", settings::control_plane("heddle-system"));
    assert!(args.contains(&address), "{args:?}");
}

#[test]
fn the_charts_defaults_are_the_programs_and_its_version_is_theirs() {
    let Some(helm) = Engine::find() else { return };
    let read = |name: &str| -> Value {
        serde_norway::from_str(&std::fs::read_to_string(chart().join(name)).unwrap()).unwrap()
    };
    let own = Settings::default();
    let values = read("values.yaml");
    assert_eq!(values["sidecar"]["resources"], serde_json::to_value(&own.resources).unwrap());
    assert_eq!(values["sidecar"]["logLevel"], own.log_level.as_str());
    let about = read("Chart.yaml");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((&about["version"], &about["appVersion"]), (&version.into(), &version.into()));
    let deployment: Deployment = helm.render(&json!({})).typed("Deployment", NAME);
    let container = deployment.spec.unwrap().template.spec.unwrap().containers.remove(0);
    assert!(container.args.unwrap().contains(&format!("--sidecar-image={}", own.image)));
}

#[test]
fn the_notes_say_what_to_type_next() {
    let Some(helm) = Engine::find() else { return };
    let notes = |operation: Value| {
        let rendered = helm.one(operation).unwrap();
        rendered["heddle/templates/NOTES.txt"].as_str().unwrap().to_owned()
    };
    let first = notes(json!({"do": "render"}));
    assert!(first.contains("kubectl label namespace shop heddle.dev/inject=enabled"), "{first}");
    assert!(!first.contains("crds/"));
    let upgraded = notes(json!({"do": "render", "upgrade": true}));
    assert!(upgraded.contains("kubectl apply --server-side --force-conflicts -f crds/"), "{upgraded}");
    let ignored = notes(json!({"do": "render", "values": {"injection": {"failurePolicy": "Ignore"}}}));
    assert!(ignored.contains("plaintext"), "{ignored}");
}
