//! What one sidecar holds, what it was sent, what it must be sent next. Pure: no socket, no clock, no lock.
//!
//! At most one response is unanswered. While it is, changes only mark names as dirty, and what is sent next is each
//! dirty name's newest state, so a slow sidecar costs its set of subscriptions and never a queue: some 500 bytes for
//! each, so 8 MiB at the very most, beside the states that it holds and that are shared by all who hold the same.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use heddle_api::{
    identity::PodName,
    v1::{self, resource::Body},
};

use crate::hub::{
    resource::{BadKey, Key, Rendered},
    streams::RefusedResource,
};

/// Names that one sidecar may follow. Its own store is bounded far below.
pub const MAX_SUBSCRIPTIONS: usize = 16_384;
/// A response stops growing at this many bytes, so that one that follows a large change does not hold up the next.
const RESPONSE_BYTES: usize = 1 << 20;
/// A sidecar's reason is kept up to here.
const MAX_REASON: usize = 500;

/// Where a session reads resources: the hub, or a test.
pub trait View {
    /// From now on changes of `key` are reported.
    fn subscribe(&self, key: &Key);
    /// The opposite.
    fn unsubscribe(&self, key: &Key);
    /// The newest state of a subscribed key.
    fn current(&self, key: &Key) -> Option<Arc<Rendered>>;
    /// A former state of a subscribed key, if it is remembered.
    fn former(&self, key: &Key, version: &str) -> Option<Arc<Rendered>>;
}

/// Why a stream is ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// A name that this sidecar may not have or that there cannot be.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// More than a sidecar can need.
    #[error("{0} subscriptions; a stream may have {MAX_SUBSCRIPTIONS}")]
    TooMany(usize),
    /// An answer to what was not sent.
    #[error("an answer to response {answered}, but the last one was {last}")]
    Nonce {
        /// What it answers.
        answered: u64,
        /// What was sent.
        last: u64,
    },
}

/// What the server knows of the sidecar's copy.
#[derive(Clone, Debug)]
enum Held {
    /// Nothing, so it must be answered.
    Nothing,
    /// What it said itself; empty: that there is none.
    Version(String),
    /// What it accepted.
    State(Arc<Rendered>),
}

impl Held {
    fn version(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Version(version) => Some(version),
            Self::State(state) => Some(&state.version),
        }
    }
}

/// One subscription.
struct Subscription {
    /// The sidecar asked for it.
    asked: bool,
    /// Named as held in `hello` (Endpoints only): kept until the sidecar is up to date for the first time.
    greeted: bool,
    /// Destinations of this stream that name it.
    named: usize,
    held: Held,
    /// In the unanswered response.
    sent: Option<Arc<Rendered>>,
    /// The Endpoints that are counted as named because of this Destination: of the held state, then of the sent one.
    holds: Vec<Key>,
    sends: Vec<Key>,
    refused: Option<RefusedResource>,
    /// A difference was refused: send the whole.
    whole: bool,
}

impl Subscription {
    const fn new() -> Self {
        Self {
            asked: false,
            greeted: false,
            named: 0,
            held: Held::Nothing,
            sent: None,
            holds: Vec::new(),
            sends: Vec::new(),
            refused: None,
            whole: false,
        }
    }

    /// The sidecar has no copy, whatever it accepted or is about to.
    fn forget(&mut self) {
        self.held = Held::Nothing;
        self.refused = None;
        self.whole = false;
    }

    /// Whether the sidecar must be told of `state`. What it refused is not repeated.
    fn lacks(&self, state: &Rendered) -> bool {
        self.held.version() != Some(&state.version)
            && (self.whole || self.refused.as_ref().is_none_or(|refused| refused.version != state.version))
    }
}

/// What was sent and not answered yet.
struct Unanswered {
    nonce: u64,
    keys: Vec<Key>,
    deltas: HashSet<Key>,
}

/// Counts for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Resources followed.
    pub subscribed: usize,
    /// Of these, known to be held in some state or known to be absent.
    pub current: usize,
    /// Of these, absent.
    pub absent: usize,
    /// What the sidecar could not use.
    pub refused: Vec<RefusedResource>,
}

/// One sidecar's side of discovery.
pub struct Session<V: View> {
    view: V,
    pod: PodName,
    namespace: Arc<str>,
    subscriptions: HashMap<Key, Subscription>,
    dirty: BTreeSet<Key>,
    unanswered: Option<Unanswered>,
    last_nonce: u64,
    greeted: bool,
}

impl<V: View> Session<V> {
    /// A session of `pod`, which holds nothing yet.
    pub fn new(pod: PodName, view: V) -> Self {
        Self {
            view,
            namespace: pod.namespace.as_str().into(),
            pod,
            subscriptions: HashMap::new(),
            dirty: BTreeSet::new(),
            unanswered: None,
            last_nonce: 0,
            greeted: false,
        }
    }

