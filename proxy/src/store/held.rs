//! Everything that came over the stream, and what follows from each message. No I/O and no clock: the writer task
//! feeds it with messages, misses and ticks, and sends what it leaves in [`Outgoing`].

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::SystemTime,
};

use heddle_api::{
    identity::{PodName, SpiffeId},
    v1::{
        self, DiscoveryRequest, DiscoveryResponse, HeldResource, Hello, Refusal, Resource, ResourceName,
        ResourceType, resource::Body,
    },
};

use super::{
    Command, Lookup, Shared, Status,
    backends::{Backends, EndpointsError},
    names::{Asked, Limits, Names, Staged},
    outgoing::Outgoing,
};
use crate::{
    config::convert,
    identity::{Identity, Trust},
};

/// Ticks for which a destination waits for endpoints: after that the stream is given up, since server and sidecar do
/// not agree on what was sent.
const GIVE_UP: u32 = 10;
/// Names that the server may hint at.
const EXPECTED: usize = 32;
/// Ticks between two sweeps.
const SWEEP: u32 = 30;

/// The store's contents, as its one writer sees them.
#[derive(Debug)]
pub(super) struct Held {
    shared: Arc<Shared>,
    identity: Arc<Identity>,
    pod: PodName,
    names: Names,
    backends: Backends,
    // Names whose newest destination waits for endpoints, and for how many ticks some do.
    waiting: BTreeSet<Arc<str>>,
    waited: u32,
    inbound_version: Option<String>,
    trust_version: Option<String>,
    ticks: u32,
    // Whether it was said since the last sweep that the store is full.
    said_full: bool,
    status: Status,
    pub(super) outgoing: Outgoing,
}

/// Server and sidecar do not agree on what was sent; a new stream will sort it out.
#[derive(Debug, thiserror::Error)]
#[error("the endpoints of {0} did not come")]
pub(super) struct Stuck(Arc<str>);

impl Held {
    pub(super) fn new(shared: Arc<Shared>, identity: Arc<Identity>, pod: PodName, limits: Limits) -> Self {
        Self {
            shared,
            identity,
            pod,
            names: Names::new(limits),
            backends: Backends::default(),
            waiting: BTreeSet::new(),
            waited: 0,
            inbound_version: None,
            trust_version: None,
            ticks: 0,
            said_full: false,
            status: Status::default(),
            outgoing: Outgoing::default(),
        }
    }

