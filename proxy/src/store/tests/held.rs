//! What follows from each message.

mod letting_go;

use std::sync::Arc;

use futures_now::now;
use heddle_api::v1::{DiscoveryRequest, HeldResource, Refusal, Resource, ResourceName, ResourceType};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{
    super::{Command, Lookup, Shared, Slot, held::Held, names::Limits},
    addresses, delta, destination, endpoints, inbound, inbound_in, name, nonsense, response, trust, zoned,
};
use crate::identity::{
    Identity,
    testing::{Authority, pod},
};

const REVIEWS: &str = "shop/reviews:9080";
const V2: &str = "shop/reviews-v2:9080";
/// Ticks of ten sweeps and one more, for the name that leaves with the last of them.
const LONG: usize = 301;

/// A future that must be done already.
mod futures_now {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    pub(super) fn now(future: impl Future<Output = ()>) -> bool {
        matches!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()))
    }
}

struct World {
    held: Held,
    shared: Arc<Shared>,
    identity: Arc<Identity>,
    nonce: u64,
}

type Answer = oneshot::Receiver<Arc<Slot>>;

impl World {
    fn new() -> Self {
        Self::with(Limits::DEFAULT)
    }

    /// A store whose stream is up.
    fn with(limits: Limits) -> Self {
        let shared = Arc::new(Shared::new());
        let identity = Arc::new(Identity::new());
        identity
            .publish(Authority::new("cluster.local").credentials("spiffe://cluster.local/ns/shop/sa/web"));
        let mut held = Held::new(shared.clone(), identity.clone(), pod(), limits);
        held.connected();
        Self { held, shared, identity, nonce: 0 }
    }

    fn ask(&mut self, name: &str) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.held.ask(Command { name: name.into(), reply });
        self.held.publish();
        answer
    }

    /// The server speaks; gives back what was refused.
    fn hear(&mut self, changed: Vec<Resource>, absent: Vec<ResourceName>) -> Vec<Refusal> {
        self.nonce += 1;
        self.held.apply(response(self.nonce, changed, absent));
        let answers = self.said();
        let answer = answers.iter().find(|request| request.nonce == self.nonce);
        answer.expect("every response is answered").refused.clone()
    }

    /// What the sidecar has to say.
    fn said(&mut self) -> Vec<DiscoveryRequest> {
        std::iter::from_fn(|| self.held.outgoing.next()).collect()
    }

    fn subscribed(&mut self) -> Vec<String> {
        self.said().into_iter().flat_map(|r| r.subscribe).map(|n| n.name).collect()
    }

    fn unsubscribed(&mut self) -> Vec<String> {
        self.said().into_iter().flat_map(|r| r.unsubscribe).map(|n| n.name).collect()
    }

    fn tick(&mut self, times: usize) {
        for _ in 0..times {
            self.held.tick().unwrap();
        }
    }

    /// As a worker sees it, without using it.
    fn visible(&self, name: &str) -> bool {
        self.shared.names.load().contains_key(name)
    }

    /// A name that is answered and that nobody holds.
    fn know(&mut self, named: &str) {
        drop(self.ask(named));
        self.said();
        assert_eq!(self.hear(vec![], vec![name(ResourceType::Destination, named)]), []);
        assert!(self.visible(named));
    }
}

fn absent(named: &str) -> Vec<ResourceName> {
    vec![name(ResourceType::Destination, named)]
}

#[test]
fn endpoints_may_stand_before_or_after_their_destination_in_a_message() {
    for reversed in [false, true] {
        let mut world = World::new();
        let mut answer = world.ask("reviews:9080");
        let mut message = vec![
            destination("reviews:9080", "d1", &[REVIEWS]),
            endpoints(REVIEWS, "e1", &["10.0.0.1", "10.0.0.2"]),
        ];
        if reversed {
            message.reverse();
        }
        assert_eq!(world.hear(message, vec![]), []);
        assert_eq!(addresses(&answer.try_recv().unwrap()), ["10.0.0.1", "10.0.0.2"]);
        assert!(world.visible("reviews:9080"));
    }
}

