//! NetworkPolicies beside the mesh: what they keep from pods with a sidecar that the mesh needs.
//!
//! Here is kept what the judgement takes, and which policies a change concerns; [`policy`] is Kubernetes' own meaning of a
//! policy, and [`verdict`] judges. Pods that are alike count as one, so a rollout of a thousand replicas is judged twice.

mod policy;
#[cfg(test)]
mod tests;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use heddle_api::SYSTEM_NAMESPACE;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::{
    Mesh,
    apply::Touched,
    facts::{NamedPorts, PodEntry},
    selection::Labels,
};
use crate::{
    diagnostics::FieldError,
    object::{Kind, Name, ObjectRef},
};

/// Label and value of the control plane's own pods (`charts/heddle`).
const CONTROL_PLANE: (&str, &str) = ("app.kubernetes.io/name", "heddle-control-plane");
/// Label of a Namespace whose new pods get a sidecar; the value is `enabled`. The injector's, of whom nothing else is known here.
const INJECT: &str = "heddle.dev/inject";
/// Label that every namespace has, with its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Pods with a sidecar that are alike to a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub labels: Arc<Labels>,
    pub ports: Arc<NamedPorts>,
    /// What made them, as far as their names tell: `reviews-v1`.
    pub workload: String,
}

impl Shape {
    /// Of a pod that NetworkPolicies and the mesh both concern.
    fn of(name: &Name, pod: &PodEntry) -> Option<Self> {
        let concerned = pod.meshed && !pod.finished && !pod.host_network;
        concerned.then(|| Self {
            labels: Arc::clone(&pod.labels),
            ports: Arc::clone(&pod.ports),
            workload: workload(&name.name, &pod.labels),
        })
    }
}

/// A pod's name without what tells it from its siblings.
fn workload(pod: &str, labels: &Labels) -> String {
    let hash =
        labels.get("pod-template-hash").and_then(|hash| Some(pod.rsplit_once(&format!("-{hash}-"))?.0));
    let numbered = labels.contains_key("controller-revision-hash").then(|| pod.rsplit_once('-')).flatten();
    hash.or(numbered.map(|(stem, _)| stem)).unwrap_or(pod).to_owned()
}

/// A replica of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replica {
    pub labels: Arc<Labels>,
    pub ips: Vec<IpAddr>,
}

impl Replica {
    fn of(name: &Name, pod: &PodEntry) -> Option<Self> {
        let (label, value) = CONTROL_PLANE;
        let is = name.namespace == SYSTEM_NAMESPACE && pod.labels.get(label).is_some_and(|v| v == value);
        (is && !pod.finished).then(|| Self { labels: Arc::clone(&pod.labels), ips: pod.ips.to_vec() })
    }
}

/// All that NetworkPolicies are judged by.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// By namespace and name.
    policies: BTreeMap<String, BTreeMap<String, Arc<NetworkPolicy>>>,
    /// Of Namespaces that are known.
    labels: BTreeMap<String, Labels>,
    /// By namespace, with how many pods have it. None is empty.
    shapes: BTreeMap<String, BTreeMap<Shape, usize>>,
    replicas: BTreeMap<Name, Replica>,
}

