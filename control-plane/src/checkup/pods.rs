//! Which pods have the sidecar that their namespace asks for, and of which version.

use std::collections::{BTreeMap, BTreeSet};

use heddle_api::SIDECAR_ANNOTATION;
use k8s_openapi::{
    api::core::v1::{Container, Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{Facts, Finding, Level};
use crate::inject::{
    Asked, INJECT, Settings, VERSION_LABEL, inject, sidecar,
    webhook::{registration::LEFT_OUT, review::ENFORCE},
};

const INJECTION: &str = "injection";
/// The cure of most; the command itself where there is one.
const RESTART: &str = "make these pods anew: delete them, or restart what made them";
/// Workloads that are named in one finding.
const NAMED: usize = 5;

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn text(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}

/// Namespaces whose label does not do what it was meant to.
pub(super) fn labels(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for namespace in &facts.namespaces {
        let name = text(&namespace.metadata.name);
        let Some(value) = label(&namespace.metadata, INJECT) else { continue };
        let left_out = LEFT_OUT.contains(&name) || name == facts.system;
        let (message, fix) = match value {
            "enabled" if left_out => (
                format!("Namespace {name} is labelled {INJECT}=enabled, but its pods never get sidecars"),
                format!("kubectl label namespace {name} {INJECT}-"),
            ),
            "enabled" | "disabled" => continue,
            other => (
                format!(
                    "Namespace {name} is labelled {INJECT}={other}, which means nothing: its pods get no sidecars"
                ),
                format!("kubectl label --overwrite namespace {name} {INJECT}=enabled"),
            ),
        };
        findings.push(Finding::new(INJECTION, Level::Warning, message).fix(fix));
    }
    findings
}

/// Labelled namespaces whose Pod Security Standard refuses what is injected.
pub(super) fn security(namespaces: &[Namespace]) -> Vec<Finding> {
    let one = |namespace: &Namespace| {
        let meta = &namespace.metadata;
        let standard =
            label(meta, ENFORCE).filter(|standard| matches!(*standard, "baseline" | "restricted"))?;
        let name = text(&meta.name);
        (label(meta, INJECT) == Some("enabled")).then(|| {
            let message = format!(
                "Namespace {name} enforces {standard:?}, which forbids the NET_ADMIN that the init container \
                 heddle-redirect needs: Kubernetes refuses each pod after it was injected"
            );
            let fix = format!("kubectl label --overwrite namespace {name} {ENFORCE}=privileged");
            Finding::new("pod-security", Level::Error, message).fix(fix)
        })
    };
    namespaces.iter().filter_map(one).collect()
}

/// A pod's containers of this name, init or not.
fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|container| container.name == name)
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
}

/// `Deployment reviews-v1` as far as the owner tells.
fn workload(pod: &Pod) -> String {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else {
        return format!("Pod {}", text(&pod.metadata.name));
    };
    let hash = label(&pod.metadata, "pod-template-hash").map(|hash| format!("-{hash}"));
    match hash.as_deref().and_then(|hash| owner.name.strip_suffix(hash)) {
        Some(deployment) if owner.kind == "ReplicaSet" => format!("Deployment {deployment}"),
        _ => format!("{} {}", owner.kind, owner.name),
    }
}

/// When a namespace got its label, as far as the API server wrote that down.
fn labelled_at(namespace: &Namespace) -> Option<&Time> {
    let path = |entry: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry| {
        let fields = &entry.fields_v1.as_ref()?.0;
        fields["f:metadata"]["f:labels"].get(format!("f:{INJECT}")).is_some().then_some(())
    };
    let entries = namespace.metadata.managed_fields.iter().flatten();
    entries.filter(|entry| path(entry).is_some()).filter_map(|entry| entry.time.as_ref()).max()
}

/// Why a pod that should have a sidecar has none, how bad that is, and what to do.
fn why(pod: &Pod, namespace: &Namespace, facts: &Facts) -> Option<(Level, String, Option<&'static str>)> {
    let asks = annotation(&pod.metadata, INJECT);
    let labelled = label(&namespace.metadata, INJECT) == Some("enabled");
    let name = text(&namespace.metadata.name);
    let asked = if labelled { Asked::ByNamespace } else { Asked::ByAnnotation };
    if asks == Some("disabled") {
        return labelled.then(|| (Level::Note, format!("annotated {INJECT}: disabled"), None));
    }
    if (!labelled && asks != Some("enabled")) || LEFT_OUT.contains(&name) || name == facts.system {
        return None;
    }
    let value = serde_json::to_value(pod).ok()?;
    if let Err(refusal) = inject(&value, asked, &Settings::default()) {
        return Some((Level::Warning, refusal.to_string(), None));
    }
    if !facts.installed() {
        return Some((Level::Note, "Heddle is not installed yet".to_owned(), Some(RESTART)));
    }
    let older = labelled_at(namespace)
        .zip(pod.metadata.creation_timestamp.as_ref())
        .is_some_and(|(labelled, created)| created < labelled);
    let reason = if older && labelled {
        format!("older than the label {INJECT} of its namespace")
    } else {
        "made while the webhook was not asked: before Heddle was installed, or while it was away with failurePolicy Ignore"
            .to_owned()
    };
    Some((Level::Warning, reason, Some(RESTART)))
}

/// Workloads without sidecar for one reason.
struct Bare {
    level: Level,
    fix: Option<&'static str>,
    workloads: BTreeSet<String>,
}

