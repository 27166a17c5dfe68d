//! Objects to mesh config: what a sidecar is told of a destination, its endpoints, and its own ports.
//!
//! The compiler does no I/O and knows no clock and no source. [`Mesh`] holds the objects with the indexes that make a
//! change cost what it touches; everything compiled says by its [`Dep`]s what it was made from, so that whoever holds
//! it knows when to ask again. What comes out is ordered the same way each time, so equal meshes give equal bytes.

mod access;
mod apply;
mod check;
mod destination;
mod endpoints;
mod facts;
mod grant;
mod inbound;
mod name;
mod network;
mod once;
mod policy;
mod protocol;
mod route;
mod selection;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use gateway_api::experimental::referencegrants::ReferenceGrant;
use heddle_api::{
    SYSTEM_NAMESPACE,
    identity::{PodName, SpiffeId},
    resources::{AccessPolicy, MeshPolicy, TrafficPolicy},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

pub use self::selection::Labels;
use self::{
    facts::{NamedPorts, PodEntry, ServiceEntry, SliceEntry},
    network::Network,
    once::Once,
    selection::Selection,
};
use crate::{
    diagnostics::{Diagnostic, Place},
    few::Few,
    object::{Name, ObjectRef, name_of, route::Route},
};

/// What does not come from objects.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of every identity.
    pub trust_domain: String,
    /// The last part of Services' long names.
    pub cluster_domain: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { trust_domain: "cluster.local".to_owned(), cluster_domain: "cluster.local".to_owned() }
    }
}

/// What a compiled resource was made from, or would be if it existed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dep {
    /// A Service: its ports, the routes and policies attached to it.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// What a Service leads to.
    Endpoints {
        /// The Service's namespace.
        namespace: String,
        /// The Service's name.
        name: String,
    },
    /// Who has an address.
    Address(IpAddr),
    /// A namespace's policies.
    Namespace(String),
    /// A pod, and which Services select it.
    Pod(PodName),
    /// The mesh's roots. The compiler never touches it; whoever keeps the roots does.
    Trust,
}

impl Dep {
    fn service(name: &Name) -> Self {
        Self::Service { namespace: name.namespace.clone(), name: name.name.clone() }
    }

    fn endpoints(name: &Name) -> Self {
        Self::Endpoints { namespace: name.namespace.clone(), name: name.name.clone() }
    }

    fn pod(name: &Name) -> Self {
        Self::Pod(PodName { namespace: name.namespace.clone(), name: name.name.clone() })
    }
}

/// A compiled resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled<T> {
    /// `None`: there is no such thing in the mesh.
    pub value: Option<T>,
    /// When one of these is touched the value may be another; given for an absent value too. Sorted.
    pub deps: Vec<Dep>,
}

/// What the certificate authority and discovery need to know of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// `spec.serviceAccountName`, or `default`.
    pub service_account: String,
    /// `metadata.labels`.
    pub labels: Arc<Labels>,
    /// Annotated as having a sidecar.
    pub meshed: bool,
    /// Its addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// `metadata.uid`; none in directory mode.
    pub uid: Option<String>,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Succeeded or failed: nothing of it runs any more.
    pub finished: bool,
}

/// What the replicas of the control plane have to share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Addresses of ready replicas, of one family.
    pub replicas: BTreeSet<IpAddr>,
    /// Pods with a sidecar that are not finished.
    pub sidecars: usize,
}

/// The order in which rival objects hold: by age, those without one last, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seniority {
    ageless: bool,
    created: Option<Time>,
    name: Name,
}

impl Seniority {
    fn of(meta: &ObjectMeta) -> Self {
        Self::new(meta.creation_timestamp.clone(), name_of(meta))
    }

    const fn new(created: Option<Time>, name: Name) -> Self {
        Self { ageless: created.is_none(), created, name }
    }
}

/// Who has an address.
#[derive(Debug, Default)]
struct Holders {
    /// Services with this cluster IP.
    services: Few<Arc<Name>>,
    pods: Few<Arc<Name>>,
    /// Services one of whose EndpointSlices (the second name) holds the address.
    slices: Few<(Arc<Name>, Arc<Name>)>,
}

/// An access policy's target: a Service, or (without a name) a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum AccessTarget {
    Service(Name),
    Namespace(String),
}

