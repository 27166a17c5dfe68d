//! The hub: the mesh's objects, what of them is subscribed to, and by which streams.
//!
//! Batches come in by one task ([`run`]). What a batch touches is looked up by dependency, so only the resources made
//! from it are compiled again, once each however many sidecars hold them, and only the streams that hold one whose
//! content changed are woken. A stream reads what is current whenever it is ready to send; nothing is queued for it.
//!
//! Order of locks: mesh, table, then one stream's dirty set. None is held across an await.

pub mod resource;
pub mod streams;
mod table;

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use bytes::Bytes;
use heddle_api::{identity::PodName, v1};
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};

use self::{
    resource::{Key, Rendered},
    streams::{StreamId, Streams},
    table::Table,
};
use crate::{
    compile::{Census, Dep, Mesh, Options, PodFacts},
    diagnostics::Diagnostic,
    metrics::Metrics,
    object::Name,
    source::Batch,
};

/// Everything that discovery answers from.
pub struct Hub {
    mesh: RwLock<Mesh>,
    table: Mutex<Table>,
    streams: Streams,
    trust_domain: Arc<str>,
    bundle: Mutex<v1::TrustBundle>,
    problems: Mutex<Vec<Diagnostic>>,
    logged: Mutex<Logged>,
    synced: watch::Sender<bool>,
    applied: watch::Sender<()>,
    metrics: Arc<Metrics>,
}

/// The objects' problems that were told.
#[derive(Default)]
struct Logged {
    version: u64,
    problems: BTreeSet<Diagnostic>,
}

