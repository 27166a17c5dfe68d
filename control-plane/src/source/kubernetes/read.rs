//! What the API server sends, as objects of the mesh: trimmed to what is used, so that a cluster's worth of Pods costs
//! kilobytes for each and not their whole manifests. Pure.

use std::collections::BTreeMap;

use gateway_api::experimental::{
    grpcroutes::GrpcRoute, httproutes::HttpRoute, referencegrants::ReferenceGrant, tcproutes::TcpRoute,
};
use heddle_api::{
    GROUP,
    resources::{AccessPolicy, MeshPolicy, TrafficPolicy},
};
use k8s_openapi::{
    api::{
        core::v1::{Container, Namespace, Node, Pod, PodSpec, PodStatus, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::core::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::ledger::{Entry, Seen, written};
use crate::{
    diagnostics::FieldError,
    object::{Kind, Object, ObjectRef},
    source::document::closed,
};

/// The labels that anything depends on of an object that is neither a Pod nor a Namespace, of which policies select any.
const LABELS: [&str; 2] = ["kubernetes.io/service-name", "topology.kubernetes.io/zone"];

/// An object of the API server.
#[derive(Debug)]
pub(super) struct Item {
    pub reference: ObjectRef,
    /// `metadata.resourceVersion`: two of one object with the same are the same.
    pub version: String,
    /// Itself, or what is wrong and what to use instead: a policy that guards something does so even when it is broken.
    pub outcome: Result<Object, (FieldError, Option<Object>)>,
    /// What others than the compiler need of it.
    pub entry: Entry,
}

/// Reads one.
pub(super) fn read(kind: Kind, object: DynamicObject) -> Item {
    let DynamicObject { metadata, mut data, .. } = object;
    let reference = ObjectRef {
        kind,
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    };
    let version = metadata.resource_version.clone().unwrap_or_default();
    let seen = written(kind).then(|| Seen::take(&metadata, &mut data));
    let entry = Entry {
        seen,
        meshed: is_meshed(kind, &metadata),
        uid: metadata.uid.clone().filter(|_| kind == Kind::Namespace),
        security: security(kind, &metadata),
    };
    let metadata = trim(kind, metadata);
    let outcome = typed(kind, &metadata, &mut data).map_err(|error| {
        let instead = serde_norway::to_value(&data)
            .ok()
            .and_then(|value| closed::policy(&reference, &value))
            .map(|object| with_meta(object, metadata));
        (error, instead)
    });
    Item { reference, version, outcome, entry }
}

/// A namespace that is labelled for injection, or a Pod that has a sidecar.
fn is_meshed(kind: Kind, meta: &ObjectMeta) -> bool {
    let says = |map: &Option<BTreeMap<String, String>>, key: &str, value: &str| {
        map.as_ref().and_then(|map| map.get(key)).is_some_and(|found| found == value)
    };
    match kind {
        Kind::Namespace => says(&meta.labels, INJECT_LABEL, "enabled"),
        Kind::Pod => says(&meta.annotations, heddle_api::SIDECAR_ANNOTATION, "true"),
        _ => false,
    }
}

/// Which Pod Security Standard a Namespace says that it has.
fn security(kind: Kind, meta: &ObjectMeta) -> BTreeMap<String, String> {
    let labels = meta.labels.iter().flatten().filter(|(key, _)| key.starts_with(SECURITY_LABELS));
    labels.filter(|_| kind == Kind::Namespace).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Beginning of the labels of Pod Security Standards.
const SECURITY_LABELS: &str = "pod-security.kubernetes.io/";

/// Label of a Namespace whose new pods get a sidecar; the value is `enabled`.
const INJECT_LABEL: &str = "heddle.dev/inject";

fn typed(kind: Kind, metadata: &ObjectMeta, data: &mut Value) -> Result<Object, FieldError> {
    macro_rules! object {
        ($type:ident, $variant:ident, $trim:expr) => {{
            let trim: fn($type) -> $type = $trim;
            let mut object: $type = trim(parse(kind, data)?);
            object.metadata = metadata.clone();
            Object::$variant(std::sync::Arc::new(object))
        }};
    }
    Ok(match kind {
        Kind::Namespace => object!(Namespace, Namespace, |_| Namespace::default()),
        Kind::Node => object!(Node, Node, |_| Node::default()),
        Kind::Pod => object!(Pod, Pod, pod),
        Kind::Service => object!(Service, Service, |service| Service { status: None, ..service }),
        Kind::EndpointSlice => object!(EndpointSlice, EndpointSlice, |slice| slice),
        Kind::NetworkPolicy => object!(NetworkPolicy, NetworkPolicy, |policy| policy),
        Kind::HttpRoute => object!(HttpRoute, HttpRoute, |route| route),
        Kind::GrpcRoute => object!(GrpcRoute, GrpcRoute, |route| route),
        Kind::TcpRoute => object!(TcpRoute, TcpRoute, |route| route),
        Kind::ReferenceGrant => object!(ReferenceGrant, ReferenceGrant, |grant| grant),
        Kind::TrafficPolicy => object!(TrafficPolicy, TrafficPolicy, |policy| policy),
        Kind::AccessPolicy => object!(AccessPolicy, AccessPolicy, |policy| policy),
        Kind::MeshPolicy => object!(MeshPolicy, MeshPolicy, |policy| policy),
    })
}

fn parse<T: DeserializeOwned>(kind: Kind, data: &mut Value) -> Result<T, FieldError> {
    if let Some(fields) = data.as_object_mut() {
        fields.insert("kind".to_owned(), kind.as_str().into());
        fields.insert("apiVersion".to_owned(), kind.api_versions()[0].into());
        fields.insert("metadata".to_owned(), json!({}));
    }
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&*data, &mut track);
    T::deserialize(tracked).map_err(|error| {
        let path = track.path().to_string();
        FieldError::error(if path == "." { String::new() } else { path }, error.to_string())
    })
}

/// What is used of the metadata.
fn trim(kind: Kind, meta: ObjectMeta) -> ObjectMeta {
    let mut labels = meta.labels;
    if let Some(labels) = labels.as_mut().filter(|_| !matches!(kind, Kind::Pod | Kind::Namespace)) {
        labels.retain(|key, _| LABELS.contains(&key.as_str()));
    }
    let mut annotations = meta.annotations;
    if let Some(annotations) = &mut annotations {
        annotations.retain(|key, _| key.split_once('/').is_some_and(|(domain, _)| domain == GROUP));
    }
    ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        uid: meta.uid,
        creation_timestamp: meta.creation_timestamp,
        deletion_timestamp: meta.deletion_timestamp,
        labels,
        annotations,
        ..ObjectMeta::default()
    }
}

/// What is used of a Pod.
fn pod(pod: Pod) -> Pod {
    fn containers(all: Vec<Container>) -> Vec<Container> {
        let named = |container: Container| {
            let mut ports = container.ports.unwrap_or_default();
            ports.retain(|port| port.name.is_some());
            (!ports.is_empty()).then(|| Container { ports: Some(ports), ..Container::default() })
        };
        all.into_iter().filter_map(named).collect()
    }
    let spec = pod.spec.map(|spec| PodSpec {
        service_account_name: spec.service_account_name,
        node_name: spec.node_name,
        host_network: spec.host_network,
        hostname: spec.hostname,
        containers: containers(spec.containers),
        init_containers: spec.init_containers.map(containers),
        ..PodSpec::default()
    });
    let status = pod.status.map(|status| PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip.filter(|ip| !ip.is_empty()),
        pod_ips: status.pod_ips,
        conditions: status.conditions.map(|mut conditions| {
            conditions.retain(|condition| condition.type_ == "Ready");
            conditions
        }),
        ..PodStatus::default()
    });
    Pod { metadata: ObjectMeta::default(), spec, status }
}

fn with_meta(object: Object, metadata: ObjectMeta) -> Object {
    match object {
        Object::AccessPolicy(policy) => {
            let mut policy = std::sync::Arc::unwrap_or_clone(policy);
            policy.metadata = metadata;
            Object::AccessPolicy(policy.into())
        }
        Object::MeshPolicy(policy) => {
            let mut policy = std::sync::Arc::unwrap_or_clone(policy);
            policy.metadata = metadata;
            Object::MeshPolicy(policy.into())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: Kind, value: Value) -> Item {
        read(kind, serde_json::from_value(value).unwrap())
    }

    #[test]
    fn of_a_pod_only_what_is_used_is_kept() {
        let read = item(
            Kind::Pod,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                    "labels": {"app": "a"}, "managedFields": [{"manager": "x"}], "ownerReferences": [],
                    "annotations": {"heddle.dev/sidecar": "true", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
                "spec": {"nodeName": "n", "serviceAccountName": "web", "volumes": [{"name": "v"}],
                    "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "b"}],
                        "ports": [{"containerPort": 80}, {"name": "http", "containerPort": 8080}]}, {"name": "d"}]},
                "status": {"podIP": "10.0.0.1", "hostIP": "10.9.9.9", "conditions": [
                    {"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]}
            }),
        );
        assert!(read.entry.meshed && read.entry.seen.is_none());
        assert_eq!(read.version, "7");
        let Ok(Object::Pod(pod)) = read.outcome else { panic!("{read:?}") };
        let expected = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "shop", "uid": "u", "labels": {"app": "a"},
                "annotations": {"heddle.dev/sidecar": "true"}},
            "spec": {"nodeName": "n", "serviceAccountName": "web",
                "containers": [{"name": "", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
        });
        assert_eq!(serde_json::to_value(&*pod).unwrap(), expected);
    }

    #[test]
    fn a_guarding_policy_that_cannot_be_read_closes_and_says_which_field_it_is() {
        let policy = |spec: Value| {
            item(
                Kind::AccessPolicy,
                json!({"apiVersion": "heddle.dev/v1alpha1", "kind": "AccessPolicy",
                    "metadata": {"name": "p", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 3}, "spec": spec}),
            )
        };
        let target = json!([{"kind": "Service", "name": "reviews"}]);
        let broken = policy(json!({"targetRefs": target, "action": "Alow"}));
        let Err((error, Some(Object::AccessPolicy(instead)))) = broken.outcome else { panic!("{broken:?}") };
        assert_eq!(error.field, "spec.action");
        assert_eq!(instead.spec.action, heddle_api::resources::AccessAction::Deny);
        assert!(instead.metadata.creation_timestamp.is_some(), "its age still decides");
        assert_eq!(broken.entry.seen.unwrap().generation, 3);
        assert!(policy(json!({"targetRefs": target, "action": "Allow"})).outcome.is_ok());
    }
}
