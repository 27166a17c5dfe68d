//! `heddle inject`: the injector over a file of manifests. Whoever names a file asks for its pods, so namespaces' labels
//! do not matter; a pod's annotation still does.

use serde::Deserialize;
use serde_json::Value;

use super::{Asked, NewToken, Outcome, Settings, inject_with};
use crate::yaml;

/// Levels of `List` within `List`.
const DEEPEST: usize = 4;

/// What came of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Injected {
    /// All documents, those that are no workloads as they were.
    pub documents: Vec<Value>,
    /// For people, each with its object.
    pub warnings: Vec<String>,
    /// Why a pod cannot have its sidecar, each with its object. Where there are any, the documents should not be used.
    pub refusals: Vec<String>,
}

impl Injected {
    /// The documents as YAML, for kubectl.
    ///
    /// # Errors
    /// None in service: what was read can be written.
    pub fn yaml(&self) -> Result<String, serde_norway::Error> {
        let documents: Result<Vec<String>, _> = self.documents.iter().map(yaml::write).collect();
        Ok(documents?.join("---\n"))
    }
}

/// Injects sidecars into all pods and workloads of YAML or JSON documents. The pods of a workload share their template's
/// token, as they share its containers.
///
/// # Errors
/// When one does not parse, with its place.
pub fn manifests(
    text: &str,
    settings: &Settings,
    new_token: NewToken,
) -> Result<Injected, serde_norway::Error> {
    let mut injected = Injected::default();
    for document in serde_norway::Deserializer::from_str(&yaml::read(text)) {
        let mut document = Value::deserialize(document)?;
        if document.is_null() {
            continue;
        }
        object(&mut document, settings, new_token, &mut injected, DEEPEST);
        injected.documents.push(document);
    }
    Ok(injected)
}

fn object(
    object_: &mut Value,
    settings: &Settings,
    new_token: NewToken,
    injected: &mut Injected,
    depth: usize,
) {
    let kind = object_["kind"].as_str().unwrap_or_default().to_owned();
    if kind == "List" && depth > 0 {
        for item in object_["items"].as_array_mut().into_iter().flatten() {
            object(item, settings, new_token, injected, depth - 1);
        }
        return;
    }
    let Some(path) = pod_of(&kind) else { return };
    let name = object_["metadata"]["name"].as_str().unwrap_or("without a name");
    let subject = format!("{kind} {name}");
    let Some(pod) = object_.pointer_mut(path) else {
        injected.refusals.push(format!("{subject}: it has no pod template at {path}"));
        return;
    };
    match inject_with(pod, Asked::ByNamespace, settings, new_token) {
        Ok(Outcome::Unchanged) => {}
        Ok(Outcome::Patched { patch, warnings }) => {
            injected.warnings.extend(warnings.into_iter().map(|warning| format!("{subject}: {warning}")));
            if let Err(error) = json_patch::patch(pod, &patch) {
                injected.refusals.push(format!("{subject}: {error}"));
            }
        }
        Err(refusal) => injected.refusals.push(format!("{subject}: {refusal}")),
    }
}

/// Where a kind keeps its pod: `metadata` and `spec`.
fn pod_of(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some("/spec/template")
        }
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}
