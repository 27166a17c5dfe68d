//! Whatever may happen, in any order.

use proptest::prelude::*;

use super::*;

/// What may happen, in any order.
#[derive(Clone, Debug)]
enum Step {
    Subscribe(u8),
    Unsubscribe(u8),
    Destination(u8, Vec<u8>),
    Endpoints(u8, u8),
    Respond,
    Ack,
    Nack,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..4).prop_map(Step::Subscribe),
        (0u8..4).prop_map(Step::Unsubscribe),
        (0u8..4, prop::collection::vec(0u8..4, 0..3))
            .prop_map(|(name, backends)| Step::Destination(name, backends)),
        (0u8..4, 0u8..40).prop_map(|(name, count)| Step::Endpoints(name, count)),
        Just(Step::Respond),
        Just(Step::Respond),
        Just(Step::Ack),
        Just(Step::Ack),
        Just(Step::Nack),
    ]
}

proptest! {
    /// Whatever happens: once all is answered, the sidecar holds the newest state of every Destination that it asked
    /// for and did not refuse, and of every Endpoints that these name.
    #[test]
    fn in_the_end_the_sidecar_has_the_newest_of_what_it_follows(steps in prop::collection::vec(step(), 0..60)) {
        let world = World::default();
        let mut session = session(&world);
        let mut wanted = BTreeSet::new();
        // The sidecar's copies: version and endpoints.
        let mut copies: HashMap<ResourceNameKey, String> = HashMap::new();
        let mut pending: Option<DiscoveryResponse> = None;
        let name = |n: u8| destination(&format!("d{n}:80"));
        let mark = |session: &mut Session<World>, key: Key| session.mark([key].into());
        for step in steps.into_iter().chain([Step::Ack, Step::Respond, Step::Ack, Step::Respond, Step::Ack]) {
            match step {
                Step::Subscribe(n) => {
                    session.request(subscribe(&[name(n)])).unwrap();
                    wanted.insert(n);
                }
                Step::Unsubscribe(n) => {
                    session.request(unsubscribe(&[name(n)])).unwrap();
                    wanted.remove(&n);
                }
                Step::Destination(n, backends) => {
                    let mut backends: Vec<_> = backends.iter().map(|b| format!("e{b}")).collect();
                    backends.sort();
                    backends.dedup();
                    let backends: Vec<_> = backends.iter().map(String::as_str).collect();
                    let key = world.destination(&format!("d{n}:80"), &backends);
                    mark(&mut session, key);
                }
                Step::Endpoints(n, count) => {
                    let addresses: Vec<_> = (0..count).map(|n| n.to_string()).collect();
                    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
                    let key = world.endpoints(&format!("e{n}"), &addresses);
                    mark(&mut session, key);
                }
                Step::Respond => pending = session.respond().or(pending),
                Step::Ack => if let Some(response) = pending.take() {
                    for resource in &response.changed {
                        if let Some(Body::EndpointsDelta(delta)) = &resource.body {
                            let held = copies.get(&key_of(resource.name.as_ref().unwrap()));
                            prop_assert_eq!(held, Some(&delta.base_version), "a difference from what is not held");
                        }
                        copies.insert(key_of(resource.name.as_ref().unwrap()), resource.version.clone());
                    }
                    for absent in &response.absent {
                        copies.insert(key_of(absent), String::new());
                    }
                    session.request(ack(&response)).unwrap();
                },
                Step::Nack => if let Some(response) = pending.take() {
                    let refused = response.changed.iter().map(|r| Refusal { name: r.name.clone(), ..Default::default() });
                    for absent in &response.absent {
                        copies.insert(key_of(absent), String::new());
                    }
                    let refused = refused.collect();
                    session.request(DiscoveryRequest { nonce: response.nonce, refused, ..Default::default() }).unwrap();
                },
            }
        }
        let refused: HashSet<_> = session.report().refused.into_iter().map(|refused| refused.resource).collect();
        for n in wanted {
            let key = Key::Destination { namespace: "shop".into(), name: format!("d{n}:80").into() };
            let state = world.current(&key).unwrap();
            if refused.contains(&describe(&key)) {
                continue;
            }
            prop_assert_eq!(copies.get(&key_of(&name(n))), Some(&state.version));
            for backend in &state.backends {
                if !refused.contains(&describe(backend)) {
                    let newest = &world.current(backend).unwrap().version;
                    prop_assert_eq!(copies.get(&key_of(&backend.name())), Some(newest));
                }
            }
        }
    }
}

type ResourceNameKey = (i32, String);

fn key_of(name: &ResourceName) -> ResourceNameKey {
    (name.r#type, name.name.clone())
}