    /// The first message of a stream: what is held, by version, so that only differences come, and what is not.
    pub(super) fn hello(&mut self, id: &SpiffeId) -> DiscoveryRequest {
        self.outgoing = Outgoing::default();
        self.unstage_all();
        let mut request = DiscoveryRequest::default();
        let mut held = Vec::new();
        let mut put = |kind: ResourceType, name: &str, version: Option<&str>| {
            let name = ResourceName { r#type: kind.into(), name: name.to_owned() };
            match version {
                Some(version) => {
                    held.push(HeldResource { name: Some(name), version: version.to_owned() });
                }
                None => request.subscribe.push(name),
            }
        };
        put(ResourceType::TrustBundle, id.trust_domain(), self.trust_version.as_deref());
        put(ResourceType::Inbound, &self.pod.to_string(), self.inbound_version.as_deref());
        for (name, entry) in &mut self.names.entries {
            entry.refused = false;
            put(ResourceType::Destination, name, entry.version.as_deref());
        }
        for (key, version) in self.backends.versions() {
            put(ResourceType::Endpoints, key, Some(version));
        }
        let (pod, version) = (self.pod.to_string(), env!("CARGO_PKG_VERSION").to_owned());
        request.hello = Some(Hello { pod, version, held });
        request
    }

    /// The stream is up. Time that passed without one counts for nobody's disuse.
    pub(super) fn connected(&mut self) {
        self.status.connected = true;
        self.status.since = Some(SystemTime::now());
        self.status.streams += 1;
        self.ticks = 0;
        self.publish();
    }

    /// The stream is down, or did not come up.
    pub(super) fn disconnected(&mut self, error: String) {
        if self.status.connected || self.status.since.is_none() {
            self.status.since = Some(SystemTime::now());
        }
        self.status.connected = false;
        self.status.last_error = Some(error);
        self.publish();
    }

    /// A worker asks for a name.
    pub(super) fn ask(&mut self, command: Command) {
        match self.names.ask(&command.name, command.reply, self.status.connected) {
            Asked::Settled => {}
            Asked::New => self.outgoing.subscribe(ResourceType::Destination, &command.name),
            Asked::Full => {
                if !std::mem::replace(&mut self.said_full, true) {
                    tracing::warn!(name = %command.name, "the store is full of names in use: refusing more");
                }
                self.status.refused_names += 1;
            }
        }
    }

    /// A second has passed.
    pub(super) fn tick(&mut self) -> Result<(), Stuck> {
        self.names.purge_waiters();
        if self.status.connected {
            for (name, entry) in self.names.depart() {
                self.outgoing.unsubscribe(ResourceType::Destination, &name);
                self.backends.release(&entry.backends);
                if let Some(staged) = entry.staged {
                    self.backends.release(&staged.backends);
                }
                self.waiting.remove(&name);
            }
            self.ticks += 1;
            if self.ticks.is_multiple_of(SWEEP) {
                self.said_full = false;
                self.names.sweep();
                self.backends.sweep();
            }
            self.chase()?;
        }
        self.publish();
        Ok(())
    }

    /// Looks after destinations that wait for endpoints.
    fn chase(&mut self) -> Result<(), Stuck> {
        self.waited = if self.waiting.is_empty() { 0 } else { self.waited + 1 };
        if self.waited < GIVE_UP {
            return Ok(());
        }
        self.waited = 0;
        let staged = self.waiting.iter().filter_map(|name| self.names.entries.get(name)?.staged.as_ref());
        staged
            .flat_map(|s| self.backends.missing(&s.backends))
            .next()
            .map_or(Ok(()), |key| Err(Stuck(key.clone())))
    }

    /// Takes in one response and leaves the answer in `outgoing`. Endpoints go first, so that a destination finds
    /// those that came with it, in whatever order they stand.
    pub(super) fn apply(&mut self, response: DiscoveryResponse) {
        let mut refused = Vec::new();
        let (destinations, others): (Vec<_>, Vec<_>) =
            response.changed.into_iter().partition(|r| matches!(r.body, Some(Body::Destination(_))));
        for resource in others.into_iter().chain(destinations) {
            self.status.updates += 1;
            if let Err(reason) = self.take_in(&resource) {
                refused.push(self.refusal(resource, reason));
            }
        }
        for name in response.absent {
            self.absent(&name);
        }
        // Said once, in the first response of all: later streams begin with what is held.
        self.shared.expected.send_if_modified(|expected| {
            let first = expected.is_none();
            expected.get_or_insert_with(|| {
                response.expected.iter().take(EXPECTED).map(|name| (**name).into()).collect()
            });
            first
        });
        self.settle();
        self.backends.forget_unnamed();
        self.outgoing.answer(response.nonce, refused);
        self.publish();
    }

    fn refusal(&mut self, resource: Resource, reason: String) -> Refusal {
        let name = resource.name.unwrap_or_default();
        tracing::warn!(kind = ?name.r#type(), name = name.name, reason, "refused an update; the last good one stays");
        self.status.refused_updates += 1;
        self.status.last_refusal = Some(format!("{}: {reason}", name.name));
        Refusal { name: Some(name), version: resource.version, reason }
    }

    fn take_in(&mut self, resource: &Resource) -> Result<(), String> {
        let (name, version) = (resource.name.as_ref().map_or("", |n| &n.name), &*resource.version);
        match &resource.body {
            Some(Body::Destination(message)) => self.destination(name, version, message),
            Some(Body::Endpoints(message)) => {
                let result = self.backends.replace(name, version, message);
                result.map_err(|error| self.unusable_endpoints(name, &error))
            }
            // Crossed with the end of the last subscription that led here.
            Some(Body::EndpointsDelta(_)) if !self.backends.is_named(name) => Ok(()),
            Some(Body::EndpointsDelta(delta)) => {
                let result = self.backends.change(name, version, delta);
                result.map_err(|error| self.unusable_endpoints(name, &error))
            }
            Some(Body::Inbound(message)) => self.inbound(name, version, message),
            Some(Body::TrustBundle(message)) => self.trust(name, version, message),
            None => Err("a resource of a kind that this sidecar does not know".to_owned()),
        }
    }

    fn destination(&mut self, name: &str, version: &str, message: &v1::Destination) -> Result<(), String> {
        let Some((name, entry)) = self.names.entries.get_key_value(name) else {
            // Crossed with the end of its subscription.
            return Ok(());
        };
        let (name, known) = (name.clone(), entry.slot.is_some());
        let backends = &mut self.backends;
        let destination = match convert::destination(message, &mut |key| backends.state(key)) {
            Ok(destination) => Arc::new(destination),
            Err(error) => {
                if !known {
                    self.names.refuse(&name);
                }
                return Err(error.to_string());
            }
        };
        let keys: HashSet<&str> = message.backends.iter().map(|b| &*b.key).collect();
        let keys: Vec<Arc<str>> = keys.into_iter().map(Arc::from).collect();
        self.backends.name(&keys);
        self.unstage(&name);
        if let Some(entry) = self.names.entries.get_mut(&name) {
            entry.staged =
                Some(Staged { destination, version: version.to_owned(), backends: keys, asked: false });
            self.waiting.insert(name);
        }
        Ok(())
    }

    /// A difference from what is not held makes us ask for the whole; nonsense leaves what was there.
    fn unusable_endpoints(&mut self, key: &str, error: &EndpointsError) -> String {
        match error {
            EndpointsError::Base { .. } => self.outgoing.renew(ResourceType::Endpoints, key),
            EndpointsError::Convert(_) => self.backends.give_up(key),
        }
        error.to_string()
    }

    fn inbound(&mut self, name: &str, version: &str, message: &v1::Inbound) -> Result<(), String> {
        if name != self.pod.to_string() {
            return Err(format!("the Inbound of another pod than {}", self.pod));
        }
        let inbound = convert::inbound(message).map_err(|error| error.to_string())?;
        self.inbound_version = Some(version.to_owned());
        self.backends.set_place(&inbound.place);
        self.shared.inbound.store(Some(Arc::new(inbound)));
        self.shared.inbound_changed.send_replace(());
        Ok(())
    }

    fn trust(&mut self, name: &str, version: &str, message: &v1::TrustBundle) -> Result<(), String> {
        let own = self.identity.current();
        if own.is_none_or(|c| c.id.trust_domain() != name) {
            return Err("the trust bundle of another trust domain".to_owned());
        }
        let trust = Trust::new(name, &message.roots).map_err(|error| error.to_string())?;
        self.trust_version = Some(version.to_owned());
        self.identity.trust(Arc::new(trust));
        Ok(())
    }

    fn absent(&mut self, resource: &ResourceName) {
        let name = &*resource.name;
        match resource.r#type() {
            ResourceType::Destination => {
                self.unstage(name);
                if let Some(entry) = self.names.entries.get_mut(name) {
                    self.backends.release(&std::mem::take(&mut entry.backends));
                    entry.version = Some(String::new());
                    self.names.show(name, Lookup::NotInMesh);
                }
            }
            ResourceType::Endpoints => self.backends.absent(name),
            ResourceType::Inbound => {
                tracing::warn!(pod = %self.pod, "the control plane knows of no such pod; the last Inbound stays");
                self.inbound_version = Some(String::new());
            }
            ResourceType::TrustBundle | ResourceType::Unspecified => {
                tracing::warn!(name, "the control plane has no such trust bundle; the last one stays");
            }
        }
    }

    /// Shows the destinations whose endpoints are in. They come in the same message, but for those that the server
    /// believes us to hold because of another name, which we have just given up: these are asked for by name.
    fn settle(&mut self) {
        for name in std::mem::take(&mut self.waiting) {
            let Some(entry) = self.names.entries.get_mut(&name) else { continue };
            let Some(mut staged) = entry.staged.take() else { continue };
            let missing: Vec<_> = self.backends.missing(&staged.backends).cloned().collect();
            if !missing.is_empty() {
                if !std::mem::replace(&mut staged.asked, true) {
                    missing.iter().for_each(|key| self.outgoing.renew(ResourceType::Endpoints, key));
                }
                entry.staged = Some(staged);
                self.waiting.insert(name);
                continue;
            }
            self.backends.release(&std::mem::replace(&mut entry.backends, staged.backends));
            entry.version = Some(staged.version);
            self.names.show(&name, Lookup::Mesh(staged.destination));
        }
    }

    fn unstage(&mut self, name: &str) {
        self.waiting.remove(name);
        if let Some(staged) = self.names.entries.get_mut(name).and_then(|entry| entry.staged.take()) {
            self.backends.release(&staged.backends);
        }
    }

    fn unstage_all(&mut self) {
        for name in self.waiting.clone() {
            self.unstage(&name);
        }
        self.waited = 0;
    }

    /// Shows workers and people what has changed.
    pub(super) fn publish(&mut self) {
        if std::mem::take(&mut self.names.dirty) {
            self.shared.names.store(Arc::new(self.names.map()));
        }
        self.status.pending = self.names.pending();
        self.status.names = self.names.entries.len() - self.status.pending;
        self.status.backends = self.backends.len();
        self.shared.status.store(Arc::new(self.status.clone()));
    }
}