#[test]
fn a_destination_shows_once_the_endpoints_of_all_its_backends_are_in() {
    let mut world = World::new();
    let mut answer = world.ask("reviews:9080");
    world.said();
    let message =
        vec![destination("reviews:9080", "d1", &[REVIEWS, V2]), endpoints(REVIEWS, "e1", &["10.0.0.1"])];
    world.held.apply(response(1, message, vec![]));
    assert_eq!(answer.try_recv().unwrap_err(), TryRecvError::Empty);
    assert!(!world.visible("reviews:9080"));
    // What did not come is asked for by name.
    assert_eq!(world.subscribed(), [V2]);
    world.hear(vec![], vec![name(ResourceType::Endpoints, V2)]);
    assert_eq!(addresses(&answer.try_recv().unwrap()), ["10.0.0.1"]);
}

#[test]
fn a_new_backend_takes_over_only_when_its_endpoints_are_in() {
    let mut world = World::new();
    let mut answer = world.ask("reviews:9080");
    world.hear(
        vec![destination("reviews:9080", "d1", &[REVIEWS]), endpoints(REVIEWS, "e1", &["10.0.0.1"])],
        vec![],
    );
    let slot = answer.try_recv().unwrap();
    world.hear(vec![destination("reviews:9080", "d2", &[V2])], vec![]);
    assert_eq!(addresses(&slot), ["10.0.0.1"]);
    world.hear(vec![endpoints(V2, "e2", &["10.0.0.2"])], vec![]);
    assert_eq!(addresses(&slot), ["10.0.0.2"]);
}

#[test]
fn endpoints_are_seen_from_where_the_pod_is_whichever_comes_first() {
    let near = |slot: &Slot| {
        let Lookup::Mesh(destination) = slot.peek() else { panic!("in the mesh") };
        let set = destination.default.as_ref().unwrap().state.endpoints.load_full();
        let members = set.near.as_ref().map(|near| near.members.clone());
        members.unwrap_or_default().iter().map(|e| e.address.ip().to_string()).collect::<Vec<_>>()
    };
    let web = pod().to_string();
    let mut world = World::new();
    let mut answer = world.ask("reviews:9080");
    let both = [("10.0.0.1", "a"), ("10.0.0.2", "b")];
    world.hear(vec![destination("reviews:9080", "d1", &[REVIEWS]), zoned(REVIEWS, "e1", &both)], vec![]);
    let slot = answer.try_recv().unwrap();
    assert_eq!(near(&slot), [""; 0], "nobody knows where the pod is");
    world.hear(vec![inbound_in("a", &web, "i1")], vec![]);
    assert_eq!(near(&slot), ["10.0.0.1"]);
    // The node was moved to another zone; and endpoints come later.
    world.hear(vec![inbound_in("b", &web, "i2")], vec![]);
    assert_eq!(near(&slot), ["10.0.0.2"]);
    world.hear(vec![zoned(REVIEWS, "e2", &[("10.0.0.3", "b"), ("10.0.0.1", "a")])], vec![]);
    assert_eq!(near(&slot), ["10.0.0.3"]);
    // One without a hint, while a rollout is half-way.
    world.hear(vec![delta(REVIEWS, "e2", "e3", &["10.0.0.4"], &[])], vec![]);
    assert_eq!(near(&slot), [""; 0]);
    assert_eq!(addresses(&slot), ["10.0.0.1", "10.0.0.3", "10.0.0.4"]);
}

#[test]
fn a_stream_on_which_endpoints_never_come_is_given_up() {
    let mut world = World::new();
    let _answer = world.ask("reviews:9080");
    world.hear(vec![destination("reviews:9080", "d1", &[REVIEWS])], vec![]);
    let stuck = (0..20).position(|_| world.held.tick().is_err());
    assert_eq!(stuck, Some(9));
}

#[test]
fn many_waiters_share_one_subscription() {
    let mut world = World::new();
    let mut answers: Vec<_> = (0..100).map(|_| world.ask("reviews:9080")).collect();
    assert_eq!(world.subscribed(), ["reviews:9080"]);
    world.hear(vec![], absent("reviews:9080"));
    for answer in &mut answers {
        assert!(matches!(answer.try_recv().unwrap().peek(), Lookup::NotInMesh));
    }
    // And whoever comes late is answered at once.
    assert!(world.ask("reviews:9080").try_recv().is_ok());
    assert!(world.subscribed().is_empty());
}

