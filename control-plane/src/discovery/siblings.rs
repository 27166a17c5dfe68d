//! What the pods of one workload talk to, so that a new one of them hears it at once and need not find out by its
//! application's first requests. Pure but for its lock: the clock is passed in.
//!
//! Pods are of one workload when their identity and their labels are the same, but for those labels that tell revisions
//! and replicas apart. A name is remembered while a pod follows it, and for [`MEMORY`] after the last one has
//! disconnected, so that a workload of one pod finds it again; a sidecar that lets go of a name says that it is of no use.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use heddle_api::identity::SpiffeId;
use tokio::time::Instant;

use crate::{compile::Labels, inject::VERSION_LABEL};

/// Names remembered of a workload, and told to its new pods.
pub const NAMES: usize = 32;
/// From the last follower's end until a name is forgotten: longer than it takes to replace a pod.
const MEMORY: Duration = Duration::from_secs(3600);
/// Fewer workloads are not looked through for those that have nothing left.
const FEW: usize = 256;
/// Labels that differ between pods of one workload: by revision, by replica, by run of a Job, by sidecar.
const TELL_APART: [&str; 10] = [
    "pod-template-hash",
    "controller-revision-hash",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
    "job-name",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
    VERSION_LABEL,
];

/// Which workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload(Arc<str>);

impl Workload {
    /// That of a pod with this identity and these labels.
    #[must_use]
    pub fn of(id: &SpiffeId, labels: &Labels) -> Self {
        let mut text = id.to_string();
        for (key, value) in labels.iter().filter(|(key, _)| !TELL_APART.contains(&key.as_str())) {
            // Writing to a String cannot fail.
            let _ = write!(text, " {key}={value}");
        }
        Self(text.into())
    }
}

/// Of all workloads that have streams, or had some lately.
#[derive(Default)]
pub struct Siblings(Mutex<Workloads>);

#[derive(Default)]
struct Workloads {
    names: HashMap<Workload, HashMap<Arc<str>, Followed>>,
    /// How many workloads there may be until they are looked through.
    enough: usize,
}

/// How one name fares with one workload.
struct Followed {
    streams: usize,
    /// When a stream last began or ended with it.
    touched: Instant,
}

impl Followed {
    fn is_of_use(&self, now: Instant) -> bool {
        self.streams > 0 || now.saturating_duration_since(self.touched) < MEMORY
    }
}

impl Siblings {
    /// A stream of `workload` begins to follow `name`.
    pub fn follows(&self, workload: &Workload, name: &Arc<str>, now: Instant) {
        let mut workloads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Workloads { names, enough } = &mut *workloads;
        if !names.contains_key(workload) && names.len() >= (*enough).max(FEW) {
            names.retain(|_, names| names.values().any(|followed| followed.is_of_use(now)));
            *enough = 2 * names.len();
        }
        let names = names.entry(workload.clone()).or_default();
        if names.len() >= NAMES && !names.contains_key(name) {
            // The one that fewest follow, and of these the oldest, gives way.
            let least = names.iter().min_by_key(|(_, followed)| (followed.streams, followed.touched));
            if let Some(least) = least.map(|(name, _)| Arc::clone(name)) {
                names.remove(&least);
            }
        }
        let followed = names.entry(Arc::clone(name)).or_insert(Followed { streams: 0, touched: now });
        followed.streams += 1;
        followed.touched = now;
    }

    /// A stream of `workload` follows `name` no more: since nobody used it, or since the stream has ended.
    pub fn left(&self, workload: &Workload, name: &str, disused: bool, now: Instant) {
        let mut workloads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Neither need be there: another name may have taken its place.
        let Some(names) = workloads.names.get_mut(workload) else { return };
        let Some(followed) = names.get_mut(name) else { return };
        followed.streams = followed.streams.saturating_sub(1);
        followed.touched = now;
        if disused && followed.streams == 0 {
            names.remove(name);
            if names.is_empty() {
                workloads.names.remove(workload);
            }
        }
    }

    /// What a new pod of `workload` will likely ask for: what most of the others follow comes first.
    pub fn expected(&self, workload: &Workload, now: Instant) -> Vec<String> {
        let workloads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(names) = workloads.names.get(workload) else { return Vec::new() };
        let mut names: Vec<_> = names.iter().filter(|(_, followed)| followed.is_of_use(now)).collect();
        names.sort_by(|(a, left), (b, right)| right.streams.cmp(&left.streams).then_with(|| a.cmp(b)));
        names.into_iter().map(|(name, _)| name.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn workload(labels: &Labels) -> Workload {
        Workload::of(&"spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(), labels)
    }

    fn web() -> Workload {
        workload(&labels(&[("app", "web")]))
    }

    #[test]
    fn revisions_and_replicas_of_one_workload_are_siblings_and_others_are_not() {
        let old = workload(&labels(&[("app", "web"), ("pod-template-hash", "5d4f8")]));
        let new = workload(&labels(&[("app", "web"), ("pod-template-hash", "77c9b")]));
        assert_eq!(old, new);
        assert_ne!(old, workload(&labels(&[("app", "batch")])));
    }

    #[test]
    fn a_new_pod_hears_what_most_follow_first() {
        let (siblings, now) = (Siblings::default(), Instant::now());
        for name in ["api:80", "reviews:9080", "reviews:9080"] {
            siblings.follows(&web(), &name.into(), now);
        }
        assert_eq!(siblings.expected(&web(), now), ["reviews:9080", "api:80"]);
        assert!(siblings.expected(&workload(&labels(&[("app", "batch")])), now).is_empty());
    }

    #[test]
    fn a_name_outlives_the_streams_that_ended_with_it_for_an_hour_and_disuse_not_at_all() {
        let (siblings, now) = (Siblings::default(), Instant::now());
        for name in ["api:80", "reviews:9080"] {
            siblings.follows(&web(), &name.into(), now);
        }
        siblings.left(&web(), "api:80", true, now);
        siblings.left(&web(), "reviews:9080", false, now);
        assert_eq!(siblings.expected(&web(), now + MEMORY / 2), ["reviews:9080"]);
        assert!(siblings.expected(&web(), now + MEMORY).is_empty());
    }

    #[test]
    fn a_workload_that_follows_everything_is_remembered_by_its_newest_names() {
        let (siblings, start) = (Siblings::default(), Instant::now());
        for n in 0..100 {
            siblings.follows(&web(), &format!("s{n}:80").into(), start + Duration::from_millis(n));
        }
        let expected = siblings.expected(&web(), start);
        assert_eq!(expected.len(), NAMES);
        assert!(expected.contains(&"s99:80".to_owned()) && !expected.contains(&"s0:80".to_owned()));
    }

    #[test]
    fn workloads_that_have_nothing_left_are_forgotten() {
        let (siblings, now) = (Siblings::default(), Instant::now());
        for n in 0..FEW {
            let workload = workload(&labels(&[("app", &n.to_string())]));
            siblings.follows(&workload, &"api:80".into(), now);
            siblings.left(&workload, "api:80", false, now);
        }
        siblings.follows(&web(), &"api:80".into(), now + MEMORY);
        assert_eq!(siblings.0.lock().unwrap().names.len(), 1);
    }
}
