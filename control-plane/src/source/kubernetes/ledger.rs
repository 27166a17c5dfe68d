//! What the status writer needs of the objects that it writes to, as the API server last sent them. The compiler has
//! no use for it, so it takes no part in what goes there.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::object::{Kind, ObjectRef};

/// Whether objects of the kind get a status from us.
#[must_use]
pub(super) const fn written(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TcpRoute
            | Kind::TrafficPolicy
            | Kind::AccessPolicy
            | Kind::MeshPolicy
    )
}

/// An object as the API server last sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec.parentRefs` or `spec.targetRefs`, as they were written.
    pub refs: Vec<Value>,
    /// `status`.
    pub status: Value,
}

impl Seen {
    /// Takes the status out of the object's data: nothing else depends on it.
    pub(super) fn take(meta: &ObjectMeta, data: &mut Value) -> Self {
        let spec = &data["spec"];
        let refs = [&spec["parentRefs"], &spec["targetRefs"]];
        let refs = refs.into_iter().find_map(Value::as_array).cloned().unwrap_or_default();
        let status = data.as_object_mut().and_then(|fields| fields.remove("status"));
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            refs,
            status: status.unwrap_or(Value::Null),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    seen: HashMap<ObjectRef, Seen>,
    /// Namespaces labelled for injection, and Pods with a sidecar.
    meshed: BTreeSet<ObjectRef>,
}

impl Ledger {
    /// All objects, in no particular order.
    #[must_use]
    pub fn all(&self) -> Vec<(ObjectRef, Seen)> {
        self.lock().seen.iter().map(|(reference, seen)| (reference.clone(), seen.clone())).collect()
    }

    /// Namespaces in which there are sidecars, or will be.
    #[must_use]
    pub fn namespaces(&self) -> BTreeSet<String> {
        let of = |object: &ObjectRef| {
            if object.kind == Kind::Namespace { object.name.clone() } else { object.namespace.clone() }
        };
        self.lock().meshed.iter().map(of).collect()
    }

    pub(super) fn set(&self, reference: &ObjectRef, seen: Option<Seen>, meshed: bool) {
        let mut inner = self.lock();
        match seen {
            Some(seen) => inner.seen.insert(reference.clone(), seen),
            None => inner.seen.remove(reference),
        };
        if meshed {
            inner.meshed.insert(reference.clone());
        } else {
            inner.meshed.remove(reference);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
