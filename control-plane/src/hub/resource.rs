//! A resource as discovery sends it: its key, its content with a version, and the difference between two contents.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use heddle_api::{
    identity::PodName,
    v1::{self, ResourceType, resource::Body},
};
use prost::Message as _;

/// The longest name that is looked up, in bytes. Sidecars pass on what applications write, up to half of this; what
/// exists is shorter still (a DNS name of 253 and a port).
pub const MAX_NAME: usize = 1024;

/// What can be subscribed to. A Destination's short names resolve in the caller's namespace, so that is part of it.
///
/// The order puts a Destination before the Endpoints that it names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The sidecar's own side.
    Inbound(PodName),
    /// The roots of a trust domain.
    TrustBundle(Arc<str>),
    /// Where a name leads.
    Destination {
        /// The caller's namespace.
        namespace: Arc<str>,
        /// As the application said it, with port.
        name: Arc<str>,
    },
    /// A backend's endpoints.
    Endpoints(Arc<str>),
    /// Of a type that a newer sidecar knows and this control plane does not: always absent.
    Unknown {
        /// The type's number.
        kind: i32,
        /// As it was asked for.
        name: Arc<str>,
    },
}

/// Why a name cannot be a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Longer than anything that exists.
    #[error("a resource name of {0} bytes; at most {MAX_NAME} are taken")]
    TooLong(usize),
    /// Nothing says what is asked for.
    #[error("a resource name without a type")]
    NoType,
    /// Another pod's Inbound.
    #[error("the Inbound of {asked:?} is not for {pod}: a sidecar gets its own pod's alone")]
    ForeignInbound {
        /// Whose was asked for.
        asked: String,
        /// Who asked.
        pod: PodName,
    },
}

