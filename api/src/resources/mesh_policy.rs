//! MeshPolicy: defaults for a namespace, or for the whole mesh when it is in `heddle-system`.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicyStatus, Port};

/// Defaults for a namespace, or for the whole mesh when it is in heddle-system.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "heddle.dev",
    version = "v1alpha1",
    kind = "MeshPolicy",
    namespaced,
    status = "PolicyStatus",
    shortname = "mpol",
    category = "heddle",
    printcolumn = r#"{"name":"mTLS","type":"string","description":"Whether plaintext is taken.","jsonPath":".spec.mtls"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","description":"Whether it is in effect on the first of its targets.","jsonPath":".status.ancestors[0].conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","description":"When it was made.","jsonPath":".metadata.creationTimestamp"}"#,
    derive = "PartialEq",
    doc = "Defaults for a namespace, or for the whole mesh when it is in heddle-system."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshPolicySpec {
    /// Whether plaintext is taken. Permissive when absent everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MtlsMode>,
    /// Ports whose bytes are not looked into, unless a Service declares them otherwise. These replace the mesh's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub opaque_ports: Option<Vec<Port>>,
    /// Ports of pods that differ from `mtls`. These replace the mesh's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub ports: Option<Vec<PortMtls>>,
    /// What is logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<Logs>,
}

/// Whether plaintext is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MtlsMode {
    /// Beside mTLS.
    Permissive,
    /// Never.
    Strict,
    /// Both are taken, and callers in the mesh send plaintext.
    Disabled,
}

/// A port that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMtls {
    /// The application's port on the pod.
    pub port: Port,
    /// Its mode.
    pub mtls: MtlsMode,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Logs {
    /// Which requests appear in the access log. Errors when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<AccessLogMode>,
}

/// Which requests appear in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessLogMode {
    /// None.
    Off,
    /// Refused ones and server errors.
    Errors,
    /// All.
    All,
}
