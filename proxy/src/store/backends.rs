//! The backends that destinations name: their shared state, and the endpoints that the server sends for them.
//!
//! A backend's endpoints count as subscribed while a destination names it, so what is known of one that nobody names
//! any more is out of date at once; its state (load, ejection, budget) is kept for a while all the same, in case it
//! is named again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use heddle_api::v1;

use crate::config::{BackendState, EndpointSet, Place, convert};

/// Sweeps for which the state of a backend that nobody names is remembered.
const GRACE: u32 = 10;

/// All of them, by key.
#[derive(Debug, Default)]
pub(super) struct Backends {
    entries: HashMap<Arc<str>, Entry>,
    // Where this pod runs: some endpoints may be meant for callers here.
    place: Place,
}

#[derive(Debug, Default)]
struct Entry {
    state: Arc<BackendState>,
    // The endpoints as they came, for the differences that follow. Keyed as the wire does.
    raw: BTreeMap<(String, u32), v1::Endpoint>,
    // None: nothing came since the backend was named. Empty: the server said that there is no such backend.
    version: Option<String>,
    // Destinations that name it, staged ones included.
    named: u32,
    // Sweeps since none does.
    idle: u32,
}

/// Why endpoints could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndpointsError {
    /// They make no sense; what was held before stays.
    #[error("{0}")]
    Convert(#[from] convert::ConvertError),
    /// A difference from something else than what is held: everything has to come anew.
    #[error("the difference is from version {base:?}, held is {held:?}")]
    Base { base: String, held: Option<String> },
}

impl Backends {
    /// The shared state of a backend, made if it is new.
    pub(super) fn state(&mut self, key: &str) -> Arc<BackendState> {
        self.entry(key).state.clone()
    }

    /// This pod runs here: what is held is looked at from there.
    pub(super) fn set_place(&mut self, place: &Place) {
        if self.place == *place {
            return;
        }
        self.place = place.clone();
        for state in self.entries.values().map(|entry| &entry.state) {
            let all = state.endpoints.load().all.clone();
            state.endpoints.store(Arc::new(EndpointSet::new(all).seen_from(place)));
        }
    }

    fn entry(&mut self, key: &str) -> &mut Entry {
        if !self.entries.contains_key(key) {
            self.entries.insert(key.into(), Entry::default());
        }
        self.entries.get_mut(key).expect("inserted above")
    }

    /// A destination names these.
    pub(super) fn name(&mut self, keys: &[Arc<str>]) {
        for key in keys {
            let entry = self.entry(key);
            entry.named += 1;
            entry.idle = 0;
        }
    }

    /// A destination names these no longer.
    pub(super) fn release(&mut self, keys: &[Arc<str>]) {
        for key in keys {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.named = entry.named.saturating_sub(1);
                if entry.named == 0 {
                    entry.forget_endpoints();
                }
            }
        }
    }

    /// Whether a destination names it.
    pub(super) fn is_named(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.named > 0)
    }

    /// Those of `keys` whose endpoints have not come.
    pub(super) fn missing<'a>(&'a self, keys: &'a [Arc<str>]) -> impl Iterator<Item = &'a Arc<str>> {
        keys.iter().filter(|key| self.entries.get(*key).is_none_or(|e| e.version.is_none()))
    }

    /// The whole list.
    pub(super) fn replace(
        &mut self,
        key: &str,
        version: &str,
        message: &v1::Endpoints,
    ) -> Result<(), EndpointsError> {
        let raw = message.endpoints.iter().map(|e| ((e.address.clone(), e.port), e.clone())).collect();
        self.accept(key, raw, version)
    }

    /// A difference from the version that is held.
    pub(super) fn change(
        &mut self,
        key: &str,
        version: &str,
        delta: &v1::EndpointsDelta,
    ) -> Result<(), EndpointsError> {
        let entry = self.entry(key);
        if entry.version.as_deref() != Some(&*delta.base_version) {
            let (base, held) = (delta.base_version.clone(), entry.version.clone());
            return Err(EndpointsError::Base { base, held });
        }
        let mut raw = entry.raw.clone();
        for removed in &delta.removed {
            raw.remove(&(removed.address.clone(), removed.port));
        }
        for upserted in &delta.upserted {
            raw.insert((upserted.address.clone(), upserted.port), upserted.clone());
        }
        self.accept(key, raw, version)
    }

    fn accept(
        &mut self,
        key: &str,
        raw: BTreeMap<(String, u32), v1::Endpoint>,
        version: &str,
    ) -> Result<(), EndpointsError> {
        let place = self.place.clone();
        let entry = self.entry(key);
        let message = v1::Endpoints { endpoints: raw.values().cloned().collect() };
        let set = convert::endpoints(&message, &entry.state.endpoints.load())?.seen_from(&place);
        entry.state.endpoints.store(Arc::new(set));
        entry.raw = raw;
        entry.version = Some(version.to_owned());
        Ok(())
    }

    /// The server knows of no such backend: it has no endpoints.
    pub(super) fn absent(&mut self, key: &str) {
        let entry = self.entry(key);
        entry.forget_endpoints();
        entry.state.endpoints.store(Arc::default());
        entry.version = Some(String::new());
    }

    /// The endpoints that came first are not usable. Requests are told that there are none, rather than that the
    /// control plane is gone.
    pub(super) fn give_up(&mut self, key: &str) {
        let entry = self.entry(key);
        if entry.version.is_none() {
            entry.version = Some(String::new());
        }
    }

    /// What is held, with versions, for the next stream's `hello`.
    pub(super) fn versions(&self) -> impl Iterator<Item = (&Arc<str>, &str)> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.named > 0)
            .filter_map(|(key, entry)| Some((key, entry.version.as_deref().filter(|v| !v.is_empty())?)))
    }

    /// What came for backends that nobody names is not followed.
    pub(super) fn forget_unnamed(&mut self) {
        self.entries
            .values_mut()
            .filter(|e| e.named == 0 && e.version.is_some())
            .for_each(Entry::forget_endpoints);
    }

    /// Lets go of the state of backends that nobody has named for a while.
    pub(super) fn sweep(&mut self) {
        self.entries.retain(|_, entry| {
            entry.idle = if entry.named == 0 { entry.idle + 1 } else { 0 };
            entry.idle <= GRACE
        });
    }

    /// Backends that a destination names.
    pub(super) fn len(&self) -> usize {
        self.entries.values().filter(|e| e.named > 0).count()
    }
}

impl Entry {
    /// The set itself stays where requests may still read it, and where the next list finds its endpoints' stats.
    fn forget_endpoints(&mut self) {
        self.raw.clear();
        self.version = None;
    }
}
