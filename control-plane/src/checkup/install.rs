//! What an install needs, and whether what was installed is there, whole and of one version.

use std::collections::{BTreeMap, BTreeSet};

use heddle_api::resources::{AccessPolicy, MeshPolicy, TrafficPolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use kube::CustomResourceExt as _;

use super::{Facts, Finding, Level};
use crate::object::Kind;

/// Kubernetes 1.29 has native sidecars unless somebody switched them off, 1.33 has them for good (KEP-753).
const SIDECARS: u32 = 29;
const SIDECARS_FOR_GOOD: u32 = 33;
const DEFINITIONS: &str = "definitions";
const APPLY: &str = "kubectl apply --server-side --force-conflicts -f charts/heddle/crds/";
const GATEWAY: &str = "kubectl apply --server-side -f the experimental-install.yaml of a release of \
                       https://github.com/kubernetes-sigs/gateway-api";
/// On a definition of the Gateway API: the release that it is from.
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";

pub(super) fn version(facts: &Facts) -> Option<Finding> {
    let (major, minor, whole) = facts.version.as_ref()?;
    let finding = |level, message| Finding::new("kubernetes", level, message);
    Some(match (*major, *minor) {
        (1, minor) if minor < SIDECARS => finding(
            Level::Error,
            format!("{whole} has no native sidecars: an injected pod would never start"),
        )
        .fix("upgrade the cluster to Kubernetes 1.29 or newer"),
        (1, minor) if minor < SIDECARS_FOR_GOOD => finding(
            Level::Ok,
            format!(
                "{whole} has native sidecars, unless the feature gate SidecarContainers was switched off"
            ),
        ),
        _ => finding(Level::Ok, format!("{whole} has native sidecars")),
    })
}

/// Heddle's own kinds: there, served, and as this program knows them.
pub(super) fn definitions(facts: &Facts) -> Vec<Finding> {
    let (mut missing, mut idle, mut other, mut good) = (vec![], vec![], vec![], vec![]);
    for ours in [TrafficPolicy::crd(), AccessPolicy::crd(), MeshPolicy::crd()] {
        let kind = ours.spec.names.kind.clone();
        match facts.definitions.iter().find(|found| found.metadata.name == ours.metadata.name) {
            None => missing.push(kind),
            Some(found) if !is_established(found) => idle.push(kind),
            Some(found) if schemas(found) != schemas(&ours) => other.push(kind),
            Some(_) => good.push(kind),
        }
    }
    let mut findings = Vec::new();
    let mut say = |kinds: &[String], level, what: &str, fix: Option<&str>| {
        if !kinds.is_empty() {
            let finding = Finding::new(DEFINITIONS, level, format!("{} {what}", kinds.join(", ")));
            findings.push(match fix {
                Some(fix) => finding.fix(fix),
                None => finding,
            });
        }
    };
    if facts.installed() {
        say(&missing, Level::Error, "not defined: policies of these kinds cannot be applied", Some(APPLY));
    } else {
        say(&missing, Level::Note, "not defined yet: helm install brings them", None);
    }
    say(
        &idle,
        Level::Error,
        "defined but not served: the API server does not take the definition",
        Some(APPLY),
    );
    let differ = "defined as another version of Heddle has them: fields may be refused, or taken and ignored";
    say(&other, Level::Warning, differ, Some(APPLY));
    say(&good, Level::Ok, "defined as this version has them", None);
    findings
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
}

/// What a definition says of each version: its name, whether it is served, its schema.
fn schemas(definition: &CustomResourceDefinition) -> BTreeSet<(String, bool, String)> {
    let one = |version: &CustomResourceDefinitionVersion| {
        let schema = serde_json::to_value(&version.schema).unwrap_or_default();
        (version.name.clone(), version.served, schema.to_string())
    };
    definition.spec.versions.iter().map(one).collect()
}

/// The Gateway API's kinds.
pub(super) fn gateway(facts: &Facts) -> Vec<Finding> {
    let (mut missing, mut other, mut bundles) = (vec![], vec![], BTreeSet::new());
    let kinds = [Kind::HttpRoute, Kind::GrpcRoute, Kind::TcpRoute, Kind::ReferenceGrant];
    for kind in kinds {
        let versions = kind.api_versions().iter().filter_map(|version| version.split_once('/'));
        let versions: Vec<_> = versions.collect();
        let group = versions.first().map_or("", |(group, _)| group);
        let found = facts
            .definitions
            .iter()
            .find(|found| found.spec.group == group && found.spec.names.kind == kind.as_str());
        let Some(found) = found else {
            missing.push(kind.as_str());
            continue;
        };
        let bundle = found.metadata.annotations.as_ref().and_then(|all| all.get(BUNDLE));
        bundles.extend(bundle.map(String::as_str));
        let served = |(_, name): &(&str, &str)| {
            found.spec.versions.iter().any(|version| version.served && version.name == *name)
        };
        if !versions.iter().any(served) {
            other.push(kind.as_str());
        }
    }
    let check = "gateway-api";
    let mut findings = Vec::new();
    if missing.len() == kinds.len() {
        let message = "the cluster has no Gateway API: the mesh works, and there are no routes";
        findings.push(Finding::new(check, Level::Note, message).fix(GATEWAY));
    } else if !missing.is_empty() {
        let message = format!("no {}: the mesh works without these kinds of route", missing.join(", "));
        findings.push(Finding::new(check, Level::Note, message).fix(GATEWAY));
    }
    if !other.is_empty() {
        let message =
            format!("{}: no version that Heddle reads is served, so none has an effect", other.join(", "));
        findings.push(Finding::new(check, Level::Error, message).fix(GATEWAY));
    }
    if bundles.len() > 1 {
        let releases: Vec<_> = bundles.iter().copied().collect();
        let message = format!("its definitions are of different releases: {}", releases.join(", "));
        findings.push(Finding::new(check, Level::Warning, message).fix(GATEWAY));
    }
    if findings.is_empty() {
        let release = bundles.first().map_or("an unknown release", |bundle| bundle);
        findings.push(Finding::new(check, Level::Ok, format!("{release}, with all kinds that Heddle reads")));
    }
    findings
}

pub(super) fn control_plane(facts: &Facts) -> Vec<Finding> {
    let system = &facts.system;
    let finding = |level, message: String| Finding::new("control-plane", level, message);
    let Some(deployment) = &facts.deployment else {
        return vec![if facts.installed() {
            finding(Level::Error, format!("there is no Deployment heddle-control-plane in namespace {system}, but a webhook that asks it: no pod of a labelled namespace can be made"))
                .fix(format!("helm install heddle charts/heddle -n {system}, or kubectl delete mutatingwebhookconfiguration heddle-injector; --system-namespace says where Heddle is"))
        } else {
            finding(Level::Note, format!("not installed in namespace {system}"))
                .fix(format!("helm install heddle charts/heddle -n {system} --create-namespace"))
        }];
    };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or_default();
    let look = format!(
        "kubectl -n {system} describe pods -l app.kubernetes.io/name=heddle-control-plane; kubectl -n {system} logs deployment/heddle-control-plane"
    );
    let mut findings = vec![match ready {
        0 => finding(
            Level::Error,
            format!("none of {wanted} replicas is ready: sidecars go on with what they have, pods of labelled namespaces cannot be made, and certificates end within a day"),
        )
        .fix(look),
        _ if ready < wanted => {
            finding(Level::Warning, format!("{ready} of {wanted} replicas are ready")).fix(look)
        }
        _ => finding(Level::Ok, format!("{ready} of {wanted} replicas are ready")),
    }];
    let labels = deployment.metadata.labels.as_ref();
    let version = labels.and_then(|labels| labels.get("app.kubernetes.io/version"));
    let own = env!("CARGO_PKG_VERSION");
    if let Some(version) = version.filter(|version| *version != own) {
        let message = format!(
            "it is of version {version}, and this heddle of {own}: what is said here may be wrong for it"
        );
        findings.push(finding(Level::Warning, message).fix(format!("use heddle {version}, or helm upgrade")));
    }
    findings
}

pub(super) fn webhook(facts: &Facts) -> Vec<Finding> {
    let check = "webhook";
    let Some(configuration) = &facts.webhook else {
        let installed = facts.installed().then(|| {
            Finding::new(
                check,
                Level::Error,
                "there is no MutatingWebhookConfiguration heddle-injector: no pod gets a sidecar",
            )
            .fix(format!("helm upgrade heddle charts/heddle -n {}", facts.system))
        });
        return installed.into_iter().collect();
    };
    let blocks = |text: &str| -> BTreeSet<String> {
        let blocks = text
            .split("-----END CERTIFICATE-----")
            .filter_map(|block| block.split_once("-----BEGIN CERTIFICATE-----"));
        blocks.map(|(_, block)| block.split_whitespace().collect()).collect()
    };
    let roots = facts.roots.as_deref().map(blocks);
    let logs = format!(
        "kubectl -n {} logs deployment/heddle-control-plane; a replica writes the bundle within a minute",
        facts.system
    );
    let mut findings = Vec::new();
    for one in configuration.webhooks.iter().flatten() {
        let bundle = one
            .client_config
            .ca_bundle
            .as_ref()
            .map(|bundle| String::from_utf8_lossy(&bundle.0).into_owned());
        let bundle = blocks(&bundle.unwrap_or_default());
        if bundle.is_empty() {
            let message = format!(
                "{} has no caBundle: the API server trusts no replica, so pods wait to be made",
                one.name
            );
            findings.push(Finding::new(check, Level::Error, message).fix(&logs));
        } else if roots.as_ref().is_some_and(|roots| roots.is_disjoint(&bundle)) {
            let message = format!(
                "{} has a caBundle without any of the mesh's roots: the API server refuses every replica",
                one.name
            );
            findings.push(Finding::new(check, Level::Error, message).fix(&logs));
        }
        if one.failure_policy.as_deref() == Some("Ignore") {
            let message = format!(
                "{} has failurePolicy Ignore: pods that are made while no replica answers have no sidecar",
                one.name
            );
            findings.push(Finding::new(check, Level::Note, message));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::new(check, Level::Ok, "registered, with the mesh's roots"));
    }
    findings
}

/// What somebody may not do.
pub(super) fn rights(facts: &Facts) -> Vec<Finding> {
    if facts.lacking.is_empty() {
        return Vec::new();
    }
    let mut verbs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for one in &facts.lacking {
        verbs.entry(&one.what).or_default().insert(&one.verb);
    }
    let said = |(what, verbs): (&&str, &BTreeSet<&str>)| {
        format!("{} {what}", verbs.iter().copied().collect::<Vec<_>>().join(" "))
    };
    let list = verbs.iter().map(said).collect::<Vec<_>>().join(", ");
    let (message, fix) = if facts.installed() {
        (
            format!("the control plane may not: {list}"),
            format!(
                "helm upgrade heddle charts/heddle -n {}, which brings its roles up to date",
                facts.system
            ),
        )
    } else {
        (
            format!("you may not, and helm install must: {list}"),
            "let somebody install it who may, such as a cluster-admin".to_owned(),
        )
    };
    vec![Finding::new("rights", Level::Error, message).fix(fix)]
}
