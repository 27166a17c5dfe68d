//! What a policy that cannot be read does where it has no last good state: it fails closed.

use heddle_api::resources::{
    AccessAction, AccessPolicy, AccessPolicySpec, AccessRule, MeshPolicy, MeshPolicySpec, MtlsMode, Port,
    PortMtls, TargetKind, TargetRef,
};
use serde::Deserialize;
use serde_norway::Value;

use crate::object::{Kind, Object, ObjectRef};

/// The policy to use instead; `None` for what guards nothing.
pub(in crate::source) fn policy(reference: &ObjectRef, value: &Value) -> Option<Object> {
    match reference.kind {
        Kind::AccessPolicy => Some(access_policy(reference, value)),
        Kind::MeshPolicy => Some(mesh_policy(reference, value)),
        _ => None,
    }
}

/// An access policy that denies everything to the targets that can be read, or to its namespace if none can.
fn access_policy(reference: &ObjectRef, value: &Value) -> Object {
    let refs = value.get("spec").and_then(|spec| spec.get("targetRefs")).and_then(Value::as_sequence);
    let mut target_refs: Vec<TargetRef> =
        refs.into_iter().flatten().filter_map(|target| TargetRef::deserialize(target).ok()).collect();
    target_refs.retain(|target| target.kind == TargetKind::Service || target.name == reference.namespace);
    if target_refs.is_empty() {
        target_refs.push(TargetRef {
            group: String::new(),
            kind: TargetKind::Namespace,
            name: reference.namespace.clone(),
        });
    }
    let spec =
        AccessPolicySpec { target_refs, action: AccessAction::Deny, rules: vec![AccessRule::default()] };
    let mut policy = AccessPolicy::new(&reference.name, spec);
    policy.metadata.namespace = Some(reference.namespace.clone());
    Object::AccessPolicy(policy.into())
}

/// A mesh policy with what can be read of it, and Strict where a mode cannot, or where a field that cannot be read may
/// have been meant for one.
fn mesh_policy(reference: &ObjectRef, value: &Value) -> Object {
    let spec = value.get("spec");
    let field = |name: &str| spec.and_then(|spec| spec.get(name)).filter(|value| !value.is_null());
    let mode = |value: &Value| MtlsMode::deserialize(value).unwrap_or(MtlsMode::Strict);
    let known = |key: &Value| key.as_str().is_some_and(|key| FIELDS.contains(&key));
    let legible = spec.and_then(Value::as_mapping).is_some_and(|spec| spec.keys().all(known));
    let port = |entry: &Value| {
        let port = Port::deserialize(entry.get("port")?).ok()?;
        Some(PortMtls { port, mtls: entry.get("mtls").map_or(MtlsMode::Strict, mode) })
    };
    let list = |name: &str| field(name).and_then(Value::as_sequence);
    let spec = MeshPolicySpec {
        mtls: field("mtls").map(mode).or((!legible).then_some(MtlsMode::Strict)),
        ports: list("ports").map(|entries| entries.iter().filter_map(port).collect()),
        opaque_ports: list("opaquePorts")
            .map(|ports| ports.iter().filter_map(|port| Port::deserialize(port).ok()).collect()),
        logs: None,
    };
    let mut policy = MeshPolicy::new(&reference.name, spec);
    policy.metadata.namespace = Some(reference.namespace.clone());
    Object::MeshPolicy(policy.into())
}

/// The fields of a mesh policy's spec.
const FIELDS: [&str; 4] = ["mtls", "opaquePorts", "ports", "logs"];
