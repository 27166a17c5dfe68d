//! What one name means, now and after every later config.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;

use crate::config::Destination;

/// The server's answer about a name.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// A Service port of the mesh.
    Mesh(Arc<Destination>),
    /// The server said so: pass through.
    NotInMesh,
}

/// A name's place in the store. Whoever holds it reads the newest config with each [`Slot::load`].
#[derive(Debug)]
pub struct Slot {
    name: Arc<str>,
    lookup: ArcSwap<Lookup>,
    // Since the writer last looked. A flag and no time: a read costs no clock, and writes only once in a while.
    used: AtomicBool,
}

impl Slot {
    pub(super) fn new(name: Arc<str>, lookup: Lookup) -> Self {
        Self { name, lookup: ArcSwap::from_pointee(lookup), used: AtomicBool::new(true) }
    }

    /// The name as the application used it, port included.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the name means now; once per request, which keeps what it got.
    #[must_use]
    pub fn load(&self) -> Lookup {
        self.mark_used();
        self.peek()
    }

    /// The same for people who look on: the name does not count as used.
    #[must_use]
    pub fn peek(&self) -> Lookup {
        Lookup::clone(&self.lookup.load())
    }

    pub(super) fn mark_used(&self) {
        // Read first: a flag that is set stays in every core's cache.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    pub(super) fn replace(&self, lookup: Lookup) {
        self.lookup.store(Arc::new(lookup));
    }
}