impl Key {
    /// Reads the name of a resource that `pod` asks for.
    ///
    /// # Errors
    /// When there can be no such resource for it.
    pub fn asked(pod: &PodName, namespace: &Arc<str>, name: &v1::ResourceName) -> Result<Self, BadKey> {
        if name.name.len() > MAX_NAME {
            return Err(BadKey::TooLong(name.name.len()));
        }
        let Ok(kind) = ResourceType::try_from(name.r#type) else {
            return Ok(Self::Unknown { kind: name.r#type, name: name.name.as_str().into() });
        };
        match kind {
            ResourceType::Destination => {
                Ok(Self::Destination { namespace: Arc::clone(namespace), name: name.name.as_str().into() })
            }
            ResourceType::Endpoints => Ok(Self::Endpoints(name.name.as_str().into())),
            ResourceType::Inbound if name.name == pod.to_string() => Ok(Self::Inbound(pod.clone())),
            ResourceType::Inbound => {
                Err(BadKey::ForeignInbound { asked: name.name.clone(), pod: pod.clone() })
            }
            ResourceType::TrustBundle => Ok(Self::TrustBundle(name.name.as_str().into())),
            ResourceType::Unspecified => Err(BadKey::NoType),
        }
    }

    /// The name on the wire.
    #[must_use]
    pub fn name(&self) -> v1::ResourceName {
        let (kind, name) = match self {
            Self::Inbound(pod) => (ResourceType::Inbound, pod.to_string()),
            Self::TrustBundle(name) => (ResourceType::TrustBundle, name.to_string()),
            Self::Destination { name, .. } => (ResourceType::Destination, name.to_string()),
            Self::Endpoints(name) => (ResourceType::Endpoints, name.to_string()),
            Self::Unknown { kind, name } => {
                return v1::ResourceName { r#type: *kind, name: name.to_string() };
            }
        };
        v1::ResourceName { r#type: kind.into(), name }
    }
}

/// One state of one resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// A digest of the content; empty: there is no such resource.
    pub version: String,
    /// The content.
    pub body: Option<Body>,
    /// The Endpoints that a Destination names.
    pub backends: Vec<Key>,
    /// Bytes on the wire.
    pub size: usize,
    deltas: Deltas,
}

/// The differences from former states, by the former's version: asked for by a thousand streams, made once.
#[derive(Debug, Default)]
struct Deltas(Mutex<Vec<(String, Option<v1::EndpointsDelta>)>>);

/// They follow from the states, so they are no part of what a state is.
impl PartialEq for Deltas {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Clone for Deltas {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Rendered {
    /// A state that says: absent.
    #[must_use]
    pub const fn absent() -> Self {
        let deltas = Deltas(Mutex::new(Vec::new()));
        Self { version: String::new(), body: None, backends: Vec::new(), size: 0, deltas }
    }

    /// A Destination.
    #[must_use]
    pub fn destination(value: Option<v1::Destination>) -> Self {
        let backends = value.iter().flat_map(|value| &value.backends);
        let backends = backends.map(|backend| Key::Endpoints(backend.key.as_str().into())).collect();
        Self { backends, ..Self::new(value, Body::Destination) }
    }

    /// A backend's Endpoints.
    #[must_use]
    pub fn endpoints(value: Option<v1::Endpoints>) -> Self {
        Self::new(value, Body::Endpoints)
    }

    /// A pod's Inbound.
    #[must_use]
    pub fn inbound(value: Option<v1::Inbound>) -> Self {
        Self::new(value, Body::Inbound)
    }

    /// A trust bundle.
    #[must_use]
    pub fn trust_bundle(value: Option<v1::TrustBundle>) -> Self {
        Self::new(value, Body::TrustBundle)
    }

    fn new<T: prost::Message>(value: Option<T>, body: fn(T) -> Body) -> Self {
        let Some(value) = value else { return Self::absent() };
        let encoded = value.encode_to_vec();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &encoded);
        let version = super::hex(&digest.as_ref()[..16]);
        Self { version, size: encoded.len(), body: Some(body(value)), ..Self::absent() }
    }

    /// This state as the difference from `base`, if both are Endpoints and that is shorter.
    #[must_use]
    pub fn delta_from(&self, base: &Self) -> Option<v1::EndpointsDelta> {
        let mut deltas = super::lock(&self.deltas.0);
        if let Some((_, delta)) = deltas.iter().find(|(version, _)| *version == base.version) {
            return delta.clone();
        }
        // Streams are at most some states behind; who is further gets the whole.
        deltas.truncate(super::table::FORMER - 1);
        let delta = self.make_delta_from(base);
        deltas.insert(0, (base.version.clone(), delta.clone()));
        delta
    }

    fn make_delta_from(&self, base: &Self) -> Option<v1::EndpointsDelta> {
        let (Some(Body::Endpoints(new)), Some(Body::Endpoints(old))) = (&self.body, &base.body) else {
            return None;
        };
        fn place(endpoint: &v1::Endpoint) -> (&str, u32) {
            (&endpoint.address, endpoint.port)
        }
        let mut gone: HashMap<_, _> =
            old.endpoints.iter().map(|endpoint| (place(endpoint), endpoint)).collect();
        let upserted = new
            .endpoints
            .iter()
            .filter(|endpoint| gone.remove(&place(endpoint)) != Some(*endpoint))
            .cloned()
            .collect();
        let mut removed: Vec<_> = gone
            .into_keys()
            .map(|(address, port)| v1::EndpointKey { address: address.to_owned(), port })
            .collect();
        removed.sort_by(|a, b| (&a.address, a.port).cmp(&(&b.address, b.port)));
        let delta = v1::EndpointsDelta { base_version: base.version.clone(), upserted, removed };
        (delta.encoded_len() < self.size).then_some(delta)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(last: u8, weight: u32) -> v1::Endpoint {
        v1::Endpoint { address: format!("127.0.1.{last}"), port: 80, weight, ..v1::Endpoint::default() }
    }

    fn endpoints(of: &HashMap<u8, u32>) -> v1::Endpoints {
        let mut list: Vec<_> = of.iter().map(|(last, weight)| endpoint(*last, *weight)).collect();
        list.sort_by(|a, b| a.address.cmp(&b.address));
        v1::Endpoints { endpoints: list }
    }

    #[test]
    fn a_version_changes_exactly_when_the_content_does() {
        let one = Rendered::endpoints(Some(endpoints(&[(1, 1)].into())));
        assert_eq!(one.version, Rendered::endpoints(Some(endpoints(&[(1, 1)].into()))).version);
        assert_ne!(one.version, Rendered::endpoints(Some(endpoints(&[(1, 2)].into()))).version);
        assert_eq!(one.version.len(), 32);
        assert_eq!(Rendered::endpoints(None).version, "");
    }

    #[test]
    fn a_change_of_one_endpoint_sends_one_endpoint() {
        let mut of: HashMap<u8, u32> = (1..=200).map(|last| (last, 1)).collect();
        let old = Rendered::endpoints(Some(endpoints(&of)));
        of.insert(7, 5);
        of.remove(&9);
        let delta = Rendered::endpoints(Some(endpoints(&of))).delta_from(&old).unwrap();
        assert_eq!(delta.base_version, old.version);
        assert_eq!(delta.upserted, [endpoint(7, 5)]);
        assert_eq!(delta.removed, [v1::EndpointKey { address: "127.0.1.9".to_owned(), port: 80 }]);
    }

    #[test]
    fn a_pod_may_ask_for_its_own_inbound_alone() {
        let pod: PodName = "shop/web-0".parse().unwrap();
        let asked = |name: &str| {
            let name = v1::ResourceName { r#type: ResourceType::Inbound.into(), name: name.to_owned() };
            Key::asked(&pod, &"shop".into(), &name)
        };
        assert_eq!(asked("shop/web-0"), Ok(Key::Inbound(pod.clone())));
        assert!(matches!(asked("shop/web-1"), Err(BadKey::ForeignInbound { .. })));
    }

    #[test]
    fn a_type_of_the_future_keeps_its_number_and_no_type_is_refused() {
        let pod: PodName = "shop/web-0".parse().unwrap();
        let asked = |kind: i32| {
            let name = v1::ResourceName { r#type: kind, name: "x".to_owned() };
            Key::asked(&pod, &"shop".into(), &name).map(|key| key.name())
        };
        assert_eq!(asked(99), Ok(v1::ResourceName { r#type: 99, name: "x".to_owned() }));
        assert_eq!(asked(0), Err(BadKey::NoType));
    }

    proptest! {
        #[test]
        fn a_difference_applied_to_its_base_gives_the_new_state(
            old in prop::collection::hash_map(0u8..40, 1u32..3, 0..40),
            new in prop::collection::hash_map(0u8..40, 1u32..3, 0..40),
        ) {
            let (before, after) =
                (Rendered::endpoints(Some(endpoints(&old))), Rendered::endpoints(Some(endpoints(&new))));
            if let Some(delta) = after.delta_from(&before) {
                let mut held: HashMap<_, _> =
                    endpoints(&old).endpoints.into_iter().map(|e| ((e.address.clone(), e.port), e)).collect();
                for key in delta.removed {
                    prop_assert!(held.remove(&(key.address, key.port)).is_some());
                }
                held.extend(delta.upserted.into_iter().map(|e| ((e.address.clone(), e.port), e)));
                let mut list: Vec<_> = held.into_values().collect();
                list.sort_by(|a, b| a.address.cmp(&b.address));
                prop_assert_eq!(list, endpoints(&new).endpoints);
            }
        }
    }
}
