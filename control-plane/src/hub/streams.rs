//! The connected streams: how a change wakes one, and what an operator sees of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use heddle_api::identity::PodName;
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{lock, resource::Key};
use crate::metrics::Metrics;

/// Streams of one pod at once. A sidecar has one; after a broken connection its old one may linger for some seconds.
const STREAMS_PER_POD: usize = 3;
/// Versions that are told apart in the metrics: sidecars say them, so they must not make as many series as they like.
const VERSIONS: usize = 16;
/// What the others are called, and those that are no version.
const OTHER: &str = "other";

/// Which stream; never used again within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub(super) u64);

/// A connected stream, as others reach it.
pub struct Stream {
    /// Which one.
    pub id: StreamId,
    /// Ends the stream: a newer one of its pod took its place.
    pub replaced: CancellationToken,
    /// Ends the stream in good order: another replica is to have it.
    pub moved: CancellationToken,
    pod: PodName,
    /// As the metrics have it.
    version: String,
    dirty: Mutex<BTreeSet<Key>>,
    wake: Notify,
    status: Mutex<Status>,
}

/// What an operator sees of a stream.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// "shop/web-0".
    pub pod: String,
    /// Where it connected from.
    pub address: SocketAddr,
    /// The sidecar's version, as it says.
    pub version: String,
    /// Seconds since the Unix epoch.
    pub since: u64,
    /// Resources it follows.
    pub subscribed: usize,
    /// Of these, those it has the newest state of or was told that they do not exist.
    pub current: usize,
    /// Of these, those it was told do not exist.
    pub absent: usize,
    /// The response that it has not answered yet.
    pub unanswered: Option<u64>,
    /// Whether its requests had to wait, since they named too much too fast.
    pub slowed: bool,
    /// What it could not use.
    pub refused: Vec<RefusedResource>,
}

/// A state of a resource that a sidecar could not use; it keeps its last good one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedResource {
    /// "Destination reviews:9080".
    pub resource: String,
    /// Which state.
    pub version: String,
    /// What the sidecar says.
    pub reason: String,
}

impl Stream {
    /// Notes that `key` may have changed.
    fn mark(&self, key: &Key) {
        lock(&self.dirty).insert(key.clone());
        self.wake.notify_one();
    }

    /// What may have changed since the last call.
    #[must_use]
    pub fn take_dirty(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *lock(&self.dirty))
    }

    /// Returns once something may have changed.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Changes what the operator sees.
    pub fn report(&self, change: impl FnOnce(&mut Status)) {
        change(&mut lock(&self.status));
    }
}

/// All connected streams.
pub struct Streams {
    next: AtomicU64,
    all: Mutex<All>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct All {
    streams: HashMap<StreamId, Arc<Stream>>,
    /// So that a storm of reconnecting sidecars costs each what it has, not what there is.
    of_pod: HashMap<PodName, BTreeSet<StreamId>>,
    /// Streams by version; none is 0.
    of_version: BTreeMap<String, usize>,
}

impl All {
    /// A version as the metrics have it.
    fn label(&self, version: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".+-_".contains(c);
        let known = self.of_version.contains_key(version) || self.of_version.len() < VERSIONS;
        let usable = known && !version.is_empty() && version.chars().all(plain);
        if usable { version } else { OTHER }.to_owned()
    }
}

impl Streams {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { next: AtomicU64::new(1), all: Mutex::default(), metrics }
    }

