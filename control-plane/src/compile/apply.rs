//! A transaction of changes: indexes brought up to date, and which [`Dep`]s were touched.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use heddle_api::resources::{AccessPolicy, MeshPolicy, TargetKind, TargetRef, TrafficPolicy};

use super::{
    AccessTarget, Dep, Mesh, Seniority,
    facts::{PodEntry, ServiceEntry, SliceEntry, zone},
    selection::take,
};
use crate::object::{Change, Kind, Name, Object, ObjectRef, check::check, name_of, route::Route};

/// What a transaction touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub deps: HashSet<Dep>,
    /// Objects whose problems are to be looked for again.
    pub suspects: BTreeSet<ObjectRef>,
}

impl Mesh {
    /// Takes a transaction, and says what it touched: everything compiled whose deps have one of these in them may be
    /// another now, and nothing else is.
    pub fn apply(&mut self, changes: Vec<Change>) -> HashSet<Dep> {
        let mut touched = Touched::default();
        for change in changes {
            match change {
                Change::Upsert(object) => self.upsert(&object, &mut touched),
                Change::Remove(reference) => {
                    self.places.remove(&reference);
                    self.unusable.remove(&reference);
                    self.set(&reference, None, &mut touched);
                    touched.suspects.insert(reference);
                }
                Change::Place(reference, place) => {
                    self.places.insert(reference.clone(), place);
                    touched.suspects.insert(reference);
                }
            }
        }
        self.look_for_problems(touched.suspects);
        touched.deps
    }

    fn upsert(&mut self, object: &Object, touched: &mut Touched) {
        let reference = object.reference();
        // Sources that check refuse such an object and keep the one before; it comes here from the others.
        let errors = check(object);
        touched.suspects.insert(reference.clone());
        if errors.is_empty() {
            self.unusable.remove(&reference);
            self.set(&reference, Some(object), touched);
        } else {
            // Whatever is wrong with an access policy, it still guards its targets: `access` denies for it. Of a mesh
            // policy nothing but its name can be wrong here.
            let guard = matches!(object.kind(), Kind::AccessPolicy | Kind::MeshPolicy);
            self.unusable.insert(reference.clone(), errors);
            self.set(&reference, guard.then_some(object), touched);
        }
    }

    fn set(&mut self, reference: &ObjectRef, object: Option<&Object>, touched: &mut Touched) {
        let name = Name::new(&reference.namespace, &reference.name);
        match (reference.kind, object) {
            // A namespace's policies matter, whether its object is there or not.
            (Kind::Namespace, object) => {
                let labels = object.map(|object| object.meta().labels.clone().unwrap_or_default());
                self.network.set_namespace(&reference.name, labels.as_ref(), touched);
            }
            (Kind::NetworkPolicy, object) => {
                let policy = object
                    .and_then(|o| if let Object::NetworkPolicy(p) = o { Some(p.clone()) } else { None });
                self.network.set_policy(&name, policy, touched);
            }
            (Kind::Node, object) => {
                let zone = object.and_then(|o| if let Object::Node(node) = o { zone(node) } else { None });
                self.set_zone(&reference.name, zone, touched);
            }
            (Kind::ReferenceGrant, object) => {
                let grant = object
                    .and_then(|o| if let Object::ReferenceGrant(g) = o { Some(g.clone()) } else { None });
                self.set_grant(&name, grant, touched);
            }
            (Kind::Pod, object) => {
                let entry = object
                    .and_then(|o| if let Object::Pod(pod) = o { Some(PodEntry::new(pod)) } else { None });
                self.set_pod(&name, entry, touched);
            }
            (Kind::Service, object) => {
                let entry = object
                    .and_then(|o| if let Object::Service(s) = o { Some(ServiceEntry::new(s)) } else { None });
                self.set_service(&name, entry, touched);
            }
            (Kind::EndpointSlice, object) => {
                let entry = object.and_then(|o| {
                    if let Object::EndpointSlice(s) = o { Some(SliceEntry::new(s)) } else { None }
                });
                self.set_slice(&name, entry, touched);
            }
            (Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute, object) => {
                let route = object.and_then(Route::read).and_then(Result::ok).map(Arc::new);
                self.set_route(reference, route, touched);
            }
            (Kind::TrafficPolicy, object) => {
                let policy = object
                    .and_then(|o| if let Object::TrafficPolicy(p) = o { Some(p.clone()) } else { None });
                self.set_traffic_policy(&name, policy, touched);
            }
            (Kind::AccessPolicy, object) => {
                let policy =
                    object.and_then(|o| if let Object::AccessPolicy(p) = o { Some(p.clone()) } else { None });
                self.set_access_policy(&name, policy, touched);
            }
            (Kind::MeshPolicy, object) => {
                let policy =
                    object.and_then(|o| if let Object::MeshPolicy(p) = o { Some(p.clone()) } else { None });
                self.set_mesh_policy(&name, policy, touched);
            }
        }
    }

