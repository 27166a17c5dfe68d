//! Which pods a Service selects, kept up to date at the cost of what changes.
//!
//! Pods are found by their labels; a Service is filed under the one label of its selector that the fewest Services
//! share, so that neither a pod nor a Service ever looks at all of the other kind.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
};

use crate::{few::Few, object::Name};

/// What a pod is labelled with.
pub type Labels = BTreeMap<String, String>;

/// A label within a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Label {
    namespace: String,
    key: String,
    value: String,
}

fn labels_of(namespace: &str, labels: &Labels) -> Vec<Label> {
    let label = |(key, value): (&String, &String)| Label {
        namespace: namespace.to_owned(),
        key: key.clone(),
        value: value.clone(),
    };
    labels.iter().map(label).collect()
}

fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Who selects whom.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pods: HashMap<Arc<Name>, Arc<Labels>>,
    pods_by_label: HashMap<Label, BTreeSet<Arc<Name>>>,
    services: HashMap<Arc<Name>, (Labels, Label)>,
    services_by_label: HashMap<Label, BTreeSet<Arc<Name>>>,
    pods_of: HashMap<Arc<Name>, BTreeSet<Arc<Name>>>,
    services_of: HashMap<Arc<Name>, Few<Arc<Name>>>,
}

impl Selection {
    /// The pods that a Service selects, in the order of their names.
    pub(super) fn pods(&self, service: &Name) -> impl Iterator<Item = &Name> {
        self.pods_of.get(service).into_iter().flatten().map(|pod| &**pod)
    }

    /// The Services that select a pod, in the order of their names.
    pub(super) fn services(&self, pod: &Name) -> impl Iterator<Item = &Name> {
        self.services_of.get(pod).into_iter().flatten().map(|service| &**service)
    }

    /// Whether a Service selects what has these labels.
    pub(super) fn selects_any(&self, namespace: &str, labels: &Labels) -> bool {
        let filed = labels_of(namespace, labels).into_iter();
        let mut services = filed.filter_map(|label| self.services_by_label.get(&label)).flatten();
        services
            .any(|service| self.services.get(service).is_some_and(|(selector, _)| selects(selector, labels)))
    }

    /// Sets or, with `None`, removes a pod's labels.
    pub(super) fn set_pod(&mut self, pod: &Arc<Name>, labels: Option<&Arc<Labels>>) {
        if let Some(old) = self.pods.remove(pod) {
            for label in labels_of(&pod.namespace, &old) {
                take(&mut self.pods_by_label, &label, pod);
            }
            for service in self.services_of.remove(pod).into_iter().flatten() {
                take(&mut self.pods_of, &service, pod);
            }
        }
        let Some(labels) = labels else { return };
        for label in labels_of(&pod.namespace, labels) {
            for service in self.services_by_label.get(&label).into_iter().flatten() {
                if self.services.get(service).is_some_and(|(selector, _)| selects(selector, labels)) {
                    self.pods_of.entry(Arc::clone(service)).or_default().insert(Arc::clone(pod));
                    self.services_of.entry(Arc::clone(pod)).or_default().insert(Arc::clone(service));
                }
            }
            self.pods_by_label.entry(label).or_default().insert(Arc::clone(pod));
        }
        self.pods.insert(Arc::clone(pod), Arc::clone(labels));
    }

    /// Sets or, with `None` or an empty one (which selects nothing), removes a Service's selector.
    pub(super) fn set_service(&mut self, service: &Arc<Name>, selector: Option<&Labels>) {
        if let Some((_, label)) = self.services.remove(service) {
            take(&mut self.services_by_label, &label, service);
            for pod in self.pods_of.remove(service).into_iter().flatten() {
                if let Some(services) = self.services_of.get_mut(&pod) {
                    services.remove(service);
                    if services.is_empty() {
                        self.services_of.remove(&pod);
                    }
                }
            }
        }
        let Some(selector) = selector else { return };
        let labels = labels_of(&service.namespace, selector);
        let fewest = |map: &HashMap<Label, BTreeSet<Arc<Name>>>| {
            labels.iter().min_by_key(|label| map.get(*label).map_or(0, BTreeSet::len)).cloned()
        };
        let (Some(rare_in_pods), Some(rare)) = (fewest(&self.pods_by_label), fewest(&self.services_by_label))
        else {
            return;
        };
        for pod in self.pods_by_label.get(&rare_in_pods).into_iter().flatten() {
            if self.pods.get(pod).is_some_and(|labels| selects(selector, labels)) {
                self.pods_of.entry(Arc::clone(service)).or_default().insert(Arc::clone(pod));
                self.services_of.entry(Arc::clone(pod)).or_default().insert(Arc::clone(service));
            }
        }
        self.services_by_label.entry(rare.clone()).or_default().insert(Arc::clone(service));
        self.services.insert(Arc::clone(service), (selector.clone(), rare));
    }
}

/// Takes one out of a map of sets, and the set with it when it was the last.
pub(super) fn take<K, V, Q, R>(map: &mut HashMap<K, BTreeSet<V>>, key: &Q, value: &R)
where
    K: Hash + Eq + Borrow<Q>,
    V: Ord + Borrow<R>,
    Q: Hash + Eq + ?Sized,
    R: Ord + ?Sized,
{
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels() -> impl Strategy<Value = Labels> {
        proptest::collection::btree_map("[ab]", "[xy]", 0..3)
    }

    proptest! {
        #[test]
        fn the_index_says_what_comparing_everything_with_everything_would(
            steps in proptest::collection::vec((any::<bool>(), 0..4_u8, proptest::option::of(labels())), 0..40)
        ) {
            let mut index = Selection::default();
            let (mut pods, mut services) = (BTreeMap::new(), BTreeMap::new());
            for (is_pod, number, labels) in steps {
                let name = Arc::new(Name::new("n", number.to_string()));
                let map = if is_pod { &mut pods } else { &mut services };
                match &labels {
                    Some(labels) => map.insert(name.clone(), labels.clone()),
                    None => map.remove(&name),
                };
                if is_pod {
                    index.set_pod(&name, labels.clone().map(Arc::new).as_ref());
                } else {
                    index.set_service(&name, labels.as_ref());
                }
                for (service, selector) in &services {
                    let expected: Vec<_> = pods
                        .iter()
                        .filter(|(_, labels)| !selector.is_empty() && selects(selector, labels))
                        .map(|(pod, _)| &**pod)
                        .collect();
                    prop_assert_eq!(index.pods(service).collect::<Vec<_>>(), expected);
                }
                for (pod, labels) in &pods {
                    prop_assert_eq!(index.selects_any("n", labels), index.services(pod).next().is_some());
                    let expected: Vec<_> = services
                        .iter()
                        .filter(|(_, selector)| !selector.is_empty() && selects(selector, labels))
                        .map(|(service, _)| &**service)
                        .collect();
                    prop_assert_eq!(index.services(pod).collect::<Vec<_>>(), expected);
                }
            }
        }
    }
}