impl Network {
    /// A pod is another now, or is new or gone. What it has is as it is kept.
    pub(super) fn set_pod(
        &mut self,
        name: &Name,
        old: Option<&PodEntry>,
        new: Option<&PodEntry>,
        touched: &mut Touched,
    ) {
        let replica = new.and_then(|pod| Replica::of(name, pod));
        if self.replicas.get(name) != replica.as_ref() {
            match replica {
                Some(replica) => self.replicas.insert(name.clone(), replica),
                None => self.replicas.remove(name),
            };
            self.suspect_all(touched);
        }
        let shape = |pod: Option<&PodEntry>| pod.and_then(|pod| Shape::of(name, pod));
        let (old, new) = (shape(old), shape(new));
        if old == new {
            return;
        }
        let mut other = false;
        let was_meshed = self.shapes.contains_key(&name.namespace);
        let shapes = self.shapes.entry(name.namespace.clone()).or_default();
        if let Some(new) = new {
            let count = shapes.entry(new).or_default();
            *count += 1;
            other |= *count == 1;
        }
        if let Some(old) = old
            && let Some(count) = shapes.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                shapes.remove(&old);
                other = true;
            }
        }
        if shapes.is_empty() {
            self.shapes.remove(&name.namespace);
        }
        if self.shapes.contains_key(&name.namespace) != was_meshed {
            // Others' policies may admit this namespace.
            self.suspect_all(touched);
        } else if other {
            self.suspect(&name.namespace, touched);
        }
    }

    /// A Namespace is another now, or is new or gone.
    pub(super) fn set_namespace(&mut self, name: &str, labels: Option<&Labels>, touched: &mut Touched) {
        if self.labels.get(name) == labels {
            return;
        }
        match labels {
            Some(labels) => self.labels.insert(name.to_owned(), labels.clone()),
            None => self.labels.remove(name),
        };
        self.suspect_all(touched);
    }

    /// A NetworkPolicy is another now, or is new or gone.
    pub(super) fn set_policy(
        &mut self,
        name: &Name,
        policy: Option<Arc<NetworkPolicy>>,
        touched: &mut Touched,
    ) {
        // What one says of a pod depends on all that select it.
        self.suspect(&name.namespace, touched);
        let policies = self.policies.entry(name.namespace.clone()).or_default();
        match policy {
            Some(policy) => policies.insert(name.name.clone(), policy),
            None => policies.remove(&name.name),
        };
        if policies.is_empty() {
            self.policies.remove(&name.namespace);
        }
        self.suspect(&name.namespace, touched);
    }

    /// A namespace's policies are to be judged again.
    pub(super) fn suspect(&self, namespace: &str, touched: &mut Touched) {
        let names = self.policies.get(namespace).into_iter().flat_map(BTreeMap::keys);
        touched.suspects.extend(names.map(|name| reference(namespace, name)));
    }

    fn suspect_all(&self, touched: &mut Touched) {
        for namespace in self.policies.keys() {
            self.suspect(namespace, touched);
        }
    }

    /// The namespaces in which there are sidecars, or will be.
    fn meshed(&self) -> BTreeSet<&str> {
        let labelled = self
            .labels
            .iter()
            .filter(|(_, labels)| labels.get(INJECT).is_some_and(|value| value == "enabled"));
        labelled.map(|(name, _)| name).chain(self.shapes.keys()).map(String::as_str).collect()
    }

    /// A namespace's labels, and the one that each has.
    fn labels(&self, namespace: &str) -> Labels {
        let mut labels = self.labels.get(namespace).cloned().unwrap_or_default();
        labels.insert(NAME_LABEL.to_owned(), namespace.to_owned());
        labels
    }
}

impl Mesh {
    /// What a policy keeps from the mesh.
    pub(super) fn network_policy_problems(&self, name: &Name) -> Vec<FieldError> {
        let network = &self.network;
        let Some(policies) = network.policies.get(&name.namespace) else { return Vec::new() };
        let Some(shapes) = network.shapes.get(&name.namespace) else { return Vec::new() };
        let meshed = network.meshed().into_iter().map(|namespace| (namespace, network.labels(namespace)));
        let around = verdict::Around {
            namespace: &name.namespace,
            policies,
            shapes: shapes.keys().collect(),
            called: &|shape| self.selection.selects_any(&name.namespace, &shape.labels),
            meshed: meshed.collect(),
            replicas: network.replicas.values().collect(),
            system: network.labels(SYSTEM_NAMESPACE),
        };
        verdict::problems(&name.name, &around)
    }
}

fn reference(namespace: &str, name: &str) -> ObjectRef {
    ObjectRef { kind: Kind::NetworkPolicy, namespace: namespace.to_owned(), name: name.to_owned() }
}
