//! Sidecar and server, message by message.

mod simulation;

use std::{cell::RefCell, rc::Rc};

use heddle_api::v1::{
    DiscoveryRequest, DiscoveryResponse, HeldResource, Refusal, ResourceName, ResourceType,
};

use super::*;

/// Resources that a test writes, and who is subscribed.
#[derive(Clone, Default)]
struct World(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    states: HashMap<Key, Arc<Rendered>>,
    former: HashMap<(Key, String), Arc<Rendered>>,
    subscribed: BTreeSet<Key>,
}

impl World {
    fn set(&self, key: Key, state: Rendered) -> Key {
        let mut inner = self.0.borrow_mut();
        if let Some(old) = inner.states.insert(key.clone(), Arc::new(state)) {
            inner.former.insert((key.clone(), old.version.clone()), old);
        }
        key
    }

    fn endpoints(&self, name: &str, addresses: &[&str]) -> Key {
        let endpoints =
            addresses.iter().map(|&address| v1::Endpoint { address: address.into(), ..Default::default() });
        let value = v1::Endpoints { endpoints: endpoints.collect() };
        self.set(Key::Endpoints(name.into()), Rendered::endpoints(Some(value)))
    }

    fn destination(&self, name: &str, backends: &[&str]) -> Key {
        let backends =
            backends.iter().map(|&key| v1::Backend { key: key.into(), ..Default::default() }).collect();
        let value = v1::Destination { service: name.into(), backends, ..Default::default() };
        let key = Key::Destination { namespace: "shop".into(), name: name.into() };
        self.set(key, Rendered::destination(Some(value)))
    }

    fn version(&self, key: &Key) -> String {
        self.0.borrow().states[key].version.clone()
    }
}

impl View for World {
    fn subscribe(&self, key: &Key) {
        assert!(self.0.borrow_mut().subscribed.insert(key.clone()), "{key:?} twice");
    }

    fn unsubscribe(&self, key: &Key) {
        assert!(self.0.borrow_mut().subscribed.remove(key), "{key:?} was not subscribed");
    }

    fn current(&self, key: &Key) -> Option<Arc<Rendered>> {
        let inner = self.0.borrow();
        assert!(inner.subscribed.contains(key), "{key:?} is read without a subscription");
        Some(inner.states.get(key).cloned().unwrap_or_else(|| Arc::new(Rendered::absent())))
    }

    fn former(&self, key: &Key, version: &str) -> Option<Arc<Rendered>> {
        self.0.borrow().former.get(&(key.clone(), version.to_owned())).cloned()
    }
}

fn session(world: &World) -> Session<World> {
    Session::new("shop/web-0".parse().unwrap(), world.clone())
}

