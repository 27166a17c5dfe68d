//! Who gives way to whom among a listener's connections.
//!
//! A connection that has not said what it wants gives way to newcomers. One whose request takes time or memory needs a
//! place for it, keeps that until its answer is written, and gives way to nobody; where there is none it is refused.
//! Pages that are small and there at once need none.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, OnceLock, Weak};

use heddle_api::probe;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Connections of one listener that may say nothing at once. Each holds at most a head, 16 KiB.
pub const MAX_SILENT: usize = 64;
/// Pages that are written at once. Each may be slow to be taken, and 14 MB at worst.
const MAX_PAGES: usize = 16;
/// Replays at once: kubelet asks for each of a pod's probes one at a time. Each holds 10 KiB and a head.
const MAX_REPLAYS: usize = probe::MOST;

/// What takes time or memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// A page of many lines.
    Page,
    /// A probe or hook.
    Replay,
}

/// A listener's places and who waits for none yet.
#[derive(Debug)]
pub(super) struct Places {
    pages: Arc<Semaphore>,
    replays: Arc<Semaphore>,
    silent: VecDeque<Weak<Seat>>,
}

/// What a connection has of them.
#[derive(Debug)]
pub(super) struct Seat {
    pages: Arc<Semaphore>,
    replays: Arc<Semaphore>,
    taken: OnceLock<OwnedSemaphorePermit>,
    unwanted: Notify,
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            pages: Arc::new(Semaphore::new(MAX_PAGES)),
            replays: Arc::new(Semaphore::new(MAX_REPLAYS)),
            silent: VecDeque::with_capacity(MAX_SILENT),
        }
    }

    /// For a newcomer. The oldest that says nothing goes when there are too many.
    pub(super) fn seat(&mut self) -> Arc<Seat> {
        self.silent.retain(|seat| seat.upgrade().is_some_and(|seat| seat.taken.get().is_none()));
        if self.silent.len() >= MAX_SILENT
            && let Some(oldest) = self.silent.pop_front().and_then(|seat| seat.upgrade())
        {
            oldest.unwanted.notify_one();
        }
        let seat = Arc::new(Seat {
            pages: Arc::clone(&self.pages),
            replays: Arc::clone(&self.replays),
            taken: OnceLock::new(),
            unwanted: Notify::new(),
        });
        self.silent.push_back(Arc::downgrade(&seat));
        seat
    }
}

impl Seat {
    /// Takes a place until the seat is dropped; false: there is none.
    pub(super) fn take(&self, work: Work) -> bool {
        let places = match work {
            Work::Page => &self.pages,
            Work::Replay => &self.replays,
        };
        // A connection has one request, so nobody took one here before.
        Arc::clone(places).try_acquire_owned().is_ok_and(|place| self.taken.set(place).is_ok())
    }

    /// Until the connection is to give way.
    pub(super) async fn unwanted(&self) {
        self.unwanted.notified().await;
        if self.taken.get().is_some() {
            pending::<()>().await;
        }
    }
}
