//! An object as the catalog keeps it: whole, or, of the kinds that there are many of, written small.
//!
//! A Pod as a Rust value takes several kilobytes, nearly all of it fields that say nothing; as JSON a few hundred
//! bytes. It is made whole again only where a second file holds it too and the first is gone.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

use crate::object::Object;

/// The object. Two are equal when the objects are.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// As it is.
    Whole(Object),
    /// As JSON.
    Pod(Arc<[u8]>),
    /// As JSON.
    Service(Arc<[u8]>),
    /// As JSON.
    EndpointSlice(Arc<[u8]>),
}

impl Kept {
    /// Writes it small, if that is worth it.
    pub(super) fn pack(object: &Object) -> Self {
        let packed = match object {
            Object::Pod(pod) => json(&**pod).map(Self::Pod),
            Object::Service(service) => json(&**service).map(Self::Service),
            Object::EndpointSlice(slice) => json(&**slice).map(Self::EndpointSlice),
            _ => None,
        };
        packed.unwrap_or_else(|| Self::Whole(object.clone()))
    }

    /// The object; `None` only if what was written could not be read, which no type here does.
    pub(super) fn object(&self) -> Option<Object> {
        match self {
            Self::Whole(object) => Some(object.clone()),
            Self::Pod(bytes) => value(bytes).map(Object::Pod),
            Self::Service(bytes) => value(bytes).map(Object::Service),
            Self::EndpointSlice(bytes) => value(bytes).map(Object::EndpointSlice),
        }
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a == b,
            (Self::Pod(a), Self::Pod(b))
            | (Self::Service(a), Self::Service(b))
            | (Self::EndpointSlice(a), Self::EndpointSlice(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => false,
        }
    }
}

fn json<T: Serialize>(value: &T) -> Option<Arc<[u8]>> {
    serde_json::to_vec(value).ok().map(Into::into)
}

fn value<T: DeserializeOwned>(bytes: &[u8]) -> Option<Arc<T>> {
    serde_json::from_slice(bytes).ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::objects;

    #[test]
    fn what_is_written_small_is_read_as_it_was() {
        let text = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {b: c}, deletionTimestamp: '2026-01-01T00:00:00Z'}
spec: {nodeName: n, containers: [{name: app, ports: [{name: web, containerPort: 80}], resources: {limits: {cpu: 100m}}}]}
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop}
spec: {selector: {b: c}, ports: [{name: w, port: 80, targetPort: web}, {name: x, port: 81, targetPort: 8081}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: a, namespace: shop, labels: {kubernetes.io/service-name: a}}
ports: [{name: '', port: 80}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}, zone: z}]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
";
        let objects = objects(text);
        assert_eq!(objects.len(), 4);
        for object in &objects {
            let kept = Kept::pack(object);
            assert_eq!(kept.object().as_ref(), Some(object));
            assert_eq!(kept, Kept::pack(&kept.object().unwrap()));
        }
        assert!(matches!(Kept::pack(&objects[0]), Kept::Pod(_)));
        assert_ne!(Kept::pack(&objects[0]), Kept::pack(&objects[1]));
    }
}
