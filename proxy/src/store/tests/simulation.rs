//! A model of the server, a network that delays and cuts, and a sidecar that asks, keeps and forgets: whatever
//! happens, once it is quiet the store says what the server says, and whoever holds a slot sees it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use heddle_api::v1::{DiscoveryRequest, DiscoveryResponse, Resource, ResourceType};
use proptest::prelude::*;
use tokio::sync::oneshot;

use super::{
    super::{Command, Lookup, Shared, Slot, held::Held, names::Limits},
    delta, destination, endpoints, name, response,
};
use crate::identity::{
    Identity,
    testing::{Authority, pod},
};

const NAMES: [&str; 5] = ["a:80", "b:80", "c:80", "d:80", "e:80"];
const BACKENDS: [&str; 3] = ["shop/x:80", "shop/y:80", "shop/z:80"];

/// Endpoints of a backend, as the last bytes of their addresses.
type Set = BTreeSet<u8>;

#[derive(Clone, Debug)]
enum Step {
    Ask(usize),
    Keep(usize),
    Drop(usize),
    Route(usize, Option<BTreeSet<usize>>),
    Scale(usize, Set),
    ToServer,
    ToSidecar,
    Ticks(usize),
    Cut,
    Connect,
}

fn step() -> impl Strategy<Value = Step> {
    let (name, backend) = (0..NAMES.len(), 0..BACKENDS.len());
    let backends = proptest::option::weighted(0.8, prop::collection::btree_set(backend.clone(), 1..3));
    prop_oneof![
        4 => name.clone().prop_map(Step::Ask),
        1 => name.clone().prop_map(Step::Keep),
        1 => name.clone().prop_map(Step::Drop),
        3 => (name, backends).prop_map(|(n, b)| Step::Route(n, b)),
        3 => (backend, prop::collection::btree_set(1u8..6, 0..4)).prop_map(|(b, s)| Step::Scale(b, s)),
        8 => Just(Step::ToServer),
        8 => Just(Step::ToSidecar),
        2 => (1usize..70).prop_map(Step::Ticks),
        1 => Just(Step::Cut),
        2 => Just(Step::Connect),
    ]
}

/// What is true.
#[derive(Default)]
struct Truth {
    routes: BTreeMap<&'static str, BTreeSet<&'static str>>,
    sets: BTreeMap<&'static str, Set>,
}

fn addresses(set: &Set) -> Vec<String> {
    set.iter().map(|byte| format!("10.0.0.{byte}")).collect()
}

fn strs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

/// A version is its content, so that it survives whatever the server forgets.
fn version(set: &Set) -> String {
    format!("{set:?}")
}

impl Truth {
    fn set(&self, key: &str) -> Set {
        self.sets.get(key).cloned().unwrap_or_default()
    }

    fn route_version(&self, name: &str) -> String {
        self.routes.get(name).map_or(String::new(), |backends| format!("{backends:?}"))
    }
}

/// The server's side of one stream: what it believes the sidecar to hold. At most one response is unanswered.
#[derive(Default)]
struct Session {
    routes: BTreeMap<String, Option<String>>,
    // By backend: the version that was sent, with its content when this session knows it.
    sets: BTreeMap<String, (String, Option<Set>)>,
    nonce: u64,
    unanswered: bool,
}

impl Session {
    fn hear(&mut self, request: DiscoveryRequest) {
        for held in request.hello.into_iter().flat_map(|hello| hello.held) {
            let name = held.name.unwrap();
            match name.r#type() {
                ResourceType::Destination => drop(self.routes.insert(name.name, Some(held.version))),
                ResourceType::Endpoints => drop(self.sets.insert(name.name, (held.version, None))),
                _ => {}
            }
        }
        if request.nonce != 0 {
            self.unanswered = false;
            for refused in request.refused {
                self.sets.remove(&refused.name.unwrap().name);
            }
        }
        for name in request.unsubscribe {
            self.routes.remove(&name.name);
        }
        for name in request.subscribe {
            match name.r#type() {
                ResourceType::Destination => drop(self.routes.insert(name.name, None)),
                ResourceType::Endpoints => drop(self.sets.remove(&name.name)),
                _ => {}
            }
        }
    }

    fn respond(&mut self, truth: &Truth) -> Option<DiscoveryResponse> {
        if self.unanswered {
            return None;
        }
        let (mut changed, mut absent) = (Vec::<Resource>::new(), Vec::new());
        let mut named = BTreeSet::new();
        for (route, held) in &mut self.routes {
            let version = truth.route_version(route);
            if held.as_ref() != Some(&version) {
                match truth.routes.get(&**route) {
                    Some(backends) => {
                        let backends: Vec<_> = backends.iter().copied().collect();
                        changed.push(destination(route, &version, &backends));
                    }
                    None => absent.push(name(ResourceType::Destination, route)),
                }
                *held = Some(version);
            }
            named.extend(truth.routes.get(&**route).into_iter().flatten().copied());
        }
        self.sets.retain(|key, _| named.contains(&**key));
        for key in named {
            let set = truth.set(key);
            let new = version(&set);
            match self.sets.get(key) {
                Some((held, _)) if *held == new => continue,
                Some((held, Some(before))) => {
                    let upserted: Set = set.difference(before).copied().collect();
                    let removed: Set = before.difference(&set).copied().collect();
                    let (upserted, removed) = (addresses(&upserted), addresses(&removed));
                    changed.push(delta(key, held, &new, &strs(&upserted), &strs(&removed)));
                }
                _ => changed.push(endpoints(key, &new, &strs(&addresses(&set)))),
            }
            self.sets.insert(key.to_owned(), (new, Some(set)));
        }
        if changed.is_empty() && absent.is_empty() {
            return None;
        }
        self.nonce += 1;
        self.unanswered = true;
        Some(response(self.nonce, changed, absent))
    }
}