    fn set_pod(&mut self, name: &Name, entry: Option<PodEntry>, touched: &mut Touched) {
        if self.pods.get(name) == entry.as_ref() {
            return;
        }
        touched.deps.insert(Dep::pod(name));
        // Before and after: who selected it, and who will.
        self.touch_around_pod(name, touched);
        let (shared, old) = self.pods.remove_entry(name).unzip();
        let shared = shared.unwrap_or_else(|| Arc::new(name.clone()));
        self.sidecars -= usize::from(old.as_ref().is_some_and(PodEntry::runs_sidecar));
        for ip in old.iter().flat_map(|old| &old.ips) {
            self.edit_holders(*ip, |holders| holders.pods.remove(name));
        }
        if let Some(node) = old.as_ref().and_then(|old| old.node.as_deref()) {
            take(&mut self.pods_on, node, name);
        }
        let entry = entry.map(|entry| PodEntry {
            labels: self.labels.keep(entry.labels),
            ports: self.named_ports.keep(entry.ports),
            node: entry.node.map(|node| self.stand_on(&node, &shared)),
            ..entry
        });
        self.network.set_pod(name, old.as_ref(), entry.as_ref(), touched);
        self.selection.set_pod(&shared, entry.as_ref().map(|entry| &entry.labels));
        if let Some(old) = old {
            self.labels.let_go(&old.labels);
            self.named_ports.let_go(&old.ports);
        }
        if let Some(entry) = entry {
            for ip in &entry.ips {
                if !entry.host_network {
                    self.edit_holders(*ip, |holders| holders.pods.insert(Arc::clone(&shared)));
                }
            }
            self.sidecars += usize::from(entry.runs_sidecar());
            self.pods.insert(shared, entry);
        }
        self.touch_around_pod(name, touched);
    }

    /// Files a pod under its node, and returns the node's name as it is kept: once for all pods on it.
    fn stand_on(&mut self, node: &Arc<str>, pod: &Arc<Name>) -> Arc<str> {
        let node = Arc::clone(self.pods_on.get_key_value(node).map_or(node, |(known, _)| known));
        self.pods_on.entry(Arc::clone(&node)).or_default().insert(Arc::clone(pod));
        node
    }

    fn set_zone(&mut self, node: &str, zone: Option<String>, touched: &mut Touched) {
        if self.zones.get(node) == zone.as_ref() {
            return;
        }
        match zone {
            Some(zone) => self.zones.insert(node.to_owned(), zone),
            None => self.zones.remove(node),
        };
        for pod in self.pods_on.get(node).into_iter().flatten() {
            touched.deps.insert(Dep::pod(pod));
            self.touch_around_pod(pod, touched);
        }
    }

    fn touch_around_pod(&self, name: &Name, touched: &mut Touched) {
        for service in self.selection.services(name) {
            touched.deps.insert(Dep::endpoints(service));
            touched.suspects.insert(reference(Kind::Service, service));
            self.suspect_access_policies(service, touched);
        }
        for ip in self.pods.get(name).iter().flat_map(|pod| &pod.ips) {
            touched.deps.insert(Dep::Address(*ip));
            for (service, _) in self.addresses.get(ip).into_iter().flat_map(|holders| &holders.slices) {
                touched.deps.insert(Dep::endpoints(service));
                self.suspect_access_policies(service, touched);
            }
        }
    }

    /// Whether they can be enforced depends on the pods that the Service leads to.
    fn suspect_access_policies(&self, service: &Name, touched: &mut Touched) {
        let policies = self.access_of.get(&AccessTarget::Service(service.clone())).into_iter().flatten();
        touched.suspects.extend(policies.map(|policy| reference(Kind::AccessPolicy, policy)));
    }

