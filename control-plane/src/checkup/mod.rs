//! `heddle check`: a cluster or a directory looked at once, and what is wrong with it said with the reason and the cure.
//!
//! [`gather`] does all I/O and makes [`Facts`]; the judgements, [`install`], [`pods`] and [`objects`], are pure and give
//! [`Finding`]s; [`report`] says them to people and programs. It never changes anything.

pub mod cli;
mod gather;
mod install;
mod objects;
mod pods;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        apps::v1::Deployment,
        core::v1::{Namespace, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::core::DynamicObject;
use serde::Serialize;

pub use self::report::Report;
use crate::{diagnostics::Diagnostic, object::Kind};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is as it should be.
    Ok,
    /// It could not be looked at, or is worth knowing.
    Note,
    /// It works, but not as it was probably meant.
    Warning,
    /// It does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at; the same word each time.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What is the case, of which object, and why that matters.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn new(check: &'static str, level: Level, message: impl Into<String>) -> Self {
        Self { check, level, message: message.into(), fix: None }
    }

    fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}

/// A right that somebody lacks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lacking {
    verb: String,
    /// `group/resource` or `resource`, in a namespace where it is one.
    what: String,
}

/// What was found in a cluster.
#[derive(Debug, Default)]
struct Facts {
    /// Heddle's namespace.
    system: String,
    /// `major.minor` and the whole version.
    version: Option<(u32, u32, String)>,
    /// Those of Heddle and of the Gateway API.
    definitions: Vec<CustomResourceDefinition>,
    webhook: Option<MutatingWebhookConfiguration>,
    deployment: Option<Deployment>,
    /// The roots that the control plane publishes for its own namespace.
    roots: Option<String>,
    namespaces: Vec<Namespace>,
    pods: Vec<Pod>,
    /// Routes and Heddle's kinds, as they are, with their status.
    attached: BTreeMap<Kind, Vec<DynamicObject>>,
    /// What the compiler says of the objects.
    diagnostics: Vec<Diagnostic>,
    /// Before an install: what the caller may not do. After: what the control plane may not.
    lacking: Vec<Lacking>,
    /// What could not be looked at, and why.
    unseen: BTreeMap<&'static str, Vec<String>>,
}

impl Facts {
    /// Whether a control plane is there, however it is.
    const fn installed(&self) -> bool {
        self.deployment.is_some() || self.webhook.is_some()
    }
}

/// Everything that is to be said of a cluster, in the order in which a person would look.
fn judge(facts: &Facts) -> Report {
    let mut findings = Vec::new();
    for (check, why) in &facts.unseen {
        let finding =
            Finding::new(check, Level::Note, format!("could not all be looked at: {}", why.join("; ")));
        findings.push(finding.fix("ask somebody who may read it to run heddle check, or go on without"));
    }
    findings.extend(install::version(facts));
    findings.extend(install::definitions(facts));
    findings.extend(install::gateway(facts));
    findings.extend(install::control_plane(facts));
    findings.extend(install::webhook(facts));
    findings.extend(install::rights(facts));
    findings.extend(pods::labels(facts));
    findings.extend(pods::security(&facts.namespaces));
    findings.extend(pods::without_sidecar(facts));
    findings.extend(pods::outdated(facts));
    findings.extend(objects::diagnostics(&facts.diagnostics));
    findings.extend(objects::conditions(facts));
    Report { findings }
}
