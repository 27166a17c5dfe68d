//! AccessPolicy: who may call. Deny beats allow; an allow policy denies the rest.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cidr, PathPattern, PolicyStatus, ServiceAccount, TargetRef};

/// Who may call a Service, or whatever is in this namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "heddle.dev",
    version = "v1alpha1",
    kind = "AccessPolicy",
    namespaced,
    status = "PolicyStatus",
    shortname = "apol",
    category = "heddle",
    printcolumn = r#"{"name":"Target","type":"string","description":"The first thing that it guards.","jsonPath":".spec.targetRefs[0].name"}"#,
    printcolumn = r#"{"name":"Action","type":"string","description":"What happens to a request that a rule matches.","jsonPath":".spec.action"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","description":"Whether it is in effect on the first of its targets.","jsonPath":".status.ancestors[0].conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","description":"When it was made.","jsonPath":".metadata.creationTimestamp"}"#,
    derive = "PartialEq",
    doc = "Who may call a Service, or whatever is in a namespace. A Deny beats every Allow; an Allow denies the rest."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessPolicySpec {
    /// Services of this namespace, or the namespace itself.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// What happens to a request that a rule matches.
    pub action: AccessAction,
    /// Any of them. Without rules nothing matches, so an Allow without rules denies all.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub rules: Vec<AccessRule>,
}

/// What happens to a request that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessAction {
    /// It may pass, and what no Allow matches may not.
    Allow,
    /// It may not pass, whatever else allows it.
    Deny,
}

/// Who, and what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRule {
    /// Any of them; anyone when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub from: Vec<AccessSource>,
    /// Any of them; anything when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub to: Vec<AccessOperation>,
}

/// A caller: all fields that are given must match, within one field any value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.serviceAccounts) && size(self.serviceAccounts) > 0) || (has(self.namespaces) && size(self.namespaces) > 0) || (has(self.cidrs) && size(self.cidrs) > 0) || (has(self.anyone) && self.anyone)",
    "message": "names nobody: give serviceAccounts, namespaces, cidrs or anyone"
}]))]
pub struct AccessSource {
    /// "namespace/name".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub service_accounts: Vec<ServiceAccount>,
    /// Namespaces of callers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub namespaces: Vec<String>,
    /// Ranges of peer addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub cidrs: Vec<Cidr>,
    /// Everyone, with or without identity.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anyone: bool,
}

/// A request: all fields that are given must match, within one field any value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.methods) && size(self.methods) > 0) || (has(self.paths) && size(self.paths) > 0)",
    "message": "names nothing: give methods or paths"
}]))]
pub struct AccessOperation {
    /// Methods, in capitals.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 64), regex(pattern = r"^[A-Z-]+$")))]
    pub methods: Vec<String>,
    /// Paths, exact or a prefix with one `*` at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub paths: Vec<PathPattern>,
}