    fn set_service(&mut self, name: &Name, entry: Option<ServiceEntry>, touched: &mut Touched) {
        if self.services.get(name) == entry.as_ref() {
            return;
        }
        touched.deps.insert(Dep::service(name));
        touched.deps.insert(Dep::endpoints(name));
        touched.suspects.extend(self.referrers.get(name).into_iter().flatten().cloned());
        self.network.suspect(&name.namespace, touched);
        self.touch_around_service(name, touched);
        let (shared, old) = self.services.remove_entry(name).unzip();
        let shared = shared.unwrap_or_else(|| Arc::new(name.clone()));
        for ip in old.iter().flat_map(|old| &old.cluster_ips) {
            self.edit_holders(*ip, |holders| holders.services.remove(name));
        }
        self.selection.set_service(&shared, entry.as_ref().map(|entry| &entry.selector));
        if let Some(entry) = entry {
            for ip in &entry.cluster_ips {
                self.edit_holders(*ip, |holders| holders.services.insert(Arc::clone(&shared)));
            }
            self.services.insert(shared, entry);
        }
        self.touch_around_service(name, touched);
    }

    fn touch_around_service(&self, name: &Name, touched: &mut Touched) {
        for pod in self.selection.pods(name) {
            touched.deps.insert(Dep::pod(pod));
            let ips = self.pods.get(pod).into_iter().flat_map(|pod| &pod.ips);
            touched.deps.extend(ips.map(|ip| Dep::Address(*ip)));
        }
        let slices =
            self.slices_of.get(name).into_iter().flatten().filter_map(|slice| self.slices.get(slice));
        touched.deps.extend(slices.flat_map(SliceEntry::addresses).map(Dep::Address));
        let ips = self.services.get(name).into_iter().flat_map(|service| &service.cluster_ips);
        touched.deps.extend(ips.map(|ip| Dep::Address(*ip)));
    }

    fn set_slice(&mut self, name: &Name, entry: Option<SliceEntry>, touched: &mut Touched) {
        if self.slices.get(name) == entry.as_ref() {
            return;
        }
        let old = self.slices.remove(name);
        if let Some(old) = old
            && let Some(service) = &old.service
        {
            take(&mut self.slices_of, service, name);
            self.suspect_access_policies(service, touched);
            touched.deps.insert(Dep::endpoints(service));
            let key = (Arc::new(service.clone()), Arc::new(name.clone()));
            for ip in old.addresses() {
                touched.deps.insert(Dep::Address(ip));
                self.edit_holders(ip, |holders| holders.slices.remove(&key));
            }
        }
        let Some(entry) = entry else { return };
        if let Some(service) = &entry.service {
            self.slices_of.entry(service.clone()).or_default().insert(name.clone());
            self.suspect_access_policies(service, touched);
            touched.deps.insert(Dep::endpoints(service));
            let key = (Arc::new(service.clone()), Arc::new(name.clone()));
            for ip in entry.addresses() {
                touched.deps.insert(Dep::Address(ip));
                self.edit_holders(ip, |holders| holders.slices.insert(key.clone()));
            }
        }
        self.slices.insert(name.clone(), entry);
    }

    fn set_route(&mut self, reference: &ObjectRef, route: Option<Arc<Route>>, touched: &mut Touched) {
        if self.routes.get(reference) == route.as_ref() {
            return;
        }
        if let Some(old) = self.routes.remove(reference) {
            for parent in super::route::parents(&old) {
                touched.deps.insert(Dep::service(&parent));
                take(&mut self.routes_of, &parent, reference);
                // A rival may hold now.
                touched.suspects.extend(self.routes_of.get(&parent).into_iter().flatten().cloned());
            }
            for service in super::route::services(&old) {
                take(&mut self.referrers, &service, reference);
            }
        }
        let Some(route) = route else { return };
        for parent in super::route::parents(&route) {
            touched.deps.insert(Dep::service(&parent));
            touched.suspects.extend(self.routes_of.get(&parent).into_iter().flatten().cloned());
            self.routes_of.entry(parent).or_default().insert(reference.clone());
        }
        for service in super::route::services(&route) {
            self.referrers.entry(service).or_default().insert(reference.clone());
        }
        self.routes.insert(reference.clone(), route);
    }