impl Hub {
    /// An empty mesh that trusts `roots`.
    #[must_use]
    pub fn new(options: Options, roots: &[CertificateDer<'static>], metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            trust_domain: options.trust_domain.as_str().into(),
            bundle: Mutex::new(bundle(roots)),
            mesh: RwLock::new(Mesh::new(options)),
            table: Mutex::default(),
            streams: Streams::new(Arc::clone(&metrics)),
            problems: Mutex::default(),
            logged: Mutex::default(),
            synced: watch::Sender::new(false),
            applied: watch::Sender::new(()),
            metrics,
        })
    }

    /// The connected streams.
    #[must_use]
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Whether the source has delivered its first complete listing.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Returns once the source has delivered its first complete listing. Before that, nothing may be called absent.
    pub async fn synced(&self) {
        // The sender is in `self`, so waiting cannot fail.
        let mut synced = self.synced.subscribe();
        let _seen = synced.wait_for(|synced| *synced).await;
    }

    /// What is known of a pod.
    #[must_use]
    pub fn pod(&self, pod: &PodName) -> Option<PodFacts> {
        self.mesh().pod(pod)
    }

    /// How many replicas `service` leads to, and how many sidecars there are to share.
    #[must_use]
    pub fn census(&self, service: &Name) -> Census {
        self.mesh().census(service)
    }

    /// All present problems: the source's, then the objects'.
    #[must_use]
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut all = lock(&self.problems).clone();
        all.extend(self.mesh().diagnostics());
        all
    }

    /// Takes one batch in and wakes the streams that it concerns.
    pub fn apply(&self, batch: Batch) {
        if let Some(problems) = batch.problems {
            *lock(&self.problems) = problems;
        }
        let touched = if batch.changes.is_empty() {
            HashSet::new()
        } else {
            self.mesh.write().unwrap_or_else(PoisonError::into_inner).apply(batch.changes)
        };
        self.metrics.batches.inc();
        self.refresh(&touched);
        self.log_problems();
        batch.notes.enter();
        if batch.synced {
            self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
        }
        self.applied.send_replace(());
    }

    /// Trusts other roots from now on, and tells every sidecar.
    pub fn set_roots(&self, roots: &[CertificateDer<'static>]) {
        *lock(&self.bundle) = bundle(roots);
        self.refresh(&HashSet::from([Dep::Trust]));
    }

    /// Tells when a batch was taken in.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<()> {
        self.applied.subscribe()
    }

    /// Compiles anew what was made from these, and wakes the streams that it concerns.
    fn refresh(&self, touched: &HashSet<Dep>) {
        // Between the writing above and each compilation below, a stream may subscribe and compile the same new state;
        // nothing else writes, so both come out alike.
        let stale = lock(&self.table).made_from(touched);
        for key in stale {
            let mesh = self.mesh();
            let (rendered, deps) = self.compile(&mesh, &key);
            self.metrics.compiled.inc();
            let subscribers = lock(&self.table).replace(&key, rendered, deps);
            drop(mesh);
            for id in subscribers {
                self.streams.mark(id, &key);
            }
        }
    }

    /// Counts `stream` among the subscribers of `key`: from now on its changes mark the key dirty for it.
    pub fn subscribe(&self, stream: StreamId, key: &Key) {
        // The mesh stays locked until the dependencies are registered: no change can fall in between.
        let mesh = self.mesh();
        let mut table = lock(&self.table);
        if !table.join(stream, key) {
            let (rendered, deps) = self.compile(&mesh, key);
            table.insert(key.clone(), rendered, deps, stream);
        }
        self.metrics.resources.set(table.len() as i64);
    }

    /// The opposite; what nobody subscribes to is forgotten.
    pub fn unsubscribe(&self, stream: StreamId, key: &Key) {
        let mut table = lock(&self.table);
        table.leave(stream, key);
        self.metrics.resources.set(table.len() as i64);
    }

    /// The newest state of a subscribed key.
    #[must_use]
    pub fn current(&self, key: &Key) -> Option<Arc<Rendered>> {
        lock(&self.table).current(key)
    }

    /// A former state of a subscribed key, if it is remembered.
    #[must_use]
    pub fn former(&self, key: &Key, version: &str) -> Option<Arc<Rendered>> {
        lock(&self.table).former(key, version)
    }

    /// Counts all problems, and logs each of the objects' when it appears. The source logs its own.
    fn log_problems(&self) {
        let mesh = self.mesh();
        let mut logged = lock(&self.logged);
        // Nearly always; what is wrong elsewhere must not make a change dearer.
        if mesh.diagnostics_version() != logged.version {
            logged.version = mesh.diagnostics_version();
            let now: BTreeSet<_> = mesh.diagnostics().into_iter().collect();
            for problem in now.difference(&logged.problems) {
                tracing::warn!("{problem}");
            }
            logged.problems = now;
        }
        self.metrics.problems.set((logged.problems.len() + lock(&self.problems).len()) as i64);
    }

    fn compile(&self, mesh: &Mesh, key: &Key) -> (Rendered, Vec<Dep>) {
        match key {
            Key::Destination { namespace, name } => {
                let made = mesh.destination(namespace, name);
                (Rendered::destination(made.value), made.deps)
            }
            Key::Endpoints(name) => {
                let made = mesh.endpoints(name);
                (Rendered::endpoints(made.value), made.deps)
            }
            Key::Inbound(pod) => {
                let made = mesh.inbound(pod);
                (Rendered::inbound(made.value), made.deps)
            }
            Key::TrustBundle(name) => {
                let known = *name == self.trust_domain;
                (Rendered::trust_bundle(known.then(|| lock(&self.bundle).clone())), vec![Dep::Trust])
            }
            Key::Unknown { .. } => (Rendered::absent(), Vec::new()),
        }
    }

    fn mesh(&self) -> RwLockReadGuard<'_, Mesh> {
        self.mesh.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bundle(roots: &[CertificateDer<'static>]) -> v1::TrustBundle {
    v1::TrustBundle { roots: roots.iter().map(|root| Bytes::copy_from_slice(root)).collect() }
}

/// Applies the source's batches as they come, until the source is gone.
pub async fn run(hub: Arc<Hub>, mut batches: mpsc::Receiver<Batch>) {
    while let Some(batch) = batches.recv().await {
        hub.apply(batch);
        // A flood of changes must not keep this thread from the streams.
        tokio::task::yield_now().await;
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}

/// Locks; a panic elsewhere while it was held leaves data that is whole, since no writer stops half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
