//! Heddle's custom resources, group `heddle.dev`, version `v1alpha1`.
//!
//! A field is here once it works. Whatever else is in a manifest is refused by name, and a value out of its range
//! is refused with its field, when the object is read: past it no policy holds a number of unknown unit. What
//! needs other objects to be judged (does the target exist?) is the compiler's business.

mod access_policy;
mod mesh_policy;
mod status;
mod traffic_policy;
mod value;

pub use access_policy::{
    AccessAction, AccessOperation, AccessPolicy, AccessPolicySpec, AccessRule, AccessSource,
};
pub use mesh_policy::{AccessLogMode, Logs, MeshPolicy, MeshPolicySpec, MtlsMode, PortMtls};
pub use status::{AncestorRef, PolicyAncestor, PolicyStatus};
pub use traffic_policy::{
    Algorithm, Backoff, Budget, LoadBalancing, OutlierEjection, Retries, RetryCondition, Timeouts,
    TrafficPolicy, TrafficPolicySpec,
};
pub use value::{Amount, Attempts, Cidr, Duration, PathPattern, Percent, Port, ServiceAccount, Share};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a policy is attached to, in the policy's own namespace (GEP-713).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.group == ''",
    "message": "a Service or Namespace is in the group \"\"; leave group out"
}]))]
pub struct TargetRef {
    /// The API group: "" (core) for a Service or Namespace.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub group: String,
    /// The kind: Service, or Namespace where the policy allows it.
    pub kind: TargetKind,
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
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

#[cfg(test)]
mod tests {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    use kube::CustomResourceExt;

    use super::*;

    /// What an API server would refuse a CRD for (structural schemas), as far as our types could bring it about.
    #[test]
    fn the_schemas_are_such_that_an_api_server_takes_them() {
        fn check(definition: &CustomResourceDefinition, fields: &[&str]) {
            let text = serde_json::to_string(definition).unwrap();
            for forbidden in ["\"additionalProperties\":false", "\"$ref\"", "\"definitions\""] {
                assert!(!text.contains(forbidden), "{forbidden} in {text}");
            }
            let schema =
                definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
            let spec = &schema.properties.as_ref().unwrap()["spec"];
            let names: Vec<_> = spec.properties.as_ref().unwrap().keys().collect();
            assert_eq!(names, fields);
        }
        check(
            &TrafficPolicy::crd(),
            &["loadBalancing", "outlierEjection", "retries", "targetRefs", "timeouts"],
        );
        check(&AccessPolicy::crd(), &["action", "rules", "targetRefs"]);
        check(&MeshPolicy::crd(), &["logs", "mtls", "opaquePorts", "ports"]);
    }

    #[test]
    fn every_field_of_every_schema_says_what_it_is() {
        fn undescribed(at: &str, schema: &serde_json::Value, found: &mut Vec<String>) {
            let described = schema["description"].as_str().is_some_and(|d| !d.starts_with("Auto-generated"));
            if !described {
                found.push(at.to_owned());
            }
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                undescribed(&format!("{at}.{name}"), inner, found);
            }
            if schema["items"]["properties"].is_object() {
                undescribed(&format!("{at}[]"), &schema["items"], found);
            }
        }
        let mut found = Vec::new();
        for definition in [TrafficPolicy::crd(), AccessPolicy::crd(), MeshPolicy::crd()] {
            let schema = &serde_json::to_value(&definition).unwrap()["spec"]["versions"][0]["schema"];
            undescribed(&definition.spec.names.kind, &schema["openAPIV3Schema"], &mut found);
        }
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn a_policy_reads_back_as_it_was_written() {
        let text = r#"{"targetRefs":[{"group":"","kind":"Service","name":"reviews"}],"retries":{"attempts":2,"on":["ConnectFailure","5xx"],"perTryTimeout":"500ms"}}"#;
        let spec: TrafficPolicySpec = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&spec).unwrap(), text);
    }
}