#[test]
fn a_slot_follows_its_name_out_of_the_mesh_and_back() {
    let mut world = World::new();
    let mut answer = world.ask("reviews:9080");
    let there =
        || vec![destination("reviews:9080", "d1", &[REVIEWS]), endpoints(REVIEWS, "e1", &["10.0.0.1"])];
    world.hear(there(), vec![]);
    let slot = answer.try_recv().unwrap();
    world.hear(vec![], absent("reviews:9080"));
    assert_eq!(addresses(&slot), ["not in the mesh"]);
    world.hear(there(), vec![]);
    assert_eq!(addresses(&slot), ["10.0.0.1"]);
}

#[test]
fn an_unusable_destination_is_refused_by_name_and_the_last_good_one_stays() {
    let mut world = World::new();
    let mut answer = world.ask("reviews:9080");
    world.hear(
        vec![destination("reviews:9080", "d1", &[REVIEWS]), endpoints(REVIEWS, "e1", &["10.0.0.1"])],
        vec![],
    );
    let slot = answer.try_recv().unwrap();
    // The rest of the message counts.
    let refused =
        world.hear(vec![nonsense("reviews:9080", "d2"), endpoints(REVIEWS, "e2", &["10.0.0.2"])], vec![]);
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].name, Some(name(ResourceType::Destination, "reviews:9080")));
    assert_eq!(refused[0].version, "d2");
    assert!(!refused[0].reason.is_empty());
    assert_eq!(addresses(&slot), ["10.0.0.2"]);
    let status = world.shared.status.load();
    assert_eq!((status.refused_updates, status.updates), (1, 4));
}

#[test]
fn nobody_waits_for_a_name_whose_only_answer_was_unusable() {
    let mut world = World::new();
    let mut answer = world.ask("reviews:9080");
    world.hear(vec![nonsense("reviews:9080", "d1")], vec![]);
    assert_eq!(answer.try_recv().unwrap_err(), TryRecvError::Closed);
    assert_eq!(world.ask("reviews:9080").try_recv().unwrap_err(), TryRecvError::Closed);
    // Until the server sends a better one.
    world.hear(vec![destination("reviews:9080", "d2", &[REVIEWS]), endpoints(REVIEWS, "e1", &[])], vec![]);
    assert!(world.ask("reviews:9080").try_recv().is_ok());
}

