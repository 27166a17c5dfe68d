//! TrafficPolicy: how the clients of a Service reach it.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Amount, Attempts, Duration, Percent, PolicyStatus, Share, TargetRef};

/// How the clients of a Service reach it. What is absent keeps its default.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "heddle.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    namespaced,
    status = "PolicyStatus",
    shortname = "tpol",
    category = "heddle",
    printcolumn = r#"{"name":"Target","type":"string","description":"The first Service that it is for.","jsonPath":".spec.targetRefs[0].name"}"#,
    printcolumn = r#"{"name":"Algorithm","type":"string","description":"How an endpoint is picked.","jsonPath":".spec.loadBalancing.algorithm"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","description":"Whether it is in effect on the first of its targets.","jsonPath":".status.ancestors[0].conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","description":"When it was made.","jsonPath":".metadata.creationTimestamp"}"#,
    derive = "PartialEq",
    doc = "How the clients of a Service reach it."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// Services of this namespace.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = [{
        "rule": "self.all(target, target.kind == 'Service')",
        "message": "a TrafficPolicy is attached to Services, not to a Namespace"
    }]))]
    pub target_refs: Vec<TargetRef>,
    /// How an endpoint is picked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// When an endpoint is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_ejection: Option<OutlierEjection>,
    /// What is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// How long things may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
}

/// How an endpoint is picked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancing {
    /// PeakEwma when absent.
    #[serde(default)]
    pub algorithm: Algorithm,
}

/// The algorithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// The better of two random endpoints by recent latency times load.
    #[default]
    PeakEwma,
    /// The better of two random endpoints by requests in flight.
    LeastRequest,
    /// Each in turn.
    RoundRobin,
    /// Any.
    Random,
}

/// When an endpoint is left out of balancing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierEjection {
    /// Failures in a row: 5xx, resets, failed connects, timeouts. 5 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<Amount>,
    /// How often an endpoint that behaves forgets one of its past ejections. 10s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) > duration('0s')", "message": "must be longer than 0s"
    }]))]
    pub interval: Option<Duration>,
    /// Length of the first ejection; the n-th in a row lasts n times as long. 30s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) > duration('0s')", "message": "must be longer than 0s"
    }]))]
    pub base_ejection: Option<Duration>,
    /// At most this share of the endpoints is out at once. 50 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<Share>,
}

/// What is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// Tries after the first; 0: none. 2 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Attempts>,
    /// When; whoever names conditions has them hold for every method. When absent: connect failures for every
    /// method, and 502, 503, 504 for GET, HEAD, OPTIONS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub on: Option<Vec<RetryCondition>>,
    /// The time each try may take. None when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// The pauses between tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// How much retries may add.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// When a request is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetryCondition {
    /// The connection could not be made.
    ConnectFailure,
    /// The stream or connection was reset before a response.
    Reset,
    /// 500 to 599.
    #[serde(rename = "5xx")]
    ServerError,
    /// 502, 503, 504.
    GatewayError,
    /// 429.
    TooManyRequests,
}

/// The pauses between tries, doubled each time up to the maximum, with full jitter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.base) || !has(self.max) || duration(self.base) <= duration(self.max)",
    "message": "base is longer than max"
}]))]
pub struct Backoff {
    /// The first. 25ms when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) > duration('0s')", "message": "must be longer than 0s"
    }]))]
    pub base: Option<Duration>,
    /// The longest. 250ms when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) > duration('0s')", "message": "must be longer than 0s"
    }]))]
    pub max: Option<Duration>,
}

/// How much retries may add to the requests: the larger of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// Share of the requests. 20 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<Percent>,
    /// Retries a second that are allowed in any case. 10 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_per_second: Option<Attempts>,
}

/// How long things may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// The whole exchange, retries included. None when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// The making of a connection, handshakes included. 1s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) > duration('0s')", "message": "must be longer than 0s"
    }]))]
    pub connect: Option<Duration>,
    /// A TCP connection without a byte either way. 1h when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) > duration('0s')", "message": "must be longer than 0s"
    }]))]
    pub idle: Option<Duration>,
}