struct World {
    truth: Truth,
    session: Option<Session>,
    to_server: VecDeque<DiscoveryRequest>,
    to_sidecar: VecDeque<DiscoveryResponse>,
    held: Held,
    shared: Arc<Shared>,
    identity: Arc<Identity>,
    kept: BTreeMap<&'static str, Arc<Slot>>,
    answers: Vec<oneshot::Receiver<Arc<Slot>>>,
}

impl World {
    fn new(authority: &Authority) -> Self {
        let identity = Arc::new(Identity::new());
        identity.publish(authority.credentials("spiffe://cluster.local/ns/shop/sa/web"));
        let shared = Arc::new(Shared::new());
        // Small and forgetful, so that names come and go.
        let limits = Limits { names: 3, leaving: 2, idle: 1, ..Limits::DEFAULT };
        let held = Held::new(shared.clone(), identity.clone(), pod(), limits);
        Self {
            truth: Truth::default(),
            session: None,
            to_server: VecDeque::new(),
            to_sidecar: VecDeque::new(),
            held,
            shared,
            identity,
            kept: BTreeMap::new(),
            answers: Vec::new(),
        }
    }

    fn cut(&mut self) {
        self.session = None;
        self.to_server.clear();
        self.to_sidecar.clear();
        self.held.disconnected("cut".to_owned());
    }

    fn connect(&mut self) {
        if self.session.is_none() {
            self.session = Some(Session::default());
            let id = self.identity.current().unwrap().id.clone();
            let hello = self.held.hello(&id);
            self.to_server.push_back(hello);
            self.held.connected();
        }
    }

    fn cached(&self, name: &str) -> Option<Arc<Slot>> {
        self.shared.names.load().get(name).cloned()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask(index) => {
                let (reply, answer) = oneshot::channel();
                self.held.ask(Command { name: NAMES[index].into(), reply });
                self.held.publish();
                self.answers.push(answer);
            }
            Step::Keep(index) => {
                if let Some(slot) = self.cached(NAMES[index]) {
                    self.kept.insert(NAMES[index], slot);
                }
            }
            Step::Drop(index) => drop(self.kept.remove(NAMES[index])),
            Step::Route(index, None) => drop(self.truth.routes.remove(NAMES[index])),
            Step::Route(index, Some(backends)) => {
                self.truth.routes.insert(NAMES[index], backends.into_iter().map(|b| BACKENDS[b]).collect());
            }
            Step::Scale(backend, set) => drop(self.truth.sets.insert(BACKENDS[backend], set)),
            Step::ToServer => {
                if let Some(session) = &mut self.session {
                    self.to_server.extend(self.held.outgoing.next());
                    if let Some(request) = self.to_server.pop_front() {
                        session.hear(request);
                    }
                    self.to_sidecar.extend(session.respond(&self.truth));
                }
            }
            Step::ToSidecar => {
                if let Some(response) = self.to_sidecar.pop_front() {
                    self.held.apply(response);
                }
            }
            Step::Ticks(count) => {
                for _ in 0..count {
                    if self.held.tick().is_err() {
                        return self.cut();
                    }
                }
            }
            Step::Cut => self.cut(),
            Step::Connect => self.connect(),
        }
        self.answers
            .retain_mut(|answer| matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        self.connect();
        for _ in 0..200 {
            self.step(Step::ToServer);
            self.step(Step::ToSidecar);
        }
        assert!(self.to_server.is_empty() && self.to_sidecar.is_empty() && self.held.outgoing.is_empty());
    }

    /// What a slot says, and what it should say.
    fn compare(&self, slot: &Slot) {
        let name = slot.name();
        match (slot.peek(), self.truth.routes.get(name)) {
            (Lookup::NotInMesh, None) => {}
            (Lookup::Mesh(destination), Some(backends)) => {
                let backend = destination.default.as_ref().unwrap();
                let first = *backends.first().unwrap();
                assert_eq!(&*backend.key, first, "{name}");
                let set = backend.state.endpoints.load();
                let found: Set = set
                    .all
                    .iter()
                    .map(|e| match e.address.ip() {
                        std::net::IpAddr::V4(ip) => ip.octets()[3],
                        std::net::IpAddr::V6(_) => unreachable!("there are none"),
                    })
                    .collect();
                assert_eq!(found, self.truth.set(first), "{name} by way of {first}");
            }
            (found, wanted) => panic!("{name} is {found:?}, the server says {wanted:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn once_it_is_quiet_the_store_says_what_the_server_says(
        steps in prop::collection::vec(step(), 0..150),
    ) {
        // One for all cases: keys are slow to make, and the identity is not what is tried here.
        static AUTHORITY: std::sync::LazyLock<Authority> =
            std::sync::LazyLock::new(|| Authority::new("cluster.local"));
        let mut world = World::new(&AUTHORITY);
        world.connect();
        for step in steps {
            world.step(step);
        }
        world.settle();
        prop_assert!(world.answers.is_empty(), "a waiter without an answer");
        for slot in world.shared.names.load().values().chain(world.kept.values()) {
            world.compare(slot);
        }
        for (name, slot) in &world.kept {
            // A slot in somebody's hands is the one that the next lookup finds, or will be brought back by a tick.
            if let Some(found) = world.cached(name) {
                prop_assert!(Arc::ptr_eq(slot, &found), "{} has two slots", name);
            }
        }
    }
}
