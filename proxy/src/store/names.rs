//! The names that were asked for: who waits for them, what the server said, how long nobody used them.
//!
//! A slot in somebody's hands is always fed. So a name is let go in two steps: first it leaves the map that workers
//! read, and only when nobody holds its slot is it unsubscribed; whoever still does brings it back.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::oneshot;

use super::{Lookup, Map, Slot};
use crate::config::Destination;

/// How much is held, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Names that are answered or pending.
    pub names: usize,
    /// Names on their way out beyond those.
    pub leaving: usize,
    /// Requests that wait for an answer.
    pub waiters: usize,
    /// Sweeps without use after which a name is let go.
    pub idle: u32,
}

impl Limits {
    pub(super) const DEFAULT: Self = Self { names: 4096, leaving: 1024, waiters: 16_384, idle: 10 };
}

/// All of them.
#[derive(Debug)]
pub(super) struct Names {
    limits: Limits,
    pub(super) entries: HashMap<Arc<str>, Entry>,
    waiters: usize,
    leaving: usize,
    // Names in the order in which they came.
    order: u64,
    // Whether the workers' map is behind.
    pub(super) dirty: bool,
}

/// One name.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// None before the first answer that is complete.
    pub slot: Option<Arc<Slot>>,
    /// Of what the slot shows; empty: absent.
    pub version: Option<String>,
    /// The backends that the slot's destination names.
    pub backends: Vec<Arc<str>>,
    /// Newer than the slot's, but the endpoints of its backends are not all in.
    pub staged: Option<Staged>,
    /// The server's last word could not be used, and there was none before: waiting is of no use.
    pub refused: bool,
    waiters: Vec<oneshot::Sender<Arc<Slot>>>,
    idle: u32,
    leaving: bool,
    order: u64,
}

/// A destination that waits for endpoints.
#[derive(Debug)]
pub(super) struct Staged {
    pub destination: Arc<Destination>,
    pub version: String,
    pub backends: Vec<Arc<str>>,
    /// Whether the endpoints that lack were asked for by name.
    pub asked: bool,
}

/// What came of asking for a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Known, pending or hopeless: there is nothing to say to the server.
    Settled,
    /// To be subscribed.
    New,
    /// There is no room.
    Full,
}

impl Names {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, entries: HashMap::new(), waiters: 0, leaving: 0, order: 0, dirty: false }
    }

    /// Somebody asks. `may_evict`: whether a name that nobody uses may leave for this one.
    pub(super) fn ask(
        &mut self,
        name: &Arc<str>,
        reply: oneshot::Sender<Arc<Slot>>,
        may_evict: bool,
    ) -> Asked {
        if let Some(entry) = self.entries.get_mut(name) {
            if std::mem::take(&mut entry.leaving) {
                self.leaving -= 1;
                self.dirty = true;
            }
            if let Some(slot) = &entry.slot {
                slot.mark_used();
                // A waiter that has given up needs nothing.
                let _ = reply.send(slot.clone());
            } else if !entry.refused && self.waiters < self.limits.waiters {
                entry.waiters.push(reply);
                self.waiters += 1;
            }
            return Asked::Settled;
        }
        if self.waiters >= self.limits.waiters || !self.make_room(may_evict) {
            return Asked::Full;
        }
        self.order += 1;
        self.waiters += 1;
        let entry = Entry { waiters: vec![reply], order: self.order, ..Entry::default() };
        self.entries.insert(name.clone(), entry);
        Asked::New
    }

    fn make_room(&mut self, may_evict: bool) -> bool {
        if self.entries.len() - self.leaving < self.limits.names {
            return true;
        }
        if !may_evict || self.leaving >= self.limits.leaving {
            return false;
        }
        let longest_unused = self
            .entries
            .values_mut()
            .filter(|e| !e.leaving && !e.is_held())
            .max_by_key(|e| (e.idle, std::cmp::Reverse(e.order)));
        let Some(entry) = longest_unused else { return false };
        entry.leaving = true;
        self.leaving += 1;
        self.dirty = true;
        true
    }

    /// A complete answer: shows it to everybody and wakes who waits.
    pub(super) fn show(&mut self, name: &str, lookup: Lookup) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.refused = false;
        let slot = if let Some(slot) = &entry.slot {
            slot.replace(lookup);
            slot.clone()
        } else {
            self.dirty = true;
            entry.slot.insert(Arc::new(Slot::new(name.into(), lookup))).clone()
        };
        self.waiters -= entry.waiters.len();
        for waiter in entry.waiters.drain(..) {
            // A waiter that has given up needs nothing.
            let _ = waiter.send(slot.clone());
        }
    }

    /// The server's first word about a name was unusable: nobody need wait for another.
    pub(super) fn refuse(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name)
            && entry.slot.is_none()
        {
            entry.refused = true;
            self.waiters -= entry.waiters.len();
            entry.waiters.clear();
        }
    }

    /// Forgets waiters that have given up.
    pub(super) fn purge_waiters(&mut self) {
        for entry in self.entries.values_mut() {
            let before = entry.waiters.len();
            entry.waiters.retain(|w| !w.is_closed());
            self.waiters -= before - entry.waiters.len();
        }
    }

    /// Begins to let go of names that nobody has used for a while.
    pub(super) fn sweep(&mut self) {
        for entry in self.entries.values_mut().filter(|e| !e.leaving) {
            let used = entry.slot.as_ref().is_some_and(|slot| slot.take_used());
            entry.idle = if used || entry.is_held() { 0 } else { entry.idle + 1 };
            if entry.idle >= self.limits.idle {
                entry.leaving = true;
                self.leaving += 1;
                self.dirty = true;
            }
        }
    }

    /// Takes out the names on their way out that nobody holds; one that somebody does comes back. The workers' map
    /// must have been published since the name left it.
    pub(super) fn depart(&mut self) -> Vec<(Arc<str>, Entry)> {
        if self.leaving == 0 {
            return Vec::new();
        }
        for entry in self.entries.values_mut().filter(|e| e.leaving) {
            if entry.slot.as_ref().is_some_and(|slot| Arc::strong_count(slot) > 1 || slot.take_used()) {
                entry.leaving = false;
                entry.idle = 0;
                self.leaving -= 1;
                self.dirty = true;
            }
        }
        let gone: Vec<_> = self.entries.extract_if(|_, entry| entry.leaving).collect();
        self.leaving = 0;
        self.waiters -= gone.iter().map(|(_, entry)| entry.waiters.len()).sum::<usize>();
        gone
    }

    /// What workers may see.
    pub(super) fn map(&self) -> Map {
        let visible = self.entries.iter().filter(|(_, entry)| !entry.leaving);
        visible.filter_map(|(name, entry)| Some((name.clone(), entry.slot.clone()?))).collect()
    }

    /// Names without an answer.
    pub(super) fn pending(&self) -> usize {
        self.entries.values().filter(|e| e.slot.is_none()).count()
    }
}

impl Entry {
    /// Whether somebody has the slot in hand (beyond this table and the workers' map), or waits for one.
    fn is_held(&self) -> bool {
        self.slot.as_ref().map_or(!self.waiters.is_empty(), |slot| Arc::strong_count(slot) > 2)
    }
}