    fn set_traffic_policy(&mut self, name: &Name, policy: Option<Arc<TrafficPolicy>>, touched: &mut Touched) {
        if self.traffic.get(name) == policy.as_ref() {
            return;
        }
        let reference = reference(Kind::TrafficPolicy, name);
        if let Some(old) = self.traffic.remove(name) {
            let key = Seniority::of(&old.metadata);
            for target in services_of(&old.spec.target_refs, &name.namespace) {
                touched.deps.insert(Dep::service(&target));
                take(&mut self.referrers, &target, &reference);
                let rivals = self.traffic_of.entry(target.clone()).or_default();
                rivals.remove(&key);
                touched.suspects.extend(rivals.keys().map(|k| self::reference(Kind::TrafficPolicy, &k.name)));
                if rivals.is_empty() {
                    self.traffic_of.remove(&target);
                }
            }
        }
        let Some(policy) = policy else { return };
        let key = Seniority::of(&policy.metadata);
        for target in services_of(&policy.spec.target_refs, &name.namespace) {
            touched.deps.insert(Dep::service(&target));
            self.referrers.entry(target.clone()).or_default().insert(reference.clone());
            let rivals = self.traffic_of.entry(target).or_default();
            touched.suspects.extend(rivals.keys().map(|k| self::reference(Kind::TrafficPolicy, &k.name)));
            rivals.insert(key.clone(), policy.clone());
        }
        self.traffic.insert(name.clone(), policy);
    }

    fn set_access_policy(&mut self, name: &Name, policy: Option<Arc<AccessPolicy>>, touched: &mut Touched) {
        if self.access.get(name) == policy.as_ref() {
            return;
        }
        let reference = reference(Kind::AccessPolicy, name);
        let targets = |policy: &AccessPolicy| -> Vec<AccessTarget> {
            let services = services_of(&policy.spec.target_refs, &name.namespace).into_iter();
            let namespace = policy.spec.target_refs.iter().any(|target| target.kind == TargetKind::Namespace);
            let namespace = namespace.then(|| AccessTarget::Namespace(name.namespace.clone()));
            services.map(AccessTarget::Service).chain(namespace).collect()
        };
        let mut touch = |target: &AccessTarget| {
            touched.deps.insert(match target {
                AccessTarget::Service(service) => Dep::service(service),
                AccessTarget::Namespace(namespace) => Dep::Namespace(namespace.clone()),
            });
        };
        if let Some(old) = self.access.remove(name) {
            for target in targets(&old) {
                touch(&target);
                take(&mut self.access_of, &target, name);
                if let AccessTarget::Service(service) = target {
                    take(&mut self.referrers, &service, &reference);
                }
            }
        }
        let Some(policy) = policy else { return };
        for target in targets(&policy) {
            touch(&target);
            if let AccessTarget::Service(service) = &target {
                self.referrers.entry(service.clone()).or_default().insert(reference.clone());
            }
            self.access_of.entry(target).or_default().insert(name.clone());
        }
        self.access.insert(name.clone(), policy);
    }

    fn set_mesh_policy(&mut self, name: &Name, policy: Option<Arc<MeshPolicy>>, touched: &mut Touched) {
        let rivals = self.mesh_policies.get(&name.namespace);
        let old = rivals.and_then(|rivals| rivals.iter().find(|(key, _)| key.name == *name));
        if old.map(|(_, old)| old) == policy.as_ref() {
            return;
        }
        touched.deps.insert(Dep::Namespace(name.namespace.clone()));
        let rivals = self.mesh_policies.entry(name.namespace.clone()).or_default();
        rivals.retain(|key, _| key.name != *name);
        if let Some(policy) = policy {
            rivals.insert(Seniority::of(&policy.metadata), policy);
        }
        touched.suspects.extend(rivals.keys().map(|key| reference(Kind::MeshPolicy, &key.name)));
        if rivals.is_empty() {
            self.mesh_policies.remove(&name.namespace);
        }
    }

    fn edit_holders(&mut self, ip: IpAddr, edit: impl FnOnce(&mut super::Holders) -> bool) {
        let holders = self.addresses.entry(ip).or_default();
        edit(holders);
        if holders.services.is_empty() && holders.pods.is_empty() && holders.slices.is_empty() {
            self.addresses.remove(&ip);
        }
    }
}

/// The Services among a policy's targets, once each.
pub(super) fn services_of(targets: &[TargetRef], namespace: &str) -> BTreeSet<Name> {
    let services = targets.iter().filter(|target| target.kind == TargetKind::Service);
    services.map(|target| Name::new(namespace, &target.name)).collect()
}

pub(super) fn reference(kind: Kind, name: &Name) -> ObjectRef {
    ObjectRef { kind, namespace: name.namespace.clone(), name: name.name.clone() }
}

/// The name of a policy.
pub(super) fn policy_name(policy: &TrafficPolicy) -> Name {
    name_of(&policy.metadata)
}
