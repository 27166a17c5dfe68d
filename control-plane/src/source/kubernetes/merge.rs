//! What the watches tell, merged: what is known of each object, and what of it is news. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    ledger::{Entry, Ledger, Notes},
    read::Item,
    watch::Notice,
};
use crate::{
    diagnostics::{Diagnostic, FieldError, Severity},
    object::{Change, Kind, ObjectRef},
    source::Batch,
};

/// The kinds that come with the Gateway API.
const GATEWAY: [Kind; 4] = [Kind::HttpRoute, Kind::GrpcRoute, Kind::TcpRoute, Kind::ReferenceGrant];

/// The state between batches.
pub(super) struct Merge {
    ledger: Arc<Ledger>,
    /// Resource versions of what was sent on.
    known: HashMap<Kind, HashMap<ObjectRef, String>>,
    /// Kinds of which a list came, or the word that there is no such kind.
    listed: BTreeSet<Kind>,
    missing: BTreeSet<Kind>,
    broken: BTreeMap<ObjectRef, Diagnostic>,
    changes: HashMap<ObjectRef, Change>,
    /// What the ledger is to have of what changes.
    entries: HashMap<ObjectRef, Entry>,
    reported: Vec<Diagnostic>,
    synced: bool,
}

impl Merge {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Self {
            ledger,
            known: HashMap::new(),
            listed: BTreeSet::new(),
            missing: BTreeSet::new(),
            broken: BTreeMap::new(),
            changes: HashMap::new(),
            entries: HashMap::new(),
            reported: Vec::new(),
            synced: false,
        }
    }

    pub(super) fn take(&mut self, notice: Notice) {
        match notice {
            Notice::All(kind, items) => {
                self.listed.insert(kind);
                if self.missing.remove(&kind) {
                    tracing::info!(%kind, "the API server has the kind now");
                }
                let mut gone = self.known.remove(&kind).unwrap_or_default();
                let mut kept = HashMap::with_capacity(items.len());
                for item in &items {
                    if let Some(version) = gone.remove(&item.reference) {
                        kept.insert(item.reference.clone(), version);
                    }
                }
                self.known.insert(kind, kept);
                for reference in gone.into_keys() {
                    self.remove(reference);
                }
                for item in items {
                    self.set(item);
                }
            }
            Notice::Set(item) => self.set(*item),
            Notice::Gone(item) => {
                let known = self.known.entry(item.reference.kind).or_default();
                if known.remove(&item.reference).is_some() {
                    self.remove(item.reference);
                }
            }
            Notice::Missing(kind) => {
                self.listed.insert(kind);
                if self.missing.insert(kind) {
                    tracing::warn!(%kind, "the API server has no such kind; going on without, and looking out for it");
                }
                for reference in self.known.remove(&kind).unwrap_or_default().into_keys() {
                    self.remove(reference);
                }
            }
        }
    }

    fn set(&mut self, item: Item) {
        let known = self.known.entry(item.reference.kind).or_default();
        let old = known.insert(item.reference.clone(), item.version.clone());
        if old.is_some_and(|old| old == item.version) {
            return;
        }
        self.entries.insert(item.reference.clone(), item.entry);
        let change = match item.outcome {
            Ok(object) => {
                self.broken.remove(&item.reference);
                Change::Upsert(object)
            }
            Err((error, instead)) => {
                let consequence = match &instead {
                    Some(_) => "; until it is mended it is taken as strictly as it can be read",
                    None => "; it is not used",
                };
                let error = FieldError { message: format!("{}{consequence}", error.message), ..error };
                self.broken.insert(item.reference.clone(), error.of(&item.reference, None));
                instead.map_or_else(|| Change::Remove(item.reference.clone()), Change::Upsert)
            }
        };
        self.changes.insert(item.reference, change);
    }

    fn remove(&mut self, reference: ObjectRef) {
        self.broken.remove(&reference);
        self.entries.insert(reference.clone(), Entry::default());
        self.changes.insert(reference.clone(), Change::Remove(reference));
    }

    /// What is news since the last time.
    pub(super) fn batch(&mut self) -> Option<Batch> {
        let problems = self.problems();
        let problems = (problems != self.reported).then(|| {
            self.reported.clone_from(&problems);
            problems
        });
        let synced_now = !self.synced && Kind::ALL.iter().all(|kind| self.listed.contains(kind));
        self.synced |= synced_now;
        if self.changes.is_empty() && problems.is_none() && !synced_now {
            return None;
        }
        let changes = std::mem::take(&mut self.changes).into_values().collect();
        let notes = Notes::new(&self.ledger, std::mem::take(&mut self.entries));
        Some(Batch { changes, problems, synced: self.synced, notes })
    }

    fn problems(&self) -> Vec<Diagnostic> {
        let mut problems: Vec<_> = self.broken.values().cloned().collect();
        let without: Vec<_> = GATEWAY.into_iter().filter(|kind| self.missing.contains(kind)).collect();
        let ours: Vec<_> = self.missing.iter().filter(|kind| !GATEWAY.contains(kind)).copied().collect();
        for (kinds, from) in [(without, "the Gateway API's"), (ours, "Heddle's (charts/heddle/crds)")] {
            if kinds.is_empty() {
                continue;
            }
            let names: Vec<_> = kinds.iter().map(|kind| kind.as_str()).collect();
            problems.push(Diagnostic {
                severity: Severity::Warning,
                ..FieldError::warning(
                    "",
                    format!(
                        "the cluster has no {}: install {from} custom resource definitions to use them; they are noticed when they come",
                        names.join(", ")
                    ),
                )
                .of(&ObjectRef { kind: kinds[0], namespace: String::new(), name: "*".to_owned() }, None)
            });
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::read::read, *};
    use crate::{compile::Options, hub::Hub, metrics::Metrics};

    fn pod(name: &str, version: &str) -> Item {
        let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "resourceVersion": version}});
        read(Kind::Pod, serde_json::from_value(value).unwrap())
    }

    fn merge() -> Merge {
        Merge::new(Arc::default())
    }

    fn changes(merge: &mut Merge) -> Vec<String> {
        let text = |change: &Change| match change {
            Change::Upsert(object) => format!("+{}", object.reference().name),
            Change::Remove(reference) => format!("-{}", reference.name),
            Change::Place(..) => unreachable!("there are no files"),
        };
        let mut all: Vec<_> = merge.batch().iter().flat_map(|batch| &batch.changes).map(text).collect();
        all.sort();
        all
    }

    #[test]
    fn a_list_after_an_outage_removes_what_is_gone_and_says_again_only_what_changed() {
        let mut merge = merge();
        merge.take(Notice::All(Kind::Pod, vec![pod("a", "1"), pod("b", "2"), pod("c", "3")]));
        assert_eq!(changes(&mut merge), ["+a", "+b", "+c"]);
        merge.take(Notice::All(Kind::Pod, vec![pod("a", "1"), pod("b", "9")]));
        assert_eq!(changes(&mut merge), ["+b", "-c"]);
    }

    #[test]
    fn events_that_come_twice_change_nothing() {
        let mut merge = merge();
        merge.take(Notice::Set(Box::new(pod("a", "1"))));
        merge.take(Notice::Set(Box::new(pod("a", "1"))));
        assert_eq!(changes(&mut merge), ["+a"]);
        merge.take(Notice::Set(Box::new(pod("a", "1"))));
        assert_eq!(changes(&mut merge), [""; 0]);
        merge.take(Notice::Gone(Box::new(pod("a", "2"))));
        merge.take(Notice::Gone(Box::new(pod("a", "2"))));
        assert_eq!(changes(&mut merge), ["-a"]);
    }

    #[test]
    fn an_object_made_and_deleted_between_two_batches_is_gone() {
        let mut merge = merge();
        merge.take(Notice::Set(Box::new(pod("a", "1"))));
        merge.take(Notice::Gone(Box::new(pod("a", "2"))));
        merge.take(Notice::Set(Box::new(pod("b", "3"))));
        assert_eq!(changes(&mut merge), ["+b", "-a"]);
    }

    #[test]
    fn the_ledger_is_never_ahead_of_what_was_compiled() {
        let route = |generation: u32, backend: &str| {
            let value = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": "r", "namespace": "shop", "generation": generation, "resourceVersion": generation.to_string()},
                "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "a"}], "rules": [{"backendRefs": [{"name": backend, "port": 80}]}]}});
            read(Kind::HttpRoute, serde_json::from_value(value).unwrap())
        };
        let ledger: Arc<Ledger> = Arc::default();
        let mut merge = Merge::new(Arc::clone(&ledger));
        let hub = Hub::new(Options::default(), &[], Metrics::new());
        let known = || {
            let generations: Vec<_> = ledger.all().into_iter().map(|(_, seen)| seen.generation).collect();
            let compiled =
                hub.diagnostics().iter().map(|problem| problem.message.clone()).collect::<String>();
            (generations, compiled.contains("shop/first"), compiled.contains("shop/second"))
        };
        merge.take(Notice::Set(Box::new(route(1, "first"))));
        let batch = merge.batch().unwrap();
        assert_eq!(known(), (vec![], false, false));
        hub.apply(batch);
        assert_eq!(known(), (vec![1], true, false));
        merge.take(Notice::Set(Box::new(route(2, "second"))));
        let batch = merge.batch().unwrap();
        assert_eq!(known(), (vec![1], true, false), "a status written now would be of the first");
        hub.apply(batch);
        assert_eq!(known(), (vec![2], false, true));
        merge.take(Notice::Gone(Box::new(route(3, "second"))));
        hub.apply(merge.batch().unwrap());
        assert_eq!(known(), (vec![], false, false));
    }

    #[test]
    fn it_is_complete_once_every_kind_was_listed_or_is_not_there() {
        let mut merge = merge();
        for kind in Kind::ALL {
            assert!(merge.batch().is_none_or(|batch| !batch.synced), "{kind}");
            let missing = GATEWAY.contains(&kind);
            merge.take(if missing { Notice::Missing(kind) } else { Notice::All(kind, vec![]) });
        }
        let batch = merge.batch().unwrap();
        assert!(batch.synced);
        let problems = merge.problems();
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].message.contains("no HTTPRoute, GRPCRoute, TCPRoute, ReferenceGrant"),
            "{problems:?}"
        );
        merge.take(Notice::All(Kind::HttpRoute, vec![]));
        assert!(merge.problems()[0].message.contains("no GRPCRoute"), "they are noticed when they come");
    }
}
