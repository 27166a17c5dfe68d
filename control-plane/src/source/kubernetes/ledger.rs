//! What the status writer and the webhook need of objects, as they were last compiled. The compiler has no use for
//! it, so it takes no part in what goes there.
//!
//! It must not be ahead of the compiler, or a status would say that it is of a spec which nobody has looked at yet. So what
//! is news goes with its batch, as [`Notes`], and is entered once that was applied.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

/// What is kept of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Entry {
    /// What its status is to be written by; only of kinds that have one of ours.
    pub seen: Option<Seen>,
    /// Whether it puts its namespace into the mesh.
    pub meshed: bool,
    /// Of a Namespace, its `metadata.uid`.
    pub uid: Option<String>,
    /// Of a Namespace, the labels that say which Pod Security Standard holds in it.
    pub security: BTreeMap<String, String>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    seen: HashMap<ObjectRef, Seen>,
    /// Namespaces labelled for injection, and Pods with a sidecar.
    meshed: BTreeSet<ObjectRef>,
    /// Of each namespace that is there.
    uids: HashMap<String, String>,
    /// By namespace; none has an empty one.
    security: HashMap<String, BTreeMap<String, String>>,
}

impl Ledger {
    /// All objects, in no particular order.
    #[must_use]
    pub fn all(&self) -> Vec<(ObjectRef, Seen)> {
        self.lock().seen.iter().map(|(reference, seen)| (reference.clone(), seen.clone())).collect()
    }

    /// Namespaces in which there are sidecars, or will be, with their uids: empty, where the Namespace is not there.
    #[must_use]
    pub fn namespaces(&self) -> BTreeMap<String, String> {
        let inner = self.lock();
        let of = |object: &ObjectRef| {
            let name = if object.kind == Kind::Namespace { &object.name } else { &object.namespace };
            (name.clone(), inner.uids.get(name).cloned().unwrap_or_default())
        };
        inner.meshed.iter().map(of).collect()
    }

    /// A namespace's labels of Pod Security Standards; none: it has none, or is not known.
    #[must_use]
    pub fn security(&self, namespace: &str) -> Option<BTreeMap<String, String>> {
        self.lock().security.get(namespace).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn set(&mut self, reference: ObjectRef, entry: Entry) {
        let Entry { seen, meshed, uid, security } = entry;
        if reference.kind == Kind::Namespace {
            match uid {
                Some(uid) => self.uids.insert(reference.name.clone(), uid),
                None => self.uids.remove(&reference.name),
            };
            if security.is_empty() {
                self.security.remove(&reference.name);
            } else {
                self.security.insert(reference.name.clone(), security);
            }
        }
        match seen {
            Some(seen) => self.seen.insert(reference.clone(), seen),
            None => self.seen.remove(&reference),
        };
        if meshed {
            self.meshed.insert(reference);
        } else {
            self.meshed.remove(&reference);
        }
    }
}

/// What is news for the ledger in a batch; of a source that has none, nothing.
#[derive(Clone, Debug, Default)]
pub struct Notes(Option<(Arc<Ledger>, HashMap<ObjectRef, Entry>)>);

impl Notes {
    pub(super) fn new(ledger: &Arc<Ledger>, entries: HashMap<ObjectRef, Entry>) -> Self {
        Self(Some((Arc::clone(ledger), entries)))
    }

    /// To be called when the batch was applied.
    pub fn enter(self) {
        let Some((ledger, entries)) = self.0 else { return };
        let mut inner = ledger.lock();
        for (reference, entry) in entries {
            inner.set(reference, entry);
        }
    }
}
