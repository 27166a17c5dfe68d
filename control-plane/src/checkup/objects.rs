//! Routes, policies and NetworkPolicies: what the compiler says of them, and what their status says.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Facts, Finding, Level};
use crate::{
    cluster::status::conditions::CONTROLLER,
    diagnostics::{Diagnostic, Severity},
    object::{Kind, ObjectRef},
};

const CHECK: &str = "objects";

/// Each problem once.
pub(super) fn diagnostics(all: &[Diagnostic]) -> Vec<Finding> {
    let one = |problem: &Diagnostic| {
        let is_network = problem.object.as_ref().is_some_and(|object| object.kind == Kind::NetworkPolicy);
        let level = match problem.severity {
            Severity::Error => Level::Error,
            Severity::Warning => Level::Warning,
        };
        Finding::new(if is_network { "network-policies" } else { CHECK }, level, problem.to_string())
    };
    let mut findings: Vec<_> = all.iter().map(one).collect();
    if findings.is_empty() {
        findings.push(Finding::new(CHECK, Level::Ok, "routes and policies fit each other and the Services"));
    }
    findings
}

/// What the control plane wrote and the compiler here does not say: it knows another state, or nobody writes any more.
pub(super) fn conditions(facts: &Facts) -> Vec<Finding> {
    let said: BTreeSet<_> = facts.diagnostics.iter().filter_map(|problem| problem.object.as_ref()).collect();
    let mut findings = Vec::new();
    for (kind, objects) in &facts.attached {
        for object in objects {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let (namespace, name) = (text(&object.metadata.namespace), text(&object.metadata.name));
            let reference = ObjectRef { kind: *kind, namespace, name };
            if said.contains(&reference) {
                continue;
            }
            let status = &object.data["status"];
            let entries = ["parents", "ancestors"].into_iter().filter_map(|list| status[list].as_array());
            let ours = entries.flatten().filter(|entry| entry["controllerName"] == CONTROLLER);
            let conditions = ours.filter_map(|entry| entry["conditions"].as_array()).flatten();
            for condition in conditions.filter(|condition| condition["status"] == "False") {
                let of = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
                let stale = object.metadata.generation != condition["observedGeneration"].as_i64();
                let message =
                    format!("{reference}: {} is False ({}): {}", of("type"), of("reason"), of("message"));
                let fix = if stale {
                    "the status is of an older state of the object: is a control plane running, and leading?"
                } else {
                    "heddle sees no such problem now: is the control plane of this version, and up to date?"
                };
                findings.push(Finding::new(CHECK, Level::Warning, message).fix(fix));
            }
        }
    }
    let written = |object: &&kube::core::DynamicObject| {
        let status: &Value = &object.data["status"];
        !status.is_null()
    };
    let all: Vec<_> = facts.attached.values().flatten().collect();
    if facts.installed() && !all.is_empty() && !all.iter().any(written) {
        let message = "no route and no policy has a status: nobody writes one";
        let fix = format!("kubectl -n {} logs deployment/heddle-control-plane", facts.system);
        findings.push(Finding::new(CHECK, Level::Warning, message).fix(fix));
    }
    findings
}