fn destination(name: &str) -> ResourceName {
    ResourceName { r#type: ResourceType::Destination.into(), name: name.to_owned() }
}

fn endpoints(name: &str) -> ResourceName {
    ResourceName { r#type: ResourceType::Endpoints.into(), name: name.to_owned() }
}

fn subscribe(names: &[ResourceName]) -> DiscoveryRequest {
    DiscoveryRequest { subscribe: names.to_vec(), ..Default::default() }
}

fn unsubscribe(names: &[ResourceName]) -> DiscoveryRequest {
    DiscoveryRequest { unsubscribe: names.to_vec(), ..Default::default() }
}

fn ack(response: &DiscoveryResponse) -> DiscoveryRequest {
    DiscoveryRequest { nonce: response.nonce, ..Default::default() }
}

fn nack(response: &DiscoveryResponse, name: ResourceName) -> DiscoveryRequest {
    let refusal = Refusal { name: Some(name), reason: "no".to_owned(), ..Default::default() };
    DiscoveryRequest { nonce: response.nonce, refused: vec![refusal], ..Default::default() }
}

/// Names in a response, in order.
fn changed(response: &DiscoveryResponse) -> Vec<String> {
    response.changed.iter().map(|resource| resource.name.clone().unwrap().name).collect()
}

/// Sends what is due, acknowledged until nothing more comes.
fn settle(session: &mut Session<World>) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(response) = session.respond() {
        names.extend(changed(&response));
        session.request(ack(&response)).unwrap();
    }
    names
}

#[test]
fn a_destination_comes_with_the_endpoints_that_it_names() {
    let world = World::default();
    world.destination("reviews:80", &["shop/reviews:80"]);
    world.endpoints("shop/reviews:80", &["10.0.0.1"]);
    let mut session = session(&world);
    session.request(subscribe(&[destination("reviews:80")])).unwrap();
    let response = session.respond().unwrap();
    assert_eq!(
        (response.nonce, changed(&response)),
        (1, vec!["reviews:80".into(), "shop/reviews:80".into()])
    );
}

#[test]
fn endpoints_that_two_destinations_name_come_once() {
    let world = World::default();
    world.destination("a:80", &["x"]);
    world.destination("b:80", &["x"]);
    world.endpoints("x", &["1"]);
    let mut session = session(&world);
    session.request(subscribe(&[destination("a:80"), destination("b:80")])).unwrap();
    assert_eq!(changed(&session.respond().unwrap()), ["a:80", "x", "b:80"]);
}

#[test]
fn a_name_that_leads_nowhere_is_answered_absent_once() {
    let world = World::default();
    let mut session = session(&world);
    session.request(subscribe(&[destination("example.com:80")])).unwrap();
    let response = session.respond().unwrap();
    assert_eq!(response.absent, [destination("example.com:80")]);
    session.request(ack(&response)).unwrap();
    assert_eq!(session.respond(), None);
}

#[test]
fn nothing_is_sent_while_a_response_is_unanswered_and_then_only_the_newest_state() {
    let world = World::default();
    world.destination("reviews:80", &["b"]);
    let key = world.endpoints("b", &["1"]);
    let mut session = session(&world);
    session.request(subscribe(&[destination("reviews:80")])).unwrap();
    let first = session.respond().unwrap();
    for n in 2..100 {
        world.endpoints("b", &[&n.to_string()]);
        session.mark([key.clone()].into());
        assert_eq!(session.respond(), None);
    }
    session.request(ack(&first)).unwrap();
    let second = session.respond().unwrap();
    assert_eq!((changed(&second), &second.changed[0].version), (vec!["b".into()], &world.version(&key)));
    session.request(ack(&second)).unwrap();
    assert_eq!(session.respond(), None);
}

#[test]
fn what_changed_back_before_it_was_sent_is_not_sent() {
    let world = World::default();
    let key = world.destination("reviews:80", &[]);
    let mut session = session(&world);
    session.request(subscribe(&[destination("reviews:80")])).unwrap();
    settle(&mut session);
    session.mark([key].into());
    assert_eq!(session.respond(), None);
}

#[test]
fn on_reconnect_only_differences_come() {
    let world = World::default();
    let held = |name: ResourceName, version: String| HeldResource { name: Some(name), version };
    let same = world.destination("same:80", &["s"]);
    let same_endpoints = world.endpoints("s", &["1"]);
    world.destination("new:80", &[]);
    let mut session = session(&world);
    session
        .hello(vec![
            held(destination("same:80"), world.version(&same)),
            held(endpoints("s"), world.version(&same_endpoints)),
            held(destination("new:80"), "older".to_owned()),
            held(destination("nowhere:80"), String::new()),
            held(destination("gone:80"), "was there".to_owned()),
        ])
        .unwrap();
    let response = session.respond().unwrap();
    assert_eq!(changed(&response), ["new:80"]);
    assert_eq!(response.absent, [destination("gone:80")]);
    session.request(ack(&response)).unwrap();
    assert_eq!(session.respond(), None);
    // What was held is followed from here on.
    world.endpoints("s", &["2"]);
    session.mark([same_endpoints].into());
    assert_eq!(settle(&mut session), ["s"]);
}

#[test]
fn endpoints_held_before_that_no_destination_names_any_more_are_let_go() {
    let world = World::default();
    let (key, old) = (world.destination("a:80", &["new"]), world.endpoints("old", &["1"]));
    world.endpoints("new", &["2"]);
    let mut session = session(&world);
    let held = |name, version: &str| HeldResource { name: Some(name), version: version.to_owned() };
    session
        .hello(vec![held(destination("a:80"), "before"), held(endpoints("old"), &world.version(&old))])
        .unwrap();
    assert_eq!(settle(&mut session), ["a:80", "new"]);
    assert_eq!(world.0.borrow().subscribed, [key, Key::Endpoints("new".into())].into());
}

#[test]
fn a_change_of_endpoints_travels_as_a_difference_and_a_refused_one_is_sent_whole() {
    let world = World::default();
    let many: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    world.destination("a:80", &["b"]);
    let key = world.endpoints("b", &many[..49]);
    let mut session = session(&world);
    session.request(subscribe(&[destination("a:80")])).unwrap();
    settle(&mut session);
    let base = world.version(&key);
    world.endpoints("b", &many);
    session.mark([key.clone()].into());
    let response = session.respond().unwrap();
    let Some(Body::EndpointsDelta(delta)) = &response.changed[0].body else { panic!("{response:?}") };
    assert_eq!((&delta.base_version, delta.upserted.len(), delta.removed.len()), (&base, 1, 0));

    assert_eq!(session.request(nack(&response, endpoints("b"))).unwrap().len(), 1);
    let response = session.respond().unwrap();
    assert!(matches!(&response.changed[0].body, Some(Body::Endpoints(all)) if all.endpoints.len() == 50));
    session.request(ack(&response)).unwrap();
    assert_eq!((session.respond(), session.report().refused), (None, vec![]));
}

#[test]
fn after_a_reconnect_a_remembered_version_still_gets_a_difference() {
    let world = World::default();
    let many: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let a = world.destination("a:80", &["b"]);
    let b = world.endpoints("b", &many[1..]);
    let held = |name, version| HeldResource { name: Some(name), version };
    let hello = vec![held(destination("a:80"), world.version(&a)), held(endpoints("b"), world.version(&b))];
    world.endpoints("b", &many);
    let mut session = session(&world);
    session.hello(hello).unwrap();
    let response = session.respond().unwrap();
    assert!(matches!(&response.changed[..], [v1::Resource { body: Some(Body::EndpointsDelta(_)), .. }]));
}

#[test]
fn what_was_refused_is_not_repeated_until_it_changes_and_is_remembered_for_the_operator() {
    let world = World::default();
    let key = world.destination("a:80", &["one"]);
    world.endpoints("one", &["1"]);
    let mut session = session(&world);
    session.request(subscribe(&[destination("a:80")])).unwrap();
    settle(&mut session);
    let good = world.version(&key);

    world.destination("a:80", &["two"]);
    session.mark([key.clone()].into());
    let response = session.respond().unwrap();
    session.request(nack(&response, destination("a:80"))).unwrap();
    session.mark([key.clone()].into());
    assert_eq!(session.respond(), None);
    assert_eq!(session.report().refused[0].resource, "Destination a:80");
    // The sidecar lives on the old one, so that one's endpoints are followed and the refused one's are not.
    let expected: BTreeSet<_> = [key.clone(), Key::Endpoints("one".into())].into();
    assert_eq!(world.0.borrow().subscribed, expected);

    // Back to what it holds: nothing to send, and nothing refused any more.
    world.destination("a:80", &["one"]);
    assert_eq!(world.version(&key), good);
    session.mark([key.clone()].into());
    assert_eq!((session.respond(), session.report().refused), (None, vec![]));

    world.destination("a:80", &["three"]);
    session.mark([key].into());
    assert_eq!(settle(&mut session), ["a:80"]);
}

#[test]
fn endpoints_that_a_destination_names_no_longer_are_let_go_with_the_last_one_that_did() {
    let world = World::default();
    let (a, b) = (world.destination("a:80", &["x", "y"]), world.destination("b:80", &["y"]));
    let [x, y] = ["x", "y"].map(|name| world.endpoints(name, &["1"]));
    let mut session = session(&world);
    session.request(subscribe(&[destination("a:80"), destination("b:80")])).unwrap();
    settle(&mut session);
    assert_eq!(world.0.borrow().subscribed, [a, b.clone(), x, y.clone()].into());
    session.request(unsubscribe(&[destination("a:80")])).unwrap();
    assert_eq!(world.0.borrow().subscribed, [b, y].into());
    session.request(unsubscribe(&[destination("b:80")])).unwrap();
    assert_eq!(world.0.borrow().subscribed, BTreeSet::new());
}

#[test]
fn a_name_that_is_given_up_and_asked_for_again_is_answered_again() {
    let world = World::default();
    world.destination("a:80", &["x"]);
    world.endpoints("x", &["1"]);
    let mut session = session(&world);
    session.request(subscribe(&[destination("a:80")])).unwrap();
    settle(&mut session);
    session.request(unsubscribe(&[endpoints("x")])).unwrap();
    session.request(subscribe(&[endpoints("x")])).unwrap();
    assert_eq!(settle(&mut session), ["x"], "named by a Destination all the time");
    session.request(subscribe(&[destination("a:80")])).unwrap();
    assert_eq!(settle(&mut session), ["a:80"], "asked for twice");
    session.request(unsubscribe(&[destination("a:80")])).unwrap();
    assert_eq!(world.0.borrow().subscribed, BTreeSet::new(), "asking again for endpoints does not keep them");
    session.request(subscribe(&[destination("a:80")])).unwrap();
    assert_eq!(settle(&mut session), ["a:80", "x"]);
}

#[test]
fn giving_up_a_name_that_is_on_its_way_does_no_harm() {
    let world = World::default();
    world.destination("a:80", &["x"]);
    world.endpoints("x", &["1"]);
    let mut session = session(&world);
    session.request(subscribe(&[destination("a:80")])).unwrap();
    let response = session.respond().unwrap();
    session.request(unsubscribe(&[destination("a:80")])).unwrap();
    session.request(ack(&response)).unwrap();
    assert_eq!(world.0.borrow().subscribed, BTreeSet::new());
    assert_eq!(session.respond(), None);
}

#[test]
fn an_answer_to_what_was_never_sent_ends_the_stream_and_a_stale_one_is_ignored() {
    let world = World::default();
    let mut session = session(&world);
    session.request(subscribe(&[destination("a:80")])).unwrap();
    let first = session.respond().unwrap();
    session.request(ack(&first)).unwrap();
    session.request(subscribe(&[destination("b:80")])).unwrap();
    session.respond().unwrap();
    session.request(ack(&first)).unwrap();
    assert_eq!(session.unanswered(), Some(2));
    let future = DiscoveryRequest { nonce: 3, ..Default::default() };
    assert_eq!(session.request(future), Err(Misuse::Nonce { answered: 3, last: 2 }));
}

#[test]
fn a_stream_has_a_limit_of_subscriptions() {
    let world = World::default();
    let mut session = session(&world);
    let names: Vec<_> = (0..=MAX_SUBSCRIPTIONS).map(|n| destination(&format!("{n}:80"))).collect();
    session.request(subscribe(&names[..MAX_SUBSCRIPTIONS])).unwrap();
    assert_eq!(session.request(subscribe(&names)), Err(Misuse::TooMany(MAX_SUBSCRIPTIONS + 1)));
}

#[test]
fn a_flood_of_changes_is_sent_in_pieces() {
    let world = World::default();
    let big = "x".repeat(RESPONSE_BYTES / 4);
    let names: Vec<_> = (0..8).map(|n| endpoints(&n.to_string())).collect();
    for name in &names {
        world.endpoints(&name.name, &[&big]);
    }
    let mut session = session(&world);
    session.request(subscribe(&names)).unwrap();
    assert_eq!(session.respond().unwrap().changed.len(), 4);
}

#[test]
fn a_session_that_ends_leaves_no_subscription() {
    let world = World::default();
    world.destination("a:80", &["x"]);
    let mut session = session(&world);
    session.request(subscribe(&[destination("a:80")])).unwrap();
    session.respond().unwrap();
    drop(session);
    assert_eq!(world.0.borrow().subscribed, BTreeSet::new());
}