    /// Adds a stream; the oldest of the same pod give way when there are too many.
    pub fn connect(
        &self,
        pod: &PodName,
        address: SocketAddr,
        version: String,
        now: SystemTime,
    ) -> Arc<Stream> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut all = lock(&self.all);
        let stream = Arc::new(Stream {
            id: StreamId(self.next.fetch_add(1, Ordering::Relaxed)),
            replaced: CancellationToken::new(),
            moved: CancellationToken::new(),
            pod: pod.clone(),
            version: all.label(&version),
            dirty: Mutex::default(),
            wake: Notify::new(),
            status: Mutex::new(Status {
                pod: pod.to_string(),
                address,
                version,
                since,
                subscribed: 0,
                current: 0,
                absent: 0,
                unanswered: None,
                slowed: false,
                refused: Vec::new(),
            }),
        });
        let All { streams, of_pod, of_version } = &mut *all;
        let of_version = of_version.entry(stream.version.clone()).or_default();
        *of_version += 1;
        if *of_version == 1 && stream.version != env!("CARGO_PKG_VERSION") {
            tracing::info!(
                version = stream.version, %pod, own = env!("CARGO_PKG_VERSION"),
                "sidecars of another version than the control plane's are connected"
            );
        }
        self.metrics.sidecars(&stream.version, *of_version);
        let own = of_pod.entry(pod.clone()).or_default();
        let surplus = (own.len() + 1).saturating_sub(STREAMS_PER_POD);
        for old in own.iter().take(surplus).filter_map(|id| streams.get(id)) {
            old.replaced.cancel();
        }
        own.insert(stream.id);
        streams.insert(stream.id, Arc::clone(&stream));
        self.metrics.streams.set(streams.len() as i64);
        stream
    }

    /// Removes a stream.
    pub fn disconnect(&self, id: StreamId) {
        let mut all = lock(&self.all);
        let All { streams, of_pod, of_version } = &mut *all;
        if let Some(stream) = streams.remove(&id) {
            if let Some(own) = of_pod.get_mut(&stream.pod) {
                own.remove(&id);
                if own.is_empty() {
                    of_pod.remove(&stream.pod);
                }
            }
            let left = of_version.get(&stream.version).map_or(0, |count| count - 1);
            self.metrics.sidecars(&stream.version, left);
            if left == 0 {
                of_version.remove(&stream.version);
            } else {
                of_version.insert(stream.version.clone(), left);
            }
        }
        self.metrics.streams.set(streams.len() as i64);
    }

    /// Pods that have a stream.
    #[must_use]
    pub fn pods(&self) -> usize {
        lock(&self.all).of_pod.len()
    }

    /// Ends the streams of so many pods, the longest connected first; of how many.
    pub fn send_away(&self, pods: usize) -> usize {
        let all = lock(&self.all);
        // By its newest stream: one that just came back is the last to go again.
        let mut newest: Vec<_> = all.of_pod.values().filter_map(|own| Some((*own.last()?, own))).collect();
        newest.retain(|(id, _)| all.streams.get(id).is_some_and(|stream| !stream.moved.is_cancelled()));
        let count = pods.min(newest.len());
        if count > 0 {
            newest.select_nth_unstable_by_key(count - 1, |(id, _)| *id);
        }
        for stream in newest.iter().take(count).flat_map(|(_, own)| *own).filter_map(|id| all.streams.get(id))
        {
            stream.moved.cancel();
        }
        count
    }

    /// Every stream, the longest connected first.
    #[must_use]
    pub fn statuses(&self) -> Vec<Status> {
        let mut all: Vec<_> = lock(&self.all).streams.values().cloned().collect();
        all.sort_by_key(|stream| stream.id);
        all.iter().map(|stream| lock(&stream.status).clone()).collect()
    }

    pub(super) fn mark(&self, id: StreamId, key: &Key) {
        let stream = lock(&self.all).streams.get(&id).cloned();
        if let Some(stream) = stream {
            stream.mark(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_newest_streams_of_a_pod_give_way_and_others_are_not_concerned() {
        let streams = Streams::new(Metrics::new());
        let connect = |pod: &str| {
            let address = ([127, 0, 0, 1], 1).into();
            streams.connect(&pod.parse().unwrap(), address, String::new(), SystemTime::UNIX_EPOCH)
        };
        let other = connect("shop/api-0");
        // None of the old ones had the time to end yet.
        let own: Vec<_> = (0..6).map(|_| connect("shop/web-0")).collect();
        let replaced: Vec<_> = own.iter().map(|stream| stream.replaced.is_cancelled()).collect();
        assert_eq!(replaced, [true, true, true, false, false, false]);
        assert!(!other.replaced.is_cancelled());
        for stream in own {
            streams.disconnect(stream.id);
        }
        assert_eq!(streams.statuses().len(), 1);
        assert_eq!(lock(&streams.all).of_pod.len(), 1);
    }

    #[test]
    fn streams_are_counted_by_version_and_what_nobody_runs_any_more_is_not_shown() {
        let metrics = Metrics::new();
        let streams = Streams::new(Arc::clone(&metrics));
        let connect = |number: usize, version: &str| {
            let (pod, address) = (format!("shop/p-{number}"), ([127, 0, 0, 1], 1).into());
            streams.connect(&pod.parse().unwrap(), address, version.to_owned(), SystemTime::UNIX_EPOCH)
        };
        let shown = || -> Vec<String> {
            let text = metrics.encode();
            let mut lines: Vec<_> = text
                .lines()
                .filter_map(|line| line.strip_prefix("heddle_control_plane_sidecars{version="))
                .map(str::to_owned)
                .collect();
            lines.sort();
            lines
        };
        let old = connect(0, "0.1.0");
        let (_new, _another) = (connect(1, "0.2.0-rc.1+a"), connect(2, "0.2.0-rc.1+a"));
        let (_evil, _nameless) = (connect(3, "x\"} 1\nup 0"), connect(4, ""));
        assert_eq!(shown(), ["\"0.1.0\"} 1", "\"0.2.0-rc.1+a\"} 2", "\"other\"} 2"]);
        streams.disconnect(old.id);
        assert_eq!(shown(), ["\"0.2.0-rc.1+a\"} 2", "\"other\"} 2"]);
        // However many versions somebody makes up.
        let _many: Vec<_> = (0..100).map(|n| connect(5 + n, &format!("9.9.{n}"))).collect();
        assert_eq!(shown().len(), VERSIONS);
    }
}