    /// Takes in what the sidecar says that it holds.
    ///
    /// # Errors
    /// When it names what it may not have.
    pub fn hello(&mut self, held: Vec<v1::HeldResource>) -> Result<(), Misuse> {
        self.greeted = true;
        for resource in held {
            let key = self.key(&resource.name.unwrap_or_default())?;
            let endpoints = matches!(key, Key::Endpoints(_));
            let subscription = self.ensure(&key)?;
            subscription.asked |= !endpoints;
            subscription.greeted = endpoints;
            subscription.held = Held::Version(resource.version);
        }
        Ok(())
    }

    /// Takes in a request, but for its `hello`. Returns what it newly refuses, for the log.
    ///
    /// # Errors
    /// When it asks for what it may not have, or answers what was not sent.
    pub fn request(&mut self, request: v1::DiscoveryRequest) -> Result<Vec<RefusedResource>, Misuse> {
        let refused = self.answer(request.nonce, request.refused)?;
        for name in request.unsubscribe {
            let key = self.key(&name)?;
            if let Some(subscription) = self.subscriptions.get_mut(&key) {
                subscription.asked = false;
                subscription.greeted = false;
                subscription.forget();
            }
            self.drop_unwanted(&key);
        }
        for name in request.subscribe {
            let key = self.key(&name)?;
            let subscription = self.ensure(&key)?;
            if subscription.asked || subscription.named > 0 {
                // It asks again, so it lost its copy. Endpoints that a Destination names stay subscribed by that alone.
                subscription.forget();
            } else {
                subscription.asked = true;
            }
            self.dirty.insert(key);
        }
        Ok(refused)
    }

    /// Notes what may have changed.
    pub fn mark(&mut self, keys: BTreeSet<Key>) {
        self.dirty.extend(keys.into_iter().filter(|key| self.subscriptions.contains_key(key)));
    }

    /// The unanswered response's nonce.
    pub fn unanswered(&self) -> Option<u64> {
        self.unanswered.as_ref().map(|unanswered| unanswered.nonce)
    }

    /// The next response: the newest state of all that the sidecar lacks, or of a good part of it. Nothing while one is
    /// unanswered.
    pub fn respond(&mut self) -> Option<v1::DiscoveryResponse> {
        if self.unanswered.is_some() {
            return None;
        }
        let mut response = v1::DiscoveryResponse::default();
        let mut unanswered =
            Unanswered { nonce: self.last_nonce + 1, keys: Vec::new(), deltas: HashSet::new() };
        let mut bytes = 0;
        while bytes < RESPONSE_BYTES
            && let Some(key) = self.dirty.pop_first()
        {
            let backends = self.put(&key, &mut response, &mut unanswered, &mut bytes);
            // A Destination's Endpoints travel with it whatever their size: without them it is of no use.
            for backend in backends {
                self.dirty.remove(&backend);
                self.put(&backend, &mut response, &mut unanswered, &mut bytes);
            }
        }
        if unanswered.keys.is_empty() {
            self.forget_greeted();
            return None;
        }
        response.nonce = unanswered.nonce;
        self.last_nonce = unanswered.nonce;
        self.unanswered = Some(unanswered);
        Some(response)
    }

    /// What an operator sees.
    pub fn report(&self) -> Report {
        let mut report = Report { subscribed: self.subscriptions.len(), ..Report::default() };
        for subscription in self.subscriptions.values() {
            match subscription.held.version() {
                Some("") => report.absent += 1,
                Some(_) => report.current += 1,
                None => {}
            }
            report.refused.extend(subscription.refused.clone());
        }
        report.refused.sort_by(|a, b| a.resource.cmp(&b.resource));
        report
    }

    /// Adds the newest state of `key` to the response, if the sidecar lacks it. Returns the Endpoints that go with it.
    fn put(
        &mut self,
        key: &Key,
        response: &mut v1::DiscoveryResponse,
        unanswered: &mut Unanswered,
        bytes: &mut usize,
    ) -> Vec<Key> {
        let (Some(state), Some(subscription)) = (self.view.current(key), self.subscriptions.get_mut(key))
        else {
            return Vec::new();
        };
        if subscription.sent.is_some() {
            // In this response already: two of its Destinations name it.
            return Vec::new();
        }
        let backends = state.backends.clone();
        if subscription.lacks(&state) {
            let base = match &subscription.held {
                _ if subscription.whole => None,
                Held::State(base) => Some(Arc::clone(base)),
                Held::Version(version) => self.view.former(key, version),
                Held::Nothing => None,
            };
            let name = key.name();
            *bytes += state.size + name.name.len();
            match (base.and_then(|base| state.delta_from(&base)), &state.body) {
                (_, None) => response.absent.push(name),
                (Some(delta), _) => {
                    unanswered.deltas.insert(key.clone());
                    response.changed.push(resource(name, &state.version, Body::EndpointsDelta(delta)));
                }
                (None, Some(body)) => response.changed.push(resource(name, &state.version, body.clone())),
            }
            subscription.sent = Some(state);
            subscription.sends.clone_from(&backends);
            unanswered.keys.push(key.clone());
        } else if subscription.held.version() == Some(&state.version) {
            // What it refused meanwhile is not wanted any more.
            subscription.refused = None;
            if !subscription.holds.is_empty() {
                return Vec::new();
            }
            // Held since before this stream.
            subscription.holds.clone_from(&backends);
            subscription.held = Held::State(state);
        } else {
            return Vec::new();
        }
        for backend in &backends {
            self.add(backend).named += 1;
        }
        backends
    }

