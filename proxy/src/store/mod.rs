//! What this sidecar holds of the mesh: only what its pod talks to, learned on demand.
//!
//! Any worker reads without a lock: [`Store::cached`] looks into an arc-swapped map that is cloned only when a name
//! comes or goes, [`Slot::load`] reads what the name means now. There is one writer, the task in [`stream`], which a
//! miss reaches through a bounded channel; everything it knows is in [`held`], which does no I/O.
//!
//! Only the server's `absent` makes [`Lookup::NotInMesh`]. No answer within 5 s is `DiscoveryUnavailable`, and while
//! the stream is down nothing that is held expires.

mod backends;
mod held;
mod names;
mod outgoing;
mod slot;
mod status;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

pub use slot::{Lookup, Slot};
pub use status::Status;

use crate::{
    config::{Destination, Inbound},
    identity::{ControlPlaneConfig, Identity},
    reason::Reason,
};

/// How long a request waits for the server's word about a name.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest name that is asked for, in bytes: a DNS name has 253 at most.
pub const MAX_NAME: usize = 512;
/// Misses on their way to the writer.
const COMMANDS: usize = 1024;

/// Names and what they mean, as the workers see them.
type Map = HashMap<Arc<str>, Arc<Slot>, ahash::RandomState>;

/// The sidecar's store of the mesh. One, shared by all workers.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// What the writer publishes.
#[derive(Debug)]
struct Shared {
    names: ArcSwap<Map>,
    inbound: ArcSwapOption<Inbound>,
    inbound_changed: watch::Sender<()>,
    expected: watch::Sender<Option<Arc<[Arc<str>]>>>,
    status: ArcSwap<Status>,
    unanswered: AtomicU64,
}

/// A worker's word to the writer: find out what this name means and tell me.
#[derive(Debug)]
struct Command {
    name: Arc<str>,
    reply: oneshot::Sender<Arc<Slot>>,
}

impl Shared {
    fn new() -> Self {
        Self {
            names: ArcSwap::from_pointee(Map::default()),
            inbound: ArcSwapOption::empty(),
            inbound_changed: watch::Sender::new(()),
            expected: watch::Sender::new(None),
            status: ArcSwap::from_pointee(Status::default()),
            unanswered: AtomicU64::new(0),
        }
    }
}

impl Store {
    /// Spawns the writer on the current runtime; it ends when the store is dropped.
    pub(crate) fn start(config: ControlPlaneConfig, identity: Arc<Identity>) -> Arc<Self> {
        let shared = Arc::new(Shared::new());
        let (commands, receiver) = mpsc::channel(COMMANDS);
        tokio::spawn(stream::Writer::new(config, identity, shared.clone(), receiver).run());
        Arc::new(Self { shared, commands })
    }

    /// A store that holds the pod's own side and some names, and asks nobody.
    pub(crate) fn fixed(
        inbound: Option<Inbound>,
        names: impl IntoIterator<Item = (Arc<str>, Destination)>,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared::new());
        shared.inbound.store(inbound.map(Arc::new));
        let slot =
            |name: &Arc<str>, means| Arc::new(Slot::new(Arc::clone(name), Lookup::Mesh(Arc::new(means))));
        let names = names.into_iter().map(|(name, means)| (Arc::clone(&name), slot(&name, means)));
        shared.names.store(Arc::new(names.collect()));
        Arc::new(Self { shared, commands: mpsc::channel(1).0 })
    }

    /// Replaces the pod's own side as the writer does, for tests of what reads it.
    #[cfg(test)]
    pub(crate) fn set_inbound(&self, inbound: Inbound) {
        self.shared.inbound.store(Some(Arc::new(inbound)));
        self.shared.inbound_changed.send_replace(());
    }

    /// What is known of a name without asking; marks it used. `name` is lower-case and ends in a port.
    #[must_use]
    pub fn cached(&self, name: &str) -> Option<Arc<Slot>> {
        let slot = self.shared.names.load().get(name).cloned()?;
        slot.mark_used();
        Some(slot)
    }

    /// What a name means; asks the control plane when it is not known yet. Callable from any runtime.
    ///
    /// Whoever keeps the slot is served by it for as long as he keeps it: a slot in somebody's hands is never let go.
    ///
    /// # Errors
    /// [`Reason::DiscoveryUnavailable`] when the control plane gives no answer in 5 s or one that cannot be used,
    /// when the store is full, or the name longer than [`MAX_NAME`].
    pub async fn lookup(&self, name: &str) -> Result<Arc<Slot>, Reason> {
        if let Some(slot) = self.cached(name) {
            return Ok(slot);
        }
        let answer = if name.len() > MAX_NAME { None } else { self.ask(name).await };
        answer.ok_or_else(|| {
            self.shared.unanswered.fetch_add(1, Ordering::Relaxed);
            Reason::DiscoveryUnavailable
        })
    }

    async fn ask(&self, name: &str) -> Option<Arc<Slot>> {
        let deadline = Instant::now() + LOOKUP_TIMEOUT;
        let (reply, answer) = oneshot::channel();
        let command = Command { name: name.into(), reply };
        timeout_at(deadline, self.commands.send(command)).await.ok()?.ok()?;
        timeout_at(deadline, answer).await.ok()?.ok()
    }

    /// The pod's own side; none before the control plane said so.
    #[must_use]
    pub fn inbound(&self) -> Option<Arc<Inbound>> {
        self.shared.inbound.load_full()
    }

    /// Waits for the next change of [`Store::inbound`], counted from the call, not from the first poll. So
    /// `let changed = store.inbound_changed(); look(store.inbound()); changed.await` misses none.
    pub fn inbound_changed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut changes = self.shared.inbound_changed.subscribe();
        async move {
            if changes.changed().await.is_err() {
                // The store is gone, and with it every change.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Names that other pods of the workload ask for. Waits for the control plane's first word.
    pub async fn expected(&self) -> Arc<[Arc<str>]> {
        let mut told = self.shared.expected.subscribe();
        match told.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(names)) => Arc::clone(names),
            // The store is gone, and with it who would tell.
            _ => Arc::default(),
        }
    }

    /// All names held, for people: does not mark them used.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<Slot>> {
        let mut slots: Vec<_> = self.shared.names.load().values().cloned().collect();
        slots.sort_by(|a, b| a.name().cmp(b.name()));
        slots
    }

    /// How discovery fares, for people and metrics.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = Status::clone(&self.shared.status.load());
        status.unanswered_lookups = self.shared.unanswered.load(Ordering::Relaxed);
        status
    }
}