/// Pods that should have a sidecar and have none, by namespace and reason.
pub(super) fn without_sidecar(facts: &Facts) -> Vec<Finding> {
    let namespaces: BTreeMap<&str, &Namespace> =
        facts.namespaces.iter().map(|namespace| (text(&namespace.metadata.name), namespace)).collect();
    let mut found: BTreeMap<(&str, String), Bare> = BTreeMap::new();
    let mut injected = 0;
    for pod in facts.pods.iter().filter(|pod| !is_over(pod)) {
        let namespace = text(&pod.metadata.namespace);
        let annotated = annotation(&pod.metadata, SIDECAR_ANNOTATION) == Some("true");
        let there = container(pod, sidecar::PROXY).is_some();
        let (level, reason, fix) = match (annotated, there) {
            (true, true) => {
                injected += 1;
                continue;
            }
            (true, false) => (
                Level::Error,
                format!(
                    "annotated {SIDECAR_ANNOTATION}: \"true\" and without a container {}: callers take it for meshed",
                    sidecar::PROXY
                ),
                Some("take the annotation out of its template; the injector writes it"),
            ),
            (false, _) => {
                let Some(namespace) = namespaces.get(namespace) else { continue };
                let Some(why) = why(pod, namespace, facts) else { continue };
                why
            }
        };
        let bare =
            found.entry((namespace, reason)).or_insert(Bare { level, fix, workloads: BTreeSet::new() });
        bare.workloads.insert(workload(pod));
    }
    let mut findings = Vec::new();
    for ((namespace, reason), Bare { level, fix, workloads }) in found {
        let message = format!("no sidecar in namespace {namespace}: {}: {reason}", listed(&workloads));
        let finding = Finding::new(INJECTION, level, message);
        findings.push(match fix {
            Some(RESTART) => {
                finding.fix(restart(namespace, &workloads).unwrap_or_else(|| RESTART.to_owned()))
            }
            Some(fix) => finding.fix(fix),
            None => finding,
        });
    }
    if injected > 0 && findings.is_empty() {
        findings.push(Finding::new(
            INJECTION,
            Level::Ok,
            format!("all {injected} pods that should have a sidecar have one"),
        ));
    }
    findings
}

/// What restarts them, where one command does.
fn restart(namespace: &str, workloads: &BTreeSet<String>) -> Option<String> {
    let each = workloads.iter().map(|workload| {
        let (kind, name) = workload.split_once(' ')?;
        matches!(kind, "Deployment" | "StatefulSet" | "DaemonSet")
            .then(|| format!("{}/{name}", kind.to_lowercase()))
    });
    let names: Option<Vec<_>> = each.collect();
    Some(format!("kubectl -n {namespace} rollout restart {}", names?.join(" ")))
}

/// The version in an image's tag.
fn tag(image: &str) -> Option<&str> {
    let image = image.split('@').next()?;
    let (_, last) = image.rsplit_once('/').unwrap_or(("", image));
    last.split_once(':').map(|(_, tag)| tag)
}

/// What sidecars are to be: the version that the control plane says it is, and the image that it is told to inject.
fn expected(facts: &Facts) -> Option<(String, Option<String>)> {
    let deployment = facts.deployment.as_ref()?;
    let version = label(&deployment.metadata, "app.kubernetes.io/version")?.to_owned();
    let spec = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let args = spec.containers.iter().flat_map(|container| container.args.iter().flatten());
    let image = args.filter_map(|arg| arg.strip_prefix("--sidecar-image=")).next().map(str::to_owned);
    Some((version, image))
}

/// Pods whose sidecar is of another version than the control plane injects now.
pub(super) fn outdated(facts: &Facts) -> Vec<Finding> {
    let Some((version, image)) = expected(facts) else { return Vec::new() };
    let mut found: BTreeMap<(&str, String), BTreeSet<String>> = BTreeMap::new();
    let mut current = 0;
    for pod in facts.pods.iter().filter(|pod| !is_over(pod)) {
        let Some(container) = container(pod, sidecar::PROXY) else { continue };
        let own = container.image.as_deref().unwrap_or_default();
        let labelled = label(&pod.metadata, VERSION_LABEL);
        let runs = labelled.or_else(|| tag(own)).unwrap_or(own);
        let other_image = image.as_deref().is_some_and(|image| image != own);
        if runs == version && !other_image {
            current += 1;
            continue;
        }
        let runs = if runs == version { format!("image {own}") } else { runs.to_owned() };
        found.entry((text(&pod.metadata.namespace), runs)).or_default().insert(workload(pod));
    }
    if found.is_empty() {
        let message = format!("all {current} sidecars are of version {version}");
        return if current == 0 { Vec::new() } else { vec![Finding::new("sidecars", Level::Ok, message)] };
    }
    let one = |((namespace, runs), workloads): ((&str, String), BTreeSet<String>)| {
        let image = image.as_deref().map_or(String::new(), |image| format!(" ({image})"));
        let message = format!(
            "outdated in namespace {namespace}: {} run {runs}, and the control plane injects {version}{image}",
            listed(&workloads)
        );
        let fix = restart(namespace, &workloads).unwrap_or_else(|| RESTART.to_owned());
        Finding::new("sidecars", Level::Warning, message).fix(fix)
    };
    found.into_iter().map(one).collect()
}

fn listed(workloads: &BTreeSet<String>) -> String {
    let named: Vec<_> = workloads.iter().take(NAMED).map(String::as_str).collect();
    let more = workloads.len() - named.len();
    let tail = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{tail}", named.join(", "))
}
