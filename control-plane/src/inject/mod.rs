//! The injector: a pod in, the same pod with a sidecar out, as a JSON Patch (RFC 6902). Pure; [`webhook`] asks it on
//! the API server's behalf, [`offline`] on a person's.
//!
//! [`ask`] says whether a pod wants a sidecar and may have one, [`options`] reads its annotations, [`sidecar`] writes the
//! two containers, [`probes`] leads kubelet's questions through the sidecar. What a pod has that this version of Heddle
//! does not know stays as it is: the pod is read with Kubernetes' types and changed by path.
//!
//! Idempotent: a pod that has its sidecar gets no second one, and keeps the token of its probes. A container that another webhook added after us has its
//! probes rewritten when we are asked again (`reinvocationPolicy: IfNeeded`).

pub mod ask;
pub mod cli;
pub mod edit;
pub mod offline;
pub mod options;
pub mod probes;
mod quantity;
pub mod settings;
pub mod sidecar;
pub mod webhook;

#[cfg(test)]
mod golden_tests;

use heddle_api::{
    SIDECAR_ANNOTATION,
    probe::{Probes, Token},
};
use json_patch::Patch;
use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Deserialize;
use serde_json::Value;

pub use self::{ask::Asked, settings::Settings};
use self::{edit::Edits, options::Options};

/// Label of an injected pod: the version of its sidecar, for `kubectl get pods -L`.
pub const VERSION_LABEL: &str = "heddle.dev/sidecar-version";
/// Annotation of a pod, `enabled` or `disabled`, and label of a namespace, `enabled`.
pub const INJECT: &str = "heddle.dev/inject";

/// A pod, or a workload's template of one.
#[derive(Debug, Deserialize)]
pub struct Pod {
    /// Of which the annotations are read.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it runs.
    pub spec: PodSpec,
}

/// What the injector says.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Nothing is to be done.
    Unchanged,
    /// This is.
    Patched {
        /// To be applied to the pod.
        patch: Patch,
        /// What whoever made the pod should know.
        warnings: Vec<String>,
    },
}

/// Why a pod cannot have the sidecar that it asks for. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not parse.
    #[error("this is no pod that Kubernetes would take: {0}")]
    NotAPod(String),
    /// `hostNetwork: true`.
    #[error(
        "it uses the node's network (hostNetwork: true), where capturing its traffic would capture the node's: \
         annotate it heddle.dev/inject: disabled to run it outside the mesh, or leave hostNetwork off"
    )]
    HostNetwork,
    /// Another system.
    #[error("it runs on {0}, and a sidecar runs on Linux alone: annotate it heddle.dev/inject: disabled")]
    System(String),
    /// A container whose traffic would be taken for the sidecar's.
    #[error(
        "its container {container} runs as user {uid}, which is the sidecar's: its traffic would pass by the mesh. \
         Give it another runAsUser"
    )]
    ProxyUser {
        /// Which one.
        container: String,
        /// The user.
        uid: i64,
    },
    /// A container that wants a port of the sidecar's.
    #[error(
        "its container {container} declares port {port}, which is the sidecar's (15000, 15001, 15006, 15008 and 15020 \
         are): let it listen on another"
    )]
    OwnPort {
        /// Which one.
        container: String,
        /// The port.
        port: i32,
    },
    /// A name that the sidecar needs.
    #[error("it has a {what} named {name} already, and the sidecar needs that name: rename it")]
    Taken {
        /// Container or volume.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// An annotation that cannot be obeyed.
    #[error("its annotation {name}: {problem}")]
    Annotation {
        /// Which one.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Where the token of a pod's probes comes from.
pub type NewToken = fn() -> Token;

/// Injects a sidecar into `pod` (with `metadata` and `spec`) where it asks for one.
///
/// # Errors
/// When it asks for one and cannot have it.
pub fn inject(pod: &Value, asked: Asked, settings: &Settings) -> Result<Outcome, Refusal> {
    inject_with(pod, asked, settings, probes::random_token)
}

/// The same, with tokens from `new_token`.
///
/// # Errors
/// When the pod asks for a sidecar and cannot have it.
pub fn inject_with(
    pod: &Value,
    asked: Asked,
    settings: &Settings,
    new_token: NewToken,
) -> Result<Outcome, Refusal> {
    let read: Pod = Deserialize::deserialize(pod).map_err(|error| Refusal::NotAPod(format!("{error}")))?;
    if !ask::wants(&read.metadata, asked)? {
        return Ok(Outcome::Unchanged);
    }
    ask::may(&read.spec, settings)?;
    let options = Options::read(&read.metadata, settings)?;

    let mut edits = Edits::new(pod);
    let mut warnings = options.warnings.clone();
    let present = sidecar::position(&read.spec);
    let mut all =
        present.map_or_else(Probes::default, |at| sidecar::probes(&init_containers(&read.spec)[at]));
    probes::rewrite(&read.spec, pod, &mut edits, &mut all, new_token, &mut warnings);
    match present {
        Some(at) if edits.is_empty() => {
            tracing::trace!(at, "the pod has its sidecar");
            return Ok(Outcome::Unchanged);
        }
        Some(at) => sidecar::set_probes(&init_containers(&read.spec)[at], at, &all, &mut edits),
        None => {
            edits.map_entry(&["metadata", "annotations"], SIDECAR_ANNOTATION, "true");
            edits.map_entry(&["metadata", "labels"], VERSION_LABEL, &settings.version);
            sidecar::add(&all, &options, settings, &mut edits);
        }
    }
    Ok(Outcome::Patched { patch: edits.into_patch(), warnings })
}

fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}
