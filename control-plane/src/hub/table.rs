//! The resources that anybody subscribes to, each compiled once, and the index from what they were made from.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry as MapEntry},
    sync::Arc,
};

use super::{
    resource::{Key, Rendered},
    streams::StreamId,
};
use crate::compile::Dep;

/// Former states of a resource that are remembered, so that a stream a few changes behind still gets a difference.
pub(super) const FORMER: usize = 4;

#[derive(Default)]
pub(super) struct Table {
    entries: HashMap<Key, Entry>,
    by_dep: HashMap<Dep, HashSet<Key>>,
}

struct Entry {
    current: Arc<Rendered>,
    former: VecDeque<Arc<Rendered>>,
    deps: Vec<Dep>,
    subscribers: HashSet<StreamId>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Everything that was made from one of `deps`, in a fixed order.
    pub(super) fn made_from(&self, deps: &HashSet<Dep>) -> Vec<Key> {
        let found: HashSet<&Key> = deps.iter().filter_map(|dep| self.by_dep.get(dep)).flatten().collect();
        let mut keys: Vec<Key> = found.into_iter().cloned().collect();
        keys.sort_unstable();
        keys
    }

    /// Stores a new compilation. Returns who must hear of it: nobody when the content is the same.
    pub(super) fn replace(&mut self, key: &Key, rendered: Rendered, deps: Vec<Dep>) -> Vec<StreamId> {
        let Some(entry) = self.entries.get_mut(key) else { return Vec::new() };
        let old_deps = std::mem::replace(&mut entry.deps, deps.clone());
        let subscribers = if entry.current.version == rendered.version {
            Vec::new()
        } else {
            let former = std::mem::replace(&mut entry.current, Arc::new(rendered));
            entry.former.push_front(former);
            entry.former.truncate(FORMER);
            entry.subscribers.iter().copied().collect()
        };
        self.unlink(key, &old_deps);
        self.link(key, deps);
        subscribers
    }

    /// Adds a subscriber to what is there already; `false`: it is not.
    pub(super) fn join(&mut self, stream: StreamId, key: &Key) -> bool {
        self.entries.get_mut(key).map(|entry| entry.subscribers.insert(stream)).is_some()
    }

    /// Adds a resource with its first subscriber.
    pub(super) fn insert(&mut self, key: Key, rendered: Rendered, deps: Vec<Dep>, stream: StreamId) {
        self.link(&key, deps.clone());
        let entry = Entry {
            current: Arc::new(rendered),
            former: VecDeque::new(),
            deps,
            subscribers: HashSet::from([stream]),
        };
        self.entries.insert(key, entry);
    }

    /// Removes a subscriber, and the resource with the last one.
    pub(super) fn leave(&mut self, stream: StreamId, key: &Key) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.subscribers.remove(&stream);
        if entry.subscribers.is_empty()
            && let Some(entry) = self.entries.remove(key)
        {
            self.unlink(key, &entry.deps);
        }
    }

    pub(super) fn current(&self, key: &Key) -> Option<Arc<Rendered>> {
        self.entries.get(key).map(|entry| Arc::clone(&entry.current))
    }

    pub(super) fn former(&self, key: &Key, version: &str) -> Option<Arc<Rendered>> {
        self.entries.get(key)?.former.iter().find(|rendered| rendered.version == version).cloned()
    }

    fn link(&mut self, key: &Key, deps: Vec<Dep>) {
        for dep in deps {
            self.by_dep.entry(dep).or_default().insert(key.clone());
        }
    }

    fn unlink(&mut self, key: &Key, deps: &[Dep]) {
        for dep in deps {
            if let MapEntry::Occupied(mut keys) = self.by_dep.entry(dep.clone()) {
                keys.get_mut().remove(key);
                if keys.get().is_empty() {
                    keys.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use heddle_api::v1;

    use super::*;

    fn key(name: &str) -> Key {
        Key::Endpoints(name.into())
    }

    fn rendered(addresses: &[&str]) -> Rendered {
        let endpoints =
            addresses.iter().map(|&address| v1::Endpoint { address: address.into(), ..Default::default() });
        Rendered::endpoints(Some(v1::Endpoints { endpoints: endpoints.collect() }))
    }

    fn pod(name: &str) -> Dep {
        Dep::Pod(name.parse().unwrap())
    }

    #[test]
    fn a_change_reaches_the_subscribers_of_what_was_made_from_it_and_nobody_else() {
        let mut table = Table::default();
        table.insert(key("a"), rendered(&["1"]), vec![pod("n/a")], StreamId(1));
        table.insert(key("b"), rendered(&["2"]), vec![pod("n/b")], StreamId(2));
        assert_eq!(table.made_from(&[pod("n/a")].into()), [key("a")]);
        assert_eq!(table.replace(&key("a"), rendered(&["3"]), vec![pod("n/a")]), [StreamId(1)]);
    }

    #[test]
    fn a_compilation_with_the_same_content_wakes_nobody_but_its_new_dependencies_count() {
        let mut table = Table::default();
        table.insert(key("a"), rendered(&["1"]), vec![pod("n/a")], StreamId(1));
        assert!(table.replace(&key("a"), rendered(&["1"]), vec![pod("n/z")]).is_empty());
        assert!(table.made_from(&[pod("n/a")].into()).is_empty());
        assert_eq!(table.made_from(&[pod("n/z")].into()), [key("a")]);
    }

    #[test]
    fn what_the_last_subscriber_leaves_is_forgotten_with_its_dependencies() {
        let mut table = Table::default();
        table.insert(key("a"), rendered(&["1"]), vec![pod("n/a")], StreamId(1));
        assert!(table.join(StreamId(2), &key("a")));
        table.leave(StreamId(1), &key("a"));
        assert_eq!(table.len(), 1);
        table.leave(StreamId(2), &key("a"));
        assert_eq!((table.len(), table.by_dep.len()), (0, 0));
    }

    #[test]
    fn the_last_few_states_are_remembered_and_no_more() {
        let mut table = Table::default();
        let first = rendered(&["0"]);
        table.insert(key("a"), first.clone(), vec![], StreamId(1));
        for n in 1..=FORMER {
            table.replace(&key("a"), rendered(&[&n.to_string()]), vec![]);
        }
        assert!(table.former(&key("a"), &first.version).is_some());
        table.replace(&key("a"), rendered(&["x"]), vec![]);
        assert!(table.former(&key("a"), &first.version).is_none());
    }
}