    /// Takes in the answer to the unanswered response.
    fn answer(&mut self, nonce: u64, refusals: Vec<v1::Refusal>) -> Result<Vec<RefusedResource>, Misuse> {
        if nonce > self.last_nonce {
            return Err(Misuse::Nonce { answered: nonce, last: self.last_nonce });
        }
        let Some(unanswered) = self.unanswered.take_if(|unanswered| unanswered.nonce == nonce) else {
            return Ok(Vec::new());
        };
        let mut reasons = HashMap::new();
        for refusal in refusals {
            reasons.insert(self.key(&refusal.name.unwrap_or_default())?, refusal.reason);
        }
        let mut refused = Vec::new();
        let mut released = Vec::new();
        for key in unanswered.keys {
            // Unsubscribed meanwhile, perhaps.
            let Some(subscription) = self.subscriptions.get_mut(&key) else { continue };
            let Some(state) = subscription.sent.take() else { continue };
            let sends = std::mem::take(&mut subscription.sends);
            if let Some(reason) = reasons.remove(&key) {
                released.extend(sends);
                let entry = RefusedResource {
                    resource: describe(&key),
                    version: state.version.clone(),
                    reason: reason.chars().take(MAX_REASON).collect(),
                };
                subscription.refused = Some(entry.clone());
                subscription.whole = unanswered.deltas.contains(&key);
                if subscription.whole {
                    self.dirty.insert(key);
                }
                refused.push(entry);
            } else {
                released.extend(std::mem::replace(&mut subscription.holds, sends));
                subscription.held = Held::State(state);
                subscription.refused = None;
                subscription.whole = false;
            }
        }
        self.release(&released);
        Ok(refused)
    }

    fn key(&self, name: &v1::ResourceName) -> Result<Key, Misuse> {
        Ok(Key::asked(&self.pod, &self.namespace, name)?)
    }

    /// The subscription to `key`, made if there is room.
    fn ensure(&mut self, key: &Key) -> Result<&mut Subscription, Misuse> {
        let count = self.subscriptions.len();
        if count >= MAX_SUBSCRIPTIONS && !self.subscriptions.contains_key(key) {
            return Err(Misuse::TooMany(count + 1));
        }
        Ok(self.add(key))
    }

    fn add(&mut self, key: &Key) -> &mut Subscription {
        if !self.subscriptions.contains_key(key) {
            self.view.subscribe(key);
            self.dirty.insert(key.clone());
        }
        self.subscriptions.entry(key.clone()).or_insert_with(Subscription::new)
    }

    /// These Endpoints are named by one Destination less.
    fn release(&mut self, backends: &[Key]) {
        for backend in backends {
            if let Some(subscription) = self.subscriptions.get_mut(backend) {
                subscription.named = subscription.named.saturating_sub(1);
            }
            self.drop_unwanted(backend);
        }
    }

    /// Ends the subscription to `key` if nothing asks for it any more, and those that it alone named.
    fn drop_unwanted(&mut self, key: &Key) {
        let wanted = |s: &Subscription| s.asked || s.greeted || s.named > 0;
        if self.subscriptions.get(key).is_none_or(wanted) {
            return;
        }
        let Some(subscription) = self.subscriptions.remove(key) else { return };
        self.view.unsubscribe(key);
        self.dirty.remove(key);
        self.release(&subscription.holds);
        self.release(&subscription.sends);
    }

    /// Everything was answered once: Endpoints that were held before and that no Destination names any more may go.
    /// A sidecar that refused a Destination lives on its old one, so all stays then.
    fn forget_greeted(&mut self) {
        if !self.greeted || self.subscriptions.values().any(|subscription| subscription.refused.is_some()) {
            return;
        }
        self.greeted = false;
        let greeted: Vec<Key> =
            self.subscriptions.iter().filter(|(_, s)| s.greeted).map(|(key, _)| key.clone()).collect();
        for key in greeted {
            if let Some(subscription) = self.subscriptions.get_mut(&key) {
                subscription.greeted = false;
            }
            self.drop_unwanted(&key);
        }
    }
}

impl<V: View> Drop for Session<V> {
    fn drop(&mut self) {
        for key in self.subscriptions.keys() {
            self.view.unsubscribe(key);
        }
    }
}

fn resource(name: v1::ResourceName, version: &str, body: Body) -> v1::Resource {
    v1::Resource { name: Some(name), version: version.to_owned(), body: Some(body) }
}

/// "Destination reviews:9080".
fn describe(key: &Key) -> String {
    let kind = match key {
        Key::Inbound(_) => "Inbound",
        Key::TrustBundle(_) => "TrustBundle",
        Key::Destination { .. } => "Destination",
        Key::Endpoints(_) => "Endpoints",
        Key::Unknown { kind, name } => return format!("type {kind} {name}"),
    };
    format!("{kind} {}", key.name().name)
}

#[cfg(test)]
mod tests;