#[test]
fn a_difference_changes_what_it_names_and_nothing_else() {
    let mut world = World::new();
    let mut answer = world.ask("reviews:9080");
    let first = endpoints(REVIEWS, "e1", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    world.hear(vec![destination("reviews:9080", "d1", &[REVIEWS]), first], vec![]);
    let slot = answer.try_recv().unwrap();
    let stats = |slot: &Slot| {
        let Lookup::Mesh(destination) = slot.peek() else { panic!("in the mesh") };
        let set = destination.default.as_ref().unwrap().state.endpoints.load();
        set.all.iter().find(|e| e.address.ip().to_string() == "10.0.0.2").unwrap().stats.clone()
    };
    let before = stats(&slot);
    assert_eq!(world.hear(vec![delta(REVIEWS, "e1", "e2", &["10.0.0.4"], &["10.0.0.1"])], vec![]), []);
    assert_eq!(addresses(&slot), ["10.0.0.2", "10.0.0.3", "10.0.0.4"]);
    assert!(Arc::ptr_eq(&before, &stats(&slot)), "an endpoint that stays keeps its load and health");
    assert_eq!(world.hear(vec![delta(REVIEWS, "e2", "e3", &[], &["10.0.0.2"])], vec![]), []);
    assert_eq!(addresses(&slot), ["10.0.0.3", "10.0.0.4"]);
}

#[test]
fn a_difference_from_something_else_is_refused_and_the_whole_asked_for() {
    let mut world = World::new();
    let mut answer = world.ask("reviews:9080");
    world.hear(
        vec![destination("reviews:9080", "d1", &[REVIEWS]), endpoints(REVIEWS, "e1", &["10.0.0.1"])],
        vec![],
    );
    let slot = answer.try_recv().unwrap();
    world.held.apply(response(2, vec![delta(REVIEWS, "e7", "e8", &["10.0.0.9"], &[])], vec![]));
    let said = world.said();
    assert!(said[0].refused[0].reason.contains("e7"), "{said:?}");
    assert_eq!(said[0].unsubscribe, [name(ResourceType::Endpoints, REVIEWS)]);
    assert_eq!(said[1].subscribe, [name(ResourceType::Endpoints, REVIEWS)]);
    assert_eq!(addresses(&slot), ["10.0.0.1"]);
}

#[test]
fn unusable_endpoints_leave_the_last_good_ones_and_do_not_hide_a_destination() {
    let mut world = World::new();
    let mut answer = world.ask("reviews:9080");
    let message = vec![destination("reviews:9080", "d1", &[REVIEWS]), endpoints(REVIEWS, "e1", &["nowhere"])];
    assert_eq!(world.hear(message, vec![]).len(), 1);
    let slot = answer.try_recv().unwrap();
    assert!(addresses(&slot).is_empty());
    world.hear(vec![endpoints(REVIEWS, "e2", &["10.0.0.1"])], vec![]);
    assert_eq!(world.hear(vec![delta(REVIEWS, "e2", "e3", &["nowhere"], &["10.0.0.1"])], vec![]).len(), 1);
    assert_eq!(addresses(&slot), ["10.0.0.1"]);
}

#[test]
fn a_new_stream_begins_with_what_is_held_by_version() {
    let mut world = World::new();
    let _slots = ["reviews:9080", "example.com:80", "slow:80"].map(|name| world.ask(name));
    let web = pod().to_string();
    let root = Authority::new("cluster.local").root();
    let message = vec![
        destination("reviews:9080", "d1", &[REVIEWS]),
        endpoints(REVIEWS, "e1", &["10.0.0.1"]),
        inbound(&web, "i1", false),
        trust("t1", &[&root]),
    ];
    world.hear(message, absent("example.com:80"));
    // Seen, but not complete: the next stream brings it again.
    world.hear(vec![destination("reviews:9080", "d2", &[REVIEWS, V2])], vec![]);
    world.held.disconnected("gone".to_owned());
    let first = world.held.hello(&world.identity.current().unwrap().id);
    let hello = first.hello.unwrap();
    assert_eq!(hello.pod, web);
    let mut held: Vec<_> =
        hello.held.into_iter().map(|HeldResource { name, version }| (name.unwrap().name, version)).collect();
    held.sort();
    let expected = [
        ("cluster.local", "t1"),
        ("example.com:80", ""),
        ("reviews:9080", "d1"),
        (REVIEWS, "e1"),
        (web.as_str(), "i1"),
    ];
    assert_eq!(held, expected.map(|(name, version)| (name.to_owned(), version.to_owned())));
    assert_eq!(first.subscribe, [name(ResourceType::Destination, "slow:80")]);
    // And what the old stream still had to say is not said on the new one.
    assert!(world.said().is_empty());
}

#[test]
fn a_first_stream_asks_for_the_pods_own_side_and_for_the_trust_bundle() {
    let mut world = World::new();
    let first = world.held.hello(&world.identity.current().unwrap().id);
    let expected =
        [name(ResourceType::TrustBundle, "cluster.local"), name(ResourceType::Inbound, &pod().to_string())];
    assert_eq!(first.subscribe, expected);
}

#[test]
fn the_pods_own_side_is_followed_and_another_pods_refused() {
    let mut world = World::new();
    let mut changed = world.shared.inbound_changed.subscribe();
    let refused = world.hear(vec![inbound("shop/bank-0", "i1", true)], vec![]);
    assert!(refused[0].reason.contains("another pod"), "{refused:?}");
    assert!(world.shared.inbound.load().is_none() && !changed.has_changed().unwrap());
    world.hear(vec![inbound(&pod().to_string(), "i1", true)], vec![]);
    assert!(world.shared.inbound.load().as_ref().unwrap().terminating);
    assert!(now(async { changed.changed().await.unwrap() }));
    // A pod that the control plane forgot keeps its last rules: none at all would be worse.
    world.hear(vec![], vec![name(ResourceType::Inbound, &pod().to_string())]);
    assert!(world.shared.inbound.load().is_some());
}

#[test]
fn a_trust_bundle_counts_from_the_next_handshake_and_an_empty_one_is_refused() {
    let mut world = World::new();
    let root = Authority::new("cluster.local").root();
    assert_eq!(world.hear(vec![trust("t1", &[&root])], vec![]), []);
    assert_eq!(world.identity.current().unwrap().trust.roots(), std::slice::from_ref(&root));
    for bad in [trust("t2", &[]), trust("t3", &[b"no certificate"])] {
        assert_eq!(world.hear(vec![bad], vec![]).len(), 1);
    }
    assert_eq!(world.identity.current().unwrap().trust.roots(), [root]);
}