/// All objects, indexed. Changes come in by [`Mesh::apply`]; everything else only reads.
#[derive(Debug, Default)]
pub struct Mesh {
    options: Options,
    pods: HashMap<Arc<Name>, PodEntry>,
    /// The pods'.
    labels: Once<Labels>,
    named_ports: Once<NamedPorts>,
    /// Zones by node.
    zones: HashMap<String, String>,
    /// How many of the pods run a sidecar.
    sidecars: usize,
    pods_on: HashMap<Arc<str>, BTreeSet<Arc<Name>>>,
    services: HashMap<Arc<Name>, ServiceEntry>,
    selection: Selection,
    slices: HashMap<Name, SliceEntry>,
    slices_of: HashMap<Name, BTreeSet<Name>>,
    addresses: HashMap<IpAddr, Holders>,
    routes: HashMap<ObjectRef, Arc<Route>>,
    /// Routes by the Service that they are attached to.
    routes_of: HashMap<Name, BTreeSet<ObjectRef>>,
    traffic: HashMap<Name, Arc<TrafficPolicy>>,
    traffic_of: HashMap<Name, BTreeMap<Seniority, Arc<TrafficPolicy>>>,
    /// ReferenceGrants by namespace and name.
    grants: HashMap<String, BTreeMap<String, Arc<ReferenceGrant>>>,
    access: HashMap<Name, Arc<AccessPolicy>>,
    access_of: HashMap<AccessTarget, BTreeSet<Name>>,
    mesh_policies: HashMap<String, BTreeMap<Seniority, Arc<MeshPolicy>>>,
    network: Network,
    places: HashMap<ObjectRef, Place>,
    /// Objects whose problems depend on whether a Service is there and what it has.
    referrers: HashMap<Name, BTreeSet<ObjectRef>>,
    /// Objects that could not be used at all, by themselves.
    unusable: HashMap<ObjectRef, Vec<crate::diagnostics::FieldError>>,
    problems: BTreeMap<ObjectRef, Vec<Diagnostic>>,
    /// Grows with each change of `problems`.
    problems_version: u64,
}

impl Mesh {
    /// An empty mesh.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// The ready addresses that `service` leads to, and the pods with a sidecar.
    #[must_use]
    pub fn census(&self, service: &Name) -> Census {
        let slices = self.slices_of.get(service).into_iter().flatten();
        let endpoints = slices.filter_map(|slice| self.slices.get(slice)).flat_map(|slice| &slice.endpoints);
        let ready = endpoints.filter(|e| e.ready && !e.terminating).map(|e| e.address);
        let (v4, v6): (BTreeSet<_>, BTreeSet<_>) = ready.partition(IpAddr::is_ipv4);
        // Each replica has an address of each family that the Service has.
        Census { replicas: if v4.len() < v6.len() { v6 } else { v4 }, sidecars: self.sidecars }
    }

    /// What is known of a pod.
    #[must_use]
    pub fn pod(&self, pod: &PodName) -> Option<PodFacts> {
        let entry = self.pods.get(&Name::new(&pod.namespace, &pod.name))?;
        Some(PodFacts {
            service_account: entry.service_account.clone(),
            labels: Arc::clone(&entry.labels),
            meshed: entry.meshed,
            ips: entry.ips.to_vec(),
            uid: entry.uid.clone(),
            terminating: entry.terminating,
            finished: entry.finished,
        })
    }

    /// What is wrong with objects in the light of the others, in the order of kinds and names.
    #[must_use]
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        self.problems.values().flatten().cloned().collect()
    }

    /// Another number than last time when [`Mesh::diagnostics`] may say something else.
    #[must_use]
    pub const fn diagnostics_version(&self) -> u64 {
        self.problems_version
    }

    fn identity(&self, pod: &Name, entry: &PodEntry) -> Option<SpiffeId> {
        SpiffeId::new(&self.options.trust_domain, &pod.namespace, &entry.service_account).ok()
    }
}

/// The deps of something compiled, in order and once each.
#[derive(Debug, Default)]
struct Deps(BTreeSet<Dep>);

impl Deps {
    fn add(&mut self, dep: Dep) {
        self.0.insert(dep);
    }

    /// The policies of a namespace, and the mesh's defaults behind them.
    fn add_policies(&mut self, namespace: &str) {
        self.add(Dep::Namespace(namespace.to_owned()));
        self.add(Dep::Namespace(SYSTEM_NAMESPACE.to_owned()));
    }

    fn compiled<T>(self, value: Option<T>) -> Compiled<T> {
        Compiled { value, deps: self.0.into_iter().collect() }
    }
}
