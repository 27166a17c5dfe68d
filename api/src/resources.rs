//! Heddle's custom resources, group `heddle.dev`, version `v1alpha1`.
//!
//! A field is here once it works. Whatever else is in a manifest is refused by name, and a value out of its range
//! is refused with its field, when the object is read: past it no policy holds a number of unknown unit. What
//! needs other objects to be judged (does the target exist?) is the compiler's business.

mod access_policy;
mod mesh_policy;
mod traffic_policy;
mod value;

pub use access_policy::{
    AccessAction, AccessOperation, AccessPolicy, AccessPolicySpec, AccessRule, AccessSource,
};
pub use mesh_policy::{AccessLogMode, Logs, MeshPolicy, MeshPolicySpec, MtlsMode, PortMtls};
pub use traffic_policy::{
    Algorithm, Backoff, Budget, LoadBalancing, OutlierEjection, Retries, RetryCondition, Timeouts,
    TrafficPolicy, TrafficPolicySpec,
};
pub use value::{Amount, Attempts, Cidr, Duration, PathPattern, Percent, Port, ServiceAccount};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a policy is attached to, in the policy's own namespace (GEP-713).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetRef {
    /// The API group: "" (core) for a Service or Namespace.
    #[serde(default)]
    pub group: String,
    /// The kind: Service, or Namespace where the policy allows it.
    pub kind: TargetKind,
    /// The object's name.
    pub name: String,
}

/// The kinds of object that a policy can be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// A Service of the policy's namespace.
    Service,
    /// The policy's own namespace.
    Namespace,
}
